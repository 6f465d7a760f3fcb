//! Numbers, sizes and durations.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use super::{Input, SettingValue};

impl SettingValue for NonZeroUsize {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => text.trim().parse().ok(),
            Input::Integer(number) => usize::try_from(*number).ok().and_then(Self::new),
            Input::Table(_) | Input::Other(_) => None,
        }
        .ok_or_else(|| "give a whole number of at least 1".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// How many connections write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumWriters(pub(crate) NonZeroUsize);

impl NumWriters {
    /// Each has a connection and a thread, and a share in what may be in flight. No database is
    /// faster with more, and a slip of the finger must not exhaust it.
    const MAX: usize = 64;
}

impl SettingValue for NumWriters {
    fn read(input: &Input) -> Result<Self, String> {
        NonZeroUsize::read(input)
            .ok()
            .filter(|writers| writers.get() <= Self::MAX)
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "give a whole number of at least 1 and at most {}",
                    Self::MAX
                )
            })
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for NonZeroU64 {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => text.trim().parse().ok(),
            Input::Integer(number) => u64::try_from(*number).ok().and_then(Self::new),
            Input::Table(_) | Input::Other(_) => None,
        }
        .ok_or_else(|| "give a whole number of at least 1".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A number of bytes, never zero: with room for nothing, nothing would move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) NonZeroUsize);

/// Units from the largest to the smallest, so that the first that divides is the one to show.
const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DECIMAL_UNITS: [(&str, usize); 4] = [
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS
                .iter()
                .chain(&DECIMAL_UNITS)
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
                .1
        };
        let number: usize = digits.trim_end().parse().ok()?;
        NonZeroUsize::new(number.checked_mul(factor)?).map(Self)
    }
}

impl SettingValue for Size {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::parse(text),
            Input::Integer(number) => usize::try_from(*number)
                .ok()
                .and_then(NonZeroUsize::new)
                .map(Self),
            Input::Table(_) | Input::Other(_) => None,
        }
        .ok_or_else(|| {
            "give a number of bytes of at least 1, such as 8388608 or \"8MiB\"".to_owned()
        })
    }

    fn show(&self) -> String {
        let bytes = self.0.get();
        UNITS
            .iter()
            .find(|(_, factor)| bytes.is_multiple_of(*factor))
            .map_or_else(
                || bytes.to_string(),
                |(unit, factor)| format!("{}{unit}", bytes / factor),
            )
    }
}

const DURATION_EXPECTED: &str = "give a duration with its unit, such as \"5s\", \"15m\" or \"7d\"";

/// Longer than anything that is meant, and short enough to be added to any date or timer.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

impl SettingValue for Duration {
    fn read(input: &Input) -> Result<Self, String> {
        let Input::Text(text) = input else {
            return Err(DURATION_EXPECTED.to_owned());
        };
        let duration =
            humantime::parse_duration(text.trim()).map_err(|_| DURATION_EXPECTED.to_owned())?;
        if duration > LONGEST {
            return Err("give a duration of at most 100 years".to_owned());
        }
        Ok(duration)
    }

    /// In the largest unit that divides it, as a person would have written it.
    fn show(&self) -> String {
        const UNITS: [(&str, u128); 5] = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ];
        let millis = self.as_millis();
        if self.is_zero() {
            return "0s".to_owned();
        }
        if !self.subsec_nanos().is_multiple_of(1_000_000) {
            return humantime::format_duration(*self).to_string();
        }
        UNITS
            .iter()
            .find(|(_, factor)| millis.is_multiple_of(*factor))
            .map_or_else(
                || format!("{millis}ms"),
                |(unit, factor)| format!("{}{unit}", millis / factor),
            )
    }
}

/// A duration that zero would make senseless or destructive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NonZeroDuration(pub(crate) Duration);

impl SettingValue for NonZeroDuration {
    fn read(input: &Input) -> Result<Self, String> {
        match Duration::read(input)? {
            Duration::ZERO => Err("give a duration longer than zero".to_owned()),
            duration => Ok(Self(duration)),
        }
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

/// A duration, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switchable(pub(crate) Option<Duration>);

impl SettingValue for Switchable {
    fn read(input: &Input) -> Result<Self, String> {
        if matches!(input, Input::Text(text) if text.trim() == "off") {
            return Ok(Self(None));
        }
        NonZeroDuration::read(input)
            .map(|duration| Self(Some(duration.0)))
            .map_err(|expected| format!("{expected}, or \"off\""))
    }

    fn show(&self) -> String {
        self.0
            .map_or_else(|| "off".to_owned(), |every| every.show())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read, shown};
    use super::*;

    #[test]
    fn sizes_are_numbers_or_have_a_unit() {
        assert_eq!(read::<Size>("8MiB").unwrap().0.get(), 8 << 20);
        assert_eq!(read::<Size>("8 mib").unwrap().0.get(), 8 << 20);
        assert_eq!(read::<Size>("1kB").unwrap().0.get(), 1000);
        assert_eq!(read::<Size>("17").unwrap().0.get(), 17);
        assert_eq!(Size::read(&Input::Integer(4096)).unwrap().show(), "4KiB");
        assert_eq!(shown::<Size>("1500000"), "1500000");
        for wrong in [
            "",
            "0",
            "-1",
            "8 MiBs",
            "1.5MiB",
            "99999999999999GiB",
            "MiB",
        ] {
            assert!(read::<Size>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for text in ["5s", "15m", "7d", "250ms", "36h"] {
            assert_eq!(shown::<Duration>(text), text);
        }
        assert_eq!(shown::<Duration>("1h 30m"), "90m");
        assert_eq!(shown::<Duration>("24h"), "1d");
        assert_eq!(shown::<Duration>("0s"), "0s");
        assert_eq!(shown::<Duration>("1500us"), "1ms 500us");
        assert!(read::<Duration>("5").unwrap_err().contains("with its unit"));
        assert!(Duration::read(&Input::Integer(5)).is_err());
        assert!(read::<Duration>("200y").unwrap_err().contains("100 years"));
        assert!(
            read::<NonZeroDuration>("0s")
                .unwrap_err()
                .contains("longer than zero")
        );
    }

    #[test]
    fn trimming_can_be_switched_off() {
        assert_eq!(read("off"), Ok(Switchable(None)));
        assert_eq!(shown::<Switchable>("15m"), "15m");
        assert!(read::<Switchable>("0s").unwrap_err().contains("\"off\""));
    }
}
