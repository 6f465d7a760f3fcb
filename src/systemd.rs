//! Tells systemd how the service is (`Type=notify`); without a socket nothing is told.
//!
//! The watchdog is told for as long as the pipeline answers: that the process is alive says nothing.
//!
//! *Why no crate?* `sd-notify` 0.5 does not reach sockets without a file, which systemd gives to services in
//! containers, and its sends block: a systemd that does not read would hold the service up.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::time::Duration;

use event_persister_actors::status::PipelineStatus;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::config::Supervisor;
use crate::output;
use crate::serve::Pipelines;

const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Each answer of the pipeline buys this much time for the first readiness: a database that is away is no
/// reason to start the service over.
const EXTEND_START_BY: Duration = Duration::from_secs(30);

/// Tells systemd; tells nothing where systemd does not ask for it.
pub(crate) struct Notifier(Option<Rc<Socket>>);

impl Notifier {
    pub(crate) fn start(supervisor: Supervisor, pipelines: Pipelines) -> Self {
        let Some(name) = supervisor.notify_socket else {
            return Self(None);
        };
        match Socket::open(&name) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let report = Report::new(supervisor.watchdog);
                actix_rt::spawn(keep_telling(Rc::clone(&socket), pipelines, report));
                Self(Some(socket))
            }
            Err(error) => {
                log::warn!("cannot tell systemd anything socket={name:?} error={error}");
                Self(None)
            }
        }
    }

    /// The end has begun; the watchdog is still told.
    pub(crate) fn stopping(&self) {
        if let Some(socket) = &self.0 {
            socket.tell("STOPPING=1");
        }
    }
}

async fn keep_telling(socket: Rc<Socket>, pipelines: Pipelines, mut report: Report) {
    let mut ticks = interval(report.ask_every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A pipeline that does not answer is not called alive, and systemd starts the service over.
        if let Ok(Ok(status)) = timeout(ANSWERS_WITHIN, pipelines.status()).await {
            let lines = report.lines(&status, Instant::now());
            if !lines.is_empty() {
                socket.tell(&lines.join("\n"));
            }
        }
    }
}

struct Report {
    watchdog: Option<Duration>,
    was_ready: bool,
    status: String,
    told_alive: Option<Instant>,
}

impl Report {
    fn new(watchdog: Option<Duration>) -> Self {
        Self {
            watchdog,
            was_ready: false,
            status: String::new(),
            told_alive: None,
        }
    }

    /// Half of the watchdog's patience, so that one datagram may come late.
    fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    fn ask_every(&self) -> Duration {
        self.alive_every()
            .map_or(ASK_EVERY, |every| every.min(ASK_EVERY))
    }

    /// The lines for changes, and those that are due.
    fn lines(&mut self, status: &PipelineStatus, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.was_ready {
            if status.ready {
                self.was_ready = true;
                lines.push("READY=1".to_owned());
            } else {
                let micros = EXTEND_START_BY.as_micros();
                lines.push(format!("EXTEND_TIMEOUT_USEC={micros}"));
            }
        }
        let text = match &status.reason {
            None => "ready".to_owned(),
            Some(reason) => format!("not ready: {}", output::one_line(reason)),
        };
        if self.status != text {
            lines.push(format!("STATUS={text}"));
            self.status = text;
        }
        if self.is_alive_due(now) {
            self.told_alive = Some(now);
            lines.push("WATCHDOG=1".to_owned());
        }
        lines
    }

    fn is_alive_due(&self, now: Instant) -> bool {
        let Some(every) = self.alive_every() else {
            return false;
        };
        self.told_alive
            .is_none_or(|told| now.duration_since(told) + self.ask_every() > every)
    }
}

struct Socket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Socket {
    fn open(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => without_file(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    fn tell(&self, lines: &str) {
        if let Err(error) = self.socket.send_to_addr(lines.as_bytes(), &self.address) {
            log::debug!("cannot tell systemd how the service is error={error}");
        }
    }
}

#[cfg(target_os = "linux")]
fn without_file(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;

    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn without_file(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use event_persister_actors::metrics::LedgerCounts;
    use event_persister_actors::status::RetentionStatus;

    use super::*;

    fn status(reason: Option<&str>) -> PipelineStatus {
        PipelineStatus {
            ready: reason.is_none(),
            reason: reason.map(str::to_owned),
            degraded: None,
            generation: 1,
            draining: false,
            components: Vec::new(),
            warnings: Vec::new(),
            ledger: LedgerCounts::default(),
            oldest_unflushed: None,
            retention: RetentionStatus::default(),
        }
    }

    #[test]
    fn ready_is_told_once_and_every_change_of_what_it_is_doing() {
        let mut report = Report::new(None);
        let now = Instant::now();
        let extend = "EXTEND_TIMEOUT_USEC=30000000";
        let away = status(Some("store: away\nfor good"));
        let first = report.lines(&away, now);
        assert_eq!(first, [extend, "STATUS=not ready: store: away\\nfor good"]);
        assert_eq!(report.lines(&away, now), [extend]);
        assert_eq!(
            report.lines(&status(None), now),
            ["READY=1", "STATUS=ready"]
        );
        assert!(report.lines(&status(None), now).is_empty());
        let again = report.lines(&away, now);
        assert_eq!(again, ["STATUS=not ready: store: away\\nfor good"]);
        assert_eq!(report.lines(&status(None), now), ["STATUS=ready"]);
    }

    #[test]
    fn alive_is_told_at_half_of_the_patience_at_the_latest() {
        for patience in [100, 1_999, 2_000, 10_000, 31_000] {
            let patience = Duration::from_millis(patience);
            let mut report = Report::new(Some(patience));
            let ask_every = report.ask_every();
            assert!(ask_every <= patience / 2 && ask_every <= ASK_EVERY);
            let (mut now, mut last) = (Instant::now(), None);
            for _ in 0..100 {
                let told = report
                    .lines(&status(None), now)
                    .contains(&"WATCHDOG=1".to_owned());
                if told {
                    let since = last.map_or(Duration::ZERO, |last| now - last);
                    assert!(since <= patience / 2, "{since:?} of {patience:?}");
                    last = Some(now);
                }
                now += ask_every;
            }
            assert!(last.is_some());
        }
    }
}
