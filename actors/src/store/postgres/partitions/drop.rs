//! Retention by dropping a partition once all that it holds is expired.
//!
//! Names that are kept longer than most are copied first, into a table that takes the partition's place
//! when the partition is dropped. They stay in `events` all the while: the copies are seen only from the
//! moment on at which the originals are not. What was copied is checked against the partition under a lock
//! that keeps its rows as they are, so that the copy is exact whatever happened to the originals meanwhile.
//! A copy that a kill has cut off goes on where it stopped.
//!
//! Resources go by their own `occurred`, which is that of their event. Halves of events that somebody else
//! left in a partition go with it.
//!
//! # Why not into the default partition
//!
//! A row cannot stand there while its period has a partition of its own, so that all rows would have to be
//! moved at once, under a lock that keeps writers out.

use std::num::NonZeroUsize;

use diesel::data_types::PgTimestamp;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Text, Timestamptz};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
#[cfg(feature = "archive")]
use sha2::{Digest as _, Sha256};
#[cfg(feature = "archive")]
use uuid::Uuid;

#[cfg(feature = "archive")]
use super::layout::layout;
use super::layout::{Layout, Part, Tables};
use super::make::exists;
use super::{Connection, Failure, LOCK_WAIT, MAKER_LOCK, try_lock_tables};
use crate::failpoint;
#[cfg(feature = "archive")]
use crate::store::archivable::Partition;
use crate::store::postgres::rows::Moment;
use crate::store::{Bounds, Trimmed, as_count, at_most};

/// The result of looking for a partition to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::postgres) enum Dropped {
    /// There is none, or none that could be locked.
    None,
    /// One could not be locked in time.
    Busy,
    /// Rows that are kept were copied; the partition is still there.
    Copied,
    /// A partition is gone, with so many rows.
    Gone(Trimmed),
}

/// The names that are kept longer than most, and may have rows in a partition.
#[derive(Default)]
struct Kept {
    names: Vec<String>,
    /// Of each name: rows that occurred from here on are kept.
    from: Vec<PgTimestamp>,
}

/// Whether a row is kept longer.
const IS_KEPT: &str = "EXISTS (SELECT FROM unnest($1, $2) AS kept (name, since) \
    WHERE kept.name = r.event AND r.occurred >= kept.since)";

impl Kept {
    fn of(bounds: &Bounds<PgTimestamp>, until: Moment) -> Self {
        let longer = bounds.overrides.iter();
        let longer = longer.filter(|(_, cutoff)| cutoff.0 < until.0).cloned();
        let (names, from) = longer.unzip();
        Self { names, from }
    }

    /// How many rows of a partition are kept; of each name counted as far as this many.
    async fn count(
        &self,
        connection: &mut Connection,
        events: &str,
        max: u64,
    ) -> Result<u64, Failure> {
        if self.names.is_empty() {
            return Ok(0);
        }
        // Name by name, which an index answers.
        let question = format!(
            "SELECT coalesce(sum(found.num), 0)::bigint AS num FROM unnest($1, $2) AS kept (name, since) \
             CROSS JOIN LATERAL (SELECT count(*) AS num FROM (SELECT FROM {events} AS r \
             WHERE r.event = kept.name AND r.occurred >= kept.since LIMIT {max}) AS first_ones) AS found"
        );
        let row: Number = sql_query(question)
            .bind::<Array<Text>, _>(&self.names)
            .bind::<Array<Timestamptz>, _>(&self.from)
            .get_result(&mut connection.pg)
            .await?;
        Ok(as_count(row.num))
    }

