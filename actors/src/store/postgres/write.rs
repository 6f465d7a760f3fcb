//! One batch in one transaction.
//!
//! A large batch without anything special about it is copied. All others, and those of which COPY did not
//! take everything and so nothing, are written by the store function. It tells which events the database
//! refuses; only then, and for what the parser rejected, dead letters are written. The start of the
//! transaction and the call travel together, so that a batch costs two round trips.

use chrono::{DateTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::pg::Pg;
use diesel::prelude::{ExpressionMethods as _, QueryDsl as _, QueryResult};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use futures_util::future::join;
use uuid::Uuid;

use super::arrays::Arrays;
use super::connection::{Connection, begin};
use super::copying::Copied;
use super::failure::Failure;
use super::letters;
use super::partitions::is_partitioned;
use super::rows::{EventRow, Moment, Refusal, Rows};
use super::schema::events;
use super::settings::PostgresSettings;
use crate::delivery::{Batch, Condemned, Content};
use crate::event::ReceivedEvent;
use crate::failpoint;
use crate::store::Outcome;
use crate::store::new_letter::NewLetter;
use crate::store::resource_ids::ResourceIds;

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
    settings: &PostgresSettings,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(condemned) = batch.condemned() {
        return keep_all(connection, batch, condemned, now).await;
    }
    let rows = Rows::new(batch.entries());
    let moments = rows.events.iter().map(|row| row.occurred);
    connection
        .provide_partitions(settings, moments, now)
        .await?;
    if rows.can_be_copied(batch.len()) {
        match connection
            .copying
            .copy(settings, &connection.address, &rows, now)
            .await?
        {
            Copied::All => return Ok(vec![Outcome::Stored; batch.len()]),
            copied => connection.expects_duplicates |= copied == Copied::NothingNew,
        }
    }
    let outcomes = call_function(connection, batch, rows, Begin::WithCall, now).await?;
    let duplicates = outcomes.iter().filter(|one| **one == Outcome::Duplicate);
    let num_duplicates = duplicates.count();
    failpoint::pass("postgres::before-commit");
    if num_duplicates == 0 {
        connection.commit().await?;
    } else {
        connection.commit_behind_others().await?;
    }
    connection.expects_duplicates = num_duplicates * EXPECT_DUPLICATES_FROM > batch.len();
    let is_clean = outcomes.iter().all(|outcome| *outcome == Outcome::Stored);
    connection.copying.goes_on(is_clean);
    Ok(outcomes)
}

pub(super) async fn rehearse(
    connection: &mut Connection,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    let rows = Rows::new(batch.entries());
    let outcomes = call_function(connection, batch, rows, Begin::First, now).await?;
    connection.roll_back().await?;
    Ok(outcomes)
}

