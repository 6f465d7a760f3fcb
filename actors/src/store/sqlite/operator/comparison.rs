//! Holds rows against those that would be written, text by text: that is how Prefect's queries see
//! them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};

use super::content::{ResourceColumns, ResourcesOf};
use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::operator::answers::of_columns;
use crate::store::operator::{Compared, NUM_RESOURCES, RESOURCES};
use crate::store::sqlite::connection::{Connection, Failure};
use crate::store::sqlite::rows::{EventTexts, RowTexts};

/// The names of the columns of a row of `events` that differ, with commas between.
#[derive(QueryableByName)]
struct Differing {
    #[diesel(sql_type = Text)]
    columns: String,
}

/// One answer for each entry; none for a rejection, and for an event that would be refused.
pub(super) fn compare(
    connection: &mut Connection,
    entries: &[Arc<Entry>],
    now: DateTime<Utc>,
) -> Result<Vec<Option<Compared>>, Failure> {
    let (texts, _) = RowTexts::new(entries, now).map_err(Failure::Unfit)?;
    let max_length = connection.max_length();
    let compared = entries.iter().enumerate().map(|(index, entry)| {
        match (&entry.content, texts.event(index)) {
            (Content::Event(event), Some(texts)) if texts.too_long(event, max_length).is_none() => {
                compare_event(connection, event, &texts).map(Some)
            }
            _ => Ok(None),
        }
    });
    compared.collect()
}

fn compare_event(
    connection: &mut Connection,
    event: &ReceivedEvent,
    texts: &EventTexts<'_>,
) -> Result<Compared, Failure> {
    let given = [
        ("event", Some(event.event.as_str())),
        ("resource_id", Some(event.resource.id())),
    ];
    let ours = texts.columns().into_iter().chain(given);
    let names = ours.clone().map(|(column, _)| {
        format!("CASE WHEN CAST({column} AS TEXT) IS NOT ? THEN '{column}' END")
    });
    let names: Vec<String> = names.collect();
    let mut query = sql_query(format!(
        "SELECT concat_ws(',', {}) AS columns FROM events WHERE id = ?",
        names.join(", ")
    ))
    .into_boxed();
    for (_, text) in ours {
        query = query.bind::<Nullable<Text>, _>(text);
    }
    let query = query.bind::<Text, _>(texts.id());
    let differing: Option<Differing> =
        connection.run(|connection| query.get_result(connection).optional())?;
    let Some(differing) = differing else {
        return Ok(Compared::Absent);
    };
    let columns = differing
        .columns
        .split(',')
        .filter(|column| !column.is_empty());
    let mut columns: Vec<String> = columns.map(str::to_owned).collect();
    let theirs = ResourcesOf(texts.id());
    let theirs: Vec<ResourceColumns> = connection.run(|connection| theirs.load(connection))?;
    let resources = differing_resources(resources(event, texts), theirs);
    columns.extend(resources.map(str::to_owned));
    Ok(of_columns(event.received, columns))
}

fn resources(event: &ReceivedEvent, texts: &EventTexts<'_>) -> Vec<ResourceColumns> {
    let related = event.related.iter();
    let related = related.map(|resource| (resource.role().unwrap_or_default(), resource));
    let resources = std::iter::once(("", &event.resource)).chain(related);
    let row = |(number, (role, resource)): (usize, (&str, &Resource))| ResourceColumns {
        occurred: Some(texts.occurred().to_owned()),
        resource_id: Some(resource.id().to_owned()),
        resource_role: Some(role.to_owned()),
        resource: Some(texts.other_labels(number).to_owned()),
    };
    resources.enumerate().map(row).collect()
}

fn differing_resources(
    mut ours: Vec<ResourceColumns>,
    mut theirs: Vec<ResourceColumns>,
) -> Option<&'static str> {
    ours.sort();
    theirs.sort();
    if ours == theirs {
        return None;
    }
    ours.dedup();
    theirs.dedup();
    Some(if ours == theirs {
        NUM_RESOURCES
    } else {
        RESOURCES
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(role: &str) -> ResourceColumns {
        ResourceColumns {
            occurred: None,
            resource_id: Some("a".to_owned()),
            resource_role: Some(role.to_owned()),
            resource: Some("{}".to_owned()),
        }
    }

    #[test]
    fn resources_are_compared_without_order_and_with_their_number() {
        let differing = |ours: &[&str], theirs: &[&str]| {
            let rows = |roles: &[&str]| roles.iter().copied().map(row).collect();
            differing_resources(rows(ours), rows(theirs))
        };
        assert_eq!(differing(&["", "flow"], &["flow", ""]), None);
        assert_eq!(differing(&["flow", "flow"], &["flow", "flow"]), None);
        assert_eq!(
            differing(&["", "flow"], &["flow", "", ""]),
            Some(NUM_RESOURCES)
        );
        assert_eq!(differing(&["", "flow"], &["", "tag"]), Some(RESOURCES));
        assert_eq!(differing(&[""], &[]), Some(RESOURCES));
    }
}
