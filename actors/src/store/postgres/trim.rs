//! Deletes what retention no longer keeps, a bounded number of events at a time.
//!
//! Partitions of which nothing is kept go first and whole, where the tables have partitions. Every search
//! follows an index from the oldest row on, so that a step costs the same whatever is kept. One transaction a
//! step, under a lock that only one trimmer has. Its commit does not wait for the disk: a deletion that a crash
//! of the server undoes is made again by the next pass.

use std::num::NonZeroUsize;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::Connection;
use super::failure::Failure;
use super::partitions::{Dropped, Tries, drop_expired, layout};
use super::rows::Moment;
use crate::failpoint;
use crate::store::{
    Bounds, Cutoffs, Removed, TrimStep, Trimmed, as_count, at_most, does_not_leave,
};

/// The statements of a step that may take long, where it looks again for what came late.
pub(super) const NUM_STATEMENTS: u32 = 8;

/// How long after a lock that was not to be had the next step begins: those who wait go first.
pub(super) const AFTER_BUSY: Duration = Duration::from_millis(300);

/// Where the next step goes on.
#[derive(Debug, Clone, Default)]
pub(super) struct Resume {
    /// `None` before events are looked for one by one.
    search: Option<Search>,
    tries: Tries,
}

/// A search for expired events from the beginning, as far as it has come.
///
/// Names that are kept longer leave rows behind the default cutoff, and deleted rows stay in the indexes
/// until VACUUM removes them; without this every step would pass over all of them again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    first: Candidate,
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
    /// One that begins now, with whatever came late still to be found. Partitions that are left to the next
    /// pass are passed over: to delete their rows one by one would take longer than to wait for it.
    async fn from_the_beginning(
        connection: &mut Connection,
        bounds: &Bounds<PgTimestamp>,
        began: PgTimestamp,
        tries: &Tries,
    ) -> Result<Self, Failure> {
        let mut first = Candidate::FIRST;
        if let Some(left) = tries.left_until {
            first.occurred = PgTimestamp(left.0);
        }
        Ok(Self {
            first,
            last: first,
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

    pub(super) fn latest(&self) -> PgTimestamp {
        let all = self.all().map(|cutoff| cutoff.0);
        PgTimestamp(all.max().unwrap_or(self.default.0))
    }
}

/// Both numbers are ours: a word of its own, and the table, since a database may hold several.
const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock(1953655149, \
    hashoid('events'::regclass::oid)), clock_timestamp(), EXISTS (\
    SELECT FROM pg_catalog.pg_partitioned_table WHERE partrelid = 'events'::regclass)";

/// This process trims, until its transaction ends.
pub(super) struct Trimming {
    pub(super) server_now: PgTimestamp,
    #[cfg_attr(
        not(feature = "archive"),
        expect(dead_code, reason = "only an archive asks")
    )]
    pub(super) is_partitioned: bool,
}

/// `None` where another one trims.
pub(super) async fn try_lock(connection: &mut Connection) -> Result<Option<Trimming>, Failure> {
    let try_lock = sql::<(Bool, Timestamptz, Bool)>(TRY_LOCK);
    let locked: (bool, PgTimestamp, bool) = try_lock.get_result(&mut connection.pg).await?;
    let (is_ours, server_now, is_partitioned) = locked;
    Ok(is_ours.then_some(Trimming {
        server_now,
        is_partitioned,
    }))
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
    let Some(Trimming { server_now, .. }) = try_lock(connection).await? else {
        connection.commit().await?;
        return Ok(TrimStep::TakenByAnother);
    };
    let bounds = bounds(cutoffs, ahead(now, server_now));
    let layout = layout(connection).await?;
    if resume.search.is_none()
        && let Some(layout) = &layout
    {
        let tries = &mut resume.tries;
        let dropped = drop_expired(connection, layout, &bounds, max_events, tries).await?;
        let rows = match dropped {
            Dropped::None => None,
            Dropped::Busy => {
                connection.roll_back().await?;
                tokio::time::sleep(AFTER_BUSY).await;
                return Ok(removed(Trimmed::default(), begun.elapsed(), false));
            }
            Dropped::Copied => Some(Trimmed::default()),
            Dropped::Gone(rows) => Some(rows),
        };
        if let Some(rows) = rows {
            connection.commit().await?;
            failpoint::pass("retention::dropped");
            return Ok(removed(rows, begun.elapsed(), dropped != Dropped::Copied));
        }
    }
    let (is_partitioned, tries) = (layout.is_some(), &resume.tries);
    if is_partitioned {
        connection.pg.batch_execute(FOLLOW_INDEXES).await?;
    }
    let earlier = resume.search.take();
    let mut search = match earlier {
        Some(search) => search,
        None => Search::from_the_beginning(connection, &bounds, server_now, tries).await?,
    };
    let delete = async |connection: &mut Connection, search: &mut Search| {
        delete_expired(connection, &bounds, max_events, search, is_partitioned).await
    };
    let mut expired = delete(connection, &mut search).await?;
    // The search began in the middle; it is over only when nothing has come behind it meanwhile.
    if expired.is_none() && earlier.is_some() && came_late(connection, &bounds, &search).await? {
        search.last = search.first;
        // How many resources they have was not counted.
        search.num_resources = None;
        expired = delete(connection, &mut search).await?;
    }
    let rows = match expired {
        Some(rows) => {
            resume.search = Some(search);
            Some(rows)
        }
        None if search.may_have_left_resources() => {
            delete_orphans(connection, &bounds, max_events, is_partitioned).await?
        }
        None => None,
    };
    connection.commit().await?;
    if rows.is_none() {
        *resume = Resume::default();
    }
    Ok(rows.map_or(TrimStep::Finished, |rows| {
        removed(rows, begun.elapsed(), false)
    }))
}

