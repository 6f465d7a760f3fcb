//! The tables that are written, in either database, and what is said where they do not fit.

use std::collections::BTreeSet;
use std::error::Error;

use diesel::backend::Backend;
use diesel::migration::{Migration, MigrationSource as _};
use diesel::prelude::QueryResult;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel_migrations::EmbeddedMigrations;

use super::CreateSchema;
use crate::finding::Finding;

pub(super) const LETTERS: &str = "event_persister_dead_letters";
pub(super) const LETTERS_VERSION: &str = "00000000000101";

/// All migrations of ours begin so; others may keep theirs in the same list.
const OUR_VERSIONS: &str = "0000000000";

pub(super) const TIMESTAMP: &str = "timestamp with time zone";
/// A shorter type refuses what is too long for it, one event at a time.
const TEXT: &str = "text or character varying";

/// The columns that are written, table by table, and their types in PostgreSQL.
pub(super) const WRITTEN: [(&str, &[(&str, &str)]); 3] = [
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

#[derive(diesel::QueryableByName)]
pub(super) struct Column {
    #[diesel(sql_type = Text)]
    pub(super) name: String,
    /// `None` where it does not matter.
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) type_name: Option<String>,
    /// Whether an insert that leaves it out fails.
    #[diesel(sql_type = Bool)]
    pub(super) required: bool,
    /// Whether an insert that names it fails.
    #[diesel(sql_type = Bool)]
    pub(super) generated: bool,
}

/// What to do about a column that is missing, and about one that is generated.
pub(super) struct Remedies {
    pub(super) missing: &'static str,
    pub(super) generated: &'static str,
}

/// The first fault among the columns that are written; `of` names the table.
pub(super) fn fault_of_written(
    id: &'static str,
    of: &str,
    written: &[(&str, &str)],
    columns: &[Column],
    remedies: &Remedies,
) -> Option<Finding> {
    written.iter().find_map(|(name, types)| {
        let Some(column) = columns.iter().find(|column| column.name == *name) else {
            let what = format!("{of} has no column {name}");
            return Some(Finding::error(id, what, remedies.missing));
        };
        if let Some(type_name) = column.type_name.as_deref()
            && !types.split(" or ").any(|wanted| wanted == type_name)
        {
            return Some(Finding::error(
                id,
                format!(
                    "the column {name} of {of} is of type {type_name}, which what is written does not fit"
                ),
                format!("make it {types}: ALTER TABLE … ALTER COLUMN {name} TYPE …"),
            ));
        }
        column.generated.then(|| {
            let what = format!("the column {name} of {of} is generated, and may not be written");
            Finding::error(id, what, remedies.generated)
        })
    })
}

/// A column that must be written, and of which this version knows nothing.
pub(super) fn unknown_column<'a>(
    written: &[(&str, &str)],
    columns: &'a [Column],
) -> Option<&'a str> {
    let is_written = |name: &str| written.iter().any(|(written, _)| *written == name);
    let unknown = (columns.iter()).find(|column| column.required && !is_written(&column.name))?;
    Some(&unknown.name)
}

pub(super) fn fault_of_unknown(id: &'static str, of: &str, unknown: &str) -> Finding {
    let what = format!(
        "{of} has a column {unknown} that must be written, and this version does not know it"
    );
    Finding::error(id, what, "upgrade event-persister")
}

/// What keeps a store from its work and what to do, if anything does. One that only looks needs no more
/// than the columns, whose faults have the id `schema`.
pub(super) fn unfit(
    faults: Vec<Finding>,
    create: CreateSchema,
    schema: &'static str,
) -> Option<String> {
    let only_looks = create == CreateSchema::Nothing;
    let mut faults = faults.into_iter();
    let fault = faults.find(|fault| !only_looks || fault.id == schema)?;
    Some(match fault.remedy {
        Some(remedy) => format!("{}: {remedy}", fault.what),
        None => fault.what,
    })
}

pub(super) fn migrations<DB: Backend>(
    embedded: &EmbeddedMigrations,
) -> QueryResult<Vec<Box<dyn Migration<DB>>>> {
    let mut migrations = embedded.migrations().map_err(query_error)?;
    migrations.sort_by_key(|migration| migration.name().version().as_owned());
    Ok(migrations)
}

/// The migrations of ours that were run and are not among those of this version.
pub(super) fn newer_migrations<DB: Backend>(
    run: impl IntoIterator<Item = String>,
    ours: [&EmbeddedMigrations; 3],
) -> QueryResult<Vec<String>> {
    let mut known = BTreeSet::new();
    for embedded in ours {
        let migrations = migrations::<DB>(embedded)?.into_iter();
        known.extend(migrations.map(|migration| migration.name().version().to_string()));
    }
    let is_newer = |version: &String| version.starts_with(OUR_VERSIONS) && !known.contains(version);
    Ok(run.into_iter().filter(is_newer).collect())
}

/// The error of a migration, as diesel's own where it is one.
pub(super) fn query_error(error: Box<dyn Error + Send + Sync>) -> diesel::result::Error {
    match error.downcast::<diesel::result::Error>() {
        Ok(error) => *error,
        Err(error) => diesel::result::Error::QueryBuilderError(error),
    }
}
