//! Deletes what retention no longer keeps, a bounded number of events at a time.
//!
//! Every search follows an index from the oldest row on, so that a step costs the same whatever is
//! kept. One transaction a step, under a lock that only one trimmer has. Its commit does not wait for
//! the disk: a deletion that a crash of the server undoes is made again by the next pass.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::dsl::{exists, not};
use diesel::pg::Pg;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::query_builder::{QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Timestamptz};
use diesel_async::methods::{ExecuteDsl, LoadQuery};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::columns::Moment;
use super::connection::Connection;
use super::failure::Failure;
use super::schema::{event_resources, events};
use crate::store::{Cutoffs, TrimStep, Trimmed};

/// Events that a step removes at most while batches are written: a commit waits until all that was
/// logged before it, also by others, is on disk.
pub(super) const GENTLE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);
/// How long to rest after such a step, of the time that it took.
pub(super) const REST: f64 = 1.0;

/// Where the next search goes on among events without a cutoff of their own.
///
/// Names that are kept longer leave rows behind the default cutoff; without this every step would
/// pass over all of them again.
pub(super) type Resume = Option<Candidate>;

/// When an event occurred, and its id: the order in which events are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Queryable)]
pub(super) struct Candidate {
    #[diesel(deserialize_as = PgTimestamp)]
    occurred: Moment,
    id: Uuid,
}

impl From<PgTimestamp> for Moment {
    fn from(timestamp: PgTimestamp) -> Self {
        Self(timestamp.0)
    }
}

impl Candidate {
    const FIRST: Self = Self {
        occurred: Moment::FIRST,
        id: Uuid::nil(),
    };
}

/// The cutoffs by the slower of two clocks: ours, by which they were made, and the server's.
struct Bounds {
    default: PgTimestamp,
    overrides: Vec<(String, PgTimestamp)>,
}

impl Bounds {
    fn new(cutoffs: &Cutoffs, ahead: i64) -> Self {
        let bound = |cutoff: &DateTime<Utc>| PgTimestamp(Moment::new(*cutoff).0 - ahead);
        Self {
            default: bound(&cutoffs.default),
            overrides: cutoffs
                .overrides
                .iter()
                .map(|(name, cutoff)| (name.clone(), bound(cutoff)))
                .collect(),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.overrides
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }

    fn earliest(&self) -> PgTimestamp {
        let overrides = self.overrides.iter().map(|(_, cutoff)| cutoff.0);
        PgTimestamp(overrides.fold(self.default.0, i64::min))
    }
}

#[derive(QueryableByName)]
struct Turn {
    #[diesel(sql_type = Bool)]
    taken: bool,
    #[diesel(sql_type = Timestamptz)]
    now: PgTimestamp,
}

/// Both numbers are ours: a word of its own, and the table, since a database may hold several.
const TAKE_TURN: &str = "SELECT pg_try_advisory_xact_lock(1953655149, \
    hashoid('events'::regclass::oid)) AS taken, clock_timestamp() AS now";

/// How far our clock is ahead of the server's, in microseconds; `None` where another one trims.
async fn take_turn(
    connection: &mut Connection,
    now: DateTime<Utc>,
) -> Result<Option<i64>, Failure> {
    let turn: Turn = sql_query(TAKE_TURN).get_result(&mut connection.pg).await?;
    Ok(turn.taken.then(|| (Moment::new(now).0 - turn.now.0).max(0)))
}

/// One step: chooses the oldest expired events and deletes them.
pub(super) async fn step(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    max_events: NonZeroUsize,
    resume: &mut Resume,
    now: DateTime<Utc>,
) -> Result<TrimStep, Failure> {
    connection.begin_repeatable().await?;
    let Some(ahead) = take_turn(connection, now).await? else {
        connection.commit().await?;
        return Ok(TrimStep::TakenByAnother);
    };
    let bounds = Bounds::new(cutoffs, ahead);
    let mut expired = oldest_expired(connection, &bounds, max_events, resume).await?;
    if expired.is_empty() && resume.take().is_some() {
        // The search began in the middle; it is over only when one from the beginning finds nothing.
        expired = oldest_expired(connection, &bounds, max_events, resume).await?;
    }
    let trimmed = if expired.is_empty() {
        delete_orphans(connection, &bounds, max_events).await?
    } else {
        delete_events(connection, &expired).await?
    };
    connection.commit().await?;
    if expired.is_empty() && trimmed == Trimmed::default() {
        return Ok(TrimStep::Finished);
    }
    Ok(TrimStep::Removed(trimmed))
}

async fn oldest_expired(
    connection: &mut Connection,
    bounds: &Bounds,
    max_events: NonZeroUsize,
    resume: &mut Resume,
) -> Result<Vec<Candidate>, Failure> {
    let limit = i64::try_from(max_events.get()).unwrap_or(i64::MAX);
    let mut expired = Vec::new();
    for (name, cutoff) in &bounds.overrides {
        let query = expired_of_name(name, *cutoff, limit);
        let of_name: Vec<Candidate> = query.load(&mut connection.pg).await?;
        expired.extend(of_name);
    }
    let from = resume.unwrap_or(Candidate::FIRST);
    let query = expired_of_others(bounds.names(), bounds.default, from, limit);
    let mut others: Vec<Candidate> = query.load(&mut connection.pg).await?;
    expired.extend(&others);
    expired.sort_unstable();
    expired.truncate(max_events.get());
    // Those of the others that are among the oldest are the first of them.
    if let Some(last) = expired.last() {
        others.retain(|candidate| candidate <= last);
        if let Some(candidate) = others.pop() {
            *resume = Some(candidate);
        }
    }
    Ok(expired)
}

/// The oldest expired events of a name that has a cutoff of its own.
fn expired_of_name(
    name: &str,
    cutoff: PgTimestamp,
    limit: i64,
) -> impl LoadQuery<'_, AsyncPgConnection, Candidate> + QueryFragment<Pg> + QueryId {
    events::table
        .filter(events::event.eq(name).and(events::occurred.lt(cutoff)))
        .order((events::occurred, events::id))
        .limit(limit)
        .select((events::occurred, events::id))
}

