//! Deletes what retention no longer keeps, a bounded number of events at a time.
//!
//! Expired events are found without the write lock; only the deletion holds it, and not the checkpoint after
//! it. Nobody changes when an event occurred, so what was read stays true.
//!
//! While another process holds the lock, the step waits in short turns and gives the connection back between
//! them: a trimmer is in no hurry, and a probe of the store would wait with it.

use std::num::NonZeroUsize;
use std::time::Duration;

use diesel::dsl::{And, GtEq, Lt, exists, not};
use diesel::prelude::*;
use diesel::query_builder::{QueryFragment, QueryId};
use diesel::query_dsl::LoadQuery;
use diesel::query_dsl::methods::ExecuteDsl;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::Sqlite;
use tokio::time::Instant;

use super::SqliteStore;
use super::connection::{CACHE_KIB, CHECKPOINT_PAGES, Connection, Failure};
use super::schema::{event_resources, events};
use super::text::timestamp_bound;
use crate::store::{
    Bounds, Cutoffs, Removed, StoreError, TrimStep, Trimmed, at_most, does_not_leave,
};

/// How long a step keeps the connection while it waits for another process's lock.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How many KiB of pages a trimmer keeps while no other process writes. It touches pages all over the
/// indexes that do not go by time; with so many in memory a step of 10,000 events holds the lock for two
/// thirds of the time. Twice as many gain nothing more.
const LARGE_CACHE_KIB: u32 = 32_000;

#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    resume: Resume,
    /// The database's number for commits of other connections when the last step began.
    version: Option<i64>,
}

impl Progress {
    /// Whether another process has written since the step before; keeps more pages where none has.
    pub(super) fn look(&mut self, connection: &mut Connection) -> Result<bool, Failure> {
        let version = Some(connection.data_version()?);
        let others_write = self.version != version;
        self.version = version;
        connection.keep_many_pages(!others_write)?;
        Ok(others_write)
    }
}

/// Where the next search goes on among events without a cutoff of their own.
///
/// Names that are kept longer leave rows behind the default cutoff; without this every step would
/// pass over all of them again.
type Resume = Option<Candidate>;

/// When an event occurred, and its id: the order in which events are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Queryable)]
pub(super) struct Candidate {
    pub(super) occurred: String,
    pub(super) id: String,
}

