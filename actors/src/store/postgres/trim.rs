//! Deletes what retention no longer keeps, a bounded number of events at a time.
//!
//! Every search follows an index from the oldest row on, so that a step costs the same whatever is
//! kept. One transaction a step, under a lock that only one trimmer has. Its commit does not wait for
//! the disk: a deletion that a crash of the server undoes is made again by the next pass.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::Connection;
use super::failure::Failure;
use super::rows::Moment;
use crate::store::{Bounds, Cutoffs, Removed, TrimStep, Trimmed, as_count, at_most};

/// The statements of a step that may take long, where it looks again for what came late.
pub(super) const NUM_STATEMENTS: u32 = 5;

/// Where the next step goes on; `None` before a pass.
pub(super) type Resume = Option<Search>;

/// A search for expired events from the beginning, as far as it has come.
///
/// Names that are kept longer leave rows behind the default cutoff, and deleted rows stay in the indexes
/// until VACUUM removes them; without this every step would pass over all of them again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    /// The last one it came to among events without a cutoff of their own.
    last: Candidate,
    /// When it began, by the server's clock.
    began: PgTimestamp,
    /// How many resources there were to delete; `None` where that cannot be told.
    num_resources: Option<u64>,
    /// How many have been deleted.
    num_deleted: u64,
}

impl Search {
    /// One that begins now, with whatever came late still to be found.
    async fn from_the_beginning(
        connection: &mut Connection,
        bounds: &Bounds<PgTimestamp>,
        began: PgTimestamp,
    ) -> Result<Self, Failure> {
        Ok(Self {
            last: Candidate::FIRST,
            began,
            num_resources: count_resources(connection, bounds).await?,
            num_deleted: 0,
        })
    }

    /// Whether there may be resources of no event: not all went that were there when it began.
    fn may_have_left_resources(&self) -> bool {
        self.num_resources != Some(self.num_deleted)
    }

    /// From when on what was stored may have been missed. What a transaction brings that was long under way
    /// when the search began waits for the next pass.
    fn misses_from(&self) -> PgTimestamp {
        const MARGIN_MICROS: i64 = 10_000_000;
        PgTimestamp(self.began.0.saturating_sub(MARGIN_MICROS))
    }
}

/// When an event occurred, and its id: the order in which events are removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    occurred: PgTimestamp,
    id: Uuid,
}

impl Candidate {
    const FIRST: Self = Self {
        occurred: PgTimestamp(Moment::FIRST.0),
        id: Uuid::nil(),
    };
}

/// The cutoffs by the slower of two clocks: ours, by which they were made, and the server's.
pub(super) fn bounds(cutoffs: &Cutoffs, ahead: i64) -> Bounds<PgTimestamp> {
    cutoffs.bounds(|cutoff| PgTimestamp(Moment::new(cutoff).0 - ahead))
}

impl Bounds<PgTimestamp> {
    pub(super) fn earliest(&self) -> PgTimestamp {
        let all = self.all().map(|cutoff| cutoff.0);
        PgTimestamp(all.min().unwrap_or(self.default.0))
    }

    fn latest(&self) -> PgTimestamp {
        let all = self.all().map(|cutoff| cutoff.0);
        PgTimestamp(all.max().unwrap_or(self.default.0))
    }
}

/// Both numbers are ours: a word of its own, and the table, since a database may hold several.
const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock(1953655149, \
    hashoid('events'::regclass::oid)), clock_timestamp()";

/// The server's time; `None` where another one trims.
async fn try_lock(connection: &mut Connection) -> Result<Option<PgTimestamp>, Failure> {
    let try_lock = sql::<(Bool, Timestamptz)>(TRY_LOCK);
    let (is_ours, now): (bool, PgTimestamp) = try_lock.get_result(&mut connection.pg).await?;
    Ok(is_ours.then_some(now))
}

/// How far our clock is ahead of the server's, in microseconds.
pub(super) fn ahead(now: DateTime<Utc>, server_now: PgTimestamp) -> i64 {
    (Moment::new(now).0 - server_now.0).max(0)
}

/// One step: chooses the oldest expired events and deletes them.
pub(super) async fn step(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    max_events: NonZeroUsize,
    resume: &mut Resume,
    now: DateTime<Utc>,
) -> Result<TrimStep, Failure> {
    let begun = Instant::now();
    connection.begin_repeatable().await?;
    let Some(server_now) = try_lock(connection).await? else {
        connection.commit().await?;
        return Ok(TrimStep::TakenByAnother);
    };
    let bounds = bounds(cutoffs, ahead(now, server_now));
    let earlier = resume.take();
    let mut search = match earlier {
        Some(search) => search,
        None => Search::from_the_beginning(connection, &bounds, server_now).await?,
    };
    let mut expired = delete_expired(connection, &bounds, max_events, &mut search).await?;
    // The search began in the middle; it is over only when nothing has come behind it meanwhile.
    if expired.is_none() && earlier.is_some() && came_late(connection, &bounds, &search).await? {
        search.last = Candidate::FIRST;
        // How many resources they have was not counted.
        search.num_resources = None;
        expired = delete_expired(connection, &bounds, max_events, &mut search).await?;
    }
    let removed = match expired {
        Some(rows) => {
            *resume = Some(search);
            Some(rows)
        }
        None if search.may_have_left_resources() => {
            delete_orphans(connection, &bounds, max_events).await?
        }
        None => None,
    };
    connection.commit().await?;
    Ok(removed.map_or(TrimStep::Finished, |rows| {
        TrimStep::Removed(Removed {
            rows,
            took: begun.elapsed(),
            // The server does not tell who writes.
            others_write: false,
        })
    }))
}

