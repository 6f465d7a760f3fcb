//! What both databases answer alike.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Compared, UNKNOWN_RECEIVED};
use crate::delivery::{Content, Entry};
use crate::store::StoreError;
use crate::store::audit::Audit;

/// The answer for an event that is there, with the columns that differ.
pub(in crate::store) fn of_columns(received: DateTime<Utc>, mut columns: Vec<String>) -> Compared {
    if received == UNKNOWN_RECEIVED {
        columns.retain(|column| column != "received");
    }
    if columns.is_empty() {
        Compared::Identical
    } else {
        Compared::Differing(columns)
    }
}

/// Fills the gaps, which are the entries that would be refused: are their events there?
pub(in crate::store) async fn with_refused(
    tables: &dyn Audit,
    entries: &[Arc<Entry>],
    compared: Vec<Option<Compared>>,
) -> Result<Vec<Compared>, StoreError> {
    let refused = entries.iter().zip(&compared);
    let refused = refused.filter(|(_, compared)| compared.is_none());
    let event_ids: Vec<String> = refused.filter_map(|(entry, _)| event_id(entry)).collect();
    let mut is_there = HashMap::new();
    if !event_ids.is_empty() {
        for rows in tables.look_up(event_ids).await? {
            is_there.insert(rows.event_id, rows.num_events > 0);
        }
    }
    let settled = entries.iter().zip(compared).map(|(entry, compared)| {
        compared.unwrap_or_else(|| {
            let found = event_id(entry).and_then(|id| is_there.get(&id).copied());
            Compared::Refused {
                is_there: found.unwrap_or_default(),
            }
        })
    });
    Ok(settled.collect())
}

fn event_id(entry: &Entry) -> Option<String> {
    let id: Option<Uuid> = match &entry.content {
        Content::Event(event) => Some(event.id),
        Content::Rejected(rejection) => rejection.event_id,
    };
    id.map(|id| id.hyphenated().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_receipt_that_nobody_sent_is_not_compared() {
        let columns = || vec!["received".to_owned(), "payload".to_owned()];
        let known = DateTime::UNIX_EPOCH;
        assert_eq!(of_columns(known, columns()), Compared::Differing(columns()));
        assert_eq!(
            of_columns(UNKNOWN_RECEIVED, columns()),
            Compared::Differing(vec!["payload".to_owned()])
        );
        let received = vec!["received".to_owned()];
        assert_eq!(of_columns(UNKNOWN_RECEIVED, received), Compared::Identical);
    }
}
