//! The conditions under which anything can be written here: one list, for all that ask.
//!
//! A store that starts, the probe behind `/api/ready` and `event-persister check` all walk it. The first
//! two stop at the first fault; the last tells of all of them.

use diesel::dsl::sql;
use diesel::prelude::{OptionalExtension as _, QueryableByName};
use diesel::sql_query;
use diesel::sql_types::{Array, Bool, Nullable, Oid, Text};
use diesel_async::RunQueryDsl as _;

use super::connection::Connection;
use super::failure::Failure;
use super::partitions::for_partitions;
use super::settings::Place;
use crate::finding::Finding;
use crate::store::CreateSchema;
use crate::store::tables::{
    Column, LETTERS, LETTERS_VERSION, Remedies, TIMESTAMP, WRITTEN, fault_of_unknown,
    fault_of_written, unknown_column,
};

pub(super) const SCHEMA: &str = "postgres.schema";
pub(super) const OWN_TABLES: &str = "postgres.own_tables";
pub(super) const PRIVILEGES: &str = "postgres.privileges";
pub(super) const INDEXES: &str = "postgres.indexes";

/// The function that writes; the two places in SQL that name it have it as a literal.
const FUNCTION: &str = "event_persister_store_v1";
const FUNCTION_VERSION: &str = "00000000000102";
/// The migration that changes a word of the function after that.
const ASSERTS_VERSION: &str = "00000000000103";
const TELLS_ERRORS: [&str; 2] = [
    "WHEN OTHERS OR query_canceled THEN",
    "WHEN OTHERS OR query_canceled OR assert_failure THEN",
];
const FUNCTION_SQL: &str =
    include_str!("../../../migrations/postgres/own/00000000000102_create_store_function/up.sql");

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
    /// The tables are partitioned or on their way there, it is not made for that, and this role may change
    /// it.
    #[diesel(sql_type = Bool)]
    pub(super) unfit: bool,
    /// The tables are partitioned by ourselves, or on their way there.
    #[diesel(sql_type = Bool)]
    pub(super) has_plan: bool,
    #[diesel(sql_type = Bool)]
    pub(super) versions: bool,
    /// Whether every character that an event may hold can be stored.
    #[diesel(sql_type = Bool)]
    utf8: bool,
    /// As on a standby.
    #[diesel(sql_type = Bool)]
    read_only: bool,
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
    to_regclass('event_persister_partitioning') IS NOT NULL AND EXISTS (\
        SELECT FROM pg_catalog.pg_proc \
        WHERE oid = to_regproc('event_persister_store_v1')::oid AND strpos(prosrc, 'times_moved') = 0 \
        AND pg_has_role(proowner, 'USAGE') AND has_schema_privilege(pronamespace, 'CREATE')) \
        AS unfit, \
    to_regclass('event_persister_partitioning') IS NOT NULL AS has_plan, \
    to_regclass('__diesel_schema_migrations') IS NOT NULL AS versions, \
    current_setting('server_encoding') = 'UTF8' AS utf8, \
    current_setting('transaction_read_only')::bool AS read_only";

impl Found {
    pub(super) fn has_own(&self) -> bool {
        self.letters && self.function
    }
}

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

#[derive(QueryableByName)]
pub(super) struct Lacking {
    #[diesel(sql_type = Text)]
    pub(super) privilege: String,
    /// A table, or something else with its word before it.
    #[diesel(sql_type = Text)]
    pub(super) object: String,
    #[diesel(sql_type = Text)]
    pub(super) role: String,
}

