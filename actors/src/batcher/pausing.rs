//! What a batcher does about a store that refuses nearly everything: what [`Refusals`] decides.
//!
//! [`Refusals`]: crate::refusals::Refusals

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::BatcherActor;
use crate::batch::{Batch, BatchId};
use crate::messages::{Flush, Flushed, Purpose};
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

    /// While reading pauses and nothing is held, lets one source read what a probe needs. Where none has
    /// anything, the event that was refused last is tried, and rolled back.
    pub(super) fn read_a_probe(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if !self.is_paused() {
            return;
        }
        match self.refusals.take_permit(now, fastrand::f64()) {
            Ok(()) => {
                self.grant_to(1);
                self.rehearse(ctx);
                if let Err(at) = self.refusals.take_permit(now, fastrand::f64()) {
                    self.wake_at(at, ctx);
                }
            }
            Err(at) => self.wake_at(at, ctx),
        }
    }

    /// Tries the event that was refused last, and leaves nothing behind.
    fn rehearse(&mut self, ctx: &mut Context<Self>) {
        let writer = self.writers.iter().find(|writer| writer.is_idle());
        let (Some(refused), Some(writer), false) = (&self.refused, writer, self.is_rehearsing)
        else {
            return;
        };
        self.is_rehearsing = true;
        // Nobody tells what comes next.
        let (_, upcoming) = oneshot::channel();
        let rehearsal = writer.recipient.send(Flush {
            batch: Arc::new(Batch::new(BatchId(0), vec![Arc::clone(refused)])),
            purpose: Purpose::Rehearse,
            template: None,
            upcoming,
        });
        ctx.spawn(rehearsal.into_actor(self).map(|reply, actor, ctx| {
            actor.is_rehearsing = false;
            let was_taken =
                matches!(&reply, Ok(Ok(taken)) if taken.inserted + taken.duplicates > 0);
            let change = actor.refusals.rehearsed(was_taken, Instant::now());
            actor.tell_of_pause(change);
            actor.grant();
            actor.pump(ctx);
        }));
    }

    /// Notes what the store refused, and says when reading pauses and when it goes on.
    pub(super) fn judge(&mut self, flushed: &Flushed) {
        if !self.settings.pauses_when_refused {
            return;
        }
        let now = Instant::now();
        let change = self.refusals.committed(flushed, now, fastrand::f64());
        self.tell_of_pause(change);
    }

    fn tell_of_pause(&mut self, change: Option<Change>) {
        match change {
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
