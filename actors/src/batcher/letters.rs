//! Says that messages became dead letters: at once, then once a minute with how many more.

use actix::prelude::*;
use tokio::time::Instant;

use super::BatcherActor;
use crate::messages::Flushed;
use crate::untold::TELL_EVERY;

impl BatcherActor {
    /// Notes the dead letters of a batch. A run that comes to an end counts them there instead.
    pub(super) fn note_letters(&mut self, flushed: &Flushed, ctx: &mut Context<Self>) {
        if self.settings.pauses_when_refused {
            let told = self.untold.add(flushed.dead_lettered(), Instant::now());
            Self::tell_of_letters(told, ctx);
        }
    }

    fn tell_of_letters(num_letters: Option<u64>, ctx: &mut Context<Self>) {
        let Some(num_letters) = num_letters else {
            return;
        };
        log::warn!(
            "messages were refused and are kept as dead letters; `event-persister dead-letters list` \
             shows why letters={num_letters}"
        );
        ctx.run_later(TELL_EVERY, |actor, ctx| {
            Self::tell_of_letters(actor.untold.due(Instant::now()), ctx);
        });
    }
}
