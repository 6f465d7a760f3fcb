//! One batch in one transaction.
//!
//! The texts of the rows are made before the batch takes its turn to write, so that this goes on while
//! another batch is being written.
//!
//! There are no savepoints at first: they make SQLite keep copies of the pages that it changes. When the
//! database refuses an event, the attempt is undone and made again with a savepoint around each event. Rows go
//! in one by one through prepared statements, which no form with several rows outdoes.
//!
//! `INSERT OR IGNORE` would also ignore rows that a CHECK or NOT NULL constraint refuses, and they would pass
//! for duplicates.

use std::collections::HashMap;

use diesel::prelude::*;
use uuid::Uuid;

use super::connection::{Connection, Failure};
use super::letters;
use super::result_code::Failed;
use super::rows::{EventTexts, InsertEvent, InsertResource, Refusal, RowTexts};
use super::schema::events;
use crate::delivery::{Batch, Condemned, Content, Entry};
use crate::event::ReceivedEvent;
use crate::failpoint;
use crate::store::new_letter::NewLetter;
use crate::store::{Outcome, RefusalReason};

enum Written {
    Stored,
    Duplicate,
    Refused(Refusal),
}

enum Stop {
    /// It cannot be stored; what was written of it must be undone.
    Refused(Refusal),
    /// It cannot be stored, and the database has undone the whole transaction.
    Undone(Refusal),
    Failed(Failure),
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        match (failed.code.refuses_values(), failed.in_transaction) {
            (true, true) => Self::Refused(Refusal::by_database(&failed)),
            (true, false) => Self::Undone(Refusal::by_database(&failed)),
            (false, _) => Self::Failed(failed.into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Gives up: most batches hold none.
    Optimistic,
    /// Sets a savepoint before each event.
    Isolating,
}

/// Why an attempt gave up, with nothing written.
enum GaveUp {
    NeedsCare,
    /// This entry makes the database undo the whole transaction: leave it out.
    Poison(usize, Refusal),
    Failed(Failure),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    /// It was only to be seen what would become of the batch.
    RollBack,
}

impl End {
    fn take(self, connection: &mut Connection, outcomes: &[Outcome]) -> Result<(), Failure> {
        if self == Self::RollBack {
            return connection.roll_back();
        }
        failpoint::pass("sqlite::before-commit");
        // Any other outcome has written a row or a letter.
        if outcomes.iter().all(|one| *one == Outcome::Duplicate) {
            connection.commit_behind_others()
        } else {
            connection.commit()
        }
    }
}

/// Writes the batch but for the events that are left out, whose letters it writes; after an error the
/// connection must be dropped, which undoes what is undecided.
pub(super) fn write(
    connection: &mut Connection,
    batch: &Batch,
    texts: &RowTexts,
    mut left_out: HashMap<usize, Refusal>,
    end: End,
) -> Result<Vec<Outcome>, Failure> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(condemned) = batch.condemned() {
        return keep_all(connection, batch, texts, condemned, end);
    }
    let mut care = Care::Optimistic;
    loop {
        connection.begin()?;
        match attempt(connection, batch.entries(), texts, care, &left_out) {
            Ok(outcomes) => {
                end.take(connection, &outcomes)?;
                return Ok(outcomes);
            }
            Err(GaveUp::NeedsCare) => {
                connection.roll_back()?;
                care = Care::Isolating;
            }
            // The transaction is gone already. Each round leaves one more entry out, so this ends.
            Err(GaveUp::Poison(index, refusal)) => {
                left_out.insert(index, refusal);
                care = Care::Isolating;
            }
            Err(GaveUp::Failed(failure)) => return Err(failure),
        }
    }
}

fn keep_all(
    connection: &mut Connection,
    batch: &Batch,
    texts: &RowTexts,
    condemned: &Condemned,
    end: End,
) -> Result<Vec<Outcome>, Failure> {
    connection.begin()?;
    let refusal = Refusal::condemned(condemned);
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut letters = Vec::new();
    for entry in batch.entries() {
        // An attempt that nobody heard of again may have stored it.
        if let Some(event) = entry.event()
            && is_stored(connection, &event.id.to_string())?
        {
            outcomes.push(Outcome::Duplicate);
            continue;
        }
        outcomes.push(Outcome::RefusedByStore(refusal.kind));
        let code = refusal.sqlstate.as_deref();
        letters.push(NewLetter::refused(entry, &refusal.reason, code));
    }
    letters::insert(connection, letters, texts.now())?;
    end.take(connection, &outcomes)?;
    Ok(outcomes)
}

fn attempt(
    connection: &mut Connection,
    entries: &[std::sync::Arc<Entry>],
    texts: &RowTexts,
    care: Care,
    left_out: &HashMap<usize, Refusal>,
) -> Result<Vec<Outcome>, GaveUp> {
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut refusals = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let outcome = match &entry.content {
            Content::Rejected(_) => Outcome::RejectedAtParse,
            Content::Event(event) => match (texts.event(index), left_out.get(&index)) {
                (Some(texts), None) => match write_event(connection, event, &texts, care, index)? {
                    Written::Stored => Outcome::Stored,
                    Written::Duplicate => Outcome::Duplicate,
                    Written::Refused(refusal) => {
                        let outcome = Outcome::RefusedByStore(refusal.kind);
                        refusals.push((index, refusal));
                        outcome
                    }
                },
                (_, Some(refusal)) => Outcome::RefusedByStore(refusal.kind),
                // Never written and never a letter: that must not pass for done.
                (None, None) => {
                    let what = "an event was given without its texts; report this".to_owned();
                    return Err(GaveUp::Failed(Failure::Unfit(what)));
                }
            },
        };
        outcomes.push(outcome);
    }
    let refusals = refusals
        .iter()
        .map(|(index, refusal)| (index, refusal))
        .chain(left_out);
    let refused = refusals.filter_map(|(index, refusal)| {
        let code = refusal.sqlstate.as_deref();
        let entry = entries.get(*index)?;
        Some(NewLetter::refused(entry, &refusal.reason, code))
    });
    let letters = refused.chain(NewLetter::rejected(entries)).collect();
    letters::insert(connection, letters, texts.now()).map_err(GaveUp::Failed)?;
    Ok(outcomes)
}

