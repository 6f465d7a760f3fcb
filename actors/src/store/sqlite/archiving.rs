//! The rows that an archive takes before retention removes them, and the manifests of its files.
//!
//! Rows are read through a connection of their own, page by page, so that nobody waits for the archive.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use tokio::time::Instant;

use super::SqliteStore;
use super::connection::{Connection, Failure};
use super::schema::{events, has_archives, prepare_archive};
use super::text::{read_timestamp, timestamp_bound};
use super::trim::{
    Candidate, LockWait, Progress, delete_orphans, delete_with_ids, expired_of_others, has_orphans,
    is_before,
};
use crate::event::datetime_from_text;
use crate::failpoint;
use crate::store::archivable::{
    ArchivableRows, Budget, EventRow, FileContent, Manifest, ManifestChange, Position, Removal,
    RemovalStep,
};
use crate::store::manifest_row::{ManifestRow, READ_MANIFESTS};
use crate::store::operator::Answer;
use crate::store::{Bounds, Cutoffs, Removed, StoreError, TrimStep, Trimmed, at_most};

const READ: &str = "read what retention removes from";

impl ArchivableRows for SqliteStore {
    fn prepare(&self) -> Answer<'_, ()> {
        Box::pin(self.with_writer("make the tables of the archive in", prepare_archive))
    }

    fn archive_id<'a>(&'a self, proposed: Option<&'a str>) -> Answer<'a, Option<String>> {
        let proposed = proposed.map(str::to_owned);
        Box::pin(self.with_writer("read", move |connection| {
            if !has_archives(connection)? {
                return Ok(None);
            }
            if let Some(proposed) = proposed {
                let note = "INSERT OR IGNORE INTO event_persister_archive (archive_id) VALUES (?)";
                let note = sql_query(note).bind::<Text, _>(proposed);
                connection.run(|connection| note.execute(connection))?;
            }
            let read = "SELECT max(archive_id) FROM event_persister_archive";
            let read = diesel::dsl::sql::<Nullable<Text>>(read);
            Ok(connection.run(|connection| read.get_result(connection))?)
        }))
    }

    fn manifests(&self, only_unfinished: bool) -> Answer<'_, Vec<Manifest>> {
        Box::pin(self.with_writer("read", move |connection| {
            if !has_archives(connection)? {
                return Ok(Vec::new());
            }
            let query =
                format!("{READ_MANIFESTS} WHERE NOT ? OR state <> 'archived' ORDER BY file");
            let query = sql_query(query).bind::<Bool, _>(only_unfinished);
            manifests(connection.run(|connection| query.load(connection))?)
        }))
    }

    fn manifests_in<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Manifest>> {
        // A range of the key; `0` is the character after `/`.
        let (from, to) = (format!("{folder}/"), format!("{folder}0"));
        Box::pin(self.with_writer("read", move |connection| {
            let query = format!("{READ_MANIFESTS} WHERE file >= ? AND file < ? ORDER BY file");
            let query = sql_query(query).bind::<Text, _>(from).bind::<Text, _>(to);
            manifests(connection.run(|connection| query.load(connection))?)
        }))
    }

    fn begin<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        let (file, now) = (file.to_owned(), timestamp_bound(self.shared.clock.now()));
        Box::pin(self.with_writer("write to", move |connection| begin(connection, &file, &now)))
    }

    fn beat<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        const BEAT: &str =
            "UPDATE event_persister_archives SET beats = beats + 1 WHERE file = ? AND open = 1";
        Box::pin(self.change(BEAT, file))
    }

    fn discard<'a>(&'a self, file: &'a str) -> Answer<'a, bool> {
        const DISCARD: &str =
            "DELETE FROM event_persister_archives WHERE file = ? AND state = 'writing'";
        Box::pin(self.change(DISCARD, file))
    }

    fn adopt<'a>(&'a self, file: &'a str, content: &'a FileContent) -> Answer<'a, ()> {
        const ADOPT: &str = "INSERT OR IGNORE INTO event_persister_archives (events, bytes, sha256, \
            first_occurred, first_id, last_occurred, last_id, schema_version, file, state, begun) \
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'archived', ?)";
        let (file, content) = (file.to_owned(), content.clone());
        let now = timestamp_bound(self.shared.clock.now());
        Box::pin(self.with_writer("write to", move |connection| {
            write_content(connection, ADOPT, &file, &content, Some(now)).map(drop)
        }))
    }

    fn expired<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        behind: &'a Position,
        before: i64,
        budget: Budget,
    ) -> Answer<'a, Vec<EventRow>> {
        Box::pin(async move {
            cutoffs.refuse_future(self.shared.clock.now())?;
            let before = text_of(before);
            let mut bounds = cutoffs.bounds(timestamp_bound);
            let all = bounds.overrides.iter_mut().map(|(_, cutoff)| cutoff);
            for cutoff in all.chain([&mut bounds.default]) {
                if *cutoff > before {
                    cutoff.clone_from(&before);
                }
            }
            let from = match behind.occurred {
                i64::MIN => Candidate::default(),
                occurred => Candidate {
                    occurred: text_of(occurred),
                    id: behind.id.clone(),
                },
            };
            let read =
                move |connection: &mut Connection| expired(connection, &bounds, &from, budget);
            self.with_connection(READ, read).await
        })
    }

    fn remove<'a>(&'a self, removal: Removal<'a>) -> Answer<'a, RemovalStep> {
        let removal = OwnedRemoval {
            ids: removal
                .events
                .iter()
                .map(|event| event.id.clone())
                .collect(),
            change: match removal.change {
                ManifestChange::None => None,
                ManifestChange::Claim(file, content) => {
                    Some((file.to_owned(), Some(content.clone())))
                }
                ManifestChange::Beat(file) => Some((file.to_owned(), None)),
            },
            is_last: removal.is_last,
            next: removal.next.map(|next| {
                let now = timestamp_bound(self.shared.clock.now());
                (next.to_owned(), now)
            }),
        };
        let removal = std::sync::Arc::new(removal);
        Box::pin(async move {
            // Not beside what writes and trims here.
            drop(self.lock_idle().take());
            self.in_turns(move |connection, wait, progress| {
                remove(connection, &removal, wait, progress)
            })
            .await
        })
    }

    fn published<'a>(&'a self, file: &'a str) -> Answer<'a, ()> {
        const PUBLISHED: &str = "UPDATE event_persister_archives SET state = 'archived' WHERE file = ? AND state = 'removed'";
        Box::pin(async move { self.change(PUBLISHED, file).await.map(drop) })
    }

    fn remove_strays<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_rows: NonZeroUsize,
    ) -> Answer<'a, TrimStep> {
        Box::pin(async move {
            cutoffs.refuse_future(self.shared.clock.now())?;
            let bounds = std::sync::Arc::new(cutoffs.bounds(timestamp_bound));
            self.in_turns(move |connection, wait, progress| {
                remove_strays(connection, &bounds, max_rows, wait, progress)
            })
            .await
        })
    }
}