impl Lacking {
    pub(super) fn purpose(&self) -> Purpose {
        let wanted = PRIVILEGES_WANTED
            .iter()
            .find(|(_, privilege, object)| *privilege == self.privilege && *object == self.object);
        // The function and the sequence are for every batch.
        wanted.map_or(Purpose::Writing, |(purpose, ..)| *purpose)
    }
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

pub(super) async fn lacking(connection: &mut Connection) -> Result<Vec<Lacking>, Failure> {
    let privileges: Vec<&str> = PRIVILEGES_WANTED.iter().map(|wanted| wanted.1).collect();
    let objects: Vec<&str> = PRIVILEGES_WANTED.iter().map(|wanted| wanted.2).collect();
    let lacking = sql_query(LACKING)
        .bind::<Array<Text>, _>(privileges)
        .bind::<Array<Text>, _>(objects);
    Ok(lacking.load(&mut connection.pg).await?)
}

pub(super) struct Looked {
    pub(super) faults: Vec<Finding>,
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
    if found.read_only && create != CreateSchema::Nothing {
        faults.push(Finding::error(
            "postgres.writable",
            format!("{place} only takes reads"),
            "connect to the primary, or end its read-only mode",
        ));
    }
    for (table, written) in WRITTEN {
        if table != LETTERS || found.letters {
            faults.extend(table_fault(connection, table, written, place).await?);
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
        let for_writing = lacking.filter(|lacking| lacking.purpose() == Purpose::Writing);
        faults.extend(privileges_fault(for_writing, place));
    }
    if found.function {
        faults.extend(body_fault(connection, &found, place).await?);
        // The last, since everything after it goes by the function's search path.
        faults.extend(target_fault(connection, place).await?);
    }
    Ok(Looked {
        faults,
        has_own: found.has_own(),
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

const COLUMNS: &str = "SELECT attname::text AS name, format_type(atttypid, NULL) AS type_name, \
    attnotnull AND NOT atthasdef AND attidentity = '' AS required, \
    attgenerated <> '' OR attidentity = 'a' AS generated \
    FROM pg_catalog.pg_attribute \
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";

const REMEDIES: Remedies = Remedies {
    missing: "bring the schema up to date, with Prefect's migrations where the database is Prefect's, \
        else with `event-persister migrate`",
    generated: "ALTER TABLE … ALTER COLUMN … DROP EXPRESSION, or DROP IDENTITY",
};

async fn table_fault(
    connection: &mut Connection,
    table: &str,
    written: &[(&str, &str)],
    place: &Place,
) -> Result<Option<Finding>, Failure> {
    let columns = sql_query(COLUMNS).bind::<Text, _>(table);
    let columns: Vec<Column> = columns.load(&mut connection.pg).await?;
    if columns.is_empty() {
        return Ok(Some(Finding::error(
            SCHEMA,
            format!("{place} has no table {table}"),
            "waiting for Prefect's migrations; for a database without Prefect run \
             `event-persister migrate`",
        )));
    }
    let of = format!("the table {table} of {place}");
    if let Some(fault) = fault_of_written(SCHEMA, &of, written, &columns, &REMEDIES) {
        return Ok(Some(fault));
    }
    Ok(unknown_column(written, &columns).map(|unknown| {
        if table != LETTERS {
            return fault_of_unknown(SCHEMA, &of, unknown);
        }
        Finding::error(
            SCHEMA,
            format!("the column {unknown} of {of} has no value by default"),
            "ALTER TABLE … ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY; if it is another column, drop it \
             or give it a default",
        )
    }))
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

/// The migrations that were run; `None` where there is no list, or not for us.
pub(super) async fn recorded(connection: &mut Connection) -> Result<Option<Vec<String>>, Failure> {
    const READABLE: &str = "SELECT coalesce(has_table_privilege(\
        to_regclass('__diesel_schema_migrations'), 'SELECT'), false)";
    const VERSIONS: &str = "SELECT version::text FROM __diesel_schema_migrations ORDER BY 1";
    let is_readable: bool = (sql::<Bool>(READABLE).get_result(&mut connection.pg)).await?;
    if !is_readable {
        return Ok(None);
    }
    Ok(Some(sql::<Text>(VERSIONS).load(&mut connection.pg).await?))
}

/// These keys tell what comes twice; a partial, deferred or half-built one does not serve. A key of a
/// partitioned table holds the moment too.
const MISSING_KEYS: &str = "SELECT table_name, array_to_string(column_names, ', ') \
    FROM (VALUES ('events', CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_partitioned_table \
    WHERE partrelid = to_regclass('events')) \
    AND to_regclass('event_persister_partitioning') IS NOT NULL THEN ARRAY['id', 'occurred'] ELSE ARRAY['id'] END), \
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
    let missing = sql::<(Text, Text)>(MISSING_KEYS);
    let missing: Vec<(String, String)> = missing.load(&mut connection.pg).await?;
    let fault = |(table_name, column_names): &(String, String)| {
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

const FUNCTION_THERE: &str = "SELECT prosrc, pg_get_function_arguments(oid), \
    (SELECT lanname::text FROM pg_catalog.pg_language WHERE pg_language.oid = prolang) \
    FROM pg_catalog.pg_proc WHERE oid = to_regproc('event_persister_store_v1')::oid";

/// Whether the function is the one that this version made: what it does to a batch is half of what is
/// promised.
async fn body_fault(
    connection: &mut Connection,
    found: &Found,
    place: &Place,
) -> Result<Option<Finding>, Failure> {
    let there = sql::<(Text, Text, Text)>(FUNCTION_THERE);
    let there: Option<(String, String, String)> =
        there.get_result(&mut connection.pg).await.optional()?;
    let (Some((body, arguments, language)), Some((made_body, made_arguments))) =
        (there, made_function())
    else {
        return Ok(None);
    };
    // Without its last migration it does all but tell the code of a failed ASSERT. A service whose role may
    // brings it up to date when it starts.
    let [made, told] = TELLS_ERRORS;
    let told_body = made_body.replace(made, told);
    let is_ours = arguments == made_arguments && language == "plpgsql";
    let is_plain = body == told_body || body == made_body;
    let is_for_partitions = for_partitions(&told_body).is_some_and(|changed| changed == body);
    if found.has_plan && is_ours && is_plain {
        return Ok(Some(Finding::error(
            OWN_TABLES,
            format!("the function {FUNCTION} of {place} is not made for partitioned tables"),
            "run `event-persister migrate` as the role that owns the function, which changes it",
        )));
    }
    let is_right = is_ours && (is_plain || is_for_partitions);
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

/// The body and the arguments of the function as its first migration makes it.
fn made_function() -> Option<(&'static str, String)> {
    let (_, rest) = FUNCTION_SQL.split_once("\nCREATE FUNCTION ")?;
    let (_, rest) = rest.split_once('(')?;
    let (arguments, rest) = rest.split_once(") RETURNS")?;
    let body = rest.split("$function$").nth(1)?;
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let arguments = arguments.join(" ").replace("timestamptz", TIMESTAMP);
    Some((body, arguments))
}

/// The tables that a search path leads to.
async fn targets(connection: &mut Connection) -> Result<(Option<u32>, Option<u32>), Failure> {
    let targets = sql::<(Nullable<Oid>, Nullable<Oid>)>(
        "SELECT to_regclass('events')::oid, to_regclass('event_resources')::oid",
    );
    Ok(targets.get_result(&mut connection.pg).await?)
}

/// The function's schema, and the search path that it goes by; from here to the end of the transaction so
/// does everything else.
const FOLLOW_FUNCTION: &str = "SELECT pronamespace::regnamespace::text, \
    set_config('search_path', substr(setting, 13), true) \
    FROM pg_catalog.pg_proc, unnest(proconfig) AS setting \
    WHERE oid = to_regproc('event_persister_store_v1')::oid AND setting LIKE 'search\\_path=%'";

/// Whether the function writes to the tables that were looked at: its search path is of the time when
/// it was made, and another schema of ours may hold a function that an earlier one left there.
async fn target_fault(
    connection: &mut Connection,
    place: &Place,
) -> Result<Option<Finding>, Failure> {
    let ours = targets(connection).await?;
    let of_function = sql::<(Text, Text)>(FOLLOW_FUNCTION);
    let of_function: Option<(String, String)> = of_function
        .get_result(&mut connection.pg)
        .await
        .optional()?;
    let Some((schema, search_path)) = of_function else {
        return Ok(None);
    };
    Ok((targets(connection).await? != ours).then(|| {
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
    use diesel::pg::Pg;

    use super::*;
    use crate::store::postgres::partitions::PLAN_TABLE;
    use crate::store::postgres::schema;
    use crate::store::tables::newer_migrations;

    #[test]
    fn the_function_is_known_from_its_migration() {
        let (body, arguments) = made_function().unwrap();
        assert!(FUNCTION_SQL.contains(&format!("\nCREATE FUNCTION {FUNCTION}(")));
        assert!(arguments.starts_with("ids uuid[], occurred_at timestamp with time zone[], "));
        assert!(arguments.ends_with(", expects_duplicates boolean"));
        assert!(body.starts_with("\nDECLARE") && body.ends_with("END\n"));
        const CHANGES: &str = include_str!(
            "../../../migrations/postgres/own/00000000000103_tell_failed_asserts/up.sql"
        );
        assert!(TELLS_ERRORS.iter().all(|text| CHANGES.contains(text)));
        assert!(FIND.contains(TELLS_ERRORS[0]));
        let for_partitions = for_partitions(body).unwrap();
        const MARK: &str = "times_moved";
        assert!(for_partitions.contains(MARK) && !body.contains(MARK));
        assert!(FIND.contains(&format!("'{MARK}'")));
        assert!(FIND.contains(&format!("'{PLAN_TABLE}'")));
        assert!(body.contains(TELLS_ERRORS[0]));
    }

    #[test]
    fn the_migrations_are_those_that_make_what_is_ours() {
        assert!(FIND.contains(LETTERS) && FIND.contains(FUNCTION));
        let versions = [LETTERS_VERSION, FUNCTION_VERSION, ASSERTS_VERSION].map(str::to_owned);
        let ours = [&schema::EVENTS, &schema::OWN, &schema::ARCHIVE];
        let unknown = newer_migrations::<Pg>(versions, ours).unwrap();
        assert_eq!(unknown, [""; 0]);
    }
}
