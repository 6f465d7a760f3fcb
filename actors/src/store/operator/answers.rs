//! The same in both databases: how much is asked at once, and how rows become answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Compared, CurableLetter, EventRows, LetterCounts, LetterVersion, StoreOperator, Strays,
    UNKNOWN_RECEIVED,
};
use crate::delivery::Entry;
use crate::finding::Finding;
use crate::store::{StoreError, as_count};

/// The ids of letters by how often they had come, so that one statement removes all of a kind.
pub(in crate::store) fn ids_by_attempts(letters: &[LetterVersion]) -> BTreeMap<i64, Vec<i64>> {
    let mut ids = BTreeMap::<i64, Vec<i64>>::new();
    for letter in letters {
        ids.entry(letter.attempts).or_default().push(letter.id);
    }
    ids
}

/// How many events are looked at, from the newest on, where nobody asked for all.
pub(in crate::store) const NEWEST: u64 = 20_000;

/// How long that may take, whatever is in them.
pub(in crate::store) const NEWEST_TAKE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Newest {
    pub(in crate::store) num_events: u64,
    pub(in crate::store) num_unreadable: u64,
}

impl Newest {
    pub(in crate::store) fn judge(self, id: &'static str) -> Finding {
        let Self {
            num_events,
            num_unreadable,
        } = self;
        if num_unreadable == 0 {
            let what = format!("each of the newest {num_events} events can be read");
            return Finding::ok(id, what);
        }
        Finding::warning(
            id,
            format!(
                "{num_unreadable} of the newest {num_events} events cannot be read by Prefect: a page \
                 that meets one of them fails as a whole"
            ),
            "`event-persister verify` names all of them, and says what to do",
        )
    }
}

/// Events on one page at most. Each costs a look into an index and its columns: more would keep a
/// snapshot open for longer, less would ask more often.
pub(in crate::store) const EVENTS_ON_A_PAGE: i64 = 2_000;

/// How long a page should take at most, since its snapshot is open for as long. Large events make pages
/// smaller.
pub(in crate::store) const PAGE_TAKES: Duration = Duration::from_millis(500);

/// One row of an answer that names some of many: their number stands in each row.
#[derive(diesel::QueryableByName)]
pub(in crate::store) struct StrayRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    total: i64,
}

impl Strays {
    pub(in crate::store) fn of(rows: Vec<StrayRow>) -> Self {
        Self {
            total: rows.first().map_or(0, |row| as_count(row.total)),
            event_ids: rows.into_iter().map(|row| row.event_id).collect(),
        }
    }
}

#[derive(diesel::QueryableByName)]
pub(in crate::store) struct CountsRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_events: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_expected: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_resources: i64,
}

impl From<CountsRow> for EventRows {
    fn from(row: CountsRow) -> Self {
        Self {
            event_id: row.event_id,
            num_events: as_count(row.num_events),
            num_expected: as_count(row.num_expected),
            num_resources: as_count(row.num_resources),
            ..Self::default()
        }
    }
}

/// One curable letter; the number of all of them stands in each row.
#[derive(diesel::QueryableByName)]
pub(in crate::store) struct LetterRow {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    id: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    total: i64,
}

impl LetterCounts {
    /// Of all letters and of the rows that name curable ones, of which those beyond `limit` are left out.
    pub(in crate::store) fn of(total: i64, rows: Vec<LetterRow>, limit: usize) -> Self {
        Self {
            total: as_count(total),
            num_curable: rows.first().map_or(0, |row| as_count(row.total)),
            curable: (rows.into_iter().take(limit))
                .map(|row| CurableLetter {
                    id: row.id,
                    event_id: row.event_id,
                })
                .collect(),
        }
    }
}

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
    tables: &dyn StoreOperator,
    entries: &[Arc<Entry>],
    compared: Vec<Option<Compared>>,
) -> Result<Vec<Compared>, StoreError> {
    let refused = entries.iter().zip(&compared);
    let refused = refused.filter(|(_, compared)| compared.is_none());
    let event_ids: Vec<String> = refused.filter_map(|(entry, _)| id_of(entry)).collect();
    let mut is_there = HashMap::new();
    if !event_ids.is_empty() {
        for rows in tables.look_up(event_ids).await? {
            is_there.insert(rows.event_id, rows.num_events > 0);
        }
    }
    let settled = entries.iter().zip(compared).map(|(entry, compared)| {
        compared.unwrap_or_else(|| {
            let found = id_of(entry).and_then(|id| is_there.get(&id).copied());
            Compared::Refused {
                is_there: found.unwrap_or_default(),
            }
        })
    });
    Ok(settled.collect())
}

fn id_of(entry: &Entry) -> Option<String> {
    entry.event_id().map(|id| id.hyphenated().to_string())
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
