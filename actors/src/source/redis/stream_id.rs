//! The id of an entry in a stream.

use std::fmt;
use std::str::FromStr;

use redis::{FromRedisValue, ParsingError, Value};

/// Milliseconds and a number within them, compared as Redis compares them: as numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamId {
    pub(super) millis: u64,
    pub(super) number: u64,
}

impl StreamId {
    pub(super) const ZERO: Self = Self {
        millis: 0,
        number: 0,
    };

    /// The largest id that is smaller; zero stays.
    pub(super) fn previous(self) -> Self {
        match (self.millis, self.number) {
            (0, 0) => self,
            (millis, 0) => Self {
                millis: millis - 1,
                number: u64::MAX,
            },
            (millis, number) => Self {
                millis,
                number: number - 1,
            },
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for StreamId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (millis, number) = text.split_once('-').ok_or(())?;
        Ok(Self {
            millis: millis.parse().map_err(|_| ())?,
            number: number.parse().map_err(|_| ())?,
        })
    }
}

impl FromRedisValue for StreamId {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text = String::from_redis_value(value)?;
        text.parse().map_err(|()| "not an entry's id".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_by_number_and_prints_what_it_reads() {
        let ids = [
            "1-2",
            "1-10",
            "2-0",
            "18446744073709551615-18446744073709551615",
        ];
        let parsed = ids.map(|id| id.parse::<StreamId>().unwrap());
        assert!(parsed.is_sorted());
        assert_eq!(parsed.map(|id| id.to_string()), ids);
        for wrong in ["", "1", "-", "1-", "a-1", "1-2-3"] {
            assert!(wrong.parse::<StreamId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn knows_what_comes_before() {
        let previous = |id: &str| id.parse::<StreamId>().unwrap().previous().to_string();
        assert_eq!(previous("5-3"), "5-2");
        assert_eq!(previous("5-0"), "4-18446744073709551615");
        assert_eq!(previous("0-0"), "0-0");
    }
}
