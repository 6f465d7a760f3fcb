//! Says that messages became dead letters: at once, then once a minute with how many more.

use std::time::Duration;

use actix::prelude::*;

use super::BatcherActor;
use crate::messages::Flushed;

/// Longer tells later of more; shorter fills the log while a publisher sends nothing else.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Dead letters that nobody was told of yet.
#[derive(Debug, Default)]
pub(super) struct Untold {
    num_letters: u64,
    /// A line was written less than [`TELL_EVERY`] ago.
    is_waiting: bool,
}

impl Untold {
    /// Adds some; how many to tell of now, if it is time.
    fn add(&mut self, num_letters: u64) -> Option<u64> {
        self.num_letters += num_letters;
        if self.is_waiting { None } else { self.take() }
    }

    /// How many to tell of now that [`TELL_EVERY`] is over.
    fn take(&mut self) -> Option<u64> {
        let num_letters = std::mem::take(&mut self.num_letters);
        self.is_waiting = num_letters > 0;
        self.is_waiting.then_some(num_letters)
    }
}

impl BatcherActor {
    /// Notes the dead letters of a batch. A run that comes to an end counts them there instead.
    pub(super) fn note_letters(&mut self, flushed: &Flushed, ctx: &mut Context<Self>) {
        if self.settings.pauses_when_refused {
            let told = self.untold.add(flushed.dead_lettered());
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
            Self::tell_of_letters(actor.untold.take(), ctx);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_at_once_then_once_a_minute_of_all_that_came_since() {
        let mut untold = Untold::default();
        assert_eq!(untold.add(0), None);
        assert_eq!(untold.add(2), Some(2));
        assert_eq!([untold.add(3), untold.add(4)], [None, None]);
        assert_eq!(untold.take(), Some(7), "the minute is over");
        assert_eq!(untold.take(), None, "nothing came in the next one");
        assert_eq!(untold.add(1), Some(1), "so the next is told at once");
    }
}
