//! PORT: what the tables hold, for whoever compares it with what they should hold.
//!
//! Everything here only reads, makes no table, and takes memory for one page at most. Each answer is
//! of one moment, and two answers are of two: what looks wrong has to be looked at once more. Names of
//! columns are told, never values.
//!
//! # What fits together
//!
//! `resource_id` is the id of `resource`, `related_resource_ids` are those of `related` in order, and
//! the rows of `event_resources` are made of these two: the event's `occurred`, the id, the role, which
//! is empty for the event's own resource, and the other labels. The order of labels does not matter.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;

use super::StoreError;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::finding::Finding;

/// What the tables hold of one event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventRows {
    /// Its id: lower case, with hyphens.
    pub event_id: String,
    /// Rows of `events` with this id.
    pub num_events: u64,
    /// Rows of `event_resources` that the event should have by its own columns: one for its
    /// resource and one for each related one.
    pub num_expected: u64,
    /// Rows of `event_resources` that are there.
    pub num_resources: u64,
    /// When the event was received, where its row tells that.
    pub received: Option<DateTime<Utc>>,
    /// What does not fit the columns `resource` and `related`: other columns, or
    /// [`RESOURCES`](super::comparison::RESOURCES).
    pub contradicting: Vec<String>,
    /// Why the event cannot be read.
    pub unreadable: Option<Unreadable>,
}

/// Why a row of `events` cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Python reads no integer of more than 4,300 digits, and so Prefect's page that meets the event
    /// fails as a whole.
    LongInteger,
    /// The text of the payload is longer than the 1 GB that PostgreSQL can send.
    LongText,
    /// A time beyond the year 9999, which Python does not know either.
    LateTime,
    /// The payload is no JSON.
    NoJson,
    /// The database fails when it is asked for the row.
    Damaged,
}

impl Unreadable {
    /// What there is, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LongInteger => {
                "payload holds an integer of more than 4,300 digits, which Python does not read"
            }
            Self::LongText => "the text of payload is longer than the 1 GB that PostgreSQL sends",
            Self::LateTime => {
                "occurred or received lies beyond the year 9999, which Python does not know"
            }
            Self::NoJson => "payload is no JSON",
            Self::Damaged => "the database fails when it reads the row or its resources",
        }
    }
}

/// How many events are looked at, from the newest on, where nobody asked for all.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const NEWEST: u64 = 20_000;

/// How long that may take, whatever is in them.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const NEWEST_TAKE: std::time::Duration = std::time::Duration::from_secs(1);

/// Of the newest events.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Newest {
    pub(super) num_events: u64,
    pub(super) num_unreadable: u64,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl Newest {
    pub(super) fn judge(self, id: &'static str) -> Finding {
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

/// What is wrong with the rows of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// More rows than it should have.
    Doubled,
    /// Less rows than it should have, or resources alone.
    HalfWritten,
    /// As many rows as it should have, and one of them cannot be read.
    Unreadable(Unreadable),
    /// As many rows as it should have, and they contradict one another.
    Differing,
}

impl EventRows {
    /// What is wrong, if anything is.
    pub fn flaw(&self) -> Option<Flaw> {
        match self.num_events {
            0 if self.num_resources == 0 => None,
            0 => Some(Flaw::HalfWritten),
            1 => match self.num_resources.cmp(&self.num_expected) {
                std::cmp::Ordering::Less => Some(Flaw::HalfWritten),
                std::cmp::Ordering::Equal => self.flaw_of_content(),
                std::cmp::Ordering::Greater => Some(Flaw::Doubled),
            },
            _ => Some(Flaw::Doubled),
        }
    }

    fn flaw_of_content(&self) -> Option<Flaw> {
        match self.unreadable {
            Some(why) => Some(Flaw::Unreadable(why)),
            None if self.contradicting.is_empty() => None,
            None => Some(Flaw::Differing),
        }
    }
}

/// Where a walk through the events goes on: an event's time and id, as the database writes them, and
/// how many events are to be on the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub(super) occurred: String,
    pub(super) event_id: String,
    pub(super) page_size: i64,
}

/// One page of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Events on it.
    pub num_events: u64,
    /// The ids of those whose rows do not fit together, or cannot be read.
    pub suspects: Vec<String>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
}

/// Events that are not as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    /// How many there are.
    pub total: u64,
    /// The ids of the first of them.
    pub event_ids: Vec<String>,
}

/// The dead letters as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterCounts {
    /// All of them.
    pub total: u64,
    /// Those whose event is stored meanwhile.
    pub num_curable: u64,
    /// The oldest of those.
    pub curable: Vec<CurableLetter>,
}

/// A dead letter whose event is stored meanwhile, so that nobody misses it any more.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CurableLetter {
    /// The row's own number.
    pub id: i64,
    /// The event that both are about.
    pub event_id: String,
}

