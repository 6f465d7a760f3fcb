//! What this process knows of its servers: where it was last, which of them are silent, and which one takes the
//! events.
//!
//! A silent server costs its whole time limit, so it is tried after all others for a while.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::reach::Resolved;
use super::url::Address;
use crate::lock::lock;
use crate::primary::KnownPrimary;

/// For so long a silent server is tried last. Longer stays away from one that is back, shorter waits for one
/// that is not.
const TRIED_LAST_FOR: Duration = Duration::from_secs(60);

/// Shared by all connections that are made with clones of the same settings.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    known: Arc<Mutex<Known>>,
    primary: KnownPrimary,
}

#[derive(Debug, Default)]
struct Known {
    seen: Vec<(Resolved, Seen)>,
    used: Option<Resolved>,
    is_surveyed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Seen {
    Heard(Instant),
    Silent(Instant),
}

impl Seen {
    fn is_silent(self) -> bool {
        matches!(self, Self::Silent(since) if since.elapsed() < TRIED_LAST_FOR)
    }
}

impl Servers {
    pub(super) fn heard(&self, server: &Resolved) {
        let mut known = lock(&self.known);
        known.see(server, Seen::Heard(Instant::now()));
        if known.used.as_ref() != Some(server) {
            known.used = Some(server.clone());
        }
    }

    pub(super) fn found_silent(&self, server: &Resolved) {
        lock(&self.known).see(server, Seen::Silent(Instant::now()));
    }

    pub(super) fn heard_at(&self, server: &Resolved) -> Option<Instant> {
        let known = lock(&self.known);
        let (_, seen) = known.seen.iter().find(|(of, _)| of == server)?;
        match seen {
            Seen::Heard(at) => Some(*at),
            Seen::Silent(_) => None,
        }
    }

    pub(super) fn is_silent(&self, server: &Resolved) -> bool {
        self.any_is_silent(|of| of == server)
    }

    /// Whether one of the numbers of this address is.
    pub(super) fn has_silent(&self, address: &Address) -> bool {
        self.any_is_silent(|of| of.is_at(address))
    }

    fn any_is_silent(&self, is_meant: impl Fn(&Resolved) -> bool) -> bool {
        let known = lock(&self.known);
        let mut meant = known.seen.iter().filter(|(server, _)| is_meant(server));
        meant.any(|(_, seen)| seen.is_silent())
    }

    /// The one that takes the events; a source may share it, so that replicas agree on it.
    pub fn primary(&self) -> KnownPrimary {
        self.primary.clone()
    }

    /// The server that was used last and the primary that is known, as an operator's commands tell them.
    pub fn told(&self) -> Option<String> {
        let used = self.used()?;
        Some(match self.primary.get() {
            Some(primary) => format!("{used}, {primary}"),
            None => used.to_string(),
        })
    }

    /// Whether nobody has looked yet for the latest of several.
    pub(super) fn begin_survey(&self) -> bool {
        !std::mem::replace(&mut lock(&self.known).is_surveyed, true)
    }

    /// The server that a connection was at last.
    pub(super) fn used(&self) -> Option<Resolved> {
        lock(&self.known).used.clone()
    }
}

impl Known {
    fn see(&mut self, server: &Resolved, seen: Seen) {
        match self.seen.iter_mut().find(|(of, _)| of == server) {
            Some((_, before)) => *before = seen,
            None => self.seen.push((server.clone(), seen)),
        }
    }
}

/// It is no setting: two that were set alike are alike, whatever happened since.
impl PartialEq for Servers {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Servers {}

#[cfg(test)]
mod tests {
    use super::super::url::PostgresUrl;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_tried_last_for_a_while_or_until_it_is_heard_of() {
        let servers = Servers::default();
        let url: PostgresUrl = "postgresql://h:5432,h:5433/d".parse().unwrap();
        let [address, other] = url.addresses() else {
            panic!("{url:?}");
        };
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|number| {
            let number = Some(number.parse().unwrap());
            Resolved::new(address, number)
        });
        servers.heard(&two);
        servers.found_silent(&one);
        assert!(servers.is_silent(&one) && !servers.is_silent(&two));
        assert!(servers.has_silent(address) && !servers.has_silent(other));
        assert_eq!(servers.heard_at(&one), None);
        assert_eq!(servers.used(), Some(two));
        tokio::time::advance(TRIED_LAST_FOR).await;
        assert!(!servers.is_silent(&one));
        servers.found_silent(&one);
        servers.heard(&one);
        assert!(!servers.is_silent(&one));
        assert_eq!(servers.heard_at(&one), Some(Instant::now()));
    }
}
