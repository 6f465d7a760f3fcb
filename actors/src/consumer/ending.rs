//! The end of the reading: the source's own, or because the pipeline stops.

use actix::prelude::*;

use super::{ConsumerActor, Stage};
use crate::messages::{AwaitEnd, StopReading};
use crate::source::Permit;
use crate::waiters::Owed;

impl ConsumerActor {
    /// Reads what the source has taken and not handed out, then stops.
    ///
    /// It is in memory already, and stays in flight if it is left: so no permit is needed.
    pub(super) fn read_the_rest(&mut self, ctx: &mut Context<Self>) {
        self.is_stopping = true;
        if self.source.end_reading() {
            self.read(Permit::UNLIMITED, ctx);
        } else {
            self.stop_reading();
        }
    }

    pub(super) fn source_ended(&mut self) {
        self.parts.component.ended();
        self.stage = Stage::Ended;
        self.ending.answer(&());
        self.stopping.answer(&());
    }

    pub(super) fn stop_reading(&mut self) {
        self.stage = Stage::Stopped;
        self.stopping.answer(&());
    }
}

impl Handler<StopReading> for ConsumerActor {
    type Result = Owed<()>;

    fn handle(&mut self, _: StopReading, ctx: &mut Self::Context) -> Self::Result {
        let reply = self.stopping.wait();
        self.is_stopping = true;
        self.note_end();
        match self.stage {
            Stage::AtSource(_) if self.source.end_reading() => {}
            // What the read may have taken stays with the source.
            Stage::AtSource(handle) => {
                ctx.cancel_future(handle);
                self.stop_reading();
            }
            Stage::BetweenReads(handle) => {
                ctx.cancel_future(handle);
                self.read_the_rest(ctx);
            }
            // The batcher would not know whom to tell what of the rest is durable.
            Stage::Rewinding(handle) => {
                ctx.cancel_future(handle);
                self.source.end_reading();
                self.stop_reading();
            }
            Stage::AtAcks(_) => self.read_the_rest(ctx),
            Stage::Ended | Stage::Stopped => self.stopping.answer(&()),
            Stage::AtBatcher => {}
        }
        reply
    }
}

impl Handler<AwaitEnd> for ConsumerActor {
    type Result = Owed<()>;

    fn handle(&mut self, _: AwaitEnd, _: &mut Self::Context) -> Self::Result {
        let reply = self.ending.wait();
        if matches!(self.stage, Stage::Ended) {
            self.ending.answer(&());
        }
        reply
    }
}
