//! The task beside the reads: says that messages are still being worked on, acknowledges once more what was not
//! confirmed, and looks at the stream.
//!
//! It runs from the first read until the source is closed or dropped, and keeps nothing alive: while the
//! pipeline is full nobody reads, and what is in flight must be kept all the same.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::source::SourceError;
use crate::status::error_chain;

use super::member::Member;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const CONFIRM_EVERY: Duration = Duration::from_secs(2);

/// Well below the third of the shortest time that a server waits.
const KEEP_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Hold,
    Confirm,
    Look,
}

async fn keep(member: Weak<Member>) {
    join_all([Duty::Hold, Duty::Confirm, Duty::Look].map(|duty| repeat(&member, duty))).await;
}

/// Each has its own turns: one that fails or hangs keeps no other from its turn.
async fn repeat(member: &Weak<Member>, duty: Duty) {
    let every = match duty {
        Duty::Hold => KEEP_EVERY,
        Duty::Confirm => CONFIRM_EVERY,
        Duty::Look => LOOK_EVERY,
    };
    let mut is_told = false;
    loop {
        sleep(every).await;
        let Some(member) = member.upgrade() else {
            return;
        };
        let (is_closed, had_joined) = {
            let reading = member.reading();
            (reading.is_closed, reading.had_joined)
        };
        if is_closed {
            return;
        }
        // Before the first read there is nothing to keep.
        if !had_joined {
            continue;
        }
        match member.run(duty).await {
            Ok(()) => is_told = false,
            Err(error) => {
                // Where the reads fail too, they say so.
                let level = match is_told || member.reading().is_fetching {
                    false => log::Level::Warn,
                    true => log::Level::Debug,
                };
                is_told |= level == log::Level::Warn;
                let error = error_chain(&error);
                log::log!(
                    level,
                    "what keeps the source going failed; trying again error={error}"
                );
            }
        }
    }
}

impl Member {
    pub(super) fn start_keeper(self: &Arc<Self>) -> AbortHandle {
        tokio::spawn(keep(Arc::downgrade(self))).abort_handle()
    }

    async fn run(&self, duty: Duty) -> Result<(), SourceError> {
        match duty {
            Duty::Hold => {
                let kept = self.keep_held().await;
                kept.map_err(|error| self.failed("keeping what is held", error))
            }
            // One that is under way may only be slow.
            Duty::Confirm if self.acknowledging.try_lock().is_err() => Ok(()),
            Duty::Confirm => self.send_committed().await,
            Duty::Look => {
                let looked = async { self.look(&self.connections.link().await?).await };
                let looked = looked.await;
                looked.map_err(|error| self.failed("looking at the stream and its consumer", error))
            }
        }
    }
}
