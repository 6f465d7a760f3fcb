//! The tables: what may be done with them, what finds rows in them, and which program made them.

use diesel::dsl::sql;
use diesel::pg::Pg;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl as _;

use super::{Connection, Failure, Needs, conditions, schema};
use crate::finding::{Finding, Severity};
use crate::store::postgres::conditions::{Lacking, Purpose};
use crate::store::tables;

pub(super) fn may_read_events(lacking: &[Lacking]) -> bool {
    let is_of_reading = |lacking: &Lacking| lacking.privilege == "SELECT";
    !(lacking.iter()).any(|lacking| is_of_reading(lacking) && lacking.object == "events")
}

impl Lacking {
    /// Deleting is for retention, and for the commands that look after dead letters.
    fn severity(&self, needs: Needs) -> Severity {
        match self.purpose() {
            Purpose::Writing => Severity::Error,
            Purpose::Retention if needs.trims => Severity::Error,
            Purpose::Retention => Severity::Ok,
            Purpose::Letters => Severity::Warning,
        }
    }
}

pub(super) fn of_privileges(lacking: &[Lacking], needs: Needs) -> Finding {
    const ID: &str = "postgres.privileges";
    let lacking: Vec<(Severity, &Lacking)> = lacking
        .iter()
        .map(|lacking| (lacking.severity(needs), lacking))
        .filter(|(severity, _)| *severity > Severity::Ok)
        .collect();
    let Some(worst) = lacking.iter().map(|(severity, _)| *severity).max() else {
        return Finding::ok(ID, "the role may do all that is needed with what is there");
    };
    let list: Vec<String> = lacking
        .iter()
        .map(|(_, lacking)| format!("{} ON {}", lacking.privilege, lacking.object))
        .collect();
    let grants: Vec<String> = lacking
        .iter()
        .map(|(_, lacking)| {
            let Lacking {
                privilege,
                object,
                role,
            } = lacking;
            format!("GRANT {privilege} ON {object} TO \"{role}\"")
        })
        .collect();
    let what = format!("the role lacks {}", list.join(", "));
    Finding::bad(worst, ID, what, grants.join("; "))
}

pub(super) fn of_own(there: bool, can_create: bool) -> Finding {
    const ID: &str = "postgres.own_tables";
    if there {
        return Finding::ok(
            ID,
            "event_persister_dead_letters and the store function are there",
        );
    }
    if can_create {
        return Finding::ok(
            ID,
            "event_persister_dead_letters and the store function are not there yet; `serve` makes them",
        );
    }
    Finding::error(
        ID,
        "event_persister_dead_letters and the store function are not there, and the role may not make \
         them",
        "GRANT CREATE ON SCHEMA to it, or let a role that has it run `event-persister serve` once",
    )
}

/// The table and the column of an index that is looked for and not there.
type MissingIndex = (String, String);

/// Only the first column counts; a partial or half-built index finds too little.
const MISSING_INDEXES: &str = "SELECT table_name, column_name FROM (VALUES \
    ('events', 'occurred'), ('event_resources', 'event_id'), ('event_resources', 'occurred')) \
    AS wanted (table_name, column_name) \
    WHERE to_regclass(table_name) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_index \
    JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
    WHERE indrelid = to_regclass(table_name) AND attname = column_name \
    AND indisvalid AND indpred IS NULL)";

pub(super) async fn missing_indexes(
    connection: &mut Connection,
) -> Result<Vec<MissingIndex>, Failure> {
    let missing = sql::<(Text, Text)>(MISSING_INDEXES);
    Ok(missing.load(&mut connection.pg).await?)
}

/// `is_keyed` unless a key is missing that batches need, which is told already.
pub(super) fn of_indexes(missing: &[MissingIndex], is_keyed: bool) -> Vec<Finding> {
    const ID: &str = conditions::INDEXES;
    if missing.is_empty() && is_keyed {
        return vec![Finding::ok(ID, "all that is looked for has an index")];
    }
    let findings = missing.iter().map(|(table_name, column_name)| {
        Finding::warning(
            ID,
            format!(
                "no index begins with {table_name}.{column_name}: every step of retention reads the \
                 whole table"
            ),
            format!("CREATE INDEX CONCURRENTLY ON {table_name} ({column_name})"),
        )
    });
    findings.collect()
}

/// A trigger, a rule, or row-level security of somebody else's; its name, and its table.
type Other = (String, String, String);

const OTHERS: &str = "WITH written AS (SELECT name AS table_name, to_regclass(name) AS relation \
    FROM (VALUES ('events'), ('event_resources'), ('event_persister_dead_letters')) AS of (name) \
    WHERE to_regclass(name) IS NOT NULL) \
    SELECT 'trigger' AS kind, tgname::text AS name, table_name FROM written \
    JOIN pg_catalog.pg_trigger ON tgrelid = relation \
    WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 12 <> 0 \
    UNION ALL SELECT 'rule', rulename::text, table_name FROM written \
    JOIN pg_catalog.pg_rewrite ON ev_class = relation \
    WHERE ev_type IN ('3', '4') AND ev_enabled IN ('O', 'A') \
    UNION ALL SELECT 'security', 'row-level security', table_name FROM written \
    WHERE row_security_active(relation) \
    ORDER BY 1, 3, 2";

pub(super) async fn others(connection: &mut Connection) -> Result<Vec<Other>, Failure> {
    let others = sql::<(Text, Text, Text)>(OTHERS);
    Ok(others.load(&mut connection.pg).await?)
}

/// It may be meant. But what it refuses or swallows is told of only once an event meets it.
pub(super) fn of_others(others: &[Other]) -> Vec<Finding> {
    let finding = |(kind, name, table_name): &Other| match kind.as_str() {
        "security" => Finding::warning(
            "postgres.row_security",
            format!(
                "row-level security holds for this role on {table_name}: rows that its policies \
                     refuse are not stored, and those that they hide are not found"
            ),
            "ALTER ROLE … BYPASSRLS, or give the role policies that let all of its rows through",
        ),
        _ => Finding::warning(
            "postgres.triggers",
            format!(
                "the {kind} {name} on {table_name} has a say in rows that are inserted or deleted: what it \
                     refuses is not stored, or does not leave"
            ),
            format!(
                "see that it is meant, and quick; if not: DROP {} {name} ON {table_name}",
                kind.to_uppercase()
            ),
        ),
    };
    if others.is_empty() {
        return vec![Finding::ok(
            "postgres.triggers",
            "no trigger, rule or row-level security has a say in what is inserted or deleted",
        )];
    }
    others.iter().map(finding).collect()
}

pub(super) async fn newer_migrations(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    let run = conditions::recorded(connection).await?.unwrap_or_default();
    let ours = [&schema::EVENTS, &schema::OWN, &schema::ARCHIVE];
    Ok(tables::newer_migrations::<Pg>(run, ours)?)
}
