//! Partitions for what is about to be written.
//!
//! A writer looks now and then which there are, makes the next ones ahead, and makes those of a batch that
//! are missing. That is a help to retention and never in the way of a batch: where one cannot be made,
//! its events go to the default partition, out of which they move when it is made later.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use tokio::time::Instant;

use super::bound::lift_near;
use super::layout::{Layout, beginning, layout};
use super::make::{Effort, Made, make, make_ahead, periods_without};
use super::{Connection, Failure};
use crate::status::error_chain;
use crate::store::Period;
use crate::store::postgres::rows::Moment;
use crate::store::postgres::settings::PostgresSettings;

/// How long a writer believes what it saw. Longer, and it is late to know that the tables were partitioned,
/// or that retention dropped a partition; shorter costs a question more often.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// How many partitions a batch makes at most: each takes some milliseconds, in which its events wait.
const AT_MOST: usize = 4;

/// After an attempt that came to nothing. Shorter makes batches wait for locks more often.
const NEXT_ATTEMPT: Duration = Duration::from_secs(10);

/// After an error, which somebody should see to.
const AFTER_AN_ERROR: Duration = Duration::from_secs(60);

/// So many times as long as the attempt took: a look through a default partition that holds very much may take
/// as long as any statement may, and readers of that partition wait meanwhile.
const TIMES_AS_LONG: u32 = 20;

/// For so long a period is left to `migrate` of which too much is in the default partition. Retention may empty
/// that too.
const LEFT_FOR: Duration = Duration::from_secs(3_600);

/// The partitions, as one connection knows them.
#[derive(Debug, Default)]
pub(in crate::store::postgres) struct Known {
    looked: Option<Instant>,
    layout: Option<Layout>,
    not_before: Option<Instant>,
    /// Of these too much is in the default partition, and was when last looked for.
    left_to_migrate: BTreeMap<NaiveDate, Instant>,
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
    /// Makes what the moments of a batch need, as far as that is possible. Where the tables are not partitioned,
    /// it sees to it that what a migration has left does no harm.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    pub(in crate::store::postgres) async fn provide_partitions(
        &mut self,
        settings: &PostgresSettings,
        moments: impl Iterator<Item = Moment>,
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let Err(failure) = self.try_to_provide(moments, now).await else {
            return Ok(());
        };
        if !failure.is_before_commit() || self.is_lost().await {
            return Err(failure);
        }
        let now = Instant::now();
        let pause = AFTER_AN_ERROR.max(began.elapsed() * TIMES_AS_LONG);
        self.partitions.not_before = Some(now + pause);
        self.partitions.looked = Some(now);
        let error = failure.into_store_error("make partitions in", &settings.place(), None);
        log::warn!(
            "partitions cannot be looked after; events without one go to the default partition, and \
             `event-persister migrate --partition-by` makes theirs error={}",
            error_chain(&error)
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
            if self.partitions.layout.is_none() && self.partitions.may_try(Instant::now()) {
                self.lift_near_bound(now).await?;
            }
            wanted = self.wanted(|layout, period| make_ahead(layout, period, now));
        }
        let missing =
            self.wanted(|layout, period| periods_without(layout, period, moments, now, AT_MOST));
        for start in missing {
            if !wanted.contains(&start) {
                wanted.push(start);
            }
        }
        let left = &mut self.partitions.left_to_migrate;
        left.retain(|_, since| since.elapsed() < LEFT_FOR);
        wanted.retain(|start| !left.contains_key(start));
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
        match make(self, &layout, period, start, Effort::InPassing).await? {
            Made::Yes | Made::ThereAlready => self.look_at_partitions().await?,
            Made::NotNow => {}
            Made::TooMuch => {
                let left = &mut self.partitions.left_to_migrate;
                left.insert(start, Instant::now());
                let period = period.as_str();
                log::warn!(
                    "too many events of the {period} that begins with {start} are in the default partition to \
                     be moved beside writing; run `event-persister migrate --partition-by {period}`"
                );
                return Ok(());
            }
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

    async fn lift_near_bound(&mut self, now: DateTime<Utc>) -> Result<(), Failure> {
        self.begin().await?;
        if !lift_near(self, now).await? {
            return self.roll_back().await;
        }
        self.commit().await?;
        log::warn!(
            "`migrate --partition-by` has not come to its end, and its bound was near: it was lifted; run it \
             again"
        );
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
