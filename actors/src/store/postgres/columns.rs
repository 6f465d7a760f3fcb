//! Arrays as parameters, in the form in which they go to the server.

use std::fmt;
use std::io::Write as _;
use std::num::TryFromIntError;

use chrono::{DateTime, Datelike as _, Utc};
use diesel::pg::Pg;
use diesel::serialize::{IsNull, Output, Result, ToSql};
use diesel::sql_types::{Array, HasSqlType};

/// From 1970 to 2000, where PostgreSQL's time begins.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A moment as PostgreSQL counts it: microseconds since 2000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    /// `-infinity`, which is before every other.
    pub(super) const FIRST: Self = Self(i64::MIN);

    pub(super) fn new(at: DateTime<Utc>) -> Self {
        Self(at.timestamp_micros().saturating_sub(EPOCH_MICROS))
    }

    /// `None` where chrono does not know it.
    pub(super) fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.0.checked_add(EPOCH_MICROS)?)
    }

    /// As Prefect stores it: it counts seconds since 2000 in floating point, which is exact for the
    /// centuries around and some microseconds off in the year 9999; the first moment that it knows
    /// becomes `-infinity`. `None` outside the years 0001 to 9999, which it refuses.
    ///
    /// The last 15 microseconds of the year 9999 alone are stored as they are: in Prefect's hands they become the
    /// year 10000, which Python's datetimes do not have, and its page fails for every event on it. The last of them
    /// is Python's `datetime.max`, which some send for "never".
    pub(super) fn as_prefect_stores(at: DateTime<Utc>) -> Option<Self> {
        const MICROS: i64 = 1_000_000;
        const YEAR_1: i64 = -63_082_281_600 * MICROS;
        const YEAR_10000: i64 = 252_455_616_000 * MICROS;
        if !(1..=9999).contains(&at.year()) {
            return None;
        }
        let Self(exact) = Self::new(at);
        let fraction = exact.rem_euclid(MICROS) as f64 / MICROS as f64;
        let seconds = exact.div_euclid(MICROS) as f64 + fraction;
        let micros = (seconds.fract() * MICROS as f64).round_ties_even();
        let rounded = seconds.trunc() as i64 * MICROS + micros as i64;
        Some(match rounded {
            YEAR_1 => Self::FIRST,
            YEAR_10000.. => Self(exact),
            _ => Self(rounded),
        })
    }
}

/// An element type's number in every PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub(super) enum Oid {
    Int4 = 23,
    Text = 25,
    Timestamptz = 1184,
    Uuid = 2950,
}

/// A column as a parameter: an array in PostgreSQL's binary form.
pub(super) struct Column {
    /// A column that is too long for that fails the batch, as one does that cannot be sent.
    bytes: std::result::Result<Vec<u8>, TryFromIntError>,
    num_rows: usize,
}

impl Column {
    /// A column of texts: one of each row, which is either there or written into the buffer.
    pub(super) fn of_texts<R>(
        rows: &[R],
        text: for<'r> fn(&'r R, &'r mut String) -> &'r str,
    ) -> Self {
        Self::new(Oid::Text, rows, false, |bytes| {
            let mut buffer = String::new();
            for row in rows {
                buffer.clear();
                let text = text(row, &mut buffer);
                bytes.extend(i32::try_from(text.len())?.to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            Ok(())
        })
    }

    /// A column of values of one size.
    pub(super) fn of_fixed<R, const N: usize>(
        rows: &[R],
        oid: Oid,
        value: fn(&R) -> Option<[u8; N]>,
    ) -> Self {
        let has_null = rows.iter().any(|row| value(row).is_none());
        Self::new(oid, rows, has_null, |bytes| {
            let length = i32::try_from(N)?.to_be_bytes();
            for row in rows {
                match value(row) {
                    Some(value) => {
                        bytes.extend_from_slice(&length);
                        bytes.extend_from_slice(&value);
                    }
                    None => bytes.extend((-1_i32).to_be_bytes()),
                }
            }
            Ok(())
        })
    }

    fn new<R>(
        oid: Oid,
        rows: &[R],
        has_null: bool,
        write: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), TryFromIntError>,
    ) -> Self {
        let num_rows = rows.len();
        let mut bytes = Vec::new();
        let written = header(&mut bytes, oid, num_rows, has_null).and_then(|()| write(&mut bytes));
        // It grew by doubling, and may wait for its turn.
        bytes.shrink_to_fit();
        Self {
            bytes: written.map(|()| bytes),
            num_rows,
        }
    }
}

/// The bytes before the elements of an array of one dimension.
fn header(
    bytes: &mut Vec<u8>,
    oid: Oid,
    length: usize,
    has_null: bool,
) -> std::result::Result<(), TryFromIntError> {
    let num_dimensions = i32::from(length > 0);
    bytes.extend(num_dimensions.to_be_bytes());
    bytes.extend(i32::from(has_null).to_be_bytes());
    bytes.extend((oid as u32).to_be_bytes());
    if length > 0 {
        bytes.extend(i32::try_from(length)?.to_be_bytes());
        bytes.extend(1_i32.to_be_bytes());
    }
    Ok(())
}

impl<T> ToSql<Array<T>, Pg> for Column
where
    Pg: HasSqlType<T>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> Result {
        out.write_all(self.bytes.as_ref().map_err(|error| *error)?)?;
        Ok(IsNull::No)
    }
}

/// The number of values only, never the values.
impl fmt::Debug for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.num_rows)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(text: &str) -> Option<i64> {
        let at: DateTime<Utc> = text.parse().unwrap();
        Moment::as_prefect_stores(at).map(|moment| moment.0)
    }

    #[test]
    fn stores_the_ends_of_time_as_prefect_does() {
        assert_eq!(stored("0001-01-01T00:00:00Z"), Some(i64::MIN));
        assert_eq!(stored("0001-01-01T00:00:00.000001Z"), Some(i64::MIN));
        let second = -63_082_281_599_000_000;
        assert_eq!(stored("0001-01-01T00:00:01Z"), Some(second));
        assert_eq!(stored("0001-01-01T00:00:00+00:01"), None);
        let next_year = 252_455_616_000_000_000;
        for micros in 1_i64..=15 {
            let text = format!("9999-12-31T23:59:59.{}Z", 1_000_000 - micros);
            assert_eq!(
                stored(&text),
                Some(next_year - micros),
                "Prefect: year 10000"
            );
        }
        let rounded = next_year - 31;
        assert_eq!(stored("9999-12-31T23:59:59.999984Z"), Some(rounded));
        let off = next_year - 1_007;
        assert_eq!(stored("9999-12-31T23:59:59.999Z"), Some(off));
        assert_eq!(stored("9999-12-31T23:59:59-00:01"), None);
    }

    proptest! {
        #[test]
        fn stores_other_times_exactly(seconds in -2_208_988_800_i64..4_102_444_800, micros in 0_i64..1_000_000) {
            let at = DateTime::from_timestamp_micros(seconds * 1_000_000 + micros).unwrap();
            prop_assert_eq!(Moment::as_prefect_stores(at), Some(Moment::new(at)));
        }
    }
}
