//! Where a list of events goes on: the filter itself and the last event that was shown, so that the next page
//! begins behind that one whatever came in meanwhile.
//!
//! A client could write such a token itself, and would be given what the filter in it gives to everybody. So it
//! is not signed, but checked: the filter is parsed like any other, and the event must lie within it.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::filter::EventFilter;
use super::stored::iso;
use super::{EventPage, MAX_PAGE, Part, Place, StoredEvent};
use crate::event;

/// Where a list of events goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    /// Which events.
    pub filter: EventFilter,
    /// How many are on a page.
    pub limit: usize,
    /// How many there were in all when the list began.
    pub total: u64,
    /// How many were shown.
    pub num_shown: u64,
    /// The last of them.
    pub after: Option<Place>,
}

/// A token that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no token of a page")]
pub struct InvalidToken;

impl PageToken {
    /// The one behind a page; `None` where there is nothing more.
    pub fn behind(self, page: &EventPage) -> Option<Self> {
        let num_shown = self.num_shown + page.events.len() as u64;
        let is_full = page.events.len() == self.limit;
        let is_end = num_shown >= self.total || !(is_full || page.is_cut);
        let after = page.events.last().map(StoredEvent::place);
        (!is_end).then_some(Self {
            num_shown,
            after: after.or(self.after),
            ..self
        })
    }

    /// The part of the events that it asks for.
    pub fn part(&self) -> Part {
        Part {
            limit: self.limit,
            after: self.after,
            counts: false,
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        let after = self
            .after
            .map(|place| json!([iso(place.occurred), place.id]));
        json!({
            "filter": self.filter,
            "limit": self.limit,
            "total": self.total,
            "num_shown": self.num_shown,
            "after": after,
        })
        .to_string()
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// It is none, or its event does not lie within its filter.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidToken> {
        let value: Value = serde_json::from_slice(text).map_err(|_| InvalidToken)?;
        Self::of(&value).ok_or(InvalidToken)
    }

    fn of(value: &Value) -> Option<Self> {
        let filter = value.get("filter")?;
        // Times that are left out would mean another list each time.
        filter.get("occurred")?.get("until")?;
        let filter = EventFilter::parse(filter, DateTime::<Utc>::UNIX_EPOCH, "filter").ok()?;
        let number = |key| value.get(key).and_then(Value::as_u64);
        let limit = usize::try_from(number("limit")?).ok()?;
        let after = match value.get("after")? {
            Value::Null => None,
            place => Some(place_of(place)?),
        };
        let occurred = filter.occurred;
        let is_within = |place: Place| (occurred.since..=occurred.until).contains(&place.occurred);
        let is_ours = limit <= MAX_PAGE && after.is_none_or(is_within);
        is_ours.then_some(Self {
            total: number("total")?,
            num_shown: number("num_shown")?,
            filter,
            limit,
            after,
        })
    }
}

fn place_of(value: &Value) -> Option<Place> {
    let occurred = event::datetime_from_text(value.get(0)?.as_str()?).ok()?;
    let id = Uuid::try_parse(value.get(1)?.as_str()?).ok()?;
    Some(Place { occurred, id })
}