/// The oldest expired events of all other names, after `from`.
fn expired_of_others(
    names: Vec<&str>,
    cutoff: PgTimestamp,
    from: Candidate,
    limit: i64,
) -> impl LoadQuery<'_, AsyncPgConnection, Candidate> + QueryFragment<Pg> + QueryId {
    let occurred = PgTimestamp(from.occurred.0);
    events::table
        .filter(events::occurred.lt(cutoff))
        .filter(events::event.ne_all(names))
        .filter(events::occurred.ge(occurred))
        .filter(events::occurred.gt(occurred).or(events::id.gt(from.id)))
        .order((events::occurred, events::id))
        .limit(limit)
        .select((events::occurred, events::id))
}

/// Deletes the resources of events.
fn delete_resources(
    event_ids: &[Uuid],
) -> impl ExecuteDsl<AsyncPgConnection> + QueryFragment<Pg> + QueryId {
    diesel::delete(event_resources::table.filter(event_resources::event_id.eq_any(event_ids)))
}

/// Deletes events.
fn delete_only_events(
    ids: &[Uuid],
) -> impl ExecuteDsl<AsyncPgConnection> + QueryFragment<Pg> + QueryId {
    diesel::delete(events::table.filter(events::id.eq_any(ids)))
}

/// Deletes events, after their resources.
async fn delete_events(
    connection: &mut Connection,
    expired: &[Candidate],
) -> Result<Trimmed, Failure> {
    let ids: Vec<_> = expired.iter().map(|candidate| candidate.id).collect();
    let resources = ExecuteDsl::execute(delete_resources(&ids), &mut connection.pg).await?;
    let events = ExecuteDsl::execute(delete_only_events(&ids), &mut connection.pg).await?;
    Ok(Trimmed {
        events: events as u64,
        resources: resources as u64,
    })
}

/// Resources of no event, older than anything that is kept: halves of events that someone else wrote.
///
/// Only asked when no expired event is left, so that rows older than every cutoff are few. `OFFSET 0`
/// and `ARRAY` keep the planner from reading whole tables when its statistics are old.
const DELETE_ORPHANS: &str = "DELETE FROM event_resources WHERE id = ANY (ARRAY(\
    SELECT orphan.id FROM event_resources AS orphan WHERE orphan.occurred < $1 \
    AND NOT EXISTS (SELECT FROM events WHERE events.id = orphan.event_id OFFSET 0) \
    ORDER BY orphan.occurred LIMIT $2))";

async fn delete_orphans(
    connection: &mut Connection,
    bounds: &Bounds,
    max_rows: NonZeroUsize,
) -> Result<Trimmed, Failure> {
    let deleted = sql_query(DELETE_ORPHANS)
        .bind::<Timestamptz, _>(bounds.earliest())
        .bind::<BigInt, _>(i64::try_from(max_rows.get()).unwrap_or(i64::MAX))
        .execute(&mut connection.pg)
        .await?;
    Ok(Trimmed {
        events: 0,
        resources: deleted as u64,
    })
}

/// Counts what steps until [`TrimStep::Finished`] would remove.
pub(super) async fn count(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    now: DateTime<Utc>,
) -> Result<Trimmed, Failure> {
    connection.begin_snapshot().await?;
    let server_now: PgTimestamp = diesel::select(clock_timestamp())
        .get_result(&mut connection.pg)
        .await?;
    let bounds = Bounds::new(cutoffs, (Moment::new(now).0 - server_now.0).max(0));
    let (mut num_events, mut num_resources) = (0, 0);
    for (name, cutoff) in &bounds.overrides {
        let of_name = events::event.eq(name).and(events::occurred.lt(*cutoff));
        let expired = events::table.filter(of_name);
        num_events += expired
            .count()
            .get_result::<i64>(&mut connection.pg)
            .await?;
        let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
        let of_expired = event_resources::table.filter(of_expired).count();
        num_resources += of_expired.get_result::<i64>(&mut connection.pg).await?;
    }
    let of_others = events::occurred
        .lt(bounds.default)
        .and(events::event.ne_all(bounds.names()));
    let expired = events::table.filter(of_others);
    num_events += (expired.clone().count())
        .get_result::<i64>(&mut connection.pg)
        .await?;
    let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
    let of_expired = event_resources::table.filter(of_expired).count();
    num_resources += of_expired.get_result::<i64>(&mut connection.pg).await?;
    let of_event = events::table.filter(events::id.eq(event_resources::event_id));
    let orphans = event_resources::table
        .filter(event_resources::occurred.lt(bounds.earliest()))
        .filter(not(exists(of_event)))
        .count();
    num_resources += orphans.get_result::<i64>(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(Trimmed {
        events: u64::try_from(num_events).unwrap_or_default(),
        resources: u64::try_from(num_resources).unwrap_or_default(),
    })
}

diesel::define_sql_function! {
    /// The server's time, now and not when the transaction began.
    fn clock_timestamp() -> Timestamptz;
}
