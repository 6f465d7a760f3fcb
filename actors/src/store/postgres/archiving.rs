//! The rows that an archive takes before retention removes them, and the manifests of its files.
//!
//! A removal commits as durably as a batch does: what a crash of the server undid would stand in the tables
//! and in the archive.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{
    Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::PostgresStore;
use super::connection::Connection;
use super::failure::Failure;
use super::partitions::{
    Dropped, MAX_TRIES, drop_archived, drop_empty, fingerprint, layout, whole,
};
use super::rows::{EPOCH_MICROS, Moment};
use super::schema::{MAKE_ARCHIVES, SCHEMA_LOCK};
use super::trim::{AFTER_BUSY, ahead, bounds, delete, delete_orphans, try_lock};
use crate::failpoint;
use crate::store::archivable::{
    ArchivableRows, Budget, EventRow, FileContent, Manifest, ManifestChange, NamedContent,
    Partition, Position, Removal, RemovalStep, YEAR_1,
};
use crate::store::manifest_row::{ManifestRow, READ_MANIFESTS};
use crate::store::operator::Answer;
use crate::store::{Cutoffs, Removed, StoreError, TrimStep, Trimmed, at_most};

/// PostgreSQL counts from 2000; `-infinity` is its smallest number.
fn timestamp(micros: i64) -> PgTimestamp {
    match micros {
        YEAR_1 => PgTimestamp(i64::MIN),
        micros => PgTimestamp(micros.saturating_sub(EPOCH_MICROS)),
    }
}

fn micros(timestamp: PgTimestamp) -> i64 {
    match timestamp.0 {
        i64::MIN => YEAR_1,
        since_2000 => since_2000.saturating_add(EPOCH_MICROS),
    }
}