    async fn execute(
        &self,
        connection: &mut Connection,
        statement: &str,
    ) -> Result<usize, Failure> {
        let statement = sql_query(statement)
            .bind::<Array<Text>, _>(&self.names)
            .bind::<Array<Timestamptz>, _>(&self.from);
        Ok(statement.execute(&mut connection.pg).await?)
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    num: i64,
}

/// More rows that are kept are not copied: the copy is checked as a whole while late events wait.
const MAX_COPIED: u64 = 200_000;

/// A partition with more events is not counted before it is dropped, which would take longer than all else:
/// the server's estimate is told.
const MAX_COUNTED: i64 = 1_000_000;

/// How often in a row a pass tries to lock a partition. A reader of the whole table that takes its time, such
/// as a dump, keeps all of them longer than a pass may wait.
pub(in crate::store::postgres) const MAX_TRIES: u32 = 5;

/// How often in a row a pass could not lock a partition.
#[derive(Debug, Clone, Default)]
pub(in crate::store::postgres) struct Tries {
    num: u32,
    /// Once it has given up: the end of the last partition that is left to the next pass.
    pub(in crate::store::postgres) left_until: Option<Moment>,
}

impl Tries {
    fn failed(&mut self, expired: impl Iterator<Item = Moment>) -> Dropped {
        self.num += 1;
        if self.num == MAX_TRIES {
            self.left_until = expired.max();
            log::info!("expired partitions are in use, and are left to the next pass of retention");
        }
        Dropped::Busy
    }

    fn succeeded(&mut self, rows: Trimmed) -> Dropped {
        self.num = 0;
        Dropped::Gone(rows)
    }
}

/// Drops the oldest partition that may be dropped, or goes on with what must be done before. Those that
/// could not be locked after some tries are left to the next pass, which is less work than to delete their rows.
pub(in crate::store::postgres) async fn drop_expired(
    connection: &mut Connection,
    layout: &Layout,
    bounds: &Bounds<PgTimestamp>,
    max_events: NonZeroUsize,
    tries: &mut Tries,
) -> Result<Dropped, Failure> {
    if !layout.may_make || layout.period.is_none() || tries.left_until.is_some() {
        return Ok(Dropped::None);
    }
    let is_expired = |until: &Moment| until.0 <= bounds.default.0;
    let expired = layout.parts.iter().filter_map(|part| part.until);
    let expired = expired.filter(is_expired);
    for part in &layout.parts {
        let Some(until) = part.until.filter(is_expired) else {
            continue;
        };
        let kept = Kept::of(bounds, until);
        let tables = layout.tables(&part.suffix);
        let max = MAX_COPIED + 1;
        let num_kept = kept.count(connection, &tables.events, max).await?;
        let leaving = Leaving {
            layout,
            part,
            tables,
        };
        if num_kept == 0 {
            return Ok(
                match leaving.drop(connection, Leaves::AllUnless(&kept)).await? {
                    Some(rows) => tries.succeeded(rows),
                    None => tries.failed(expired),
                },
            );
        }
        // Its few expired rows are deleted as anywhere else. So are those of a partition that keeps more
        // than it loses, where copying would cost more.
        if part.is_of_kept()
            || num_kept > MAX_COPIED
            || num_kept.saturating_mul(2) > leaving.num_rows(connection).await?
        {
            continue;
        }
        let copy = Copy {
            kept: &kept,
            into: layout.kept_in_place_of(part),
        };
        if copy.more(connection, &leaving, max_events).await? {
            return Ok(Dropped::Copied);
        }
        return Ok(
            match leaving.drop(connection, Leaves::AllBut(&copy)).await? {
                Some(rows) => tries.succeeded(rows),
                None => tries.failed(expired),
            },
        );
    }
    Ok(Dropped::None)
}

/// Drops the oldest expired partition whose events are all gone, with what it may hold of resources. For
/// retention that takes events one by one, since an archive has them first.
#[cfg(feature = "archive")]
pub(in crate::store::postgres) async fn drop_empty(
    connection: &mut Connection,
    layout: &Layout,
    bounds: &Bounds<PgTimestamp>,
) -> Result<Dropped, Failure> {
    if !layout.may_make || layout.period.is_none() {
        return Ok(Dropped::None);
    }
    for part in &layout.parts {
        if part.until.is_none_or(|until| until.0 > bounds.default.0) {
            continue;
        }
        let leaving = Leaving {
            layout,
            part,
            tables: layout.tables(&part.suffix),
        };
        if leaving.has_events(connection).await? {
            continue;
        }
        let dropped = leaving.drop(connection, Leaves::NoEvent).await?;
        return Ok(dropped.map_or(Dropped::Busy, Dropped::Gone));
    }
    Ok(Dropped::None)
}

/// A partition with more events is not dropped whole with an archive: they are compared with those in the files
/// under a lock, in which late ones wait for about a second, and after a crash its files are written again.
#[cfg(feature = "archive")]
const MAX_COMPARED: u64 = 1_000_000;

/// The partition of a moment, if all that it holds is expired and it can be locked. A reader that takes its time
/// would hold it back once its files are written.
#[cfg(feature = "archive")]
pub(in crate::store::postgres) async fn whole<'a>(
    connection: &mut Connection,
    layout: &'a Layout,
    bounds: &Bounds<PgTimestamp>,
    moment: Moment,
) -> Result<Option<&'a Part>, Failure> {
    let part = layout.partition_for(moment);
    let until = part.and_then(|part| part.until);
    let (Some(part), Some(until)) = (part, until) else {
        return Ok(None);
    };
    let (tables, kept) = (layout.tables(&part.suffix), Kept::of(bounds, until));
    let may_drop = layout.may_make && layout.period.is_some() && until.0 <= bounds.default.0;
    let is_whole = may_drop
        && as_count(part.num_rows) <= MAX_COMPARED
        && kept.count(connection, &tables.events, 1).await? == 0
        && try_lock_tables(connection, &tables.both(), "ACCESS EXCLUSIVE", LOCK_WAIT).await?;
    Ok(is_whole.then_some(part))
}