/// The oldest expired events.
///
/// Names with a cutoff of their own are searched each by itself, all others from where the search has
/// come to; where there are none the planner sees that it need not read names at all, and finds what it
/// looks for in indexes alone.
const FIND_EXPIRED: &str = "WITH expired AS (\
    SELECT occurred, id, is_other FROM (\
    (SELECT named.occurred, named.id, false AS is_other \
    FROM unnest($1, $2) AS override (name, cutoff) CROSS JOIN LATERAL (\
    SELECT occurred, id FROM events WHERE event = override.name AND occurred < override.cutoff \
    ORDER BY occurred, id LIMIT $3) AS named) \
    UNION ALL \
    (SELECT occurred, id, true FROM events \
    WHERE occurred < $4 AND (cardinality($1) = 0 OR event <> ALL ($1)) AND occurred >= $5 AND (occurred > $5 OR id > $6) \
    ORDER BY occurred, id LIMIT $3)) AS found \
    ORDER BY occurred, id LIMIT $3) \
    SELECT ARRAY(SELECT id FROM expired) AS ids, last.occurred, last.id \
    FROM (SELECT) AS one LEFT JOIN (SELECT occurred, id FROM expired WHERE is_other \
    ORDER BY occurred DESC, id DESC LIMIT 1) AS last ON true";

#[derive(QueryableByName)]
struct Expired {
    #[diesel(sql_type = Array<SqlUuid>)]
    ids: Vec<Uuid>,
    /// Of the last event without a cutoff of its own.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    occurred: Option<PgTimestamp>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    id: Option<Uuid>,
}

/// As parts of one statement they take a fifth longer. A list that the planner cannot see into keeps it from
/// reading whole tables when its statistics are old.
///
/// Resources go first: nobody adds any to an event that is there.
const DELETE_RESOURCES: &str =
    "DELETE FROM event_resources WHERE event_id = ANY (ARRAY(SELECT unnest($1)))";
const DELETE_EVENTS: &str = "DELETE FROM events WHERE id = ANY (ARRAY(SELECT unnest($1)))";

/// Deletes the oldest expired events, with their resources; `None` if the search found none.
async fn delete_expired(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    max_events: NonZeroUsize,
    search: &mut Search,
) -> Result<Option<Trimmed>, Failure> {
    let from = search.last;
    let names: Vec<&String> = bounds.names().collect();
    let cutoffs: Vec<PgTimestamp> = bounds.overrides.iter().map(|(_, cutoff)| *cutoff).collect();
    let expired: Expired = sql_query(FIND_EXPIRED)
        .bind::<Array<Text>, _>(names)
        .bind::<Array<Timestamptz>, _>(cutoffs)
        .bind::<BigInt, _>(at_most(max_events.get()))
        .bind::<Timestamptz, _>(bounds.default)
        .bind::<Timestamptz, _>(from.occurred)
        .bind::<SqlUuid, _>(from.id)
        .get_result(&mut connection.pg)
        .await?;
    if let (Some(occurred), Some(id)) = (expired.occurred, expired.id) {
        search.last = Candidate { occurred, id };
    }
    if expired.ids.is_empty() {
        return Ok(None);
    }
    let mut delete = async |sql: &str| {
        let delete = sql_query(sql).bind::<Array<SqlUuid>, _>(&expired.ids);
        let deleted = delete.execute(&mut connection.pg).await?;
        Ok::<_, Failure>(deleted as u64)
    };
    let resources = delete(DELETE_RESOURCES).await?;
    let events = delete(DELETE_EVENTS).await?;
    search.num_deleted += resources;
    Ok(Some(Trimmed { events, resources }))
}

/// Beyond so many they are not counted.
const MAX_COUNTED: i64 = 500_000;

/// Counts what is to go, before it goes: in an index, while its rows are alive, that takes a fifth of what
/// it takes to look for resources of no event past the rows that were deleted. `None` where they are too
/// many, or belong to events that are kept longer too.
async fn count_resources(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
) -> Result<Option<u64>, Failure> {
    if !bounds.overrides.is_empty() {
        return Ok(None);
    }
    let number: i64 =
        sql::<BigInt>("SELECT count(*) FROM (SELECT FROM event_resources WHERE occurred < ")
            .bind::<Timestamptz, _>(bounds.default)
            .sql(" ORDER BY occurred LIMIT ")
            .bind::<BigInt, _>(MAX_COUNTED + 1)
            .sql(") AS expired")
            .get_result(&mut connection.pg)
            .await?;
    Ok((number <= MAX_COUNTED).then(|| as_count(number)))
}

/// Whether an event that is expired already has come since a search began; of so many that it costs less
/// to search again it is not asked.
async fn came_late(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    search: &Search,
) -> Result<bool, Failure> {
    let came_late = sql::<Bool>("SELECT count(*) = 10000 OR coalesce(bool_or(occurred < ")
        .bind::<Timestamptz, _>(bounds.latest())
        .sql("), false) FROM (SELECT occurred FROM events WHERE updated >= ")
        .bind::<Timestamptz, _>(search.misses_from())
        .sql(" ORDER BY updated DESC LIMIT 10000) AS new");
    Ok(came_late.get_result(&mut connection.pg).await?)
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
    bounds: &Bounds<PgTimestamp>,
    max_rows: NonZeroUsize,
) -> Result<Option<Trimmed>, Failure> {
    let deleted = sql_query(DELETE_ORPHANS)
        .bind::<Timestamptz, _>(bounds.earliest())
        .bind::<BigInt, _>(at_most(max_rows.get()))
        .execute(&mut connection.pg)
        .await?;
    Ok((deleted > 0).then_some(Trimmed {
        events: 0,
        resources: deleted as u64,
    }))
}
