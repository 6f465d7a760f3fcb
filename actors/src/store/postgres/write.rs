//! One batch in one transaction.
//!
//! The store function writes the events and tells which ones the database refuses; only then, and
//! for what the parser rejected, dead letters are written. The start of the transaction and the call
//! travel together, so that a batch costs two round trips: one to write, one to commit.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use futures_util::future::join;

use super::columns::{FixedColumn, Oid, TextColumn};
use super::connection::{Connection, begin};
use super::failure::Failure;
use super::letters::{self, NewLetter};
use super::rows::{EventRow, Refusal, ResourceRow, Rows};
use crate::batch::Batch;
use crate::delivery::Content;
use crate::failpoint;
use crate::store::{Outcome, Stage};

/// From this share of a batch on, one in so many, the next one is expected to hold duplicates too. Too
/// early costs a clean batch a tenth, too late costs one with duplicates its first attempt.
const EXPECT_DUPLICATES_FROM: usize = 20;

/// The store function's own code for rows that a trigger swallowed; no SQLSTATE of PostgreSQL.
const SWALLOWED: &str = "EPV01";

/// An event that was not written: its number, and code and reason unless its id was there already.
type NotWritten = (i32, Option<String>, Option<String>);

/// Writes the batch; after an error the connection must be dropped, which undoes what is undecided.
pub(super) async fn write(
    connection: &mut Connection,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = Rows::new(batch.entries());
    let mut refused = std::mem::take(&mut rows.refused);
    let not_written = store(connection, &rows).await?;
    let mut outcomes: Vec<_> = batch
        .entries()
        .iter()
        .map(|entry| match entry.content {
            Content::Event(_) => Outcome::Stored,
            Content::Rejected(_) => Outcome::RejectedAtParse,
        })
        .collect();
    let mut num_duplicates = 0;
    for (number, code, reason) in not_written {
        let index = index_of(number, &rows)?;
        match code {
            None => {
                num_duplicates += 1;
                if let Some(outcome) = outcomes.get_mut(index) {
                    *outcome = Outcome::Duplicate;
                }
            }
            Some(code) => refused.push(Refusal {
                index,
                reason: reason.unwrap_or_default(),
                sqlstate: (code != SWALLOWED).then_some(code),
            }),
        }
    }
    for refusal in &refused {
        if let Some(outcome) = outcomes.get_mut(refusal.index) {
            *outcome = Outcome::RefusedByStore(refusal.kind());
        }
    }
    keep(connection, batch, &refused, now).await?;
    failpoint::pass("postgres::before-commit");
    connection.commit().await?;
    connection.expects_duplicates = num_duplicates * EXPECT_DUPLICATES_FROM > rows.events.len();
    Ok(outcomes)
}

/// Starts the transaction and writes the events.
async fn store(connection: &Connection, rows: &Rows<'_>) -> Result<Vec<NotWritten>, Failure> {
    let begin = begin(&connection.configure);
    let mut begin_on = &connection.pg;
    if rows.events.is_empty() {
        begin_on.batch_execute(&begin).await?;
        return Ok(Vec::new());
    }
    let call = StoreEvents::new(rows, connection.expects_duplicates || rows.repeats_ids);
    let mut call_on = &connection.pg;
    // Sent in this order. Should the first fail and the second not, events are committed that are
    // told as not written; the next attempt finds them.
    let (begun, written) = join(
        begin_on.batch_execute(&begin),
        call.load::<NotWritten>(&mut call_on),
    )
    .await;
    begun?;
    Ok(written?)
}

fn index_of(number: i32, rows: &Rows<'_>) -> Result<usize, Failure> {
    let row = usize::try_from(number - 1)
        .ok()
        .and_then(|at| rows.events.get(at));
    row.map(|row| row.index).ok_or_else(|| {
        Failure::Unfit(
            "the function event_persister_store_v1 answered for an event that it was not given: \
             someone replaced it; drop it and its row in __diesel_schema_migrations"
                .to_owned(),
        )
    })
}

/// Writes the dead letters.
async fn keep(
    connection: &mut Connection,
    batch: &Batch,
    refused: &[Refusal],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let refused = refused.iter().filter_map(|refusal| {
        let entry = batch.entries().get(refusal.index)?;
        let sqlstate = refusal.sqlstate.as_deref();
        Some(NewLetter::new(
            entry,
            Stage::Store,
            &refusal.reason,
            sqlstate,
        ))
    });
    let rejected = batch.entries().iter().filter_map(|entry| {
        let Content::Rejected(rejection) = &entry.content else {
            return None;
        };
        Some(NewLetter::new(entry, Stage::Parse, &rejection.reason, None))
    });
    letters::insert(connection, refused.chain(rejected).collect(), now).await
}