fn removed(rows: Trimmed, took: Duration, with_their_table: bool) -> TrimStep {
    TrimStep::Removed(Removed {
        rows,
        took,
        // The server does not tell who writes.
        others_write: false,
        with_their_table,
    })
}

/// Looks into one partition for each row that is to go, whatever the planner knows about them, and plans
/// for the moments that are asked for, so that other partitions are left out.
const FOLLOW_INDEXES: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL plan_cache_mode = force_custom_plan";

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
    SELECT ARRAY(SELECT id FROM expired) AS ids, \
    ARRAY(SELECT occurred FROM expired) AS moments, last.occurred, last.id \
    FROM (SELECT) AS one LEFT JOIN (SELECT occurred, id FROM expired WHERE is_other \
    ORDER BY occurred DESC, id DESC LIMIT 1) AS last ON true";

#[derive(QueryableByName)]
struct Expired {
    #[diesel(sql_type = Array<SqlUuid>)]
    ids: Vec<Uuid>,
    #[diesel(sql_type = Array<Timestamptz>)]
    moments: Vec<PgTimestamp>,
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

/// The same where the moment is part of what identifies an event.
const DELETE_RESOURCES_OF_MOMENTS: &str = "DELETE FROM event_resources \
    USING (SELECT unnest($1) AS id, unnest($2) AS occurred) AS expired \
    WHERE event_resources.event_id = expired.id AND event_resources.occurred = expired.occurred \
    AND event_resources.occurred >= $3 AND event_resources.occurred <= $4";
const DELETE_EVENTS_OF_MOMENTS: &str = "DELETE FROM events \
    USING (SELECT unnest($1) AS id, unnest($2) AS occurred) AS expired \
    WHERE events.id = expired.id AND events.occurred = expired.occurred \
    AND events.occurred >= $3 AND events.occurred <= $4";

/// Deletes the oldest expired events, with their resources; `None` if the search found none.
async fn delete_expired(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    max_events: NonZeroUsize,
    search: &mut Search,
    is_partitioned: bool,
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
    let deleted = delete(connection, &expired.ids, &expired.moments, is_partitioned).await?;
    search.num_deleted += deleted.resources;
    Ok(Some(deleted))
}

/// Deletes these events, with their resources.
pub(super) async fn delete(
    connection: &mut Connection,
    ids: &[Uuid],
    moments: &[PgTimestamp],
    is_partitioned: bool,
) -> Result<Trimmed, Failure> {
    if is_partitioned {
        connection.pg.batch_execute(FOLLOW_INDEXES).await?;
    }
    let (first, last) = ends_of(moments);
    let mut delete = async |plain: &str, of_moments: &str| {
        let deleted = if is_partitioned {
            sql_query(of_moments)
                .bind::<Array<SqlUuid>, _>(ids)
                .bind::<Array<Timestamptz>, _>(moments)
                .bind::<Timestamptz, _>(first)
                .bind::<Timestamptz, _>(last)
                .execute(&mut connection.pg)
                .await?
        } else {
            sql_query(plain)
                .bind::<Array<SqlUuid>, _>(ids)
                .execute(&mut connection.pg)
                .await?
        };
        Ok::<_, Failure>(deleted as u64)
    };
    let resources = delete(DELETE_RESOURCES, DELETE_RESOURCES_OF_MOMENTS).await?;
    let events = delete(DELETE_EVENTS, DELETE_EVENTS_OF_MOMENTS).await?;
    let deleted = Trimmed { events, resources };
    // Somebody else may have been faster with some of them.
    if deleted.may_have_left_rows(ids.len()) {
        refuse_what_stays(connection, ids, moments, is_partitioned).await?;
    }
    Ok(deleted)
}

const FIND_LEFT: &str = "SELECT id FROM events WHERE id = ANY (ARRAY(SELECT unnest($1))) UNION ALL \
    SELECT event_id FROM event_resources WHERE event_id = ANY (ARRAY(SELECT unnest($1))) LIMIT 1";

/// The same where the moment is part of what identifies an event.
const FIND_LEFT_OF_MOMENTS: &str = "SELECT id FROM (SELECT unnest($1) AS id, unnest($2) AS occurred) AS expired \
    WHERE EXISTS (SELECT FROM events WHERE events.id = expired.id AND events.occurred = expired.occurred) \
    OR EXISTS (SELECT FROM event_resources WHERE event_resources.event_id = expired.id \
    AND event_resources.occurred = expired.occurred) LIMIT 1";

#[derive(QueryableByName)]
struct Left {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// An error, which undoes the deletion, if it has left rows of these events.
async fn refuse_what_stays(
    connection: &mut Connection,
    ids: &[Uuid],
    moments: &[PgTimestamp],
    is_partitioned: bool,
) -> Result<(), Failure> {
    let find = if is_partitioned {
        FIND_LEFT_OF_MOMENTS
    } else {
        FIND_LEFT
    };
    let find = sql_query(find).bind::<Array<SqlUuid>, _>(ids);
    let left: Vec<Left> = if is_partitioned {
        let find = find.bind::<Array<Timestamptz>, _>(moments);
        find.load(&mut connection.pg).await?
    } else {
        find.load(&mut connection.pg).await?
    };
    refuse(connection, left).await
}

async fn refuse(connection: &mut Connection, left: Vec<Left>) -> Result<(), Failure> {
    let Some(Left { id }) = left.into_iter().next() else {
        return Ok(());
    };
    // The connection is given up after this, and somebody may be waiting for its locks.
    connection.roll_back().await?;
    Err(Failure::Unfit(does_not_leave(&id.to_string())))
}

fn ends_of(moments: &[PgTimestamp]) -> (PgTimestamp, PgTimestamp) {
    let micros = || moments.iter().map(|moment| moment.0);
    let (first, last) = (micros().min(), micros().max());
    (
        PgTimestamp(first.unwrap_or_default()),
        PgTimestamp(last.unwrap_or_default()),
    )
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

/// The same where the moment is part of what identifies an event.
const DELETE_ORPHANS_OF_MOMENTS: &str = "DELETE FROM event_resources USING (\
    SELECT orphan.id, orphan.occurred FROM event_resources AS orphan WHERE orphan.occurred < $1 \
    AND NOT EXISTS (SELECT FROM events WHERE events.id = orphan.event_id \
    AND events.occurred = orphan.occurred OFFSET 0) \
    ORDER BY orphan.occurred LIMIT $2) AS orphan \
    WHERE event_resources.id = orphan.id AND event_resources.occurred = orphan.occurred \
    AND event_resources.occurred < $1";

const FIND_ORPHAN: &str = "SELECT orphan.event_id AS id FROM event_resources AS orphan WHERE orphan.occurred < $1 \
    AND NOT EXISTS (SELECT FROM events WHERE events.id = orphan.event_id OFFSET 0) \
    ORDER BY orphan.occurred LIMIT 1";

/// The same where the moment is part of what identifies an event.
const FIND_ORPHAN_OF_MOMENT: &str = "SELECT orphan.event_id AS id FROM event_resources AS orphan \
    WHERE orphan.occurred < $1 AND NOT EXISTS (SELECT FROM events WHERE events.id = orphan.event_id \
    AND events.occurred = orphan.occurred OFFSET 0) ORDER BY orphan.occurred LIMIT 1";

async fn refuse_orphans_that_stay(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    is_partitioned: bool,
) -> Result<(), Failure> {
    let find = if is_partitioned {
        FIND_ORPHAN_OF_MOMENT
    } else {
        FIND_ORPHAN
    };
    let find = sql_query(find).bind::<Timestamptz, _>(bounds.earliest());
    let left: Vec<Left> = find.load(&mut connection.pg).await?;
    refuse(connection, left).await
}

pub(super) async fn delete_orphans(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    max_rows: NonZeroUsize,
    is_partitioned: bool,
) -> Result<Option<Trimmed>, Failure> {
    let statement = if is_partitioned {
        DELETE_ORPHANS_OF_MOMENTS
    } else {
        DELETE_ORPHANS
    };
    let deleted = sql_query(statement)
        .bind::<Timestamptz, _>(bounds.earliest())
        .bind::<BigInt, _>(at_most(max_rows.get()))
        .execute(&mut connection.pg)
        .await?;
    if deleted == 0 {
        refuse_orphans_that_stay(connection, bounds, is_partitioned).await?;
        return Ok(None);
    }
    Ok(Some(Trimmed {
        events: 0,
        resources: deleted as u64,
    }))
}
