//! What systemd tells a service by variables. They are no settings: an operator sets them in the unit.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Supervisor {
    /// The socket to tell it by: a path, or `@` and a name without a file.
    pub(crate) notify_socket: Option<OsString>,
    /// After how long without a word it takes the service for dead.
    pub(crate) watchdog: Option<Duration>,
}

impl Supervisor {
    pub(crate) fn of_environment() -> Self {
        Self::of(std::env::vars_os(), std::process::id())
    }

    fn of(environment: impl IntoIterator<Item = (OsString, OsString)>, process: u32) -> Self {
        let environment: HashMap<OsString, OsString> = environment.into_iter().collect();
        let get = |name: &str| environment.get(OsStr::new(name));
        // Variables are inherited: the watchdog may be another process's.
        let is_ours = get("WATCHDOG_PID").is_none_or(|pid| *pid == *process.to_string());
        Self {
            notify_socket: get("NOTIFY_SOCKET")
                .filter(|name| !name.is_empty())
                .cloned(),
            watchdog: get("WATCHDOG_USEC").filter(|_| is_ours).and_then(micros),
        }
    }
}

fn micros(value: &OsString) -> Option<Duration> {
    let micros = value.to_str()?.parse().ok()?;
    Some(Duration::from_micros(micros)).filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Supervisor {
        let variables = variables.iter();
        Supervisor::of(
            variables.map(|(name, value)| (name.into(), value.into())),
            7,
        )
    }

    #[test]
    fn only_what_is_meant_for_this_process_counts() {
        assert_eq!(of(&[("HOME", "/")]), Supervisor::default());
        let minute = Some(Duration::from_secs(60));
        let usec = ("WATCHDOG_USEC", "60000000");
        assert_eq!(of(&[usec]).watchdog, minute);
        assert_eq!(of(&[usec, ("WATCHDOG_PID", "7")]).watchdog, minute);
        assert_eq!(of(&[("WATCHDOG_PID", "8"), usec]).watchdog, None);
        for wrong in ["", "0", "soon", "-1"] {
            assert_eq!(of(&[("WATCHDOG_USEC", wrong)]).watchdog, None, "{wrong}");
        }
        let socket = of(&[("NOTIFY_SOCKET", "@name")]).notify_socket;
        assert_eq!(socket, Some("@name".into()));
        assert_eq!(of(&[("NOTIFY_SOCKET", "")]).notify_socket, None);
    }
}
