//! The conditions under which anything can be written here: one list, for all that ask.
//!
//! A store that starts, the probe behind `/api/ready` and `event-persister check` all walk it. The first
//! two stop at the first fault; the last tells of all of them.

use diesel::prelude::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{Array, Bool, Nullable, Oid, Text};
use diesel_async::RunQueryDsl as _;

use super::connection::Connection;
use super::failure::Failure;
use super::settings::Place;
use crate::finding::Finding;
use crate::store::CreateSchema;

/// The ids of its findings.
pub(super) const SCHEMA: &str = "postgres.schema";
/// Of our own table and function.
pub(super) const OWN_TABLES: &str = "postgres.own_tables";
pub(super) const PRIVILEGES: &str = "postgres.privileges";
pub(super) const INDEXES: &str = "postgres.indexes";

const LETTERS: &str = "event_persister_dead_letters";
/// The function that writes; the two places in SQL that name it have it as a literal.
const FUNCTION: &str = "event_persister_store_v1";
/// The migrations that make them.
const LETTERS_VERSION: &str = "00000000000101";
const FUNCTION_VERSION: &str = "00000000000102";
/// The migration that changes a word of the function after that.
const ASSERTS_VERSION: &str = "00000000000103";
const TELLS_ERRORS: [&str; 2] = [
    "WHEN OTHERS OR query_canceled THEN",
    "WHEN OTHERS OR query_canceled OR assert_failure THEN",
];
/// The text that makes the function.
const FUNCTION_SQL: &str =
    include_str!("../../../../migrations/postgres/own/00000000000102_create_store_function/up.sql");

const TIMESTAMP: &str = "timestamp with time zone";
/// A shorter type refuses what is too long for it, one event at a time.
const TEXT: &str = "text or character varying";

/// The columns that are written, table by table, and their types.
const WRITTEN: [(&str, &[(&str, &str)]); 3] = [
    (
        "events",
        &[
            ("occurred", TIMESTAMP),
            ("event", TEXT),
            ("resource_id", TEXT),
            ("resource", "jsonb"),
            ("related_resource_ids", "jsonb"),
            ("related", "jsonb"),
            ("payload", "jsonb"),
            ("received", TIMESTAMP),
            ("recorded", TIMESTAMP),
            ("follows", "uuid"),
            ("id", "uuid"),
            ("created", TIMESTAMP),
            ("updated", TIMESTAMP),
        ],
    ),
    (
        "event_resources",
        &[
            ("occurred", TIMESTAMP),
            ("resource_id", TEXT),
            ("resource_role", TEXT),
            ("resource", "json"),
            ("event_id", "uuid"),
            ("id", "uuid"),
            ("created", TIMESTAMP),
            ("updated", TIMESTAMP),
        ],
    ),
    (
        LETTERS,
        &[
            ("source", TEXT),
            ("position", TEXT),
            ("raw", "bytea"),
            ("raw_hash", "bytea"),
            ("event_id", "uuid"),
            ("stage", TEXT),
            ("reason", TEXT),
            ("sqlstate", TEXT),
            ("attempts", "bigint"),
            ("first_seen", TIMESTAMP),
            ("last_seen", TIMESTAMP),
        ],
    ),
];

/// The tables and functions that the database has already.
#[derive(QueryableByName)]
pub(super) struct Found {
    #[diesel(sql_type = Bool)]
    pub(super) events: bool,
    #[diesel(sql_type = Bool)]
    pub(super) alembic: bool,
    #[diesel(sql_type = Bool)]
    letters: bool,
    /// Under its name, one alone, and not one of a build before the first release.
    #[diesel(sql_type = Bool)]
    function: bool,
    /// It is of an earlier migration, and this role may change that.
    #[diesel(sql_type = Bool)]
    pub(super) outdated: bool,
    #[diesel(sql_type = Bool)]
    pub(super) versions: bool,
    /// Whether every character that an event may hold can be stored.
    #[diesel(sql_type = Bool)]
    utf8: bool,
}