/// Drops a partition, unless it holds other events than those that are archived.
#[cfg(feature = "archive")]
pub(in crate::store::postgres) async fn drop_archived(
    connection: &mut Connection,
    archived: &Partition,
) -> Result<Dropped, Failure> {
    let layout = layout(connection).await?;
    let mut parts = layout.iter().flat_map(|layout| &layout.parts);
    let part = parts.find(|part| part.suffix == archived.suffix);
    let (Some(layout), Some(part)) = (&layout, part) else {
        return Ok(Dropped::None);
    };
    let tables = layout.tables(&part.suffix);
    // From here on nothing comes any more.
    if !try_lock_tables(connection, &tables.both(), "EXCLUSIVE", LOCK_WAIT).await? {
        return Ok(Dropped::Busy);
    }
    let question = format!(
        "SELECT count(*) = {} AND coalesce(sum({FINGERPRINT}), 0) = {} FROM {}",
        archived.num_events, archived.fingerprint, tables.events
    );
    let is_archived = sql::<Bool>(&question);
    if !is_archived.get_result(&mut connection.pg).await? {
        return Ok(Dropped::None);
    }
    let leaving = Leaving {
        layout,
        part,
        tables,
    };
    let nothing = Kept::default();
    let dropped = leaving
        .drop(connection, Leaves::AllUnless(&nothing))
        .await?;
    Ok(dropped.map_or(Dropped::Busy, Dropped::Gone))
}

/// A number that is made of what identifies an event; [`fingerprint`] makes the same.
#[cfg(feature = "archive")]
const FINGERPRINT: &str = "('x' || left(encode(sha256(uuid_send(id) || timestamptz_send(occurred)), 'hex'), 16))\
    ::bit(64)::bigint";

#[cfg(feature = "archive")]
pub(in crate::store::postgres) fn fingerprint(id: Uuid, occurred: PgTimestamp) -> i64 {
    let hash = Sha256::new().chain_update(id.as_bytes());
    let hash = hash.chain_update(occurred.0.to_be_bytes()).finalize();
    let first = hash.iter().take(8);
    first.fold(0, |number, byte| (number << 8) | i64::from(*byte))
}

