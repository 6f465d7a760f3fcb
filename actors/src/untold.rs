//! Counts what is told in one log line at once, and then once a minute with how many more: where each
//! could be a line, a busy stream would fill the disk.

use std::time::Duration;

use tokio::time::Instant;

/// Longer tells later of more; shorter fills the log while nothing else happens.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(60);

/// What nobody was told of yet.
#[derive(Debug, Default)]
pub(crate) struct Untold {
    num: u64,
    /// When a line was written last, if less than [`TELL_EVERY`] ago when it was last looked at.
    told_at: Option<Instant>,
}

impl Untold {
    /// Adds some; how many to tell of now, if it is time.
    pub(crate) fn add(&mut self, num: u64, now: Instant) -> Option<u64> {
        self.num = self.num.saturating_add(num);
        self.due(now)
    }

    /// How many to tell of now, if it is time and there are any.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |at: Instant| now.duration_since(at) < TELL_EVERY;
        if self.told_at.is_some_and(is_recent) {
            return None;
        }
        self.told_at = (self.num > 0).then_some(now);
        self.rest()
    }

    /// How many to tell of now that nobody will be told later.
    pub(crate) fn rest(&mut self) -> Option<u64> {
        let num = std::mem::take(&mut self.num);
        (num > 0).then_some(num)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_at_once_then_once_a_minute_of_all_that_came_since() {
        let mut untold = Untold::default();
        let began = Instant::now();
        assert_eq!(untold.add(0, began), None);
        assert_eq!(untold.add(2, began), Some(2));
        let soon = began + TELL_EVERY / 2;
        assert_eq!([untold.add(3, soon), untold.add(4, soon)], [None, None]);
        let over = began + TELL_EVERY;
        assert_eq!(untold.due(over), Some(7), "the minute is over");
        assert_eq!(untold.due(over + TELL_EVERY), None, "nothing came since");
        let next = over + TELL_EVERY;
        assert_eq!(untold.add(1, next), Some(1), "so the next is told at once");
        assert_eq!(untold.add(5, next), None);
        assert_eq!(untold.rest(), Some(5), "at the end");
        assert_eq!(untold.rest(), None);
    }
}