impl Bounds<String> {
    pub(super) fn earliest(&self) -> &str {
        self.all().min().unwrap_or(&self.default)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LockWait {
    patience: Duration,
    /// Then that it is not given is a failure.
    is_last: bool,
}

impl LockWait {
    /// The next turn of a step that began then.
    pub(super) fn next(began: Instant, busy_timeout: Duration) -> Self {
        let patience = LONGEST_WAIT.min(busy_timeout);
        Self {
            patience,
            is_last: began.elapsed() + patience >= busy_timeout,
        }
    }

    /// Whether there is a transaction now.
    pub(super) fn begin(self, connection: &mut Connection) -> Result<bool, Failure> {
        if self.is_last {
            connection.begin_within(self.patience).map(|()| true)
        } else {
            connection.try_begin(self.patience)
        }
    }
}

impl SqliteStore {
    /// Makes a step, as soon as no other process holds the lock.
    pub(super) async fn trim_step(
        &self,
        cutoffs: &Cutoffs,
        max_events: NonZeroUsize,
    ) -> Result<TrimStep, StoreError> {
        cutoffs.refuse_future(self.shared.clock.now())?;
        let began = Instant::now();
        loop {
            let wait = LockWait::next(began, self.shared.settings.busy_timeout);
            let mut progress = std::mem::take(&mut *self.lock_progress());
            let cutoffs = cutoffs.clone();
            let step = move |connection: &mut Connection| {
                let step = step(connection, &cutoffs, max_events, &mut progress, wait)?;
                Ok((step, progress))
            };
            let (step, progress) = self.with_writer("trim", step).await?;
            *self.lock_progress() = progress;
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }
}

/// Chooses the oldest expired events, then deletes them; `None` where another process keeps the lock.
fn step(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    max_events: NonZeroUsize,
    progress: &mut Progress,
    wait: LockWait,
) -> Result<Option<TrimStep>, Failure> {
    let others_write = progress.look(connection)?;
    let bounds = cutoffs.bounds(timestamp_bound);
    let resume = &mut progress.resume;
    let mut expired = oldest_expired(connection, &bounds, max_events, resume)?;
    if expired.is_empty() && resume.take().is_some() {
        // The search began in the middle; it is over only when one from the beginning finds nothing.
        expired = oldest_expired(connection, &bounds, max_events, resume)?;
    }
    if expired.is_empty() && !has_orphans(connection, &bounds)? {
        connection.keep_many_pages(false)?;
        return Ok(Some(TrimStep::Finished));
    }
    if !wait.begin(connection)? {
        return Ok(None);
    }
    let begun = Instant::now();
    let rows = if expired.is_empty() {
        delete_orphans(connection, &bounds, max_events)?
    } else {
        delete_events(connection, &expired)?
    };
    connection.commit_only()?;
    let took = begun.elapsed();
    connection.checkpoint();
    Ok(Some(TrimStep::Removed(Removed {
        rows,
        took,
        others_write,
        with_their_table: false,
    })))
}

fn oldest_expired(
    connection: &mut Connection,
    bounds: &Bounds<String>,
    max_events: NonZeroUsize,
    resume: &mut Resume,
) -> Result<Vec<Candidate>, Failure> {
    let limit = at_most(max_events.get());
    let mut expired = Vec::new();
    for (name, cutoff) in &bounds.overrides {
        let query = expired_of_name(name, cutoff, limit);
        let mut of_name: Vec<Candidate> = connection.run(|connection| query.load(connection))?;
        expired.append(&mut of_name);
    }
    let from = resume.clone().unwrap_or_default();
    let names = bounds.names().map(String::as_str).collect();
    let query = expired_of_others(names, &bounds.default, &from, limit);
    let mut others: Vec<Candidate> = connection.run(|connection| query.load(connection))?;
    expired.extend(others.iter().cloned());
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

/// Whether a moment lies before a cutoff.
///
/// A number, which only another program writes, sorts before every text and is no moment: its row stays, and
/// `check` names it.
pub(super) fn is_before<C>(moment: C, cutoff: &str) -> And<GtEq<C, &str>, Lt<C, &str>>
where
    C: Expression<SqlType = Text> + Copy,
{
    moment.ge("").and(moment.lt(cutoff))
}

fn expired_of_name<'a>(
    name: &'a str,
    cutoff: &'a str,
    limit: i64,
) -> impl LoadQuery<'a, SqliteConnection, Candidate> + QueryFragment<Sqlite> + QueryId {
    events::table
        .filter(events::event.eq(name))
        .filter(is_before(events::occurred, cutoff))
        .order((events::occurred, events::id))
        .limit(limit)
        .select((events::occurred, events::id))
}

pub(super) fn expired_of_others<'a>(
    names: Vec<&'a str>,
    cutoff: &'a str,
    from: &'a Candidate,
    limit: i64,
) -> impl LoadQuery<'a, SqliteConnection, Candidate> + QueryFragment<Sqlite> + QueryId {
    events::table
        .filter(is_before(events::occurred, cutoff))
        .filter(events::event.ne_all(names))
        .filter(events::occurred.ge(&from.occurred))
        .filter(
            events::occurred
                .gt(&from.occurred)
                .or(events::id.gt(&from.id)),
        )
        .order((events::occurred, events::id))
        .limit(limit)
        .select((events::occurred, events::id))
}

/// Deletes the resources of events, whose ids are a JSON array of texts.
///
/// One statement for all of them takes a fifth less than one for each, and with a parameter instead of a
/// list its text is always the same.
fn delete_resources(event_ids: &str) -> impl ExecuteDsl<SqliteConnection> + QueryFragment<Sqlite> {
    diesel::sql_query(
        "DELETE FROM event_resources WHERE event_id IN (SELECT value FROM json_each(?))",
    )
    .bind::<Text, _>(event_ids)
}

fn delete_only_events(ids: &str) -> impl ExecuteDsl<SqliteConnection> + QueryFragment<Sqlite> {
    diesel::sql_query("DELETE FROM events WHERE id IN (SELECT value FROM json_each(?))")
        .bind::<Text, _>(ids)
}