impl ArchivableRows for PostgresStore {
    fn prepare(&self) -> Answer<'_, ()> {
        Box::pin(self.in_transaction("make the tables of the archive in", prepare))
    }

    fn archive_id<'a>(&'a self, proposed: Option<&'a str>) -> Answer<'a, Option<String>> {
        Box::pin(self.in_transaction("read", async move |connection: &mut Connection| {
            if !has_archives(connection).await? {
                return Ok(None);
            }
            if let Some(proposed) = proposed {
                let note = "INSERT INTO event_persister_archive (archive_id) VALUES ($1) ON CONFLICT DO NOTHING";
                let note = sql_query(note).bind::<Text, _>(proposed);
                note.execute(&mut connection.pg).await?;
            }
            let read = sql::<Nullable<Text>>("SELECT max(archive_id) FROM event_persister_archive");
            Ok(read.get_result(&mut connection.pg).await?)
        }))
    }

    fn manifests(&self, only_unfinished: bool) -> Answer<'_, Vec<Manifest>> {
        Box::pin(
            self.in_transaction("read", async move |connection: &mut Connection| {
                if !has_archives(connection).await? {
                    return Ok(Vec::new());
                }
                let query =
                    format!("{READ_MANIFESTS} WHERE NOT $1 OR state <> 'archived' ORDER BY file");
                let query = sql_query(query).bind::<Bool, _>(only_unfinished);
                manifests(query.load(&mut connection.pg).await?)
            }),
        )
    }

    fn manifests_in<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Manifest>> {
        Box::pin(self.in_transaction("read", async move |connection: &mut Connection| {
            // A range of the key; `0` is the character after `/`.
            let query = format!("{READ_MANIFESTS} WHERE file COLLATE \"C\" >= $1 AND file COLLATE \"C\" < $2 ORDER BY file");
            let query = sql_query(query)
                .bind::<Text, _>(format!("{folder}/"))
                .bind::<Text, _>(format!("{folder}0"));
            manifests(query.load(&mut connection.pg).await?)
        }))
    }

    fn begin<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        Box::pin(self.change(BEGIN, file))
    }

    fn beat<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        const BEAT: &str =
            "UPDATE event_persister_archives SET beats = beats + 1 WHERE file = $1 AND open";
        Box::pin(self.change(BEAT, file))
    }

    fn discard<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        Box::pin(self.change(DISCARD, file))
    }

    fn adopt<'a>(&'a self, file: &'a str, content: &'a FileContent) -> Answer<'a, ()> {
        Box::pin(
            self.in_transaction("write to", async move |connection: &mut Connection| {
                let adopt = format!("{NOTE}, 'archived') ON CONFLICT DO NOTHING");
                write_content(connection, &adopt, file, content)
                    .await
                    .map(drop)
            }),
        )
    }

    fn expired<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        behind: &'a Position,
        before: i64,
        budget: Budget,
    ) -> Answer<'a, Vec<EventRow>> {
        Box::pin(async move {
            let now = self.clock.now();
            cutoffs.refuse_future(now)?;
            let read = async move |connection: &mut Connection| {
                let bounds = bounds(cutoffs, ahead(now, server_now(connection).await?));
                let until = |cutoff: PgTimestamp| PgTimestamp(cutoff.0.min(timestamp(before).0));
                let names: Vec<&String> = bounds.names().collect();
                let cutoffs = bounds.overrides.iter().map(|(_, cutoff)| until(*cutoff));
                let rows: Vec<Row> = sql_query(FIND)
                    .bind::<Array<Text>, _>(names)
                    .bind::<Array<Timestamptz>, _>(cutoffs.collect::<Vec<_>>())
                    .bind::<BigInt, _>(at_most(budget.max_events.get()))
                    .bind::<Timestamptz, _>(until(bounds.default))
                    .bind::<Timestamptz, _>(timestamp(behind.occurred))
                    .bind::<SqlUuid, _>(Uuid::parse_str(&behind.id).unwrap_or_default())
                    .bind::<BigInt, _>(at_most(budget.max_bytes))
                    .load(&mut connection.pg)
                    .await?;
                rows.into_iter().map(EventRow::try_from).collect()
            };
            self.in_transaction("read what retention removes from", read)
                .await
        })
    }

    fn remove<'a>(&'a self, removal: Removal<'a>) -> Answer<'a, RemovalStep> {
        Box::pin(async move {
            let remove = async move |connection: &mut Connection| remove(connection, removal).await;
            self.trimming(NUM_STATEMENTS, remove)
                .await
                .map_err(unknown_if_late)
        })
    }

    fn whole_partition<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        event: &'a Position,
    ) -> Answer<'a, Option<Partition>> {
        let now = self.clock.now();
        let look = async move |connection: &mut Connection| {
            let Some(layout) = layout(connection).await? else {
                return Ok(None);
            };
            let bounds = bounds(cutoffs, ahead(now, server_now(connection).await?));
            let moment = Moment(timestamp(event.occurred).0);
            let part = whole(connection, &layout, &bounds, moment).await?;
            let micros = |moment: Moment| micros(PgTimestamp(moment.0));
            Ok(part.map(|part| Partition {
                suffix: part.suffix.clone(),
                from: part.from.map_or(i64::MIN, micros),
                until: part.until.map_or(i64::MAX, micros),
                ..Partition::default()
            }))
        };
        Box::pin(self.in_transaction("look at the partitions of", look))
    }

    fn fingerprint(&self, events: &[Position]) -> i128 {
        let identities = events.iter().filter_map(identity);
        let numbers = identities.map(|(id, occurred)| fingerprint(id, occurred));
        numbers.map(i128::from).sum()
    }

    fn drop_partition<'a>(&'a self, partition: &'a Partition) -> Answer<'a, Option<Removed>> {
        Box::pin(async move {
            let drop =
                async |connection: &mut Connection| drop_partition(connection, partition).await;
            for _ in 0..MAX_TRIES {
                let begun = Instant::now();
                match self
                    .trimming(NUM_STATEMENTS, &drop)
                    .await
                    .map_err(unknown_if_late)
                {
                    Ok(Dropped::Gone(rows)) => return Ok(Some(removed(rows, begun, true))),
                    Ok(Dropped::Busy) => tokio::time::sleep(AFTER_BUSY).await,
                    Ok(Dropped::None | Dropped::Copied) | Err(StoreError::TooSlow { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        })
    }

    fn published<'a>(&'a self, file: &'a str) -> Answer<'a, ()> {
        const PUBLISHED: &str = "UPDATE event_persister_archives SET state = 'archived' WHERE file = $1 AND state = 'removed'";
        Box::pin(async move { self.change(PUBLISHED, file).await.map(drop) })
    }

    fn remove_strays<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_rows: std::num::NonZeroUsize,
    ) -> Answer<'a, TrimStep> {
        Box::pin(async move {
            let now = self.clock.now();
            cutoffs.refuse_future(now)?;
            let remove = async move |connection: &mut Connection| {
                let begun = Instant::now();
                connection.begin_repeatable().await?;
                let Some(trimming) = try_lock(connection).await? else {
                    connection.commit().await?;
                    return Ok(TrimStep::TakenByAnother);
                };
                let bounds = bounds(cutoffs, ahead(now, trimming.server_now));
                let layout = layout(connection).await?;
                if let Some(layout) = &layout {
                    match drop_empty(connection, layout, &bounds).await? {
                        Dropped::Gone(rows) => {
                            connection.commit().await?;
                            return Ok(TrimStep::Removed(removed(rows, begun, true)));
                        }
                        // It is left to the next pass.
                        Dropped::Busy => {
                            connection.roll_back().await?;
                            return Ok(TrimStep::Finished);
                        }
                        Dropped::None | Dropped::Copied => {}
                    }
                }
                let rows = delete_orphans(connection, &bounds, max_rows, layout.is_some()).await?;
                connection.commit().await?;
                Ok(rows.map_or(TrimStep::Finished, |rows| {
                    TrimStep::Removed(removed(rows, begun, false))
                }))
            };
            self.trimming(NUM_STATEMENTS, remove).await
        })
    }
}

impl PostgresStore {
    /// Changes the manifest of a file; whether there was one to change.
    async fn change(&self, statement: &'static str, file: &str) -> Result<bool, StoreError> {
        let change = async |connection: &mut Connection| {
            let change = sql_query(statement).bind::<Text, _>(file);
            Ok(change.execute(&mut connection.pg).await? > 0)
        };
        let changed = self.in_transaction("write to", change).await;
        changed.map_err(unknown_if_late)
    }
}

/// An answer that did not come in time may be that of a commit.
fn unknown_if_late(error: StoreError) -> StoreError {
    match error {
        StoreError::TooSlow {
            what,
            code: None,
            source,
        } => StoreError::OutcomeUnknown {
            what,
            fault: None,
            source,
        },
        error => error,
    }
}

/// The statements of a removal that may take long.
const NUM_STATEMENTS: u32 = 4;

fn removed(rows: Trimmed, begun: Instant, with_their_table: bool) -> Removed {
    Removed {
        rows,
        took: begun.elapsed(),
        // The server does not tell who writes.
        others_write: false,
        with_their_table,
    }
}

async fn has_archives(connection: &mut Connection) -> Result<bool, Failure> {
    let found = sql::<Bool>("SELECT to_regclass('event_persister_archives') IS NOT NULL");
    Ok(found.get_result(&mut connection.pg).await?)
}

async fn prepare(connection: &mut Connection) -> Result<(), Failure> {
    if has_archives(connection).await? {
        return Ok(());
    }
    let lock = format!("SELECT pg_advisory_xact_lock({SCHEMA_LOCK})");
    connection.pg.batch_execute(&lock).await?;
    // Another replica may have made them while this one waited.
    if !has_archives(connection).await? {
        connection.pg.batch_execute(MAKE_ARCHIVES).await?;
        log::info!("the tables of the archive were made");
    }
    Ok(())
}

async fn remove(connection: &mut Connection, removal: Removal<'_>) -> Result<RemovalStep, Failure> {
    let begun = Instant::now();
    connection.begin().await?;
    let trimming = match try_lock(connection).await? {
        Some(trimming) if change_manifest(connection, &removal).await? => trimming,
        _ => {
            connection.roll_back().await?;
            return Ok(RemovalStep::TakenByAnother);
        }
    };
    let events = removal.events.iter().filter_map(identity);
    let (ids, moments): (Vec<Uuid>, Vec<PgTimestamp>) = events.unzip();
    let rows = delete(connection, &ids, &moments, trimming.is_partitioned).await?;
    failpoint::pass("archive::before-commit");
    connection.commit().await?;
    Ok(RemovalStep::Removed(removed(rows, begun, false)))
}

fn identity(event: &Position) -> Option<(Uuid, PgTimestamp)> {
    let id = Uuid::parse_str(&event.id).ok()?;
    Some((id, timestamp(event.occurred)))
}

async fn server_now(connection: &mut Connection) -> Result<PgTimestamp, Failure> {
    let now = sql::<Timestamptz>("SELECT clock_timestamp()");
    Ok(now.get_result(&mut connection.pg).await?)
}

/// The manifests come first, so that little is done under the locks of the drop.
async fn drop_partition(
    connection: &mut Connection,
    partition: &Partition,
) -> Result<Dropped, Failure> {
    connection.begin().await?;
    let close = sql_query(DISCARD).bind::<Text, _>(&partition.opened);
    let dropped = if try_lock(connection).await?.is_none() {
        Dropped::Busy
    } else if close.execute(&mut connection.pg).await? == 0 {
        Dropped::None
    } else {
        let note = format!("{NOTE}, 'removed')");
        for NamedContent { file, content } in &partition.files {
            write_content(connection, &note, file, content).await?;
        }
        drop_archived(connection, partition).await?
    };
    if let Dropped::Gone(_) = dropped {
        failpoint::pass("archive::before-commit");
        connection.commit().await?;
    } else {
        connection.roll_back().await?;
    }
    Ok(dropped)
}

/// Whether the manifest was as it has to be.
async fn change_manifest(
    connection: &mut Connection,
    removal: &Removal<'_>,
) -> Result<bool, Failure> {
    let file = match removal.change {
        ManifestChange::None => return Ok(true),
        ManifestChange::Claim(file, content) => {
            let claim = "UPDATE event_persister_archives SET state = 'removing', events = $2, bytes = $3, \
                sha256 = $4, first_occurred = $5, first_id = $6, last_occurred = $7, last_id = $8, \
                schema_version = $9 WHERE file = $1 AND state = 'writing'";
            if !write_content(connection, claim, file, content).await? {
                return Ok(false);
            }
            file
        }
        ManifestChange::Beat(file) => file,
    };
    let change = if removal.is_last {
        "UPDATE event_persister_archives SET state = 'removed', open = NULL WHERE file = $1 AND state = 'removing'"
    } else {
        "UPDATE event_persister_archives SET beats = beats + 1 WHERE file = $1 AND state = 'removing'"
    };
    let change = sql_query(change).bind::<Text, _>(file);
    if change.execute(&mut connection.pg).await? == 0 {
        return Ok(false);
    }
    let Some(next) = removal.next else {
        return Ok(true);
    };
    let begin = sql_query(BEGIN).bind::<Text, _>(next);
    Ok(begin.execute(&mut connection.pg).await? > 0)
}

const BEGIN: &str = "INSERT INTO event_persister_archives (file, state, open, begun) \
    VALUES ($1, 'writing', true, clock_timestamp()) ON CONFLICT DO NOTHING";

const DISCARD: &str = "DELETE FROM event_persister_archives WHERE file = $1 AND state = 'writing'";

/// A new manifest; its state follows.
const NOTE: &str = "INSERT INTO event_persister_archives (file, begun, events, bytes, sha256, first_occurred, \
    first_id, last_occurred, last_id, schema_version, state) \
    VALUES ($1, clock_timestamp(), $2, $3, $4, $5, $6, $7, $8, $9";

async fn write_content(
    connection: &mut Connection,
    statement: &str,
    file: &str,
    content: &FileContent,
) -> Result<bool, Failure> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let write = sql_query(statement)
        .bind::<Text, _>(file)
        .bind::<BigInt, _>(number(content.num_events))
        .bind::<BigInt, _>(number(content.num_bytes))
        .bind::<Text, _>(&content.sha256)
        .bind::<Timestamptz, _>(timestamp(content.first.occurred))
        .bind::<Text, _>(&content.first.id)
        .bind::<Timestamptz, _>(timestamp(content.last.occurred))
        .bind::<Text, _>(&content.last.id)
        .bind::<Integer, _>(i32::try_from(content.schema_version).unwrap_or(i32::MAX));
    Ok(write.execute(&mut connection.pg).await? > 0)
}

