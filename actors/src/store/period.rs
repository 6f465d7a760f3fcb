//! The spans of time by which tables are partitioned, in UTC.

use strum::{EnumString, IntoStaticStr, VariantNames};

/// How much time one partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first of a month to the first of the next.
    Month,
}

impl Period {
    /// The name in settings and messages.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(feature = "postgres")]
mod calendar {
    use chrono::{Datelike as _, Days, Months, NaiveDate};

    use super::Period;

    impl Period {
        /// The first day of the period that this day lies in.
        pub(in crate::store) fn start(self, day: NaiveDate) -> Option<NaiveDate> {
            match self {
                Self::Day => Some(day),
                Self::Week => {
                    let since_monday = day.weekday().num_days_from_monday();
                    day.checked_sub_days(Days::new(since_monday.into()))
                }
                Self::Month => day.with_day(1),
            }
        }

        /// The beginning of a period that is so many later, or earlier.
        pub(in crate::store) fn later(self, start: NaiveDate, num: i32) -> Option<NaiveDate> {
            let by = num.unsigned_abs();
            let days = |each: u64| Days::new(u64::from(by) * each);
            match (self, num < 0) {
                (Self::Day, false) => start.checked_add_days(days(1)),
                (Self::Day, true) => start.checked_sub_days(days(1)),
                (Self::Week, false) => start.checked_add_days(days(7)),
                (Self::Week, true) => start.checked_sub_days(days(7)),
                (Self::Month, false) => start.checked_add_months(Months::new(by)),
                (Self::Month, true) => start.checked_sub_months(Months::new(by)),
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        const ALL: [Period; 3] = [Period::Day, Period::Week, Period::Month];

        fn day(text: &str) -> NaiveDate {
            text.parse().unwrap()
        }

        #[test]
        fn periods_begin_where_people_expect_them_to() {
            let thursday = day("2026-12-31");
            let starts = ALL.map(|period| period.start(thursday).unwrap());
            assert_eq!(starts, ["2026-12-31", "2026-12-28", "2026-12-01"].map(day));
            let next = ALL.map(|period| period.later(period.start(thursday).unwrap(), 1).unwrap());
            assert_eq!(next, ["2027-01-01", "2027-01-04", "2027-01-01"].map(day));
        }

        proptest! {
            #[test]
            fn every_day_lies_in_one_period(
                days in 0_u64..40_000,
                period in prop::sample::select(&ALL[..]),
            ) {
                let day = day("1970-01-01") + Days::new(days);
                let start = period.start(day).unwrap();
                let next = period.later(start, 1).unwrap();
                prop_assert!(start <= day && day < next);
                prop_assert_eq!(period.start(start), Some(start));
                prop_assert_eq!(period.start(next), Some(next));
                prop_assert_eq!(period.later(next, -1), Some(start));
            }
        }
    }
}