fn write_event(
    connection: &mut Connection,
    event: &ReceivedEvent,
    texts: &EventTexts<'_>,
    care: Care,
    index: usize,
) -> Result<Written, GaveUp> {
    if let Some(refusal) = texts.too_long(event, connection.max_length()) {
        return Ok(Written::Refused(refusal));
    }
    let savepoint = |connection: &mut Connection, sql| match care {
        Care::Optimistic => Ok(()),
        Care::Isolating => connection
            .execute_batch(sql)
            .map_err(|failed| GaveUp::Failed(failed.into())),
    };
    savepoint(connection, "SAVEPOINT event")?;
    match insert(connection, event, texts) {
        Ok(written) => {
            savepoint(connection, "RELEASE event")?;
            Ok(written)
        }
        Err(Stop::Refused(_)) if care == Care::Optimistic => Err(GaveUp::NeedsCare),
        Err(Stop::Refused(refusal)) => {
            savepoint(connection, "ROLLBACK TO event; RELEASE event")?;
            Ok(Written::Refused(refusal))
        }
        Err(Stop::Undone(refusal)) => Err(GaveUp::Poison(index, refusal)),
        Err(Stop::Failed(failure)) => Err(GaveUp::Failed(failure)),
    }
}

/// Inserts the event and, where it is new, its resources.
fn insert(
    connection: &mut Connection,
    event: &ReceivedEvent,
    texts: &EventTexts<'_>,
) -> Result<Written, Stop> {
    let insert = InsertEvent { event, texts };
    if connection.run(|connection| insert.execute(connection))? == 0 {
        // A trigger can make an insert do nothing; that must not pass for a duplicate.
        return if is_stored(connection, texts.id())? {
            Ok(Written::Duplicate)
        } else {
            Err(Stop::Refused(ignored("events")))
        };
    }
    failpoint::pass("sqlite::between-inserts");
    let primary = (&event.resource, "");
    let related = event
        .related
        .iter()
        .map(|resource| (resource, resource.role().unwrap_or_default()));
    let mut row_id = Uuid::encode_buffer();
    for (number, (resource, role)) in std::iter::once(primary).chain(related).enumerate() {
        let insert = InsertResource {
            row_id: texts.row_id(number).hyphenated().encode_lower(&mut row_id),
            resource_id: resource.id(),
            role,
            texts,
            number,
        };
        if connection.run(|connection| insert.execute(connection))? == 0 {
            return Err(Stop::Refused(ignored("event_resources")));
        }
    }
    Ok(Written::Stored)
}

fn is_stored(connection: &mut Connection, id: &str) -> Result<bool, Failed> {
    let found = events::table.find(id).select(events::id);
    let found = connection.run(|connection| found.first::<String>(connection).optional())?;
    Ok(found.is_some())
}

fn ignored(table: &str) -> Refusal {
    let reason = format!(
        "the database inserted nothing into {table} and reported no error; a trigger on that table \
         ignores the row"
    );
    Refusal::ours(RefusalReason::Swallowed, reason)
}