pub(super) const FIND: &str = "SELECT \
    to_regclass('events') IS NOT NULL AS events, \
    to_regclass('alembic_version') IS NOT NULL AS alembic, \
    to_regclass('event_persister_dead_letters') IS NOT NULL AS letters, \
    EXISTS (SELECT FROM pg_catalog.pg_proc \
        WHERE oid = to_regproc('event_persister_store_v1')::oid AND 'r_ids' = ANY (proargnames)) \
        AS function, \
    EXISTS (SELECT FROM pg_catalog.pg_proc \
        WHERE oid = to_regproc('event_persister_store_v1')::oid AND 'r_ids' = ANY (proargnames) \
        AND strpos(prosrc, 'WHEN OTHERS OR query_canceled THEN') > 0 \
        AND pg_has_role(proowner, 'USAGE') AND has_schema_privilege(pronamespace, 'CREATE')) \
        AS outdated, \
    to_regclass('__diesel_schema_migrations') IS NOT NULL AS versions, \
    current_setting('server_encoding') = 'UTF8' AS utf8";

impl Found {
    pub(super) fn has_own(&self) -> bool {
        self.letters && self.function
    }
}

/// The use of a privilege.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing can be stored without it.
    Writing,
    /// Nothing can be deleted that is old.
    Retention,
    /// The commands that remove dead letters cannot.
    Letters,
}

const PRIVILEGES_WANTED: [(Purpose, &str, &str); 10] = [
    (Purpose::Writing, "SELECT", "events"),
    (Purpose::Writing, "INSERT", "events"),
    (Purpose::Retention, "DELETE", "events"),
    (Purpose::Retention, "SELECT", "event_resources"),
    (Purpose::Writing, "INSERT", "event_resources"),
    (Purpose::Retention, "DELETE", "event_resources"),
    (Purpose::Writing, "SELECT", LETTERS),
    (Purpose::Writing, "INSERT", LETTERS),
    (Purpose::Writing, "UPDATE", LETTERS),
    (Purpose::Letters, "DELETE", LETTERS),
];

/// Something that a privilege is needed for.
#[derive(Debug, PartialEq, Eq, QueryableByName)]
struct LackingRow {
    #[diesel(sql_type = Text)]
    privilege: String,
    /// A table, or something else with its word before it.
    #[diesel(sql_type = Text)]
    object: String,
    #[diesel(sql_type = Text)]
    role: String,
}

/// A privilege that the role lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) purpose: Purpose,
    pub(super) privilege: String,
    pub(super) object: String,
    pub(super) role: String,
}

/// A column with a sequence of its own kind needs no privilege for it; one with a default does.
const LACKING: &str = "SELECT privilege, object, current_user::text AS role \
    FROM unnest($1, $2) AS wanted (privilege, object) \
    WHERE NOT has_table_privilege(to_regclass(object), privilege) \
    UNION ALL SELECT 'EXECUTE', 'FUNCTION event_persister_store_v1', current_user::text \
    WHERE NOT has_function_privilege(to_regproc('event_persister_store_v1')::oid, 'EXECUTE') \
    UNION ALL SELECT 'EXECUTE', 'FUNCTION ' || oid::regprocedure, current_user::text \
    FROM pg_catalog.pg_proc \
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_logical_emit_message' \
    AND proargtypes[2] = 'text'::regtype AND NOT has_function_privilege(oid, 'EXECUTE') \
    UNION ALL SELECT 'USAGE', 'SEQUENCE ' || name, current_user::text FROM (\
    SELECT pg_get_serial_sequence(attrelid::regclass::text, attname::text) AS name \
    FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('event_persister_dead_letters') \
    AND attname = 'id' AND attidentity = '') AS sequence \
    WHERE name IS NOT NULL AND NOT has_sequence_privilege(name, 'USAGE')";

/// The privileges that the role lacks for what is there.
pub(super) async fn lacking(connection: &mut Connection) -> Result<Vec<Lacking>, Failure> {
    let privileges: Vec<&str> = PRIVILEGES_WANTED.iter().map(|wanted| wanted.1).collect();
    let objects: Vec<&str> = PRIVILEGES_WANTED.iter().map(|wanted| wanted.2).collect();
    let rows: Vec<LackingRow> = sql_query(LACKING)
        .bind::<Array<Text>, _>(privileges)
        .bind::<Array<Text>, _>(objects)
        .load(&mut connection.pg)
        .await?;
    let lacking = rows.into_iter().map(|row| {
        let wanted = PRIVILEGES_WANTED
            .iter()
            .find(|(_, privilege, object)| *privilege == row.privilege && *object == row.object);
        Lacking {
            // The function and the sequence are for every batch.
            purpose: wanted.map_or(Purpose::Writing, |wanted| wanted.0),
            privilege: row.privilege,
            object: row.object,
            role: row.role,
        }
    });
    Ok(lacking.collect())
}