/// A partition that is expired.
struct Leaving<'a> {
    layout: &'a Layout,
    part: &'a Part,
    tables: Tables,
}

/// What leaves with a partition.
enum Leaves<'a> {
    /// All of it, unless something is kept.
    AllUnless(&'a Kept),
    /// All of it that the copy does not have.
    AllBut(&'a Copy<'a>),
    /// Resources at most, since its events are gone.
    #[cfg(feature = "archive")]
    NoEvent,
}

impl Leaving<'_> {
    /// How many events it has, about; a small table is not estimated.
    async fn num_rows(&self, connection: &mut Connection) -> Result<u64, Failure> {
        if self.part.num_rows > 0 {
            return Ok(as_count(self.part.num_rows));
        }
        let question = format!("SELECT count(*) FROM {}", self.tables.events);
        let counted: i64 = sql::<BigInt>(&question)
            .get_result(&mut connection.pg)
            .await?;
        Ok(as_count(counted))
    }

    /// Drops it, and puts the copy of what is kept in its place; `None` if a lock was not to be had in time.
    ///
    /// Readers and writers wait from the second lock on, until the commit: what takes long is done before.
    async fn drop(
        &self,
        connection: &mut Connection,
        leaves: Leaves<'_>,
    ) -> Result<Option<Trimmed>, Failure> {
        // Nobody writes to it any more; others read.
        if !try_lock_tables(connection, &self.tables.both(), "EXCLUSIVE", LOCK_WAIT).await? {
            return Ok(None);
        }
        // What is not to leave may have come just before.
        let copy = match leaves {
            Leaves::AllBut(copy) => {
                copy.complete(connection, self).await?;
                Some(copy)
            }
            Leaves::AllUnless(kept)
                if kept.count(connection, &self.tables.events, 1).await? > 0 =>
            {
                return Ok(None);
            }
            Leaves::AllUnless(_) => None,
            #[cfg(feature = "archive")]
            Leaves::NoEvent if self.has_events(connection).await? => return Ok(None),
            #[cfg(feature = "archive")]
            Leaves::NoEvent => None,
        };
        let rows = self.count_leaving(connection, copy).await?;
        failpoint::pass("retention::before-drop");
        let turn = format!("SELECT pg_try_advisory_xact_lock({MAKER_LOCK})");
        let is_our_turn: bool = sql::<Bool>(&turn).get_result(&mut connection.pg).await?;
        if !is_our_turn {
            return Ok(None);
        }
        let parents = self.layout.parents().both();
        let mut locks: Vec<String> = parents
            .iter()
            .map(|table| format!("ONLY {table}"))
            .collect();
        locks.extend(self.tables.both());
        locks.extend(self.layout.defaults().iter().flat_map(Tables::both));
        if !try_lock_tables(connection, &locks, "ACCESS EXCLUSIVE", LOCK_WAIT).await? {
            return Ok(None);
        }
        let [events, resources] = self.tables.both();
        connection
            .pg
            .batch_execute(&format!("DROP TABLE {events}; DROP TABLE {resources}"))
            .await?;
        match copy {
            Some(copy) => copy.attach(connection, self).await?,
            None => {
                // An earlier pass may have copied rows that were still kept then.
                let [events, resources] = self.layout.kept_in_place_of(self.part).both();
                if !self.part.is_of_kept() && exists(connection, &events).await? {
                    let drop = format!("DROP TABLE {events}; DROP TABLE {resources}");
                    connection.pg.batch_execute(&drop).await?;
                }
            }
        }
        failpoint::pass("retention::after-drop");
        Ok(Some(rows))
    }

    #[cfg(feature = "archive")]
    async fn has_events(&self, connection: &mut Connection) -> Result<bool, Failure> {
        let question = format!("SELECT EXISTS (SELECT FROM {})", self.tables.events);
        Ok(sql::<Bool>(&question)
            .get_result(&mut connection.pg)
            .await?)
    }

    /// How many rows leave; about as many, where they are too many to be counted.
    async fn count_leaving(
        &self,
        connection: &mut Connection,
        copy: Option<&Copy<'_>>,
    ) -> Result<Trimmed, Failure> {
        let mut leaving = [0, 0];
        let stay = copy.map(|copy| copy.into.both());
        for (index, (num, table)) in leaving.iter_mut().zip(self.tables.both()).enumerate() {
            let mut question = if self.part.num_rows > MAX_COUNTED {
                format!(
                    "SELECT (SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = '{table}'::regclass)"
                )
            } else {
                format!("SELECT (SELECT count(*) FROM {table})")
            };
            if let Some(stays) = stay.as_ref().and_then(|tables| tables.get(index)) {
                question.push_str(&format!(" - (SELECT count(*) FROM {stays})"));
            }
            *num = sql::<BigInt>(&question)
                .get_result(&mut connection.pg)
                .await?;
        }
        let [events, resources] = leaving.map(as_count);
        Ok(Trimmed { events, resources })
    }
}