async fn keep_all(
    connection: &mut Connection,
    batch: &Batch,
    condemned: &Condemned,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    connection.begin().await?;
    // An attempt that nobody heard of again may have stored it.
    let ids = batch.entries().iter().filter_map(|entry| entry.event());
    let ids: Vec<_> = ids.map(|event| event.id).collect();
    let stored: Vec<(Uuid, PgTimestamp)> = events::table
        .filter(events::id.eq_any(&ids))
        .select((events::id, events::occurred))
        .load(&mut connection.pg)
        .await?;
    let is_partitioned = is_partitioned(connection).await?;
    let is_stored = |event: &ReceivedEvent| {
        let moment = Moment::as_prefect_stores(event.occurred);
        let is_it = |(id, occurred): &(Uuid, PgTimestamp)| {
            *id == event.id && (!is_partitioned || moment == Some(Moment(occurred.0)))
        };
        stored.iter().any(is_it)
    };
    let mut refused = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for (index, entry) in batch.entries().iter().enumerate() {
        if entry.event().is_some_and(is_stored) {
            outcomes.push(Outcome::Duplicate);
            continue;
        }
        let refusal = Refusal {
            index,
            reason: condemned.reason.clone(),
            sqlstate: condemned.code.clone(),
        };
        outcomes.push(Outcome::RefusedByStore(refusal.kind()));
        refused.push(refusal);
    }
    keep(connection, batch, &refused, now).await?;
    connection.commit_behind_others().await?;
    Ok(outcomes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Together with the call, which saves a round trip.
    WithCall,
    /// Before the call, which is not made if it fails. What is called in no transaction stays.
    First,
}

/// Writes a batch of any kind, its dead letters included, in a transaction that stays open.
async fn call_function(
    connection: &mut Connection,
    batch: &Batch,
    rows: Rows<'_>,
    begin: Begin,
    now: DateTime<Utc>,
) -> Result<Vec<Outcome>, Failure> {
    if begin == Begin::First || rows.events.is_empty() {
        connection.begin().await?;
    }
    let not_written = if rows.events.is_empty() {
        Vec::new()
    } else {
        let ids = ResourceIds::new(now);
        let call = StoreEvents {
            arrays: Arrays::new(&rows),
            resource_ids: (0..rows.resources.len()).map(|at| ids.get(at)).collect(),
            expects_duplicates: connection.expects_duplicates || rows.repeats_ids,
        };
        match begin {
            Begin::WithCall => begin_and_call(connection, call).await?,
            Begin::First => call.load(&mut connection.pg).await?,
        }
    };
    let mut outcomes: Vec<_> = batch
        .entries()
        .iter()
        .map(|entry| match entry.content {
            Content::Event(_) => Outcome::Stored,
            Content::Rejected(_) => Outcome::RejectedAtParse,
        })
        .collect();
    let mut refused = rows.refused;
    for (number, code, reason) in not_written {
        let index = index_of(number, &rows.events)?;
        match code {
            None => {
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
    Ok(outcomes)
}

async fn begin_and_call(
    connection: &Connection,
    call: StoreEvents,
) -> Result<Vec<NotWritten>, Failure> {
    let begin = begin(&connection.configure);
    let mut begin_on = &connection.pg;
    let mut call_on = &connection.pg;
    // Sent in this order. Should the first fail and the second not, events are committed that are
    // told as not written; the next attempt finds them. The call's own copy of the batch is given up
    // as soon as it is on its way.
    let (begun, written) = join(
        begin_on.batch_execute(&begin),
        call.load::<NotWritten>(&mut call_on),
    )
    .await;
    begun?;
    Ok(written?)
}

fn index_of(number: i32, events: &[EventRow<'_>]) -> Result<usize, Failure> {
    let row = usize::try_from(number - 1)
        .ok()
        .and_then(|at| events.get(at));
    row.map(|row| row.index).ok_or_else(|| {
        Failure::Unfit(
            "the function event_persister_store_v1 answered for an event that it was not given: \
             someone replaced it; drop it and its row in __diesel_schema_migrations"
                .to_owned(),
        )
    })
}

async fn keep(
    connection: &mut Connection,
    batch: &Batch,
    refused: &[Refusal],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let refused = refused.iter().filter_map(|refusal| {
        let entry = batch.entries().get(refusal.index)?;
        let code = refusal.sqlstate.as_deref();
        Some(NewLetter::refused(entry, &refusal.reason, code))
    });
    let letters = refused.chain(NewLetter::rejected(batch.entries()));
    letters::insert(connection, letters, now).await
}

/// The call of the store function: always the same text, so that it is prepared once.
struct StoreEvents {
    arrays: Arrays,
    resource_ids: Vec<Uuid>,
    expects_duplicates: bool,
}

impl QueryId for StoreEvents {
    type QueryId = Self;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for StoreEvents {
    type SqlType = (Integer, Nullable<Text>, Nullable<Text>);
}

impl QueryFragment<Pg> for StoreEvents {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT event_number, code, reason FROM event_persister_store_v1(");
        self.arrays.push_events(out.reborrow())?;
        out.push_sql(", ");
        out.push_bind_param::<Array<SqlUuid>, _>(&self.resource_ids)?;
        out.push_sql(", ");
        self.arrays.push_resources(out.reborrow())?;
        out.push_sql(", ");
        out.push_bind_param::<Bool, _>(&self.expects_duplicates)?;
        out.push_sql(")");
        Ok(())
    }
}
