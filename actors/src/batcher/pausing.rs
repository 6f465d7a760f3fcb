//! What a batcher does about a store that refuses nearly everything: what [`Refusals`] decides.
//!
//! [`Refusals`]: crate::refusals::Refusals

use actix::prelude::*;
use tokio::time::Instant;

use super::BatcherActor;
use crate::messages::Flushed;
use crate::refusals::Change;

impl BatcherActor {
    /// Whether only probes go out and none is read beyond them. A drain ends that: what is held is
    /// written, refused or not.
    pub(super) fn is_paused(&self) -> bool {
        self.refusals.is_paused() && !self.is_draining
    }

    /// Whether nothing may go out now, because reading pauses and the last probe was just now or is
    /// still under way.
    pub(super) fn waits_for_probe(&mut self, now: Instant, ctx: &mut Context<Self>) -> bool {
        if !self.is_paused() {
            return false;
        }
        let may_write = self.refusals.may_write(now);
        if let Err(at) = may_write {
            self.wake_at(at, ctx);
        }
        may_write.is_err() || self.is_writing()
    }

    /// While reading pauses and nothing is held, lets one source read what a probe needs.
    pub(super) fn read_a_probe(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if !self.is_paused() || self.asking.is_empty() {
            return;
        }
        match self.refusals.take_permit(now, fastrand::f64()) {
            Ok(()) => self.grant_to(1),
            Err(at) => self.wake_at(at, ctx),
        }
    }

    /// Notes what the store refused, and says when reading pauses and when it goes on.
    pub(super) fn judge(&mut self, flushed: &Flushed) {
        if !self.settings.pauses_when_refused {
            return;
        }
        let now = Instant::now();
        match self.refusals.committed(flushed, now, fastrand::f64()) {
            None => {}
            Some(Change::Paused { refused, of }) => {
                let why = format!(
                    "reading pauses: the database refused {refused} of the last {of} events, which \
                     are dead letters now; see why with `event-persister dead-letters list --stage \
                     store` and mend the database; reading goes on by itself once it accepts events"
                );
                log::error!("{why}");
                self.parts.refusals.failed(why, self.parts.clock.now());
                self.parts.metrics.set_reading_paused(true);
            }
            Some(Change::Resumed { after, refused }) => {
                log::info!(
                    "reading goes on: the database accepts events again paused_for={after:?} \
                     refused={refused}"
                );
                self.reads_on();
            }
        }
    }

    pub(super) fn reads_on(&self) {
        self.parts.refusals.succeeded();
        self.parts.metrics.set_reading_paused(false);
    }
}
