//! The names in an archive.
//!
//! Readers see `occurred_date=*/*.parquet`. A file is written under another name, in a folder of its own and
//! without that ending, so that no pattern for Parquet files finds it there.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use uuid::Uuid;

use crate::store::archivable::Position;

/// What tells one archive from another.
pub(super) const MARKER: &str = "_event_persister_archive.json";

/// Where files are until their rows are gone.
pub(super) const INCOMING: &str = "_incoming";

const FOLDER: &str = "occurred_date=";
const ENDING: &str = ".parquet";

/// A day of UTC, as the folders have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Day(NaiveDate);

impl Day {
    /// The day of a moment; moments that no date can tell are of the first or the last day.
    pub(super) fn of(micros: i64) -> Self {
        let moment = DateTime::from_timestamp_micros(micros).map(|moment| moment.date_naive());
        let first = NaiveDate::from_ymd_opt(1, 1, 1).unwrap_or(NaiveDate::MIN);
        let last = NaiveDate::from_ymd_opt(9999, 12, 31).unwrap_or(NaiveDate::MAX);
        let outside = if micros < 0 { first } else { last };
        Self(moment.unwrap_or(outside).clamp(first, last))
    }

    /// Behind it all events of the day come, and none of a day before.
    pub(super) fn before(self) -> Position {
        if self == Self::of(i64::MIN) {
            return Position::FIRST;
        }
        let midnight = self.0.and_time(chrono::NaiveTime::MIN).and_utc();
        Position {
            occurred: midnight.timestamp_micros() - 1,
            id: Uuid::max().to_string(),
        }
    }

    /// Where the next day begins, in microseconds since 1970.
    pub(super) fn end(self) -> i64 {
        let next = self.0.checked_add_signed(TimeDelta::days(1));
        match next {
            Some(next) if self != Self::of(i64::MAX) => next
                .and_time(chrono::NaiveTime::MIN)
                .and_utc()
                .timestamp_micros(),
            _ => i64::MAX,
        }
    }

    pub(super) fn folder(self) -> String {
        format!("{FOLDER}{}", self.0.format("%Y-%m-%d"))
    }

    /// Of the path of a file.
    pub(super) fn of_file(file: &str) -> Option<Self> {
        let (folder, _) = file.split_once('/')?;
        let date = folder.strip_prefix(FOLDER)?;
        date.parse().ok().map(Self)
    }
}

/// A new name for a file whose first event occurred then; names sort as their first events do.
pub(super) fn file(occurred: i64) -> String {
    let day = Day::of(occurred);
    let time = DateTime::<Utc>::from_timestamp_micros(occurred).unwrap_or_default();
    let time = time.format("%H%M%S%6f");
    format!(
        "{}/{time}-{}{ENDING}",
        day.folder(),
        Uuid::new_v4().simple()
    )
}

/// Whether readers see a file of this path.
pub(super) fn is_visible(path: &str) -> bool {
    let name = path.split_once('/').map(|(_, name)| name);
    Day::of_file(path).is_some()
        && name.is_some_and(|name| name.ends_with(ENDING) && !name.contains('/'))
}

/// Where a file is until its rows are gone.
pub(super) fn incoming(file: &str) -> String {
    let name = file.strip_prefix(FOLDER).unwrap_or(file).replace('/', "_");
    format!("{INCOMING}/{name}.part")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::archivable::YEAR_1;

    fn micros(text: &str) -> i64 {
        text.parse::<DateTime<Utc>>().unwrap().timestamp_micros()
    }

    #[test]
    fn a_day_ends_where_the_next_begins() {
        let late = micros("2024-02-29T23:59:59.999999Z");
        let day = Day::of(late);
        assert_eq!(day.folder(), "occurred_date=2024-02-29");
        assert_eq!(day.end(), late + 1);
        assert_eq!(Day::of(day.end()).folder(), "occurred_date=2024-03-01");
    }

    #[test]
    fn a_day_begins_behind_all_events_of_the_day_before() {
        let midnight = micros("2024-02-29T00:00:00Z");
        let of = |occurred, id: Uuid| Position {
            occurred,
            id: id.to_string(),
        };
        let before = Day::of(midnight).before();
        assert!(before < of(midnight, Uuid::nil()));
        assert!(of(midnight - 1, Uuid::max()) <= before);
        assert_eq!(Day::of(YEAR_1).before(), Position::FIRST);
    }

    #[test]
    fn every_moment_has_a_day_that_readers_know() {
        for (moment, folder) in [
            (i64::MIN, "occurred_date=0001-01-01"),
            (micros("0001-01-01T00:00:00Z"), "occurred_date=0001-01-01"),
            (
                micros("9999-12-31T23:59:59.999999Z"),
                "occurred_date=9999-12-31",
            ),
            (i64::MAX, "occurred_date=9999-12-31"),
        ] {
            let day = Day::of(moment);
            assert_eq!(day.folder(), folder);
            assert_eq!(Day::of_file(&format!("{folder}/x.parquet")), Some(day));
            assert!(day.end() > moment || moment == i64::MAX);
        }
    }

    #[test]
    fn names_sort_as_first_events_do_and_are_never_the_same() {
        let early = file(micros("2024-01-02T03:04:05.000006Z"));
        let late = file(micros("2024-01-02T13:04:05Z"));
        assert!(
            early.starts_with("occurred_date=2024-01-02/030405000006-"),
            "{early}"
        );
        assert!(early < late);
        assert_ne!(file(0), file(0));
    }

    #[test]
    fn readers_see_a_file_only_under_its_own_name() {
        let file = file(0);
        assert!(is_visible(&file), "{file}");
        let hidden = incoming(&file);
        assert!(hidden.starts_with("_incoming/1970-01-01_"), "{hidden}");
        for other in [
            hidden.as_str(),
            MARKER,
            "occurred_date=1970-01-01/a/b.parquet",
            "a.parquet",
        ] {
            assert!(!is_visible(other), "{other}");
        }
        assert!(!hidden.ends_with(".parquet"));
    }
}