impl SqliteStore {
    /// Changes the manifest of a file; whether there was one to change.
    async fn change(&self, statement: &'static str, file: &str) -> Result<bool, StoreError> {
        let file = file.to_owned();
        self.with_writer("write to", move |connection| {
            let change = sql_query(statement).bind::<Text, _>(file);
            Ok(connection.run(|connection| change.execute(connection))? > 0)
        })
        .await
    }

    /// Makes a step, as soon as no other process holds the lock.
    async fn in_turns<T: Send + 'static>(
        &self,
        step: impl Fn(&mut Connection, LockWait, &mut Progress) -> Result<Option<T>, Failure>
        + Clone
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        loop {
            let wait = LockWait::next(began, self.shared.settings.busy_timeout);
            let mut progress = std::mem::take(&mut *self.lock_progress());
            let step = step.clone();
            let made = move |connection: &mut Connection| {
                let made = step(connection, wait, &mut progress)?;
                Ok((made, progress))
            };
            let (made, progress) = self.with_writer("trim", made).await?;
            *self.lock_progress() = progress;
            if let Some(made) = made {
                return Ok(made);
            }
        }
    }
}

struct OwnedRemoval {
    ids: Vec<String>,
    /// The file, and its content where it is claimed.
    change: Option<(String, Option<FileContent>)>,
    is_last: bool,
    /// The file whose manifest is opened, and when.
    next: Option<(String, String)>,
}

fn begin(connection: &mut Connection, file: &str, now: &str) -> Result<bool, Failure> {
    const BEGIN: &str = "INSERT OR IGNORE INTO event_persister_archives (file, state, open, begun) \
        VALUES (?, 'writing', 1, ?)";
    let begin = sql_query(BEGIN).bind::<Text, _>(file).bind::<Text, _>(now);
    Ok(connection.run(|connection| begin.execute(connection))? > 0)
}

