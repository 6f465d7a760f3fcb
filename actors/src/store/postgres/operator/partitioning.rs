//! Makes the two tables of a database of our own partitioned, while writers go on.
//!
//! A table that is empty is replaced at once. Any other becomes the first partition, which holds all that
//! occurs before a bound some days ahead:
//!
//! 1. the plan is noted: by which period;
//! 2. a unique index on (id, occurred) is built beside the writers;
//! 3. a constraint says that nothing occurs behind the bound. It is not validated, so that the lock is
//!    short. From here on the store function writes what occurs later to the default partitions, which are
//!    tables of their own for now: a reader sees it once they are attached;
//! 4. what stands behind the bound already moves there;
//! 5. the constraint is validated, beside writers and readers;
//! 6. the tables are renamed, and attached to new ones with their names, which looks at no row.
//!
//! Each step looks at what is there and is a transaction, so that a run that was cut off goes on where it
//! stopped. No lock that writers could meet is waited for longer than a moment; then it is tried again.

use std::convert::Infallible;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Double, Nullable, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use tokio::time::Instant;

use crate::failpoint;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::partitions::{
    self, Effort, Layout, MIGRATION_LOCK, Made, PLAN_TABLE, Plan, Tables, is_partitioned, layout,
    literal, make, make_ahead, move_rows, try_lock_tables,
};
use crate::store::postgres::rows::Moment;
use crate::store::{CreateSchema, Period, StoreError};

/// How long a lock is waited for each time, and how long others go first then. In all: as long as many
/// transactions of writers, and as a report that somebody reads meanwhile.
const LOCK_WAIT: Duration = Duration::from_millis(500);
const OTHERS_GO_FIRST: Duration = Duration::from_millis(1_000);
const MAX_TRIES: u32 = 400;

/// The bound is at least so far ahead when it is set. Longer, and the first partition is dropped as much later;
/// shorter, and there is less time to notice that a run was cut off: behind the bound nobody reads.
const BOUND_AHEAD: Days = Days::new(7);

/// How often a long step says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

const TABLES: [&str; 2] = ["events", "event_resources"];

/// The name of the table as it was.
const BEFORE: &str = "_before";
const DEFAULT: &str = "_default";

/// The index that becomes the primary key.
fn key_name(table: &str) -> String {
    format!("pk_{table}{BEFORE}")
}

impl PostgresStore {
    /// The steps that were made, in the order in which they were made.
    pub(super) async fn partition_by(&self, period: Period) -> Result<Vec<String>, StoreError> {
        let error = |failure| self.store_error("partition the tables of", failure, None);
        let mut guard = Connection::open(&self.settings).await?;
        let place = self.settings.place().to_string();
        take_guard(&mut guard, &place).await.map_err(error)?;
        let connection = Connection::open(&self.settings).await?;
        let made = self.make_tables(connection, CreateSchema::Everything);
        let (mut connection, mut steps) = made.await?;
        let mut partitioning = Partitioning {
            store: self,
            connection: &mut connection,
            period,
            steps: Vec::new(),
        };
        partitioning.run().await.map_err(error)?;
        steps.append(&mut partitioning.steps);
        guard.roll_back().await.map_err(error)?;
        Ok(steps)
    }
}

/// Held by a transaction that does nothing else, and so ends with this process.
async fn take_guard(guard: &mut Connection, place: &str) -> Result<(), Failure> {
    guard.begin().await?;
    refuse_prefects(guard, place).await?;
    let lock = format!("SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK})");
    let is_ours: bool = sql::<Bool>(&lock).get_result(&mut guard.pg).await?;
    if !is_ours {
        return Err(Failure::Unfit(
            "another process partitions these tables at the moment; wait until it is done"
                .to_owned(),
        ));
    }
    // A plain statement is the last one: what was asked with values keeps its snapshot until the next, and an
    // index that is built beside writers would wait for that.
    let forever = "SET LOCAL idle_in_transaction_session_timeout = 0";
    Ok(guard.pg.batch_execute(forever).await?)
}