fn orphan<'a>(
    earliest: &'a str,
) -> impl LoadQuery<'a, SqliteConnection, String> + QueryFragment<Sqlite> + QueryId {
    let of_event = events::table.filter(events::id.eq(event_resources::event_id));
    event_resources::table
        .filter(is_before(event_resources::occurred, earliest))
        .filter(not(exists(of_event)))
        .select(event_resources::event_id)
        .limit(1)
}

fn delete_events(connection: &mut Connection, expired: &[Candidate]) -> Result<Trimmed, Failure> {
    delete_with_ids(
        connection,
        expired.iter().map(|expired| expired.id.as_str()),
    )
}

pub(super) fn delete_with_ids<'a>(
    connection: &mut Connection,
    ids: impl Iterator<Item = &'a str>,
) -> Result<Trimmed, Failure> {
    let ids: Vec<&str> = ids.collect();
    let num_events = ids.len();
    let ids = serde_json::Value::from(ids).to_string();
    let resources = delete_resources(&ids);
    let resources = connection.run(|connection| ExecuteDsl::execute(resources, connection))?;
    let events = delete_only_events(&ids);
    let events = connection.run(|connection| ExecuteDsl::execute(events, connection))?;
    let deleted = Trimmed {
        events: events as u64,
        resources: resources as u64,
    };
    // Another process may have been faster with some of them.
    if deleted.may_have_left_rows(num_events) {
        refuse_what_stays(connection, &ids)?;
    }
    Ok(deleted)
}

#[derive(QueryableByName)]
struct Left {
    #[diesel(sql_type = Text)]
    id: String,
}

/// An error, which undoes the deletion, if it has left rows of these events.
fn refuse_what_stays(connection: &mut Connection, ids: &str) -> Result<(), Failure> {
    let find = diesel::sql_query(
        "SELECT id FROM events WHERE id IN (SELECT value FROM json_each(?)) UNION ALL \
         SELECT event_id FROM event_resources WHERE event_id IN (SELECT value FROM json_each(?)) LIMIT 1",
    );
    let find = find.bind::<Text, _>(ids).bind::<Text, _>(ids);
    let left: Vec<Left> = connection.run(|connection| find.load(connection))?;
    match left.into_iter().next() {
        Some(left) => Err(Failure::Unfit(does_not_leave(&left.id))),
        None => Ok(()),
    }
}

/// Resources of no event, older than anything that is kept: halves of events that someone else wrote.
///
/// Only asked when no expired event is left, so that rows older than every cutoff are few.
pub(super) fn has_orphans(
    connection: &mut Connection,
    bounds: &Bounds<String>,
) -> Result<bool, Failure> {
    Ok(find_orphan(connection, bounds)?.is_some())
}

/// The event that it says it belongs to.
fn find_orphan(
    connection: &mut Connection,
    bounds: &Bounds<String>,
) -> Result<Option<String>, Failure> {
    let query = orphan(bounds.earliest());
    let found: Vec<String> = connection.run(|connection| query.load(connection))?;
    Ok(found.into_iter().next())
}

pub(super) fn delete_orphans(
    connection: &mut Connection,
    bounds: &Bounds<String>,
    max_rows: NonZeroUsize,
) -> Result<Trimmed, Failure> {
    let deleted = connection.run(|connection| {
        diesel::sql_query(
            "DELETE FROM event_resources WHERE id IN (\
             SELECT orphan.id FROM event_resources AS orphan \
             WHERE orphan.occurred >= '' AND orphan.occurred < ? \
             AND NOT EXISTS (SELECT 1 FROM events WHERE events.id = orphan.event_id) \
             ORDER BY orphan.occurred LIMIT ?)",
        )
        .bind::<Text, _>(bounds.earliest())
        .bind::<BigInt, _>(at_most(max_rows.get()))
        .execute(connection)
    })?;
    let left = match deleted {
        0 => find_orphan(connection, bounds)?,
        _ => None,
    };
    if let Some(event_id) = left {
        return Err(Failure::Unfit(does_not_leave(&event_id)));
    }
    Ok(Trimmed {
        events: 0,
        resources: deleted as u64,
    })
}

