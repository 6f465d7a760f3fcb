//! Holds rows against those that would be written, text by text: that is how Prefect's queries see
//! them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};

use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::operator::answers::of_columns;
use crate::store::operator::{Compared, NUM_RESOURCES, RESOURCES};
use crate::store::sqlite::connection::{Connection, Failure};
use crate::store::sqlite::rows::{EventTexts, RowTexts};

/// The columns of a row of `events` that come from the event.
#[derive(QueryableByName)]
struct StoredEvent {
    #[diesel(sql_type = Nullable<Text>)]
    occurred: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    received: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    event: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resource_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resource: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    related: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    related_resource_ids: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    payload: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    follows: Option<String>,
}

const EVENT: &str = "SELECT CAST(occurred AS TEXT) AS occurred, CAST(received AS TEXT) AS received, \
    CAST(event AS TEXT) AS event, CAST(resource_id AS TEXT) AS resource_id, \
    CAST(resource AS TEXT) AS resource, CAST(related AS TEXT) AS related, \
    CAST(related_resource_ids AS TEXT) AS related_resource_ids, CAST(payload AS TEXT) AS payload, \
    CAST(follows AS TEXT) AS follows FROM events WHERE id = ?";

/// The columns of a row of `event_resources` that come from the event.
#[derive(QueryableByName, PartialEq, Eq, PartialOrd, Ord)]
struct ResourceRow {
    #[diesel(sql_type = Nullable<Text>)]
    occurred: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resource_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resource_role: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resource: Option<String>,
}

const RESOURCES_OF_EVENT: &str = "SELECT CAST(occurred AS TEXT) AS occurred, \
    CAST(resource_id AS TEXT) AS resource_id, CAST(resource_role AS TEXT) AS resource_role, \
    CAST(resource AS TEXT) AS resource FROM event_resources WHERE event_id = ?";

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
    let query = sql_query(EVENT).bind::<Text, _>(texts.id());
    let stored: Option<StoredEvent> =
        connection.run(|connection| query.get_result(connection).optional())?;
    let Some(stored) = stored else {
        return Ok(Compared::Absent);
    };
    let mut columns = stored.differing(event, texts);
    let query = sql_query(RESOURCES_OF_EVENT).bind::<Text, _>(texts.id());
    let theirs: Vec<ResourceRow> = connection.run(|connection| query.load(connection))?;
    columns.extend(differing_resources(ours(event, texts), theirs));
    let columns = columns.into_iter().map(str::to_owned).collect();
    Ok(of_columns(event.received, columns))
}

impl StoredEvent {
    fn differing(&self, event: &ReceivedEvent, texts: &EventTexts<'_>) -> Vec<&'static str> {
        let made = texts.columns().into_iter();
        let given = [
            ("event", Some(event.event.as_str())),
            ("resource_id", Some(event.resource.id())),
        ];
        let differing = made
            .chain(given)
            .filter(|(column, ours)| self.column(column) != *ours);
        differing.map(|(column, _)| column).collect()
    }

    fn column(&self, name: &str) -> Option<&str> {
        let text = match name {
            "occurred" => &self.occurred,
            "received" => &self.received,
            "event" => &self.event,
            "resource_id" => &self.resource_id,
            "resource" => &self.resource,
            "related" => &self.related,
            "related_resource_ids" => &self.related_resource_ids,
            "payload" => &self.payload,
            "follows" => &self.follows,
            _ => &None,
        };
        text.as_deref()
    }
}

/// The rows of `event_resources` that would be written.
fn ours(event: &ReceivedEvent, texts: &EventTexts<'_>) -> Vec<ResourceRow> {
    let related = event.related.iter();
    let related = related.map(|resource| (resource.role().unwrap_or_default(), resource));
    let resources = std::iter::once(("", &event.resource)).chain(related);
    let row = |(number, (role, resource)): (usize, (&str, &Resource))| ResourceRow {
        occurred: Some(texts.occurred().to_owned()),
        resource_id: Some(resource.id().to_owned()),
        resource_role: Some(role.to_owned()),
        resource: Some(texts.other_labels(number).to_owned()),
    };
    resources.enumerate().map(row).collect()
}

fn differing_resources(
    mut ours: Vec<ResourceRow>,
    mut theirs: Vec<ResourceRow>,
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

    fn row(role: &str) -> ResourceRow {
        ResourceRow {
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