fn remove(
    connection: &mut Connection,
    removal: &OwnedRemoval,
    wait: LockWait,
    progress: &mut Progress,
) -> Result<Option<RemovalStep>, Failure> {
    let others_write = progress.look(connection)?;
    if !wait.begin(connection)? {
        return Ok(None);
    }
    let begun = Instant::now();
    if !change_manifest(connection, removal)? {
        connection.roll_back()?;
        return Ok(Some(RemovalStep::TakenByAnother));
    }
    let rows = delete_with_ids(connection, removal.ids.iter().map(String::as_str))?;
    failpoint::pass("archive::before-commit");
    let removed = commit(connection, rows, begun, others_write)?;
    Ok(Some(RemovalStep::Removed(removed)))
}

fn commit(
    connection: &mut Connection,
    rows: Trimmed,
    begun: Instant,
    others_write: bool,
) -> Result<Removed, Failure> {
    connection.commit_only()?;
    let took = begun.elapsed();
    connection.checkpoint();
    Ok(Removed {
        rows,
        took,
        others_write,
        with_their_table: false,
    })
}

fn remove_strays(
    connection: &mut Connection,
    bounds: &Bounds<String>,
    max_rows: NonZeroUsize,
    wait: LockWait,
    progress: &mut Progress,
) -> Result<Option<TrimStep>, Failure> {
    let others_write = progress.look(connection)?;
    if !has_orphans(connection, bounds)? {
        connection.keep_many_pages(false)?;
        return Ok(Some(TrimStep::Finished));
    }
    if !wait.begin(connection)? {
        return Ok(None);
    }
    let begun = Instant::now();
    let rows = delete_orphans(connection, bounds, max_rows)?;
    let removed = commit(connection, rows, begun, others_write)?;
    Ok(Some(TrimStep::Removed(removed)))
}

/// Whether the manifest was as it has to be.
fn change_manifest(connection: &mut Connection, removal: &OwnedRemoval) -> Result<bool, Failure> {
    const CLAIM: &str = "UPDATE event_persister_archives SET events = ?, bytes = ?, sha256 = ?, \
        first_occurred = ?, first_id = ?, last_occurred = ?, last_id = ?, schema_version = ?, \
        state = 'removing' WHERE file = ? AND state = 'writing'";
    let Some((file, content)) = &removal.change else {
        return Ok(true);
    };
    if let Some(content) = content
        && !write_content(connection, CLAIM, file, content, None)?
    {
        return Ok(false);
    }
    let change = if removal.is_last {
        "UPDATE event_persister_archives SET state = 'removed', open = NULL WHERE file = ? AND state = 'removing'"
    } else {
        "UPDATE event_persister_archives SET beats = beats + 1 WHERE file = ? AND state = 'removing'"
    };
    let change = sql_query(change).bind::<Text, _>(file);
    if connection.run(|connection| change.execute(connection))? == 0 {
        return Ok(false);
    }
    match &removal.next {
        Some((next, now)) => begin(connection, next, now),
        None => Ok(true),
    }
}

fn write_content(
    connection: &mut Connection,
    statement: &'static str,
    file: &str,
    content: &FileContent,
    begun: Option<String>,
) -> Result<bool, Failure> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let write = sql_query(statement)
        .into_boxed()
        .bind::<BigInt, _>(number(content.num_events))
        .bind::<BigInt, _>(number(content.num_bytes))
        .bind::<Text, _>(&content.sha256)
        .bind::<Text, _>(text_of(content.first.occurred))
        .bind::<Text, _>(&content.first.id)
        .bind::<Text, _>(text_of(content.last.occurred))
        .bind::<Text, _>(&content.last.id)
        .bind::<Integer, _>(i32::try_from(content.schema_version).unwrap_or(i32::MAX))
        .bind::<Text, _>(file);
    let write = match begun {
        Some(begun) => write.bind::<Text, _>(begun),
        None => write,
    };
    Ok(connection.run(|connection| write.execute(connection))? > 0)
}

/// As it stands in a column; what is outside of all time sorts before or after everything.
fn text_of(micros: i64) -> String {
    match DateTime::from_timestamp_micros(micros) {
        Some(moment) => timestamp_bound(moment),
        None if micros < 0 => String::new(),
        None => timestamp_bound(DateTime::<Utc>::MAX_UTC),
    }
}