/// The next expired events, until they are too many or too large.
///
/// As in a trim without an archive, names with a cutoff of their own are searched each by itself. JSON becomes
/// text once, below the limit, which the planner cannot move.
const FIND: &str = "WITH found AS (SELECT * FROM (\
    (SELECT occurred, id, received, recorded, event, follows, \
    resource::text AS resource, related::text AS related, payload::text AS payload \
    FROM unnest($1, $2) AS override (name, cutoff) CROSS JOIN LATERAL (\
    SELECT * FROM events WHERE event = override.name AND occurred < override.cutoff \
    AND occurred >= $5 AND (occurred > $5 OR id > $6) ORDER BY occurred, id LIMIT $3) AS named) \
    UNION ALL \
    (SELECT occurred, id, received, recorded, event, follows, \
    resource::text, related::text, payload::text FROM events \
    WHERE occurred < $4 AND (cardinality($1) = 0 OR event <> ALL ($1)) \
    AND occurred >= $5 AND (occurred > $5 OR id > $6) ORDER BY occurred, id LIMIT $3)) AS all_found \
    ORDER BY occurred, id LIMIT $3), \
    sized AS (SELECT *, octet_length(resource) + octet_length(related) + octet_length(payload) AS size FROM found), \
    summed AS (SELECT *, sum(size) OVER (ORDER BY occurred, id) - size AS before FROM sized) \
    SELECT occurred, id, received, recorded, event, follows, resource, related, payload \
    FROM summed WHERE before < $7 ORDER BY occurred, id";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Timestamptz)]
    occurred: PgTimestamp,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    received: PgTimestamp,
    #[diesel(sql_type = Timestamptz)]
    recorded: PgTimestamp,
    #[diesel(sql_type = Text)]
    event: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    follows: Option<Uuid>,
    #[diesel(sql_type = Text)]
    resource: String,
    #[diesel(sql_type = Text)]
    related: String,
    #[diesel(sql_type = Text)]
    payload: String,
}