/// A column of `events` or `event_resources`, as a parameter.
type EventTexts<'a> = TextColumn<'a, EventRow<'a>>;
type ResourceTexts<'a> = TextColumn<'a, ResourceRow<'a>>;

/// The call of the store function: always the same text, so that it is prepared once.
struct StoreEvents<'a> {
    ids: FixedColumn<'a, EventRow<'a>, 16>,
    times: [FixedColumn<'a, EventRow<'a>, 8>; 2],
    texts: [EventTexts<'a>; 6],
    follows: FixedColumn<'a, EventRow<'a>, 16>,
    event_numbers: FixedColumn<'a, ResourceRow<'a>, 4>,
    event_ids: FixedColumn<'a, ResourceRow<'a>, 16>,
    occurred: FixedColumn<'a, ResourceRow<'a>, 8>,
    resource_texts: [ResourceTexts<'a>; 3],
    expects_duplicates: bool,
}

impl<'a> StoreEvents<'a> {
    fn new(rows: &'a Rows<'a>, expects_duplicates: bool) -> Self {
        let events = rows.events.as_slice();
        let resources = rows.resources.as_slice();
        let time = |bytes| fixed(events, Oid::Timestamptz, bytes);
        let text = |text| TextColumn { rows: events, text };
        let resource_text = |text| TextColumn {
            rows: resources,
            text,
        };
        Self {
            ids: fixed(events, Oid::Uuid, |row| Some(row.event.id.into_bytes())),
            times: [
                time(|row: &EventRow<'_>| Some(row.occurred.0.to_be_bytes())),
                time(|row: &EventRow<'_>| Some(row.received.0.to_be_bytes())),
            ],
            texts: [
                text(|row, _| &row.event.event),
                text(|row, _| row.event.resource.id()),
                text(EventRow::resource),
                text(EventRow::related),
                text(EventRow::related_ids),
                text(|row, _| row.event.payload()),
            ],
            follows: fixed(events, Oid::Uuid, |row| {
                row.event.follows.map(uuid::Uuid::into_bytes)
            }),
            event_numbers: fixed(resources, Oid::Int4, |row| {
                Some(row.event_number.to_be_bytes())
            }),
            event_ids: fixed(resources, Oid::Uuid, |row| Some(row.event_id.into_bytes())),
            occurred: fixed(resources, Oid::Timestamptz, |row| {
                Some(row.occurred.0.to_be_bytes())
            }),
            resource_texts: [
                resource_text(|row, _| row.resource.id()),
                resource_text(|row, _| row.role),
                resource_text(ResourceRow::other_labels),
            ],
            expects_duplicates,
        }
    }
}

fn fixed<R, const N: usize>(
    rows: &[R],
    oid: Oid,
    bytes: fn(&R) -> Option<[u8; N]>,
) -> FixedColumn<'_, R, N> {
    FixedColumn { rows, oid, bytes }
}

impl QueryId for StoreEvents<'_> {
    type QueryId = StoreEvents<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for StoreEvents<'_> {
    type SqlType = (Integer, Nullable<Text>, Nullable<Text>);
}

impl QueryFragment<Pg> for StoreEvents<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT event_number, code, reason FROM event_persister_store_v1(");
        out.push_bind_param::<Array<SqlUuid>, _>(&self.ids)?;
        for times in &self.times {
            out.push_sql(", ");
            out.push_bind_param::<Array<Timestamptz>, _>(times)?;
        }
        for texts in &self.texts {
            out.push_sql(", ");
            out.push_bind_param::<Array<Text>, _>(texts)?;
        }
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<SqlUuid>>, _>(&self.follows)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Integer>, _>(&self.event_numbers)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<SqlUuid>, _>(&self.event_ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Timestamptz>, _>(&self.occurred)?;
        for texts in &self.resource_texts {
            out.push_sql(", ");
            out.push_bind_param::<Array<Text>, _>(texts)?;
        }
        out.push_sql(", ");
        out.push_bind_param::<Bool, _>(&self.expects_duplicates)?;
        out.push_sql(")");
        Ok(())
    }
}