impl Connection {
    /// Ends the transaction, but leaves the write-ahead log as it is: a checkpoint within COMMIT does not
    /// hold the lock, but could not be told from what does.
    pub(super) fn commit_only(&mut self) -> Result<(), Failure> {
        self.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
        self.commit()?;
        self.execute_batch(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"))
            .map_err(Failure::Commit)
    }

    /// Writes the write-ahead log back into the file as far as nobody is in the way, while others may
    /// read and write. As after a commit of SQLite's own, the next one makes up for a failure.
    pub(super) fn checkpoint(&mut self) {
        if let Err(failed) = self.execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
            log::debug!(
                "no checkpoint of {} code={}",
                self.path(),
                failed.code.name()
            );
        }
    }

    fn data_version(&mut self) -> Result<i64, Failure> {
        let version = diesel::dsl::sql::<BigInt>("PRAGMA data_version");
        Ok(self.run(|connection| version.get_result(connection))?)
    }

    pub(super) fn keep_many_pages(&mut self, many: bool) -> Result<(), Failure> {
        let kib = if many { LARGE_CACHE_KIB } else { CACHE_KIB };
        Ok(self.execute_batch(&format!("PRAGMA cache_size = -{kib}"))?)
    }
}

#[cfg(test)]
mod tests {
    use diesel::query_builder::{AstPass, Query};
    use diesel::sql_types::{Integer, Untyped};
    use tempfile::TempDir;

    use super::*;
    use crate::store::CreateSchema;
    use crate::store::sqlite::SqliteSettings;
    use crate::store::sqlite::connection::Missing;
    use crate::store::sqlite::schema::prepare;

    /// The query, to be explained instead of run.
    struct Explain<Q>(Q);

    impl<Q> RunQueryDsl<SqliteConnection> for Explain<Q> {}

    impl<Q> QueryId for Explain<Q> {
        type QueryId = ();
        const HAS_STATIC_QUERY_ID: bool = false;
    }

    impl<Q> Query for Explain<Q> {
        type SqlType = Untyped;
    }

    impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Explain<Q> {
        fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
            out.push_sql("EXPLAIN QUERY PLAN ");
            self.0.walk_ast(out.reborrow())
        }
    }

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Integer)]
        #[expect(dead_code, reason = "only the detail tells something")]
        id: i32,
        #[diesel(sql_type = Text)]
        detail: String,
    }

    fn explain(connection: &mut Connection, query: impl QueryFragment<Sqlite>) -> String {
        let steps: Vec<Step> = connection
            .run(|connection| Explain(query).load(connection))
            .unwrap();
        let details: Vec<_> = steps.into_iter().map(|step| step.detail).collect();
        details.join("; ")
    }

    #[test]
    fn every_step_goes_through_an_index() {
        let directory = TempDir::new().unwrap();
        let settings = SqliteSettings::new(directory.path().join("events.db"));
        let mut connection = Connection::open(&settings, Missing::Create).unwrap();
        prepare(&mut connection, CreateSchema::Everything).unwrap();
        let from = Candidate::default();

        let of_name = explain(&mut connection, expired_of_name("a", "2024", 10));
        assert!(
            of_name.contains(
                "USING COVERING INDEX ix_events__event_occurred_id (event=? AND occurred>? AND occurred<?)"
            ),
            "{of_name}"
        );
        let of_others = expired_of_others(vec!["a", "b"], "2024", &from, 10);
        let of_others = explain(&mut connection, of_others);
        assert!(
            of_others.contains("USING INDEX ix_events__occurred_id (occurred>? AND occurred<?)"),
            "{of_others}"
        );
        let resources = explain(&mut connection, delete_resources("[]"));
        let resources = resources.replace("SCAN json_each", "each of the ids");
        assert!(
            resources.contains("INDEX ix_event_resources__event_id (event_id=?)"),
            "{resources}"
        );
        let orphan = explain(&mut connection, orphan("2024"));
        assert!(
            orphan.contains("INDEX ix_event_resources__occurred (occurred>? AND occurred<?)"),
            "{orphan}"
        );
        for plan in [of_name, of_others, resources, orphan] {
            assert!(!plan.contains("SCAN"), "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
