//! Looks for whatever would stop or hurt a store in this database, and makes nothing.
//!
//! Each question is a transaction of its own, so that one that fails hides nothing else.

use chrono::{DateTime, Utc};
use diesel_async::RunQueryDsl as _;

use super::audit;
use crate::clock::Clock;
use crate::finding::Finding;
use crate::store::CreateSchema;
use crate::store::operator::Needs;
use crate::store::postgres::conditions::{self, Looked};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::schema;
use crate::store::postgres::settings::PostgresSettings;

mod dead_rows;
mod partitions;
mod pooler;
mod replication;
mod server;
mod tables;

use server::ServerFacts;

pub(super) async fn inspect(
    settings: &PostgresSettings,
    needs: Needs,
    clock: &dyn Clock,
) -> Vec<Finding> {
    let connection = match Connection::open(settings).await {
        Ok(connection) => connection,
        Err(error) => return vec![Finding::of_error("postgres.reachable", &error)],
    };
    let place = settings.place();
    let mut inspection = Inspection {
        connection,
        settings,
        findings: vec![Finding::ok("postgres.reachable", place.to_string())],
    };
    let asked = clock.now();
    let facts = inspection.ask("postgres.server", server::facts).await;
    let answered = clock.now();
    if let Some(facts) = &facts {
        let findings = facts.judge(needs, (asked, answered));
        inspection.findings.extend(findings);
    }
    let replication = inspection
        .ask("postgres.replication", replication::look)
        .await;
    if let Some(replication) = replication {
        let primary = replication.judge_primary(&inspection.connection);
        let findings = [primary, replication.judge()].into_iter().flatten();
        inspection.findings.extend(findings);
    }
    inspection.look_at_tables(needs, facts.as_ref()).await;
    inspection.look_at_rows(clock.now()).await;
    if let Some(found) = pooler::look(&mut inspection.connection, settings).await {
        inspection.findings.push(found.judge(settings));
    }
    inspection.findings
}

struct Inspection<'a> {
    connection: Connection,
    settings: &'a PostgresSettings,
    findings: Vec<Finding>,
}

impl Inspection<'_> {
    /// Asks in a transaction; `None`, and a finding, where the database does not answer.
    async fn ask<T>(
        &mut self,
        id: &'static str,
        question: impl AsyncFnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Option<T> {
        let asked = async {
            self.connection.begin().await?;
            let answer = question(&mut self.connection).await?;
            self.connection.commit().await?;
            Ok::<T, Failure>(answer)
        };
        match asked.await {
            Ok(answer) => Some(answer),
            Err(failure) => {
                let error = failure.into_store_error("read", &self.settings.place(), None);
                self.findings.push(Finding::of_error(id, &error));
                if let Err(failure) = self.connection.roll_back().await {
                    log::debug!("cannot end the transaction of a question error={failure:?}");
                }
                None
            }
        }
    }

    /// How they are kept: in partitions or not, and with how many dead ones among them.
    async fn look_at_rows(&mut self, now: DateTime<Utc>) {
        if let Some(found) = self.ask("postgres.partitions", partitions::look).await {
            self.findings.extend(found.judge(now));
        }
        if let Some(tables) = self.ask("postgres.dead_rows", dead_rows::statistics).await {
            self.findings.extend(dead_rows::judge(&tables));
        }
    }

    async fn look_at_tables(&mut self, needs: Needs, facts: Option<&ServerFacts>) {
        let place = self.settings.place();
        let look = async |connection: &mut Connection| {
            conditions::look(connection, CreateSchema::Nothing, &place).await
        };
        let mut is_keyed = true;
        let mut is_readable = false;
        if let Some(Looked { faults, has_own }) = self.ask(conditions::SCHEMA, look).await {
            let is_faulty = |id| faults.iter().any(|fault| fault.id == id);
            is_keyed = !is_faulty(conditions::INDEXES);
            is_readable = !is_faulty(conditions::SCHEMA);
            let is_ours = !is_faulty(conditions::OWN_TABLES);
            self.findings.extend(faults);
            if is_readable {
                let what =
                    "all columns are there that are written, in their types, and no other must be";
                self.findings.push(Finding::ok(conditions::SCHEMA, what));
            }
            if is_readable && is_ours {
                let can_create = facts.is_none_or(|facts| facts.can_create);
                self.findings.push(tables::of_own(has_own, can_create));
            }
        }
        if let Some(lacking) = self.ask(conditions::PRIVILEGES, conditions::lacking).await {
            self.findings.push(tables::of_privileges(&lacking, needs));
            if is_readable
                && tables::may_read_events(&lacking)
                && let Some(newest) = self.ask("postgres.unreadable", audit::newest).await
            {
                self.findings.push(newest.judge("postgres.unreadable"));
            }
        }
        if let Some(missing) = self.ask(conditions::INDEXES, tables::missing_indexes).await {
            self.findings.extend(tables::of_indexes(&missing, is_keyed));
        }
        if let Some(others) = self.ask("postgres.triggers", tables::others).await {
            self.findings.extend(tables::of_others(&others));
        }
        if let Some(newer) = self
            .ask("postgres.migrations", tables::newer_migrations)
            .await
        {
            self.findings
                .push(Finding::of_newer_migrations("postgres.migrations", &newer));
        }
    }
}

/// How far two clocks are apart, given that the other was looked at between two looks at ours.
fn apart(ours: (DateTime<Utc>, DateTime<Utc>), theirs: DateTime<Utc>) -> chrono::TimeDelta {
    let (before, after) = ours;
    if theirs < before {
        theirs - before
    } else if theirs > after {
        theirs - after
    } else {
        chrono::TimeDelta::zero()
    }
}

async fn row<T>(connection: &mut Connection, sql: &str) -> Result<T, Failure>
where
    T: diesel::QueryableByName<diesel::pg::Pg> + Send + 'static,
{
    Ok(diesel::sql_query(sql)
        .get_result(&mut connection.pg)
        .await?)
}
