//! One batch in one transaction.
//!
//! The happy path has no savepoints: they make SQLite keep copies of the pages that it changes. When
//! the database refuses an event, the attempt is undone and made again with a savepoint around each
//! event, so that exactly the culprits are left out. Rows go in one by one through prepared
//! statements, which no form with several rows outdoes.
//!
//! `INSERT OR IGNORE` would not do: it also ignores rows that a CHECK or NOT NULL constraint refuses,
//! and they would pass for duplicates.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use super::connection::{Connection, Failure};
use super::letters::{self, NewLetter};
use super::python_json::{rewrite, write_array, write_object, write_string};
use super::result_code::{Class, Failed, ResultCode};
use super::schema::events;
use super::text::write_timestamp;
use crate::batch::Batch;
use crate::delivery::{Content, Entry};
use crate::event::ReceivedEvent;
use crate::store::{Outcome, Stage};

/// Why the database does not take an event.
struct Refusal {
    reason: String,
    sqlstate: Option<String>,
}

impl Refusal {
    fn ours(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            sqlstate: None,
        }
    }

    fn by_database(failed: &Failed) -> Self {
        Self {
            reason: failed.error.to_string(),
            sqlstate: Some(failed.code.name()),
        }
    }
}

/// What became of one event.
enum Written {
    Stored,
    Duplicate,
    Refused(Refusal),
}

/// Why an event was not written.
enum Stop {
    /// It cannot be stored; what was written of it must be undone.
    Refused(Refusal),
    /// It cannot be stored, and the database has undone the whole transaction.
    Undone(Refusal),
    /// The batch cannot be written now.
    Failed(Failure),
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        match (failed.code.class(), failed.in_transaction) {
            (Class::Rejected, true) => Self::Refused(Refusal::by_database(&failed)),
            (Class::Rejected, false) => Self::Undone(Refusal::by_database(&failed)),
            (Class::Unavailable, _) => Self::Failed(failed.into()),
        }
    }
}

/// How an attempt deals with an event that the database refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Gives up: most batches hold none.
    Optimistic,
    /// Sets a savepoint before each event.
    Isolating,
}

/// Why an attempt gave up, with nothing written.
enum GaveUp {
    /// An event was refused: isolate.
    NeedsCare,
    /// This entry makes the database undo the whole transaction: leave it out.
    Poison(usize, Refusal),
    /// The batch cannot be written now.
    Failed(Failure),
}

/// Writes the batch; after an error the connection must be dropped, which undoes what is undecided.
pub(super) fn write(
    connection: &mut Connection,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut texts = RowTexts::at(now)?;
    let mut poison = HashMap::new();
    let mut care = Care::Optimistic;
    loop {
        connection.begin()?;
        match attempt(connection, batch.entries(), &mut texts, care, &poison) {
            Ok(outcomes) => {
                connection.commit()?;
                return Ok(outcomes);
            }
            Err(GaveUp::NeedsCare) => {
                connection.roll_back()?;
                care = Care::Isolating;
            }
            // The transaction is gone already. Each round leaves one more entry out, so this ends.
            Err(GaveUp::Poison(index, refusal)) => {
                poison.insert(index, refusal);
                care = Care::Isolating;
            }
            Err(GaveUp::Failed(failure)) => return Err(failure),
        }
    }
}

fn attempt(
    connection: &mut Connection,
    entries: &[std::sync::Arc<Entry>],
    texts: &mut RowTexts,
    care: Care,
    poison: &HashMap<usize, Refusal>,
) -> Result<Vec<Outcome>, GaveUp> {
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut refusals = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let outcome = match &entry.content {
            Content::Rejected(_) => Outcome::RejectedAtParse,
            Content::Event(_) if poison.contains_key(&index) => Outcome::RefusedByStore,
            Content::Event(event) => match write_event(connection, event, texts, care, index)? {
                Written::Stored => Outcome::Stored,
                Written::Duplicate => Outcome::Duplicate,
                Written::Refused(refusal) => {
                    refusals.push((index, refusal));
                    Outcome::RefusedByStore
                }
            },
        };
        outcomes.push(outcome);
    }
    let refusals = refusals
        .iter()
        .map(|(index, refusal)| (index, refusal))
        .chain(poison);
    let refused = refusals.filter_map(|(index, refusal)| {
        let sqlstate = refusal.sqlstate.as_deref();
        let entry = entries.get(*index)?;
        Some(NewLetter::new(
            entry,
            Stage::Store,
            &refusal.reason,
            sqlstate,
        ))
    });
    let rejected = entries.iter().filter_map(|entry| match &entry.content {
        Content::Rejected(rejection) => {
            Some(NewLetter::new(entry, Stage::Parse, &rejection.reason, None))
        }
        Content::Event(_) => None,
    });
    letters::insert(connection, refused.chain(rejected).collect(), &texts.now)
        .map_err(GaveUp::Failed)?;
    Ok(outcomes)
}