/// Its server expects the tables as it made them, and its migrations change them.
async fn refuse_prefects(connection: &mut Connection, place: &str) -> Result<(), Failure> {
    const LOOK: &str = "SELECT array_to_string(ARRAY(SELECT name FROM unnest(\
        ARRAY['alembic_version', 'flow_run', 'task_run', 'work_pool', 'block_document']) AS of (name) \
        WHERE to_regclass(name) IS NOT NULL), ', ')";
    let theirs: String = sql::<Text>(LOOK).get_result(&mut connection.pg).await?;
    if theirs.is_empty() {
        return Ok(());
    }
    Err(Failure::Unfit(format!(
        "Prefect has been in {place}: it has {theirs}. A Prefect server expects its tables as it made them, \
         and its migrations fail on others, so that they are not partitioned; take a database of your own"
    )))
}

struct Partitioning<'a> {
    store: &'a PostgresStore,
    connection: &'a mut Connection,
    period: Period,
    steps: Vec<String>,
}

impl Partitioning<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        let is_partitioned = is_partitioned(self.connection).await?;
        if is_partitioned && self.read_plan().await?.is_none() {
            return Err(Failure::Unfit(
                "the tables are partitioned by somebody else already; whoever did that looks after their \
                 partitions"
                    .to_owned(),
            ));
        }
        if !is_partitioned {
            self.refuse_obstacles().await?;
        }
        self.plan().await?;
        if !is_partitioned {
            if self.are_empty().await? {
                self.replace_empty().await?;
            } else {
                self.attach_what_is_there().await?;
            }
        }
        self.make_partitions().await
    }

    fn done(&mut self, step: impl Into<String>) {
        let step = step.into();
        log::info!("{step}");
        self.steps.push(step);
    }

    fn now(&self) -> DateTime<Utc> {
        self.store.clock.now()
    }

    async fn question(&mut self, question: &str) -> Result<bool, Failure> {
        self.connection.begin().await?;
        let answer = sql::<Bool>(question).get_result(&mut self.connection.pg);
        let answer: bool = answer.await?;
        self.connection.commit().await?;
        Ok(answer)
    }

    async fn tables(&mut self, suffix: &str) -> Result<Tables, Failure> {
        const SCHEMA: &str = "SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class \
            WHERE oid = to_regclass('events')";
        self.connection.begin().await?;
        let schema: String = sql::<Text>(SCHEMA)
            .get_result(&mut self.connection.pg)
            .await?;
        self.connection.commit().await?;
        Ok(Tables::of(&schema, suffix))
    }

    async fn read_plan(&mut self) -> Result<Option<Plan>, Failure> {
        self.connection.begin().await?;
        let plan = Plan::read(self.connection).await?;
        self.connection.commit().await?;
        Ok(plan)
    }

    /// Whatever hangs on the tables would hang on the first partition alone.
    async fn refuse_obstacles(&mut self) -> Result<(), Failure> {
        self.connection.begin().await?;
        let obstacles: Vec<String> = sql::<Text>(OBSTACLES).load(&mut self.connection.pg).await?;
        self.connection.commit().await?;
        if obstacles.is_empty() {
            return Ok(());
        }
        Err(Failure::Unfit(format!(
            "the tables cannot be partitioned as they are: {}; remove what is in the way, and make it anew \
             when they are partitioned, if it is possible then",
            obstacles.join("; ")
        )))
    }

    /// Notes the period, and makes the store function one for partitions.
    async fn plan(&mut self) -> Result<(), Failure> {
        let period = self.period.as_str();
        let plan = self.read_plan().await?;
        if let Some(plan) = &plan
            && plan.period != period
        {
            return Err(Failure::Unfit(format!(
                "the tables are partitioned by {} already, or on their way there; give --partition-by {}",
                plan.period, plan.period
            )));
        }
        if plan.is_none() {
            let tables = self.tables("").await?;
            let schema = tables.events.trim_end_matches("\"events\"");
            let make = format!(
                "CREATE TABLE IF NOT EXISTS {schema}{PLAN_TABLE} (one boolean PRIMARY KEY DEFAULT true CHECK (one), \
                 period text NOT NULL, bound date); \
                 INSERT INTO {schema}{PLAN_TABLE} (period) VALUES ('{period}'); \
                 GRANT SELECT ON {schema}{PLAN_TABLE} TO PUBLIC"
            );
            self.in_transaction(&make).await?;
            self.done(format!(
                "noted that the tables are to be partitioned by {period}"
            ));
        }
        failpoint::pass("partitioning::planned");
        // As every start of a service does it.
        let (store, place) = (self.store, self.store.settings.place());
        let connection = Connection::open(&store.settings).await.map_err(|error| {
            Failure::Unfit(format!("a second connection cannot be had: {error}"))
        })?;
        crate::store::postgres::schema::prepare(connection, CreateSchema::OwnOnly, &place).await?;
        failpoint::pass("partitioning::function");
        Ok(())
    }

    async fn in_transaction(&mut self, statements: &str) -> Result<(), Failure> {
        self.connection.begin().await?;
        let no_limit = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0";
        self.connection.pg.batch_execute(no_limit).await?;
        self.connection.pg.batch_execute(statements).await?;
        self.connection.commit().await
    }

    async fn are_empty(&mut self) -> Result<bool, Failure> {
        self.question(ARE_EMPTY).await
    }

    /// Starts a transaction that has these tables for itself; tries until that is so.
    async fn begin_alone(&mut self, tables: &[String]) -> Result<(), Failure> {
        for _ in 0..MAX_TRIES {
            self.connection.begin().await?;
            let no_limit = "SET LOCAL statement_timeout = 0";
            self.connection.pg.batch_execute(no_limit).await?;
            if try_lock_tables(self.connection, tables, "ACCESS EXCLUSIVE", LOCK_WAIT).await? {
                return Ok(());
            }
            self.connection.roll_back().await?;
            log::info!("the tables are in use; their lock is tried again");
            tokio::time::sleep(OTHERS_GO_FIRST).await;
        }
        Err(Failure::Unfit(format!(
            "others kept {} locked all the time; run it again when no long transaction is at work on them",
            tables.join(" and ")
        )))
    }

    /// Empty tables make room for partitioned ones. If one of them is no longer empty, nothing is done.
    async fn replace_empty(&mut self) -> Result<(), Failure> {
        let tables = self.tables("").await?;
        self.begin_alone(&[tables.events, tables.resources]).await?;
        let still: bool = sql::<Bool>(ARE_EMPTY)
            .get_result(&mut self.connection.pg)
            .await?;
        if !still {
            self.connection.roll_back().await?;
            return Box::pin(self.attach_what_is_there()).await;
        }
        let mut statements = String::new();
        for table in TABLES {
            let shape = Shape::of(self.connection, table).await?;
            statements.push_str(&shape.set_aside());
            statements.push_str(&shape.make_parent());
            statements.push_str(&shape.make_default());
            statements.push_str(&shape.attach_default());
            statements.push_str(&format!("DROP TABLE {};\n", shape.named(BEFORE)));
        }
        self.connection.pg.batch_execute(&statements).await?;
        failpoint::pass("partitioning::before-swapped");
        self.connection.commit().await?;
        failpoint::pass("partitioning::swapped");
        self.done("made both tables, which were empty, partitioned");
        Ok(())
    }

    async fn attach_what_is_there(&mut self) -> Result<(), Failure> {
        for table in TABLES {
            self.build_key(table).await?;
        }
        failpoint::pass("partitioning::indexed");
        let bound = self.bind().await?;
        failpoint::pass("partitioning::bound");
        self.move_behind(bound).await?;
        failpoint::pass("partitioning::moved");
        self.validate().await?;
        failpoint::pass("partitioning::validated");
        self.swap(bound).await?;
        failpoint::pass("partitioning::swapped");
        Ok(())
    }

    /// A unique index on (id, occurred), built beside writers. One that was cut off is of no use.
    async fn build_key(&mut self, table: &str) -> Result<(), Failure> {
        let (tables, name) = (self.tables("").await?, key_name(table));
        let qualified = match table {
            "events" => tables.events,
            _ => tables.resources,
        };
        let schema = qualified
            .trim_end_matches(&format!("\"{table}\""))
            .to_owned();
        let is_valid = format!(
            "SELECT coalesce((SELECT indisvalid FROM pg_catalog.pg_index \
             WHERE indexrelid = to_regclass('{schema}{name}')), false)"
        );
        // The server goes on with it when we are gone.
        let is_built = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index \
             WHERE relid = to_regclass('{qualified}') AND command LIKE 'CREATE INDEX%')"
        );
        while self.question(&is_built).await? {
            log::info!("an earlier run's index on {table} is still being built");
            tokio::time::sleep(SAY_EVERY / 10).await;
        }
        if self.question(&is_valid).await? {
            return Ok(());
        }
        let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {schema}{name}");
        self.outside_of_transactions(&drop).await?;
        let (began, size) = (Instant::now(), self.size_of(&qualified).await?);
        log::info!("building the key (id, occurred) of {table}, which has {size}");
        let build =
            format!("CREATE UNIQUE INDEX CONCURRENTLY {name} ON {qualified} (id, occurred)");
        let watcher = Connection::open(&self.store.settings).await.ok();
        let say = say_how_far(watcher, &qualified);
        tokio::select! {
            built = self.outside_of_transactions(&build) => built?,
            never = say => match never {},
        }
        self.done(format!(
            "built the key (id, occurred) of {table}, which has {size}, in {:.1?}",
            began.elapsed()
        ));
        Ok(())
    }

    /// The server's own limits would be those of the role.
    async fn outside_of_transactions(&mut self, statement: &str) -> Result<(), Failure> {
        self.connection
            .pg
            .batch_execute("SET statement_timeout = 0; SET lock_timeout = 0")
            .await?;
        self.connection.pg.batch_execute(statement).await?;
        let back = "RESET statement_timeout; RESET lock_timeout";
        Ok(self.connection.pg.batch_execute(back).await?)
    }

    async fn size_of(&mut self, table: &str) -> Result<String, Failure> {
        let question = format!(
            "SELECT greatest(reltuples, 0)::bigint || ' rows, about, and ' || \
             pg_size_pretty(pg_table_size(oid)) FROM pg_catalog.pg_class WHERE oid = to_regclass('{table}')"
        );
        self.connection.begin().await?;
        let size = sql::<Text>(&question).get_result(&mut self.connection.pg);
        let size: String = size.await?;
        self.connection.commit().await?;
        Ok(size)
    }

    /// The constraint on both tables, and the default partitions for what occurs behind it.
    async fn bind(&mut self) -> Result<NaiveDate, Failure> {
        let now = self.now();
        let plan = self.read_plan().await?.filter(|plan| !plan.is_near(now));
        if let Some(bound) = plan.and_then(|plan| plan.bound) {
            return Ok(bound);
        }
        let ahead = now.date_naive().checked_add_days(BOUND_AHEAD);
        let bound = ahead.and_then(|day| self.period.later(self.period.start(day)?, 1));
        let bound =
            bound.ok_or_else(|| Failure::Unfit("the clock is beyond all time".to_owned()))?;
        let (tables, defaults) = (self.tables("").await?, self.tables(DEFAULT).await?);
        self.begin_alone(&[tables.events.clone(), tables.resources.clone()])
            .await?;
        let mut statements = String::new();
        for table in TABLES {
            let shape = Shape::of(self.connection, table).await?;
            statements.push_str(&shape.make_default());
        }
        statements.push_str(&tables.without_bound());
        self.connection.pg.batch_execute(&statements).await?;
        let condition = format!("occurred < {}", literal(bound));
        let mut statements = move_rows(self.connection, &defaults, &tables, &condition).await?;
        for table in tables.both() {
            statements.push_str(&format!(
                "ALTER TABLE {table} ADD CONSTRAINT event_persister_bound CHECK ({condition}) NOT VALID;\n"
            ));
        }
        statements.push_str(&format!("UPDATE {PLAN_TABLE} SET bound = '{bound}';\n"));
        self.connection.pg.batch_execute(&statements).await?;
        failpoint::pass("partitioning::before-bound");
        self.connection.commit().await?;
        self.done(format!("bound both tables to what occurs before {bound}"));
        Ok(bound)
    }

    async fn move_behind(&mut self, bound: NaiveDate) -> Result<(), Failure> {
        let until = literal(bound);
        let question = format!(
            "SELECT EXISTS (SELECT FROM events WHERE occurred >= {until}) \
             OR EXISTS (SELECT FROM event_resources WHERE occurred >= {until})"
        );
        if !self.question(&question).await? {
            return Ok(());
        }
        let (tables, defaults) = (self.tables("").await?, self.tables(DEFAULT).await?);
        let condition = format!("occurred >= {until}");
        self.connection.begin().await?;
        let move_them = move_rows(self.connection, &tables, &defaults, &condition).await?;
        self.connection.commit().await?;
        self.in_transaction(&move_them).await?;
        self.done(format!(
            "moved what occurs from {bound} on to the default partitions"
        ));
        Ok(())
    }

    /// Reads each table once, beside writers.
    async fn validate(&mut self) -> Result<(), Failure> {
        let tables = self.tables("").await?;
        for (name, table) in TABLES.into_iter().zip([tables.events, tables.resources]) {
            let is_valid = format!(
                "SELECT convalidated FROM pg_catalog.pg_constraint \
                 WHERE conrelid = '{table}'::regclass AND conname = 'event_persister_bound'"
            );
            if self.question(&is_valid).await? {
                continue;
            }
            let (began, size) = (Instant::now(), self.size_of(&table).await?);
            log::info!("validating the constraint on {name}, which has {size}");
            let validate = format!("ALTER TABLE {table} VALIDATE CONSTRAINT event_persister_bound");
            self.in_transaction(&validate).await?;
            self.done(format!(
                "validated the constraint on {name} in {:.1?}",
                began.elapsed()
            ));
        }
        Ok(())
    }

    /// The tables change places: all within one transaction that looks at no row of theirs.
    async fn swap(&mut self, bound: NaiveDate) -> Result<(), Failure> {
        let (tables, defaults) = (self.tables("").await?, self.tables(DEFAULT).await?);
        self.begin_alone(&[
            tables.events,
            tables.resources,
            defaults.events,
            defaults.resources,
        ])
        .await?;
        let mut statements = String::new();
        let until = literal(bound);
        for table in TABLES {
            let shape = Shape::of(self.connection, table).await?;
            statements.push_str(&shape.set_aside());
            let (parent, before, key) = (shape.named(""), shape.named(BEFORE), key_name(table));
            statements.push_str(&format!(
                "ALTER TABLE {before} ADD CONSTRAINT {key} PRIMARY KEY USING INDEX {key};\n"
            ));
            statements.push_str(&shape.make_parent());
            statements.push_str(&format!("ALTER TABLE {parent} ATTACH PARTITION {before} FOR VALUES FROM (MINVALUE) TO ({until});
                 ALTER TABLE {before} DROP CONSTRAINT event_persister_bound;\n"));
            statements.push_str(&shape.attach_default());
        }
        self.connection.pg.batch_execute(&statements).await?;
        failpoint::pass("partitioning::before-swapped");
        self.connection.commit().await?;
        self.done(format!(
            "made both tables partitioned; what they had is a partition that ends with {bound}"
        ));
        Ok(())
    }

    /// Those to come, and those of events that had to go to the default partition.
    async fn make_partitions(&mut self) -> Result<(), Failure> {
        let (period, now) = (self.period, self.now());
        let Some(layout) = self.layout().await? else {
            return Ok(());
        };
        // First those to come: the others may have much to move.
        let mut starts = make_ahead(&layout, period, now);
        if let Some(defaults) = layout.defaults() {
            let moments = self.moments_in(&defaults.events, period).await?;
            let moments = moments.into_iter().map(Moment::new);
            let late = partitions::periods_without(&layout, period, moments, now, usize::MAX);
            starts.extend(
                late.into_iter()
                    .filter(|start| !starts.contains(start))
                    .collect::<Vec<_>>(),
            );
        }
        for start in starts {
            self.make_partition(&layout, start).await?;
            failpoint::pass("partitioning::made-one");
        }
        Ok(())
    }

    async fn make_partition(&mut self, layout: &Layout, start: NaiveDate) -> Result<(), Failure> {
        for _ in 0..MAX_TRIES {
            let made = make(
                self.connection,
                layout,
                self.period,
                start,
                Effort::Unlimited,
            );
            match made.await? {
                Made::Yes => {
                    self.done(format!("made the partitions that begin with {start}"));
                    return Ok(());
                }
                Made::ThereAlready => return Ok(()),
                Made::NotNow | Made::TooMuch => tokio::time::sleep(OTHERS_GO_FIRST).await,
            }
        }
        Err(Failure::Unfit(format!(
            "others kept the default partitions locked, so that the partition for {start} was not made; run \
             it again"
        )))
    }

    async fn layout(&mut self) -> Result<Option<Layout>, Failure> {
        self.connection.begin().await?;
        let layout = layout(self.connection).await?;
        self.connection.commit().await?;
        Ok(layout)
    }

    /// One moment of each period that has rows there.
    async fn moments_in(
        &mut self,
        default: &str,
        period: Period,
    ) -> Result<Vec<DateTime<Utc>>, Failure> {
        let period = period.as_str();
        let question = format!(
            "SELECT DISTINCT date_trunc('{period}', occurred) AS moment FROM {default} \
             WHERE isfinite(occurred) AND occurred > now() - interval '20 years' \
             AND occurred < now() + interval '2 years'"
        );
        self.connection.begin().await?;
        self.connection
            .pg
            .batch_execute("SET LOCAL statement_timeout = 0")
            .await?;
        let moments = sql::<diesel::sql_types::Timestamptz>(&question);
        let moments = moments.load(&mut self.connection.pg).await?;
        self.connection.commit().await?;
        Ok(moments)
    }
}

const ARE_EMPTY: &str = "SELECT NOT EXISTS (SELECT FROM events) \
    AND NOT EXISTS (SELECT FROM event_resources)";

const OBSTACLES: &str = "WITH ours AS (SELECT name, to_regclass(name) AS relation \
    FROM (VALUES ('events'), ('event_resources')) AS of (name)) \
    SELECT 'the role does not own ' || name FROM ours JOIN pg_catalog.pg_class ON oid = relation \
    WHERE NOT pg_has_role(relowner, 'USAGE') \
    UNION ALL SELECT name || ' is no plain table' FROM ours \
    JOIN pg_catalog.pg_class AS table_of ON table_of.oid = relation \
    WHERE relkind <> 'r' OR relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits \
    WHERE inhrelid = relation OR inhparent = relation) \
    UNION ALL SELECT 'the trigger ' || tgname || ' on ' || name FROM ours \
    JOIN pg_catalog.pg_trigger ON tgrelid = relation WHERE NOT tgisinternal \
    UNION ALL SELECT 'the foreign key ' || conname FROM ours \
    JOIN pg_catalog.pg_constraint ON relation IN (conrelid, confrelid) WHERE contype = 'f' \
    UNION ALL SELECT 'the unique index ' || indexrelid::regclass::text || ', which would hold for each \
    partition alone' FROM ours JOIN pg_catalog.pg_index ON indrelid = relation \
    JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid \
    WHERE indisunique AND NOT indisprimary AND relname <> 'pk_' || name || '_before' \
    UNION ALL SELECT 'row-level security on ' || name FROM ours \
    JOIN pg_catalog.pg_class ON oid = relation WHERE relrowsecurity \
    UNION ALL SELECT DISTINCT 'the view or rule ' || ev_class::regclass::text FROM ours \
    JOIN pg_catalog.pg_depend ON refobjid = relation AND refclassid = 'pg_catalog.pg_class'::regclass \
    AND classid = 'pg_catalog.pg_rewrite'::regclass \
    JOIN pg_catalog.pg_rewrite ON pg_rewrite.oid = objid \
    UNION ALL SELECT 'the publication ' || pubname || ' of ' || name FROM ours \
    JOIN pg_catalog.pg_publication_rel ON prrelid = relation \
    JOIN pg_catalog.pg_publication ON pg_publication.oid = prpubid";

/// How a table is made, for those that take its place.
struct Shape {
    schema: String,
    table: &'static str,
    owner: String,
    primary_key: Option<String>,
    /// Of all other indexes that are not unique: their names, and the statements that make them.
    indexes: Vec<(String, String)>,
    /// Names and texts of its CHECK constraints, without ours.
    checks: Vec<(String, String)>,
    /// Privileges, and those who have them.
    grants: Vec<(String, String)>,
}

#[derive(QueryableByName)]
struct ShapeRow {
    #[diesel(sql_type = Text)]
    schema: String,
    #[diesel(sql_type = Text)]
    owner: String,
    #[diesel(sql_type = Nullable<Text>)]
    primary_key: Option<String>,
}

impl Shape {
    async fn of(connection: &mut Connection, table: &'static str) -> Result<Self, Failure> {
        let of = format!("to_regclass('{table}')");
        let look = format!(
            "SELECT relnamespace::regnamespace::text AS schema, relowner::regrole::text AS owner, \
             (SELECT quote_ident(conname) FROM pg_catalog.pg_constraint \
             WHERE conrelid = {of} AND contype = 'p') AS primary_key \
             FROM pg_catalog.pg_class WHERE oid = {of}"
        );
        let row: ShapeRow = sql_query(look).get_result(&mut connection.pg).await?;
        let indexes = format!(
            "SELECT relname::text, pg_get_indexdef(indexrelid) FROM pg_catalog.pg_index \
             JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid \
             WHERE indrelid = {of} AND indisvalid AND NOT indisunique ORDER BY relname"
        );
        let checks = format!(
            "SELECT quote_ident(conname), pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint \
             WHERE conrelid = {of} AND contype = 'c' AND convalidated \
             AND conname <> 'event_persister_bound' ORDER BY conname"
        );
        let grants = format!(
            "SELECT privilege_type || CASE WHEN is_grantable THEN ' WITH' ELSE '' END, \
             CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END \
             FROM pg_catalog.pg_class CROSS JOIN aclexplode(relacl) \
             WHERE pg_class.oid = {of} AND grantee <> relowner"
        );
        Ok(Self {
            schema: row.schema,
            table,
            owner: row.owner,
            primary_key: row.primary_key,
            indexes: sql::<(Text, Text)>(&indexes)
                .load(&mut connection.pg)
                .await?,
            checks: sql::<(Text, Text)>(&checks)
                .load(&mut connection.pg)
                .await?,
            grants: sql::<(Text, Text)>(&grants)
                .load(&mut connection.pg)
                .await?,
        })
    }

    fn named(&self, suffix: &str) -> String {
        format!("{}.\"{}{suffix}\"", self.schema, self.table)
    }

    /// Gives the table and its indexes other names, and takes the key from it that others are to have.
    fn set_aside(&self) -> String {
        let before = format!("{}{BEFORE}", self.table);
        let mut statements = format!("ALTER TABLE {} RENAME TO \"{before}\";\n", self.named(""));
        if let Some(key) = &self.primary_key {
            let table = self.named(BEFORE);
            statements.push_str(&format!("ALTER TABLE {table} DROP CONSTRAINT {key};\n"));
        }
        for (name, _) in &self.indexes {
            // At most 63 characters.
            let short: String = name.chars().take(55).collect();
            statements.push_str(&format!(
                "ALTER INDEX {}.\"{name}\" RENAME TO \"{short}{BEFORE}\";\n",
                self.schema
            ));
        }
        statements
    }

    /// A partitioned table with the name, the key and the indexes that the table had.
    fn make_parent(&self) -> String {
        let (parent, before) = (self.named(""), self.named(BEFORE));
        let mut statements = format!(
            "CREATE TABLE {parent} (LIKE {before} INCLUDING DEFAULTS INCLUDING GENERATED \
             INCLUDING STORAGE INCLUDING COMMENTS) PARTITION BY RANGE (occurred);\n\
             ALTER TABLE {parent} ADD CONSTRAINT pk_{} PRIMARY KEY (id, occurred);\n",
            self.table
        );
        for (name, check) in &self.checks {
            statements.push_str(&format!(
                "ALTER TABLE {parent} ADD CONSTRAINT {name} {check};\n"
            ));
        }
        for (_, make) in &self.indexes {
            statements.push_str(&format!("{make};\n"));
        }
        statements.push_str(&self.belongs(&parent));
        statements
    }

    /// Gives a table the owner and the privileges that it had before.
    fn belongs(&self, table: &str) -> String {
        let mut statements = format!("ALTER TABLE {table} OWNER TO {};\n", self.owner);
        for (privilege, grantee) in &self.grants {
            let (privilege, with) = match privilege.strip_suffix(" WITH") {
                Some(privilege) => (privilege, " WITH GRANT OPTION"),
                None => (privilege.as_str(), ""),
            };
            statements.push_str(&format!(
                "GRANT {privilege} ON {table} TO {grantee}{with};\n"
            ));
        }
        statements
    }

    /// As long as it is not attached, it needs what tells duplicates, and nothing else. Writers write to it
    /// all the same.
    fn make_default(&self) -> String {
        let (default, like) = (self.named(DEFAULT), self.named(""));
        format!(
            "CREATE TABLE IF NOT EXISTS {default} (LIKE {like} INCLUDING DEFAULTS INCLUDING GENERATED \
             INCLUDING STORAGE, PRIMARY KEY (id, occurred));\n{}",
            self.belongs(&default)
        )
    }

    fn attach_default(&self) -> String {
        let (parent, default) = (self.named(""), self.named(DEFAULT));
        format!("ALTER TABLE {parent} ATTACH PARTITION {default} DEFAULT;\n")
    }
}

/// Says again and again how far the server is with an index; nothing where it cannot be asked.
async fn say_how_far(watcher: Option<Connection>, table: &str) -> Infallible {
    let Some(mut watcher) = watcher else {
        return std::future::pending().await;
    };
    let question = format!(
        "SELECT phase, coalesce(100 * CASE WHEN blocks_total > 0 THEN blocks_done::float8 / blocks_total \
         WHEN tuples_total > 0 THEN tuples_done::float8 / tuples_total END, 0)::float8 \
         FROM pg_catalog.pg_stat_progress_create_index WHERE relid = to_regclass('{table}')"
    );
    loop {
        tokio::time::sleep(SAY_EVERY).await;
        let how_far = sql::<(Text, Double)>(&question);
        let how_far: QueryResult<(String, f64)> = how_far.get_result(&mut watcher.pg).await;
        if let Ok((phase, percent)) = how_far {
            log::info!("{phase}: {percent:.0} % of that table={table}");
        }
    }
}
