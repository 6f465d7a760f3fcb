//! The findings of an audit of the tables. They name columns, never values.
//!
//! `resource_id` is the id of `resource`, and `related_resource_ids` are those of `related` in order.
//! The rows of `event_resources` are made of these two: the event's `occurred`, the id, the role, which is
//! empty for the event's own resource, and the other labels, in any order.

use chrono::{DateTime, Utc};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventRows {
    /// Its id: lower case, with hyphens.
    pub event_id: String,
    pub num_events: u64,
    /// Rows of `event_resources` that the event should have by its own columns: one for its
    /// resource and one for each related one.
    pub num_expected: u64,
    pub num_resources: u64,
    /// When the event was received, where its row tells that.
    pub received: Option<DateTime<Utc>>,
    /// Columns that do not fit `resource` and `related`, or
    /// [`RESOURCES`](super::RESOURCES).
    pub contradicting: Vec<String>,
    pub unreadable: Option<Unreadable>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Python reads no integer of more than 4,300 digits, and so Prefect's page that meets the event
    /// fails as a whole.
    LongInteger,
    LongText,
    LateTime,
    NoJson,
    Damaged,
}

impl Unreadable {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    Doubled,
    /// Less rows than it should have, or resources alone.
    HalfWritten,
    /// As many rows as it should have, and one of them cannot be read.
    Unreadable(Unreadable),
    /// As many rows as it should have, and they contradict one another.
    Differing,
}

impl EventRows {
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
    pub(in crate::store) occurred: String,
    pub(in crate::store) event_id: String,
    pub(in crate::store) page_size: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub num_events: u64,
    pub suspects: Vec<String>,
    pub next: Option<Cursor>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    pub total: u64,
    pub event_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterCounts {
    pub total: u64,
    pub num_curable: u64,
    pub curable: Vec<CurableLetter>,
}

/// A dead letter whose event is stored meanwhile, so that nobody misses it any more.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CurableLetter {
    pub id: i64,
    pub event_id: String,
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
}
