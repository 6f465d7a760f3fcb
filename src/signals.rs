//! The signals that end the process: the first in good order, the second at once.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Faster than any person, slower than any supervisor's loop.
const ECHO: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// From a person at a terminal.
    Interrupt,
    Terminate,
}

impl Stop {
    /// By the convention of shells, 128 and the signal's number.
    fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Listens for both from the moment at which it is made.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }

    /// From now on any signal ends the process at once, but for an echo of the first: some
    /// supervisors send it to the process and then to its whole group.
    pub(crate) fn next_is_final(mut self) {
        let started = Instant::now();
        actix_rt::spawn(async move {
            let mut stop = self.next().await;
            while started.elapsed() < ECHO {
                stop = self.next().await;
            }
            log::warn!("{stop} again; stopping at once, without waiting for what is held");
            std::process::exit(stop.exit_code());
        });
    }
}
