//! Partitions for what is about to be written.
//!
//! A writer looks now and then which there are, makes the next ones ahead, and makes those of a batch that
//! are missing. That is a help to retention and never in the way of a batch: where one cannot be made,
//! its events go to the default partition, out of which they move when it is made later.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use tokio::time::Instant;

use super::layout::{Layout, beginning, layout};
use super::make::{Made, make, make_ahead, periods_without};
use super::{Connection, Failure};
use crate::store::Period;
use crate::store::postgres::rows::Moment;

/// How long a writer believes what it saw. Longer, and it is late to know that the tables were partitioned,
/// or that retention dropped a partition; shorter costs a question more often.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// How many partitions a batch makes at most: each takes some milliseconds, in which its events wait.
const AT_MOST: usize = 4;

/// How many rows are moved out of a default partition in passing.
const MOVED_IN_PASSING: i64 = 20_000;

/// After an attempt that came to nothing. Shorter makes batches wait for locks more often.
const NEXT_ATTEMPT: Duration = Duration::from_secs(10);

/// After an error, which somebody should see to.
const AFTER_AN_ERROR: Duration = Duration::from_secs(60);

/// The partitions, as one connection knows them.
#[derive(Debug, Default)]
pub(in crate::store::postgres) struct Known {
    looked: Option<Instant>,
    layout: Option<Layout>,
    not_before: Option<Instant>,
}

impl Known {
    fn is_stale(&self, now: Instant) -> bool {
        self.looked
            .is_none_or(|looked| now.duration_since(looked) >= BELIEVED_FOR)
    }

    fn may_try(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|moment| moment <= now)
    }
}

impl Connection {
    /// Makes what the moments of a batch need, as far as that is possible.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    pub(in crate::store::postgres) async fn provide_partitions(
        &mut self,
        moments: impl Iterator<Item = Moment>,
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let Err(failure) = self.try_to_provide(moments, now).await else {
            return Ok(());
        };
        if !failure.is_before_commit() || self.is_lost().await {
            return Err(failure);
        }
        let now = Instant::now();
        self.partitions.not_before = Some(now + AFTER_AN_ERROR);
        self.partitions.looked.get_or_insert(now);
        log::warn!(
            "partitions cannot be looked after; events without one go to the default partition \
             error={failure:?}"
        );
        Ok(())
    }

    async fn try_to_provide(
        &mut self,
        moments: impl Iterator<Item = Moment>,
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let mut wanted = Vec::new();
        if self.partitions.is_stale(Instant::now()) {
            self.look_at_partitions().await?;
            wanted = self.wanted(|layout, period| make_ahead(layout, period, now));
        }
        let missing =
            self.wanted(|layout, period| periods_without(layout, period, moments, now, AT_MOST));
        for start in missing {
            if !wanted.contains(&start) {
                wanted.push(start);
            }
        }
        for start in wanted {
            if !self.partitions.may_try(Instant::now()) {
                break;
            }
            self.make_partition(start).await?;
        }
        Ok(())
    }

    fn wanted(&self, periods: impl FnOnce(&Layout, Period) -> Vec<NaiveDate>) -> Vec<NaiveDate> {
        let layout = self.partitions.layout.as_ref();
        let layout = layout.filter(|layout| layout.may_make);
        let with_period = layout.and_then(|layout| Some((layout, layout.period?)));
        with_period.map_or_else(Vec::new, |(layout, period)| periods(layout, period))
    }

    async fn make_partition(&mut self, start: NaiveDate) -> Result<(), Failure> {
        let layout = self.partitions.layout.clone();
        let Some((layout, period)) = layout.and_then(|one| Some((one.clone(), one.period?))) else {
            return Ok(());
        };
        match make(self, &layout, period, start, Some(MOVED_IN_PASSING)).await? {
            Made::Yes | Made::ThereAlready => self.look_at_partitions().await?,
            Made::NotNow => {}
        }
        let moment = Moment::new(beginning(start));
        let layout = self.partitions.layout.as_ref();
        // A lock, or a table of that name that is no partition.
        if layout.is_some_and(|layout| !layout.has_partition_for(moment)) {
            self.partitions.not_before = Some(Instant::now() + NEXT_ATTEMPT);
            log::debug!("a partition cannot be made now; it is tried again start={start}");
        }
        Ok(())
    }

    async fn look_at_partitions(&mut self) -> Result<(), Failure> {
        self.begin().await?;
        let layout = layout(self).await?;
        self.roll_back().await?;
        self.partitions.layout = layout;
        self.partitions.looked = Some(Instant::now());
        Ok(())
    }
}