/// Reads the tables for a comparison.
pub trait Audit: Send + Sync {
    /// What the tables hold of each of these events; nothing of an event is an answer too.
    fn look_up(
        &self,
        event_ids: Vec<String>,
    ) -> LocalBoxFuture<'_, Result<Vec<EventRows>, StoreError>>;

    /// At which of these positions of a source a message became a dead letter.
    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, StoreError>>;

    /// Looks whether the rows of each event that occurred since then fit together, page by page.
    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> LocalBoxFuture<'a, Result<Page, StoreError>>;

    /// Events that occurred since then and of which only resources are there, `limit` ids at most.
    fn orphans(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>>;

    /// Events that occurred since then and stand in `events` more than once, `limit` ids at most.
    ///
    /// A unique index over the id makes that impossible; only where it is gone they are looked for.
    fn repeated(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>>;

    /// Counts the dead letters; at most `limit` of the curable ones are named.
    fn count_letters(&self, limit: usize) -> LocalBoxFuture<'_, Result<LetterCounts, StoreError>>;
}

/// Events on one page at most. Each costs a look into an index and its columns: more would keep a
/// snapshot open for longer, less would ask more often.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const EVENTS_ON_A_PAGE: i64 = 2_000;

/// How long a page should take at most, since its snapshot is open for as long. Large events make pages
/// smaller.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const PAGE_TAKES: std::time::Duration = std::time::Duration::from_millis(500);

/// How many events the next page is to have, after one that was to have so many and took so long.
#[cfg(feature = "postgres")]
pub(super) fn next_page_size(page_size: i64, took: std::time::Duration) -> i64 {
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
pub(super) struct PageRow {
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
    pub(super) fn of(rows: Vec<PageRow>, page_size: i64, next_page_size: i64) -> Self {
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
            num_events: count(num_events),
            suspects: suspects.map(|row| row.event_id).collect(),
            next,
        }
    }
}

/// One row of an answer that names some of many: their number stands in each row.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(diesel::QueryableByName)]
pub(super) struct StrayRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    total: i64,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl Strays {
    pub(super) fn of(rows: Vec<StrayRow>) -> Self {
        Self {
            total: rows.first().map_or(0, |row| count(row.total)),
            event_ids: rows.into_iter().map(|row| row.event_id).collect(),
        }
    }
}

/// The rows of one event, as both dialects answer.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(diesel::QueryableByName)]
pub(super) struct CountsRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_events: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_expected: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    num_resources: i64,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl From<CountsRow> for EventRows {
    fn from(row: CountsRow) -> Self {
        Self {
            event_id: row.event_id,
            num_events: count(row.num_events),
            num_expected: count(row.num_expected),
            num_resources: count(row.num_resources),
            ..Self::default()
        }
    }
}

/// One curable letter; the number of all of them stands in each row.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(diesel::QueryableByName)]
pub(super) struct LetterRow {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    id: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    event_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    total: i64,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl LetterCounts {
    /// Of all letters and of the rows that name curable ones, of which those beyond `limit` are left out.
    pub(super) fn of(total: i64, rows: Vec<LetterRow>, limit: usize) -> Self {
        Self {
            total: count(total),
            num_curable: rows.first().map_or(0, |row| count(row.total)),
            curable: (rows.into_iter().take(limit))
                .map(|row| CurableLetter {
                    id: row.id,
                    event_id: row.event_id,
                })
                .collect(),
        }
    }
}

/// A count of rows is never negative.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(num_events: u64, num_expected: u64, num_resources: u64) -> Option<Flaw> {
        let rows = EventRows {
            num_events,
            num_expected,
            num_resources,
            ..EventRows::default()
        };
        rows.flaw()
    }

    #[test]
    fn an_event_has_all_of_its_resources_or_a_flaw() {
        assert_eq!(rows(1, 4, 4), None);
        assert_eq!(rows(0, 0, 0), None, "nothing is not half of anything");
        assert_eq!(rows(1, 4, 3), Some(Flaw::HalfWritten));
        assert_eq!(rows(1, 1, 0), Some(Flaw::HalfWritten));
        assert_eq!(rows(0, 0, 1), Some(Flaw::HalfWritten));
        assert_eq!(rows(1, 4, 8), Some(Flaw::Doubled));
        assert_eq!(rows(2, 1, 2), Some(Flaw::Doubled));
    }
    #[test]
    fn an_event_with_all_of_its_rows_may_still_contradict_itself() {
        let whole = EventRows {
            num_events: 1,
            num_expected: 2,
            num_resources: 2,
            contradicting: vec!["resource_id".to_owned()],
            ..EventRows::default()
        };
        assert_eq!(whole.flaw(), Some(Flaw::Differing));
        let unreadable = EventRows {
            unreadable: Some(Unreadable::LongInteger),
            ..whole.clone()
        };
        let flaw = Flaw::Unreadable(Unreadable::LongInteger);
        assert_eq!(unreadable.flaw(), Some(flaw));
        let half = EventRows {
            num_resources: 1,
            ..whole
        };
        assert_eq!(half.flaw(), Some(Flaw::HalfWritten));
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
