//! The id of an entry in a stream.

use std::fmt;
use std::str::FromStr;

use redis::{FromRedisValue, ParsingError, RedisWrite, ToRedisArgs, Value};

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
    type Err = ParsingError;

    fn from_str(text: &str) -> Result<Self, ParsingError> {
        let parts = text.split_once('-');
        let id = parts.and_then(|(millis, number)| {
            Some(Self {
                millis: millis.parse().ok()?,
                number: number.parse().ok()?,
            })
        });
        id.ok_or_else(|| "not an entry's id".into())
    }
}

impl ToRedisArgs for StreamId {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

impl FromRedisValue for StreamId {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        String::from_redis_value(value)?.parse()
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