/// The result of a look at all conditions.
pub(super) struct Looked {
    /// Everything that keeps us from writing.
    pub(super) faults: Vec<Finding>,
    /// Whether our own table and function are there.
    pub(super) has_own: bool,
}

/// Looks at all of it. A store that only looks does not mind that our own tables are not there yet, since
/// a writer makes them, nor what only a writer must be allowed to do.
pub(super) async fn look(
    connection: &mut Connection,
    create: CreateSchema,
    place: &Place,
) -> Result<Looked, Failure> {
    let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
    let mut faults = Vec::new();
    if !found.utf8 {
        faults.push(Finding::error(
            SCHEMA,
            format!(
                "{place} has another encoding than UTF8, in which not every event can be stored"
            ),
            "create a database with ENCODING 'UTF8'",
        ));
    }
    let columns: Vec<Column> = sql_query(COLUMNS).load(&mut connection.pg).await?;
    for (table, written) in WRITTEN {
        if table != LETTERS || found.letters {
            faults.extend(table_fault(table, written, &columns, place));
        }
        // Where Prefect has been, both of its tables are there or neither.
        if table == "events" && !found.events {
            break;
        }
    }
    faults.extend(own_faults(connection, &found, create, place).await?);
    faults.extend(index_faults(connection).await?);
    if create != CreateSchema::Nothing {
        let lacking = lacking(connection).await?;
        let lacking = lacking.iter();
        let for_writing = lacking.filter(|lacking| lacking.purpose == Purpose::Writing);
        faults.extend(privileges_fault(for_writing, place));
    }
    if found.function {
        faults.extend(body_fault(connection, place).await?);
        // The last, since everything after it goes by the function's search path.
        faults.extend(target_fault(connection, place).await?);
    }
    Ok(Looked {
        faults,
        has_own: found.has_own(),
    })
}

/// A fault as an error that says what is wrong and what to do.
pub(super) fn as_failure(fault: Finding) -> Failure {
    Failure::Unfit(match fault.remedy {
        Some(remedy) => format!("{}: {remedy}", fault.what),
        None => fault.what,
    })
}

fn privileges_fault<'a>(
    lacking: impl Iterator<Item = &'a Lacking>,
    place: &Place,
) -> Option<Finding> {
    let grants: Vec<String> = lacking
        .map(|lacking| format!("GRANT {} ON {}", lacking.privilege, lacking.object))
        .collect();
    (!grants.is_empty()).then(|| {
        Finding::error(
            PRIVILEGES,
            format!("permission denied in {place}"),
            format!("the role needs {}", grants.join(", ")),
        )
    })
}

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    table_name: String,
    /// `None` where there is no such table.
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    type_name: Option<String>,
    /// Whether an insert that leaves it out fails.
    #[diesel(sql_type = Bool)]
    required: bool,
    /// Whether an insert that names it fails.
    #[diesel(sql_type = Bool)]
    generated: bool,
}

const COLUMNS: &str = "SELECT wanted.name AS table_name, attname::text AS name, \
    format_type(atttypid, NULL) AS type_name, \
    coalesce(attnotnull AND NOT atthasdef AND attidentity = '', false) AS required, \
    coalesce(attgenerated <> '' OR attidentity = 'a', false) AS generated \
    FROM (VALUES ('events'), ('event_resources'), ('event_persister_dead_letters')) AS wanted (name) \
    LEFT JOIN pg_catalog.pg_attribute \
    ON attrelid = to_regclass(wanted.name) AND attnum > 0 AND NOT attisdropped";