impl TryFrom<Row> for EventRow {
    type Error = Failure;

    /// Refuses times that a file cannot hold.
    fn try_from(row: Row) -> Result<Self, Failure> {
        let id = row.id;
        let unfit = |what: String| {
            Failure::Unfit(format!("the event {id} cannot be archived, since {what}"))
        };
        // A file has the year 1 in place of `-infinity`, so that nothing else may be as early.
        if (i64::MIN + 1..=Moment::YEAR_1).contains(&row.occurred.0) {
            return Err(unfit(format!(
                "it occurred before all that a file can hold: let it be the first moment of all with \
                 UPDATE events SET occurred = '-infinity' WHERE id = '{id}'; \
                 UPDATE event_resources SET occurred = '-infinity' WHERE event_id = '{id}'"
            )));
        }
        for (column, at) in [("received", row.received), ("recorded", row.recorded)] {
            if at.0 >= Moment::YEAR_10000 {
                return Err(unfit(format!(
                    "its column {column} is beyond the year 9999: correct it with \
                     UPDATE events SET {column} = now() WHERE id = '{id}'"
                )));
            }
        }
        Ok(Self {
            position: Position {
                occurred: micros(row.occurred),
                id: row.id.to_string(),
            },
            received: micros(row.received),
            recorded: micros(row.recorded),
            event: row.event,
            follows: row.follows.map(|id| id.to_string()),
            resource: row.resource,
            related: row.related,
            payload: row.payload,
        })
    }
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(embed)]
    manifest: ManifestRow,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    first_occurred: Option<PgTimestamp>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_occurred: Option<PgTimestamp>,
    #[diesel(sql_type = Timestamptz)]
    begun: DateTime<Utc>,
}

fn manifests(found: Vec<Found>) -> Result<Vec<Manifest>, Failure> {
    let manifest = |found: Found| {
        let times = found.first_occurred.zip(found.last_occurred);
        let times = times.map(|(first, last)| (micros(first), micros(last)));
        found
            .manifest
            .manifest(times, found.begun)
            .map_err(Failure::Unfit)
    };
    found.into_iter().map(manifest).collect()
}
