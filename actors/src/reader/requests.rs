//! The bodies of requests: a filter, and what is wanted of its events.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::counting::{Buckets, Countable, TimeUnit, TooManyBuckets};
use super::filter::EventFilter;
use super::problems::{Loc, Problems};
use super::values::{Object, float, given, whole};
use super::{MAX_PAGE, parse};

const SMALLEST_INTERVAL: f64 = 0.01;

/// A filter, and how many of its events stand on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Which events.
    pub filter: EventFilter,
    /// How many at most.
    pub limit: usize,
}

impl PageRequest {
    /// Reads the body of a request; one that is empty asks for everything.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse(body: &[u8], now: DateTime<Utc>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let value = json(&mut problems, body);
        let body = match value.as_ref() {
            None if problems.0.is_empty() => &Object::new(),
            None => return Err(problems),
            Some(value) => match value.as_object() {
                Some(body) => body,
                None => {
                    missing(&mut problems, &["filter", "limit"]);
                    return Err(problems);
                }
            },
        };
        let filter = match given(body, "filter") {
            Some(value) => parse::filter(&mut problems, &Loc::BODY.key("filter"), value, now),
            None => Some(EventFilter::all(now)),
        };
        let limit = match given(body, "limit") {
            Some(value) => whole(
                &mut problems,
                &Loc::BODY.key("limit"),
                value,
                0..=MAX_PAGE as i64,
            ),
            None => Some(MAX_PAGE as i64),
        };
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let request = filter.zip(limit);
        problems.or(request.map(|(filter, limit)| Self { filter, limit }))
    }
}

/// A filter, and by what its events are counted.
#[derive(Debug, Clone, PartialEq)]
pub struct CountRequest {
    /// Which events.
    pub filter: EventFilter,
    what: Counted,
    unit: TimeUnit,
    interval: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Day,
    Time,
    Event,
    Resource,
}

impl CountRequest {
    /// Reads the body of a request to count by `what`, the last part of its path.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse(what: &str, body: &[u8], now: DateTime<Utc>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let counted = match what {
            "day" => Some(Counted::Day),
            "time" => Some(Counted::Time),
            "event" => Some(Counted::Event),
            "resource" => Some(Counted::Resource),
            _ => {
                let msg = "count by 'day', 'time', 'event' or 'resource'";
                problems.add(&Loc::root("path").key("countable"), "enum", msg);
                None
            }
        };
        let value = json(&mut problems, body);
        let body = match value.as_ref().map(Value::as_object) {
            Some(Some(body)) => body,
            Some(None) => {
                missing(&mut problems, &["filter", "time_unit", "time_interval"]);
                return Err(problems);
            }
            None if problems
                .0
                .iter()
                .any(|problem| problem.kind == "json_invalid") =>
            {
                return Err(problems);
            }
            None => &Object::new(),
        };
        let filter = match given(body, "filter") {
            Some(value) => parse::filter(&mut problems, &Loc::BODY.key("filter"), value, now),
            None => {
                missing(&mut problems, &["filter"]);
                None
            }
        };
        let unit = match given(body, "time_unit") {
            None => Some(TimeUnit::Day),
            Some(value) => {
                let named = |name: &str| TimeUnit::ALL.iter().find(|(known, _)| *known == name);
                let unit = value.as_str().and_then(named).map(|(_, unit)| *unit);
                if unit.is_none() {
                    let msg = "give 'week', 'day', 'hour', 'minute' or 'second'";
                    problems.add(&Loc::BODY.key("time_unit"), "enum", msg);
                }
                unit
            }
        };
        let interval = match given(body, "time_interval") {
            None => Some(1.0),
            Some(value) => {
                let at = Loc::BODY.key("time_interval");
                float(&mut problems, &at, value, SMALLEST_INTERVAL)
            }
        };
        let read = counted.zip(filter).zip(unit.zip(interval));
        problems.or(read.map(|((what, filter), (unit, interval))| Self {
            filter,
            what,
            unit,
            interval,
        }))
    }

    /// The kinds that are told apart.
    ///
    /// # Errors
    ///
    /// There would be too many intervals, which is an error of every count.
    pub fn countable(&self, now: DateTime<Utc>) -> Result<Countable, TooManyBuckets> {
        let buckets = Buckets::new(self.filter.occurred, self.unit, self.interval, now)?;
        Ok(match self.what {
            // The unit of a count by days bounds how many there may be, and means nothing else.
            Counted::Day => {
                Countable::Time(Buckets::new(self.filter.occurred, TimeUnit::Day, 1.0, now)?)
            }
            Counted::Time => Countable::Time(buckets),
            Counted::Event => Countable::Event,
            Counted::Resource => Countable::Resource,
        })
    }
}

/// The body as JSON; `None` where there is none.
fn json(problems: &mut Problems, body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    match serde_json::from_slice(body) {
        Ok(Value::Null) => None,
        Ok(value) => Some(value),
        Err(error) => {
            let place = error.column().saturating_sub(1);
            let at = Loc::BODY;
            problems.add(&at.index(place), "json_invalid", "the body is not JSON");
            None
        }
    }
}

fn missing(problems: &mut Problems, keys: &[&str]) {
    for key in keys {
        problems.add(&Loc::BODY.key(key), "missing", "this is missing");
    }
}