fn write_event(
    connection: &mut Connection,
    event: &ReceivedEvent,
    texts: &mut RowTexts,
    care: Care,
    index: usize,
) -> Result<Written, GaveUp> {
    // What can be known beforehand is refused without troubling the database.
    if let Err(refusal) = texts.set(event, connection.max_length()) {
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
    texts: &mut RowTexts,
) -> Result<Written, Stop> {
    let insert = InsertEvent { event, texts };
    if connection.run(|connection| insert.execute(connection))? == 0 {
        // A trigger can make an insert do nothing; that must not pass for a duplicate.
        let there = connection.run(|connection| {
            events::table
                .find(&texts.id)
                .select(events::id)
                .first::<String>(connection)
                .optional()
        })?;
        return match there {
            Some(_) => Ok(Written::Duplicate),
            None => Err(Stop::Refused(ignored("events"))),
        };
    }
    let primary = (&event.resource, "");
    let related = event
        .related
        .iter()
        .map(|resource| (resource, resource.role().unwrap_or_default()));
    for (resource, role) in std::iter::once(primary).chain(related) {
        texts.set_resource(resource);
        let insert = InsertResource {
            resource_id: resource.id(),
            role,
            texts,
        };
        if connection.run(|connection| insert.execute(connection))? == 0 {
            return Err(Stop::Refused(ignored("event_resources")));
        }
    }
    Ok(Written::Stored)
}

fn ignored(table: &str) -> Refusal {
    Refusal::ours(format!(
        "the database inserted nothing into {table} and reported no error; a trigger on that table \
         ignores the row"
    ))
}

/// The texts of one row in Prefect's forms, in buffers that serve one event after another.
struct RowTexts {
    now: String,
    id: String,
    occurred: String,
    received: String,
    follows: Option<String>,
    resource: String,
    related: String,
    related_ids: String,
    payload: String,
    /// Of one row of `event_resources`.
    resource_row_id: String,
    other_labels: String,
}

impl RowTexts {
    fn at(now: DateTime<Utc>) -> Result<Self, Failure> {
        let mut text = String::new();
        write_timestamp(now, &mut text).ok_or_else(|| {
            Failure::Unfit(format!(
                "the clock shows {now}, which is no time that can be written: set it right"
            ))
        })?;
        Ok(Self {
            now: text,
            id: String::new(),
            occurred: String::new(),
            received: String::new(),
            follows: None,
            resource: String::new(),
            related: String::new(),
            related_ids: String::new(),
            payload: String::new(),
            resource_row_id: String::new(),
            other_labels: String::new(),
        })
    }

    /// Takes on an event; says why not where a column cannot hold it.
    fn set(&mut self, event: &ReceivedEvent, max_length: usize) -> Result<(), Refusal> {
        for (name, at, text) in [
            ("occurred", event.occurred, &mut self.occurred),
            ("received", event.received, &mut self.received),
        ] {
            text.clear();
            write_timestamp(at, text).ok_or_else(|| {
                Refusal::ours(format!("{name}: the year is outside 0001 to 9999"))
            })?;
        }
        set_uuid(event.id, &mut self.id);
        self.follows = event.follows.map(|id| id.hyphenated().to_string());
        self.resource.clear();
        write_object(event.resource.labels(), &mut self.resource);
        self.related.clear();
        write_array(event.related.iter(), &mut self.related, |resource, out| {
            write_object(resource.labels(), out);
        });
        self.related_ids.clear();
        write_array(event.related_ids(), &mut self.related_ids, write_string);
        self.payload.clear();
        rewrite(event.payload(), &mut self.payload);
        for (column, text) in [
            ("event", event.event.as_str()),
            ("resource_id", event.resource.id()),
            ("resource", &self.resource),
            ("related", &self.related),
            ("related_resource_ids", &self.related_ids),
            ("payload", &self.payload),
        ] {
            if text.len() > max_length {
                return Err(Refusal {
                    reason: format!(
                        "{column}: {} bytes are more than the {max_length} that SQLite takes",
                        text.len()
                    ),
                    sqlstate: Some(ResultCode::TOO_BIG.name()),
                });
            }
        }
        Ok(())
    }

    /// Takes on one of the event's resources. A new id at every attempt: one that is taken, if that
    /// can be, is not met again.
    fn set_resource(&mut self, resource: &crate::event::Resource) {
        set_uuid(Uuid::new_v4(), &mut self.resource_row_id);
        self.other_labels.clear();
        write_object(resource.other_labels(), &mut self.other_labels);
    }
}

fn set_uuid(id: Uuid, text: &mut String) {
    text.clear();
    text.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
}

/// Inserts one event unless its id is there.
struct InsertEvent<'a> {
    event: &'a ReceivedEvent,
    texts: &'a RowTexts,
}

impl QueryId for InsertEvent<'_> {
    type QueryId = InsertEvent<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for InsertEvent<'_> {}

impl QueryFragment<Sqlite> for InsertEvent<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let texts = self.texts;
        out.push_sql(
            "INSERT INTO events (id, occurred, received, event, resource_id, resource, related, \
             related_resource_ids, payload, follows, recorded, created, updated) VALUES (",
        );
        for text in [
            texts.id.as_str(),
            &texts.occurred,
            &texts.received,
            &self.event.event,
            self.event.resource.id(),
            &texts.resource,
            &texts.related,
            &texts.related_ids,
            &texts.payload,
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        out.push_bind_param::<Nullable<Text>, Option<String>>(&texts.follows)?;
        for _ in 0..3 {
            out.push_sql(", ");
            out.push_bind_param::<Text, str>(&texts.now)?;
        }
        out.push_sql(") ON CONFLICT (id) DO NOTHING");
        Ok(())
    }
}

/// Inserts one row for one of an event's resources.
struct InsertResource<'a> {
    resource_id: &'a str,
    role: &'a str,
    texts: &'a RowTexts,
}

impl QueryId for InsertResource<'_> {
    type QueryId = InsertResource<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for InsertResource<'_> {}

impl QueryFragment<Sqlite> for InsertResource<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let texts = self.texts;
        out.push_sql(
            "INSERT INTO event_resources (id, event_id, occurred, resource_id, resource_role, \
             resource, created, updated) VALUES (",
        );
        for text in [
            texts.resource_row_id.as_str(),
            &texts.id,
            &texts.occurred,
            self.resource_id,
            self.role,
            &texts.other_labels,
            &texts.now,
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        out.push_bind_param::<Text, str>(&texts.now)?;
        out.push_sql(")");
        Ok(())
    }
}