fn expired(
    connection: &mut Connection,
    bounds: &Bounds<String>,
    from: &Candidate,
    budget: Budget,
) -> Result<Vec<EventRow>, Failure> {
    let limit = at_most(budget.max_events.get());
    let mut found: Vec<Candidate> = Vec::new();
    for (name, cutoff) in &bounds.overrides {
        let of_name = events::table
            .filter(events::event.eq(name))
            .filter(is_before(events::occurred, cutoff))
            .filter(events::occurred.ge(&from.occurred))
            .filter(
                events::occurred
                    .gt(&from.occurred)
                    .or(events::id.gt(&from.id)),
            )
            .order((events::occurred, events::id))
            .limit(limit)
            .select((events::occurred, events::id));
        let mut of_name: Vec<Candidate> = connection.run(|connection| of_name.load(connection))?;
        found.append(&mut of_name);
    }
    let names = bounds.names().map(String::as_str).collect();
    let others = expired_of_others(names, &bounds.default, from, limit);
    let mut others: Vec<Candidate> = connection.run(|connection| others.load(connection))?;
    found.append(&mut others);
    found.sort_unstable();
    found.truncate(budget.max_events.get());
    let mut rows: Vec<EventRow> = Vec::new();
    let (mut num_bytes, mut chunk) = (0, FIRST_CHUNK);
    let mut rest = found.as_slice();
    while !rest.is_empty() && num_bytes < budget.max_bytes {
        let (next, others) = rest.split_at(chunk.min(rest.len()));
        (rest, chunk) = (others, (2 * chunk).min(MAX_CHUNK));
        let ids: serde_json::Value = next.iter().map(|next| next.id.as_str()).collect();
        let read = sql_query(EVENTS).bind::<Text, _>(ids.to_string());
        // One that is gone meanwhile needs no place.
        let read: Vec<Row> = connection.run(|connection| read.load(connection))?;
        let read: Result<Vec<_>, _> = read.into_iter().map(EventRow::try_from).collect();
        let mut read = read?;
        read.sort_by(|one, other| one.position.cmp(&other.position));
        num_bytes += read.iter().map(EventRow::num_bytes).sum::<usize>();
        rows.append(&mut read);
    }
    Ok(rows)
}

/// Events that are read by one statement: one for each takes twice as long. As many again as were read before,
/// so that large ones do not fill the memory before their size is known.
const FIRST_CHUNK: usize = 4;
const MAX_CHUNK: usize = 128;

const EVENTS: &str = "SELECT id, occurred, received, recorded, event, follows, resource, related, payload \
    FROM events WHERE id IN (SELECT value FROM json_each(?))";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    occurred: String,
    #[diesel(sql_type = Text)]
    received: String,
    #[diesel(sql_type = Text)]
    recorded: String,
    #[diesel(sql_type = Text)]
    event: String,
    #[diesel(sql_type = Nullable<Text>)]
    follows: Option<String>,
    #[diesel(sql_type = Text)]
    resource: String,
    #[diesel(sql_type = Text)]
    related: String,
    #[diesel(sql_type = Text)]
    payload: String,
}

impl TryFrom<Row> for EventRow {
    type Error = Failure;

    fn try_from(row: Row) -> Result<Self, Failure> {
        let micros = |column: &str, text: &str| {
            let moment = read_timestamp(text).or_else(|| datetime_from_text(text).ok());
            moment.map(|moment| moment.timestamp_micros()).ok_or_else(|| {
                Failure::Unfit(format!(
                    "the event {} cannot be archived, since its column {column} holds no time: correct it, or \
                     delete the event",
                    row.id
                ))
            })
        };
        let occurred = micros("occurred", &row.occurred)?;
        // The order of texts would not be that of times.
        if text_of(occurred) != row.occurred {
            return Err(Failure::Unfit(format!(
                "the event {} cannot be archived, since its time is not written as the others are: correct it \
                 with UPDATE events SET occurred = '{}' WHERE id = '{}'",
                row.id,
                text_of(occurred),
                row.id
            )));
        }
        Ok(Self {
            received: micros("received", &row.received)?,
            recorded: micros("recorded", &row.recorded)?,
            position: Position {
                occurred,
                id: row.id,
            },
            event: row.event,
            follows: row.follows,
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
    #[diesel(sql_type = Nullable<Text>)]
    first_occurred: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    last_occurred: Option<String>,
    #[diesel(sql_type = Text)]
    begun: String,
}

fn manifests(found: Vec<Found>) -> Result<Vec<Manifest>, Failure> {
    let micros = |text: String| Some(read_timestamp(&text)?.timestamp_micros());
    let manifest = |found: Found| {
        let (first, last) = (found.first_occurred, found.last_occurred);
        let times = first.and_then(micros).zip(last.and_then(micros));
        let begun = read_timestamp(&found.begun).unwrap_or_default();
        found
            .manifest
            .manifest(times, begun)
            .map_err(Failure::Unfit)
    };
    found.into_iter().map(manifest).collect()
}