/// The first fault of a table.
fn table_fault(
    table: &str,
    written: &[(&str, &str)],
    columns: &[Column],
    place: &Place,
) -> Option<Finding> {
    let of_table: Vec<(&str, &Column)> = columns
        .iter()
        .filter(|column| column.table_name == table)
        .filter_map(|column| Some((column.name.as_deref()?, column)))
        .collect();
    let fault = |what: String, remedy: &str| Some(Finding::error(SCHEMA, what, remedy));
    if of_table.is_empty() {
        return fault(
            format!("{place} has no table {table}"),
            "waiting for Prefect's migrations; for a database without Prefect run \
             `event-persister migrate`",
        );
    }
    for (name, types) in written {
        let Some((_, column)) = of_table.iter().find(|(found, _)| found == name) else {
            return fault(
                format!("the table {table} of {place} has no column {name}"),
                "bring the schema up to date, with Prefect's migrations where the database is Prefect's, \
                 else with `event-persister migrate`",
            );
        };
        let type_name = column.type_name.as_deref().unwrap_or_default();
        if !types.split(" or ").any(|wanted| wanted == type_name) {
            return Some(Finding::error(
                SCHEMA,
                format!(
                    "the column {name} of the table {table} of {place} is of type {type_name}, which what \
                     is written does not fit"
                ),
                format!("make it {types}: ALTER TABLE {table} ALTER COLUMN {name} TYPE …"),
            ));
        }
        if column.generated {
            return fault(
                format!(
                    "the column {name} of the table {table} of {place} is generated, and may not be written"
                ),
                "ALTER TABLE … ALTER COLUMN … DROP EXPRESSION, or DROP IDENTITY",
            );
        }
    }
    let is_written = |name: &str| written.iter().any(|(written, _)| *written == name);
    let (unknown, _) =
        (of_table.iter()).find(|(name, column)| column.required && !is_written(name))?;
    if table == LETTERS {
        return fault(
            format!("the column {unknown} of the table {table} of {place} has no value by default"),
            "ALTER TABLE … ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY; if it is another column, drop it \
             or give it a default",
        );
    }
    fault(
        format!(
            "the table {table} of {place} has a column {unknown} that must be written, and this version \
             does not know it"
        ),
        "upgrade event-persister",
    )
}