/// The table that takes a partition's place, with what is kept.
struct Copy<'a> {
    kept: &'a Kept,
    into: Tables,
}

impl Copy<'_> {
    /// Copies the next rows; whether there may be more.
    ///
    /// In the order of (occurred, id), so that it goes on behind the last one that it has.
    async fn more(
        &self,
        connection: &mut Connection,
        leaving: &Leaving<'_>,
        max_events: NonZeroUsize,
    ) -> Result<bool, Failure> {
        if !exists(connection, &self.into.events).await? {
            self.make(connection, leaving).await?;
        }
        let (from, into) = (&leaving.tables, &self.into);
        let (events, resources) = from.columns(connection).await?;
        let statement = format!(
            "WITH last AS (SELECT occurred, id FROM {into_events} ORDER BY occurred DESC, id DESC LIMIT 1), \
             events AS (INSERT INTO {into_events} ({events}) SELECT {of_events} FROM {from_events} AS r \
             WHERE {IS_KEPT} AND (r.occurred, r.id) > (\
             coalesce((SELECT occurred FROM last), '-infinity'), \
             coalesce((SELECT id FROM last), '00000000-0000-0000-0000-000000000000')) \
             ORDER BY r.occurred, r.id LIMIT {max} ON CONFLICT DO NOTHING RETURNING occurred, id), \
             resources AS (INSERT INTO {into_resources} ({resources}) \
             SELECT {of_resources} FROM {from_resources} AS r \
             JOIN events ON r.event_id = events.id AND r.occurred = events.occurred \
             ON CONFLICT DO NOTHING) SELECT count(*) AS num FROM events",
            into_events = into.events,
            into_resources = into.resources,
            from_events = from.events,
            from_resources = from.resources,
            events = events.list(),
            of_events = events.list_of("r"),
            resources = resources.list(),
            of_resources = resources.list_of("r"),
            max = at_most(max_events.get()),
        );
        let copied: Number = sql_query(statement)
            .bind::<Array<Text>, _>(&self.kept.names)
            .bind::<Array<Timestamptz>, _>(&self.kept.from)
            .get_result(&mut connection.pg)
            .await?;
        failpoint::pass("retention::copying");
        Ok(as_count(copied.num) >= max_events.get() as u64)
    }

    /// With all indexes, and with a constraint that spares the server to look at every row when it is
    /// attached.
    async fn make(
        &self,
        connection: &mut Connection,
        leaving: &Leaving<'_>,
    ) -> Result<(), Failure> {
        let condition = bound_condition(leaving.part);
        let statements = leaving.tables.both().into_iter().zip(self.into.both());
        let statements: String = statements
            .map(|(from, into)| {
                format!(
                    "CREATE TABLE {into} (LIKE {from} INCLUDING ALL); \
                     ALTER TABLE {into} ADD CONSTRAINT event_persister_kept CHECK ({condition});\n"
                )
            })
            .collect();
        Ok(connection.pg.batch_execute(&statements).await?)
    }

    /// Makes it exactly what is kept of the partition, whose rows nobody changes now.
    async fn complete(
        &self,
        connection: &mut Connection,
        leaving: &Leaving<'_>,
    ) -> Result<(), Failure> {
        let (from, into) = (&leaving.tables, &self.into);
        let (from_events, from_resources) = (&from.events, &from.resources);
        let (into_events, into_resources) = (&into.events, &into.resources);
        let (events, resources) = from.columns(connection).await?;
        let missing = format!(
            "INSERT INTO {into_events} ({}) SELECT {} FROM {from_events} AS r WHERE {IS_KEPT} \
             AND NOT EXISTS (SELECT FROM {into_events} AS there \
             WHERE there.id = r.id AND there.occurred = r.occurred)",
            events.list(),
            events.list_of("r")
        );
        self.kept.execute(connection, &missing).await?;
        let gone = format!(
            "DELETE FROM {into_events} AS there WHERE NOT EXISTS (SELECT FROM {from_events} AS r \
             WHERE r.id = there.id AND r.occurred = there.occurred AND {IS_KEPT})"
        );
        self.kept.execute(connection, &gone).await?;
        let resources = format!(
            "INSERT INTO {into_resources} ({}) SELECT {} FROM {from_resources} AS r \
             JOIN {into_events} AS event ON event.id = r.event_id AND event.occurred = r.occurred \
             ON CONFLICT DO NOTHING; \
             DELETE FROM {into_resources} AS there WHERE NOT EXISTS (\
             SELECT FROM {from_resources} AS r JOIN {into_events} AS event \
             ON event.id = r.event_id AND event.occurred = r.occurred \
             WHERE r.id = there.id AND r.occurred = there.occurred)",
            resources.list(),
            resources.list_of("r")
        );
        connection.pg.batch_execute(&resources).await?;
        failpoint::pass("retention::copied");
        Ok(())
    }

    async fn attach(
        &self,
        connection: &mut Connection,
        leaving: &Leaving<'_>,
    ) -> Result<(), Failure> {
        let parents = leaving.layout.parents().both().into_iter();
        let statements: String = parents
            .zip(self.into.both())
            .map(|(parent, into)| {
                let bounds = bounds_of(leaving.part);
                format!(
                    "ALTER TABLE {parent} ATTACH PARTITION {into} FOR VALUES {bounds}; \
                     ALTER TABLE {into} DROP CONSTRAINT event_persister_kept;\n"
                )
            })
            .collect();
        Ok(connection.pg.batch_execute(&statements).await?)
    }
}

/// A moment as a literal that no setting changes the meaning of.
fn literal(moment: Moment) -> Option<String> {
    let at = moment.to_utc()?;
    Some(format!("'{}+00'", at.format("%Y-%m-%d %H:%M:%S%.6f")))
}

fn bound_condition(part: &Part) -> String {
    let from = part.from.and_then(literal);
    let until = part.until.and_then(literal);
    let from = from.map(|from| format!("occurred >= {from}"));
    let until = until.map(|until| format!("occurred < {until}"));
    let both: Vec<String> = from.into_iter().chain(until).collect();
    both.join(" AND ")
}

fn bounds_of(part: &Part) -> String {
    let from = part.from.and_then(literal);
    let until = part.until.and_then(literal);
    format!(
        "FROM ({}) TO ({})",
        from.as_deref().unwrap_or("MINVALUE"),
        until.as_deref().unwrap_or("MAXVALUE")
    )
}
