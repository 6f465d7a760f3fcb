//! Holds rows against those that would be written, text by text: that is how Prefect's queries see
//! them.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};
use futures_util::future::LocalBoxFuture;

use super::SqliteStore;
use super::connection::{Connection, Failure};
use super::rows::RowTexts;
use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::StoreError;
use crate::store::comparison::{
    Compared, Comparison, NUM_RESOURCES, RESOURCES, of_columns, with_refused,
};

/// What a row of `events` holds that comes from the event.
#[derive(QueryableByName)]
struct EventTexts {
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

/// What a row of `event_resources` holds that comes from the event.
#[derive(QueryableByName, PartialEq, Eq, PartialOrd, Ord)]
struct ResourceTexts {
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

impl Comparison for SqliteStore {
    fn compare<'a>(
        &'a self,
        entries: &'a [Arc<Entry>],
    ) -> LocalBoxFuture<'a, Result<Vec<Compared>, StoreError>> {
        Box::pin(async move {
            let given = entries.to_vec();
            let now = self.shared.clock.now();
            let compare = move |connection: &mut Connection| {
                let mut texts = RowTexts::at(now)?;
                let compared = given.iter().map(|entry| match &entry.content {
                    Content::Rejected(_) => Ok(None),
                    Content::Event(event) => compare(connection, event, &mut texts),
                });
                compared.collect::<Result<Vec<_>, Failure>>()
            };
            let compared = self.with_connection("read", compare).await?;
            with_refused(self, entries, compared).await
        })
    }
}

/// `None` where the event would be refused.
fn compare(
    connection: &mut Connection,
    event: &ReceivedEvent,
    texts: &mut RowTexts,
) -> Result<Option<Compared>, Failure> {
    if texts.set(event, connection.max_length()).is_err() {
        return Ok(None);
    }
    let query = sql_query(EVENT).bind::<Text, _>(&texts.id);
    let held: Option<EventTexts> =
        connection.run(|connection| query.get_result(connection).optional())?;
    let Some(held) = held else {
        return Ok(Some(Compared::Absent));
    };
    let mut columns = held.differing(event, texts);
    let query = sql_query(RESOURCES_OF_EVENT).bind::<Text, _>(&texts.id);
    let theirs: Vec<ResourceTexts> = connection.run(|connection| query.load(connection))?;
    columns.extend(differing_resources(ours(event, texts), theirs));
    let columns = columns.into_iter().map(str::to_owned).collect();
    Ok(Some(of_columns(event.received, columns)))
}

impl EventTexts {
    fn differing(&self, event: &ReceivedEvent, texts: &RowTexts) -> Vec<&'static str> {
        let columns = [
            ("occurred", &self.occurred, Some(texts.occurred.as_str())),
            ("received", &self.received, Some(&texts.received)),
            ("event", &self.event, Some(&event.event)),
            ("resource_id", &self.resource_id, Some(event.resource.id())),
            ("resource", &self.resource, Some(&texts.resource)),
            ("related", &self.related, Some(&texts.related)),
            (
                "related_resource_ids",
                &self.related_resource_ids,
                Some(&texts.related_ids),
            ),
            ("payload", &self.payload, Some(&texts.payload)),
            ("follows", &self.follows, texts.follows.as_deref()),
        ];
        let differing = columns
            .into_iter()
            .filter(|(_, held, ours)| held.as_deref() != *ours);
        differing.map(|(column, ..)| column).collect()
    }
}

/// The rows of `event_resources` that would be written.
fn ours(event: &ReceivedEvent, texts: &mut RowTexts) -> Vec<ResourceTexts> {
    let related = event.related.iter();
    let related = related.map(|resource| (resource.role().unwrap_or_default(), resource));
    let mut row = |(role, resource): (&str, &Resource)| {
        texts.set_resource(resource);
        ResourceTexts {
            occurred: Some(texts.occurred.clone()),
            resource_id: Some(resource.id().to_owned()),
            resource_role: Some(role.to_owned()),
            resource: Some(texts.other_labels.clone()),
        }
    };
    let mut rows = vec![row(("", &event.resource))];
    rows.extend(related.map(row));
    rows
}

/// They have no order.
fn differing_resources(
    mut ours: Vec<ResourceTexts>,
    mut theirs: Vec<ResourceTexts>,
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

    fn row(role: &str) -> ResourceTexts {
        ResourceTexts {
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