/// Our own table and function, where they are not there and nothing will make them.
async fn own_faults(
    connection: &mut Connection,
    found: &Found,
    create: CreateSchema,
    place: &Place,
) -> Result<Vec<Finding>, Failure> {
    if found.has_own() {
        return Ok(Vec::new());
    }
    let recorded = recorded(connection).await?;
    let objects = [
        (found.letters, LETTERS_VERSION, "table", LETTERS),
        (found.function, FUNCTION_VERSION, "function", FUNCTION),
    ];
    let fault = |(is_there, version, kind, name): (bool, &str, &str, &str)| {
        let is_it = match version {
            FUNCTION_VERSION => format!("IN ('{version}', '{ASSERTS_VERSION}')"),
            _ => format!("= '{version}'"),
        };
        let is_recorded = recorded
            .as_ref()
            .is_some_and(|recorded| recorded.iter().any(|v| v == version));
        match (is_there, is_recorded) {
            (false, true) => Some(Finding::error(
                OWN_TABLES,
                format!(
                    "{place} has no {kind} {name} (or several), though its migration is recorded"
                ),
                format!(
                    "look for it in the schemas of the search path and drop what is there, then DELETE FROM \
                     __diesel_schema_migrations WHERE version {is_it}, and start \
                     `event-persister`, which makes it"
                ),
            )),
            // Made by nobody, although somebody was to make it.
            (false, false) if create != CreateSchema::Nothing => Some(Finding::error(
                OWN_TABLES,
                format!("{place} has no {kind} {name}"),
                "start `event-persister`, which makes it, as a role that may CREATE in the schema",
            )),
            // It would be made a second time, together with what is missing.
            (true, false) if recorded.is_some() => Some(Finding::error(
                OWN_TABLES,
                format!("{place} has the {kind} {name}, and its migration is not recorded"),
                format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')"),
            )),
            _ => None,
        }
    };
    Ok(objects.into_iter().filter_map(fault).collect())
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// The migrations that were run; `None` where there is no list, or not for us.
pub(super) async fn recorded(connection: &mut Connection) -> Result<Option<Vec<String>>, Failure> {
    #[derive(QueryableByName)]
    struct Readable {
        #[diesel(sql_type = Bool)]
        readable: bool,
    }
    const READABLE: &str = "SELECT coalesce(has_table_privilege(\
        to_regclass('__diesel_schema_migrations'), 'SELECT'), false) AS readable";
    let Readable { readable } = sql_query(READABLE).get_result(&mut connection.pg).await?;
    if !readable {
        return Ok(None);
    }
    const VERSIONS: &str =
        "SELECT version::text AS version FROM __diesel_schema_migrations ORDER BY 1";
    let versions: Vec<Version> = sql_query(VERSIONS).load(&mut connection.pg).await?;
    Ok(Some(versions.into_iter().map(|row| row.version).collect()))
}

/// A key that is looked for and not there.
#[derive(QueryableByName)]
struct MissingKey {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_names: String,
}

/// These keys tell what comes twice; a partial, deferred or half-built one does not serve.
const MISSING_KEYS: &str = "SELECT table_name, array_to_string(column_names, ', ') AS column_names \
    FROM (VALUES ('events', ARRAY['id']), \
    ('event_persister_dead_letters', ARRAY['position', 'raw_hash', 'source'])) \
    AS wanted (table_name, column_names) \
    WHERE to_regclass(table_name) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_index \
    WHERE indrelid = to_regclass(table_name) AND indisunique AND indisvalid AND indimmediate \
    AND indpred IS NULL AND indexprs IS NULL AND column_names = (\
    SELECT array_agg(attname::text ORDER BY attname::text COLLATE \"C\") \
    FROM unnest(indkey::int2[]) WITH ORDINALITY AS key (number, ordinal) \
    JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = number \
    WHERE ordinal <= indnkeyatts))";

async fn index_faults(connection: &mut Connection) -> Result<Vec<Finding>, Failure> {
    let missing: Vec<MissingKey> = sql_query(MISSING_KEYS).load(&mut connection.pg).await?;
    let fault = |missing: &MissingKey| {
        let MissingKey {
            table_name,
            column_names,
        } = missing;
        let constraint = match table_name.as_str() {
            LETTERS => "UNIQUE",
            _ => "PRIMARY KEY",
        };
        Finding::error(
            INDEXES,
            format!(
                "{table_name} has no unique index on ({column_names}), by which what comes twice is told"
            ),
            format!("ALTER TABLE {table_name} ADD {constraint} ({column_names})"),
        )
    };
    Ok(missing.iter().map(fault).collect())
}

/// The function as it stands.
#[derive(QueryableByName)]
struct Function {
    #[diesel(sql_type = Text)]
    body: String,
    #[diesel(sql_type = Text)]
    arguments: String,
    #[diesel(sql_type = Text)]
    language: String,
}

const FUNCTION_THERE: &str = "SELECT prosrc AS body, \
    pg_get_function_arguments(oid) AS arguments, \
    (SELECT lanname::text FROM pg_catalog.pg_language WHERE pg_language.oid = prolang) AS language \
    FROM pg_catalog.pg_proc WHERE oid = to_regproc('event_persister_store_v1')::oid";

/// Whether the function is the one that this version made: what it does to a batch is half of what is
/// promised.
async fn body_fault(
    connection: &mut Connection,
    place: &Place,
) -> Result<Option<Finding>, Failure> {
    let there: Vec<Function> = sql_query(FUNCTION_THERE).load(&mut connection.pg).await?;
    let (Some(there), Some(wanted)) = (there.into_iter().next(), Wanted::of(FUNCTION_SQL)) else {
        return Ok(None);
    };
    // Without its last migration it does all but tell the code of a failed ASSERT. A service whose role may
    // brings it up to date when it starts.
    let is_right = (there.body == wanted.body() || there.body == wanted.body)
        && there.arguments == wanted.arguments
        && there.language == "plpgsql";
    Ok((!is_right).then(|| {
        Finding::error(
            OWN_TABLES,
            format!("the function {FUNCTION} of {place} is not the one that event-persister made"),
            format!(
                "DROP FUNCTION {FUNCTION}; DELETE FROM __diesel_schema_migrations WHERE version IN \
                 ('{FUNCTION_VERSION}', '{ASSERTS_VERSION}'); then start `event-persister`, which makes it"
            ),
        )
    }))
}

/// The function as its migration makes it.
struct Wanted {
    body: &'static str,
    arguments: String,
}

impl Wanted {
    /// The text once all migrations were run.
    fn body(&self) -> String {
        let [made, told] = TELLS_ERRORS;
        self.body.replace(made, told)
    }

    fn of(sql: &'static str) -> Option<Self> {
        let (_, rest) = sql.split_once("\nCREATE FUNCTION ")?;
        let (_, rest) = rest.split_once('(')?;
        let (arguments, rest) = rest.split_once(") RETURNS")?;
        let body = rest.split("$function$").nth(1)?;
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let arguments = arguments.join(" ").replace("timestamptz", TIMESTAMP);
        Some(Self { body, arguments })
    }
}

/// The tables that a search path leads to.
#[derive(PartialEq, Eq, QueryableByName)]
struct Targets {
    #[diesel(sql_type = Nullable<Oid>)]
    events: Option<u32>,
    #[diesel(sql_type = Nullable<Oid>)]
    event_resources: Option<u32>,
}

const TARGETS: &str = "SELECT to_regclass('events')::oid AS events, \
    to_regclass('event_resources')::oid AS event_resources";

#[derive(QueryableByName)]
struct OfFunction {
    #[diesel(sql_type = Text)]
    schema: String,
    #[diesel(sql_type = Text)]
    search_path: String,
}

/// The setting that the store function goes by; from here to the end of the transaction so does everything else.
const FOLLOW_FUNCTION: &str = "SELECT pronamespace::regnamespace::text AS schema, \
    set_config('search_path', substr(setting, 13), true) AS search_path \
    FROM pg_catalog.pg_proc, unnest(proconfig) AS setting \
    WHERE oid = to_regproc('event_persister_store_v1')::oid AND setting LIKE 'search\\_path=%'";

/// Whether the function writes to the tables that were looked at: its search path is of the time when
/// it was made, and another schema of ours may hold a function that an earlier one left there.
async fn target_fault(
    connection: &mut Connection,
    place: &Place,
) -> Result<Option<Finding>, Failure> {
    let ours: Targets = sql_query(TARGETS).get_result(&mut connection.pg).await?;
    let of_function: Vec<OfFunction> = sql_query(FOLLOW_FUNCTION).load(&mut connection.pg).await?;
    let Some(of_function) = of_function.into_iter().next() else {
        return Ok(None);
    };
    let targets: Targets = sql_query(TARGETS).get_result(&mut connection.pg).await?;
    let OfFunction {
        schema,
        search_path,
    } = of_function;
    Ok((targets != ours).then(|| {
        Finding::error(
            OWN_TABLES,
            format!(
                "the function {schema}.{FUNCTION} of {place} was made for the search path {search_path}, \
                 where it finds other tables than with the present one"
            ),
            format!(
                "set database.search_path so that it leads to the schema of Prefect's tables alone, or drop \
                 the function and its row in {schema}.__diesel_schema_migrations"
            ),
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_is_known_from_its_migration() {
        let wanted = Wanted::of(FUNCTION_SQL).unwrap();
        assert!(FUNCTION_SQL.contains(&format!("\nCREATE FUNCTION {FUNCTION}(")));
        assert!(
            wanted
                .arguments
                .starts_with("ids uuid[], occurred_at timestamp with time zone[], ")
        );
        assert!(wanted.arguments.ends_with(", expects_duplicates boolean"));
        assert!(wanted.body.starts_with("\nDECLARE") && wanted.body.ends_with("END\n"));
        const CHANGES: &str = include_str!(
            "../../../../migrations/postgres/own/00000000000103_tell_failed_asserts/up.sql"
        );
        assert!(TELLS_ERRORS.iter().all(|text| CHANGES.contains(text)));
        assert!(FIND.contains(TELLS_ERRORS[0]));
        assert_ne!(wanted.body(), wanted.body);
    }

    #[test]
    fn the_migrations_are_those_that_make_what_is_ours() {
        assert!(FIND.contains(LETTERS) && FIND.contains(FUNCTION));
        let known = super::super::schema::known_versions().unwrap();
        assert!(
            [LETTERS_VERSION, FUNCTION_VERSION, ASSERTS_VERSION]
                .iter()
                .all(|version| known.contains(*version))
        );
    }
}
