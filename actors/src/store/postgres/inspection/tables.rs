//! The tables: what may be done with them, what finds rows in them, and which program made them.

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Text};

use super::{Connection, Failure, Needs, row, rows, schema};
use crate::finding::{Finding, Severity};

/// Something that a privilege is needed for.
#[derive(Debug, PartialEq, Eq, QueryableByName)]
pub(super) struct Lacking {
    #[diesel(sql_type = Text)]
    privilege: String,
    /// A table, or a function with its word before it.
    #[diesel(sql_type = Text)]
    object: String,
    #[diesel(sql_type = Text)]
    role: String,
}

const LACKING: &str = "SELECT privilege, object, current_user::text AS role FROM (VALUES \
    ('SELECT', 'events'), ('INSERT', 'events'), ('DELETE', 'events'), \
    ('SELECT', 'event_resources'), ('INSERT', 'event_resources'), ('DELETE', 'event_resources'), \
    ('SELECT', 'event_persister_dead_letters'), ('INSERT', 'event_persister_dead_letters'), \
    ('UPDATE', 'event_persister_dead_letters'), ('DELETE', 'event_persister_dead_letters')) \
    AS wanted (privilege, object) \
    WHERE NOT has_table_privilege(to_regclass(object), privilege) \
    UNION ALL SELECT 'EXECUTE', 'FUNCTION event_persister_store_v1', current_user::text \
    WHERE NOT has_function_privilege(to_regproc('event_persister_store_v1')::oid, 'EXECUTE') \
    UNION ALL SELECT 'EXECUTE', 'FUNCTION ' || oid::regprocedure, current_user::text \
    FROM pg_catalog.pg_proc \
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_logical_emit_message' \
    AND proargtypes[2] = 'text'::regtype AND NOT has_function_privilege(oid, 'EXECUTE')";

pub(super) async fn lacking(connection: &mut Connection) -> Result<Vec<Lacking>, Failure> {
    rows(connection, LACKING).await
}

/// Whether the rows of `events` may be looked at.
pub(super) fn may_read_events(lacking: &[Lacking]) -> bool {
    let is_of_reading = |lacking: &Lacking| lacking.privilege == "SELECT";
    !(lacking.iter()).any(|lacking| is_of_reading(lacking) && lacking.object == "events")
}

impl Lacking {
    /// Deleting is for retention, and for the commands that look after dead letters.
    fn severity(&self, needs: Needs) -> Severity {
        if self.privilege != "DELETE" {
            Severity::Error
        } else if self.object == "event_persister_dead_letters" {
            Severity::Warning
        } else if needs.trims {
            Severity::Error
        } else {
            Severity::Ok
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

/// Our own table and function.
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

/// An index that is looked for and not there.
#[derive(Debug, PartialEq, Eq, QueryableByName)]
pub(super) struct MissingIndex {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_name: String,
    #[diesel(sql_type = Bool)]
    must_be_unique: bool,
}

/// What counts is the first column; a partial or half-built index finds too little.
const MISSING_INDEXES: &str = "SELECT table_name, column_name, must_be_unique FROM (VALUES \
    ('events', 'id', true), ('events', 'occurred', false), \
    ('event_resources', 'event_id', false), ('event_resources', 'occurred', false)) \
    AS wanted (table_name, column_name, must_be_unique) \
    WHERE to_regclass(table_name) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_index \
    JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
    WHERE indrelid = to_regclass(table_name) AND attname = column_name \
    AND indisvalid AND indpred IS NULL \
    AND (NOT must_be_unique OR (indisunique AND indnkeyatts = 1)))";

pub(super) async fn missing_indexes(
    connection: &mut Connection,
) -> Result<Vec<MissingIndex>, Failure> {
    rows(connection, MISSING_INDEXES).await
}

pub(super) fn of_indexes(missing: &[MissingIndex]) -> Vec<Finding> {
    const ID: &str = "postgres.indexes";
    if missing.is_empty() {
        return vec![Finding::ok(ID, "all that is looked for has an index")];
    }
    let findings = missing.iter().map(|missing| {
        let MissingIndex { table_name, column_name, must_be_unique } = missing;
        if *must_be_unique {
            return Finding::error(
                ID,
                format!("{table_name}.{column_name} has no unique index: an event that comes twice is \
                     stored twice"),
                format!("ALTER TABLE {table_name} ADD PRIMARY KEY ({column_name})"),
            );
        }
        Finding::warning(
            ID,
            format!("no index begins with {table_name}.{column_name}: every step of retention reads the \
                 whole table"),
            format!("CREATE INDEX CONCURRENTLY ON {table_name} ({column_name})"),
        )
    });
    findings.collect()
}

/// Those of our numbering; others may keep migrations of their own in the same list.
const OURS: &str = "0000000000";

/// Migrations of ours that this program does not know.
pub(super) async fn newer_migrations(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    #[derive(QueryableByName)]
    struct Readable {
        #[diesel(sql_type = Bool)]
        readable: bool,
    }
    #[derive(QueryableByName)]
    struct Version {
        #[diesel(sql_type = Text)]
        version: String,
    }
    const READABLE: &str = "SELECT coalesce(has_table_privilege(\
        to_regclass('__diesel_schema_migrations'), 'SELECT'), false) AS readable";
    let Readable { readable } = row(connection, READABLE).await?;
    if !readable {
        return Ok(Vec::new());
    }
    const VERSIONS: &str =
        "SELECT version::text AS version FROM __diesel_schema_migrations ORDER BY 1";
    let versions: Vec<Version> = rows(connection, VERSIONS).await?;
    let known = schema::known_versions()?;
    let newer = versions.into_iter().map(|row| row.version);
    Ok(newer
        .filter(|version| version.starts_with(OURS) && !known.contains(version))
        .collect())
}
