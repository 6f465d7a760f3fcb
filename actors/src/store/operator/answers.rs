//! The same in both databases: how much is asked at once, and how rows become answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Compared, CurableLetter, EventRows, LetterCounts, LetterVersion, StoreOperator, Strays,
    UNKNOWN_RECEIVED,
};
#[cfg(feature = "postgres")]
use super::{Cursor, Page};
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

/// How many events the next page is to have, after one that was to have so many and took so long.
#[cfg(feature = "postgres")]
pub(in crate::store) fn next_page_size(page_size: i64, took: Duration) -> i64 {
    let next = if took > PAGE_TAKES {
        page_size / 2
    } else if took < PAGE_TAKES / 4 {
        page_size.saturating_mul(2)
    } else {
        page_size
    };
    next.clamp(1, EVENTS_ON_A_PAGE)
}

/// One row of a page's answer: an event that is suspicious, or the last of the page, or both.
#[cfg(feature = "postgres")]
#[derive(diesel::QueryableByName)]
pub(in crate::store) struct PageRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    occurred: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    suspicious: bool,
    /// Its place on the page, from 1.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    number: i64,
}

#[cfg(feature = "postgres")]
impl Page {
    /// Of the rows in the order of their numbers, of a page that was to have so many events.
    pub(in crate::store) fn of(rows: Vec<PageRow>, page_size: i64, next_page_size: i64) -> Self {
        let Some(last) = rows.last() else {
            return Self::default();
        };
        let num_events = last.number;
        let next = (num_events >= page_size).then(|| Cursor {
            occurred: last.occurred.clone(),
            event_id: last.event_id.clone(),
            page_size: next_page_size,
        });
        let suspects = rows.into_iter().filter(|row| row.suspicious);
        Self {
            num_events: as_count(num_events),
            suspects: suspects.map(|row| row.event_id).collect(),
            next,
        }
    }
}

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

/// The rows of one event, as both dialects answer.
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

    #[cfg(feature = "postgres")]
    #[test]
    fn pages_shrink_while_they_take_long_and_never_to_nothing() {
        let (slow, quick) = (PAGE_TAKES * 3, PAGE_TAKES / 10);
        assert_eq!(next_page_size(EVENTS_ON_A_PAGE, quick), EVENTS_ON_A_PAGE);
        assert_eq!(next_page_size(EVENTS_ON_A_PAGE, slow), EVENTS_ON_A_PAGE / 2);
        assert_eq!(next_page_size(100, PAGE_TAKES / 2), 100);
        assert_eq!(next_page_size(100, quick), 200);
        assert_eq!(next_page_size(1, slow), 1);
    }
}
