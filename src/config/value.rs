//! How a setting's text becomes a typed value, and how it is shown again.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::database_url::mask_url;

/// A value as a layer gives it. Variables and flags are always text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    Text(String),
    Integer(i128),
    Table(Vec<(String, Input)>),
    /// Anything else that TOML knows; here only to be shown in an error.
    Other(String),
}

impl Input {
    /// As it would be quoted to the person who wrote it.
    pub(crate) fn quote(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", mask_url(text)),
            Self::Integer(number) => number.to_string(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(text) => text.clone(),
        }
    }
}

/// A type that settings have.
pub(crate) trait SettingValue: Sized {
    /// Reads a value; the error says what would be right.
    fn read(input: &Input) -> Result<Self, String>;

    /// The value for people; secrets come masked.
    fn show(&self) -> String;
}

/// A text that is not to be seen.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself, for the one who compares it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SettingValue for Secret {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) if !text.is_empty() => Ok(Self(text.clone())),
            _ => Err("give a text that is not empty".to_owned()),
        }
    }

    fn show(&self) -> String {
        "***".to_owned()
    }
}

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
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

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

/// Durations by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overrides(pub(crate) BTreeMap<String, Duration>);

impl Overrides {
    fn from_pairs(pairs: &[(String, Input)]) -> Result<Self, String> {
        let mut overrides = BTreeMap::new();
        flatten("", pairs, &mut overrides)?;
        Ok(Self(overrides))
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| format!("this is not a JSON object ({error}); {}", expected()))?;
        let pairs: Vec<(String, Input)> = object
            .into_iter()
            .map(|(name, value)| {
                let input = match value {
                    serde_json::Value::String(text) => Input::Text(text),
                    other => Input::Other(other.to_string()),
                };
                (name, input)
            })
            .collect();
        Self::from_pairs(&pairs)
    }

    fn from_list(text: &str) -> Result<Self, String> {
        let pairs = text
            .split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| {
                // An event's name may hold `=`, a duration never does.
                let (name, duration) = pair.rsplit_once('=').ok_or_else(expected)?;
                Ok((name.trim().to_owned(), Input::Text(duration.to_owned())))
            })
            .collect::<Result<Vec<_>, String>>()?;
        Self::from_pairs(&pairs)
    }
}

/// A name with dots that was not quoted reaches us as tables in tables; what is meant is plain.
fn flatten(
    prefix: &str,
    pairs: &[(String, Input)],
    into: &mut BTreeMap<String, Duration>,
) -> Result<(), String> {
    for (key, input) in pairs {
        let name = format!("{prefix}{key}");
        if let Input::Table(nested) = input {
            flatten(&format!("{name}."), nested, into)?;
            continue;
        }
        if name.is_empty() {
            return Err(format!("an event's name is missing; {}", expected()));
        }
        let duration = NonZeroDuration::read(input)
            .map_err(|expected| format!("for {name:?} {expected}, not {}", input.quote()))?;
        if into.insert(name.clone(), duration.0).is_some() {
            return Err(format!("{name:?} stands there twice; keep one"));
        }
    }
    Ok(())
}

fn expected() -> String {
    "give durations by event name: in the file [trim.overrides] \"my.event\" = \"30d\", in a \
     variable my.event=30d,other.event=1h or {\"my.event\": \"30d\"}"
        .to_owned()
}

impl SettingValue for Overrides {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Table(pairs) => Self::from_pairs(pairs),
            Input::Text(text) if text.trim_start().starts_with('{') => Self::from_json(text),
            Input::Text(text) => Self::from_list(text),
            Input::Integer(_) | Input::Other(_) => Err(expected()),
        }
    }

    fn show(&self) -> String {
        if self.0.is_empty() {
            return "{}".to_owned();
        }
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(name, duration)| format!("{name}={}", duration.show()))
            .collect();
        pairs.join(",")
    }
}

/// Where the listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    Off,
    /// At this host and port; port 0 takes any that is free.
    At(String),
}

impl SettingValue for Listen {
    fn read(input: &Input) -> Result<Self, String> {
        const EXPECTED: &str =
            "give an address and a port, such as 127.0.0.1:4280, [::1]:4280 or 0.0.0.0:80, or off";
        let Input::Text(text) = input else {
            return Err(EXPECTED.to_owned());
        };
        let text = text.trim();
        if text == "off" {
            return Ok(Self::Off);
        }
        let valid = match text.parse::<std::net::SocketAddr>() {
            Ok(_) => true,
            // A name, to be looked up when the listener starts.
            Err(_) => text.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
                    && port.parse::<u16>().is_ok()
            }),
        };
        if valid {
            Ok(Self::At(text.to_owned()))
        } else {
            Err(EXPECTED.to_owned())
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::At(address) => address.clone(),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

impl SettingValue for LogFormat {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) if text.trim() == "text" => Ok(Self::Text),
            Input::Text(text) if text.trim() == "json" => Ok(Self::Json),
            _ => Err("give text or json".to_owned()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
        .to_owned()
    }
}

/// Which log lines are written: a level, or `target=level` parts separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFilter(pub(crate) String);

impl SettingValue for LogFilter {
    fn read(input: &Input) -> Result<Self, String> {
        let expected = || {
            "give off, error, warn, info, debug or trace, or several such as \
             info,event_persister_actors=debug"
                .to_owned()
        };
        let Input::Text(text) = input else {
            return Err(expected());
        };
        // The logger itself would take an unknown word for a module and fall silent.
        let level = |text: &str| text.trim().parse::<log::LevelFilter>().is_ok();
        let valid = text.split(',').all(|part| match part.split_once('=') {
            Some((target, name)) => !target.trim().is_empty() && level(name),
            None => level(part),
        });
        if valid {
            Ok(Self(text.clone()))
        } else {
            Err(expected())
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// The address of a bus that this build cannot read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl;

impl SettingValue for RedisUrl {
    fn read(_: &Input) -> Result<Self, String> {
        Err(
            "reading from Redis is not built in yet; remove this setting, and send events by \
             HTTP, WebSocket or `event-persister import`"
                .to_owned(),
        )
    }

    fn show(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: SettingValue>(text: &str) -> Result<T, String> {
        T::read(&Input::Text(text.to_owned()))
    }

    fn shown<T: SettingValue>(text: &str) -> String {
        read::<T>(text).map_or_else(|error| format!("ERROR {error}"), |value| value.show())
    }

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

    #[test]
    fn overrides_are_read_in_three_forms() {
        let expected: Overrides = read("a.b=7d, c=1h").unwrap();
        assert_eq!(read(r#"{"a.b": "7d", "c": "1h"}"#), Ok(expected.clone()));
        let nested = Input::Table(vec![
            (
                "a".to_owned(),
                Input::Table(vec![("b".to_owned(), Input::Text("7d".to_owned()))]),
            ),
            ("c".to_owned(), Input::Text("1h".to_owned())),
        ]);
        assert_eq!(Overrides::read(&nested), Ok(expected.clone()));
        assert_eq!(expected.show(), "a.b=7d,c=1h");
        assert_eq!(read::<Overrides>("{}").unwrap().show(), "{}");
        assert_eq!(
            read::<Overrides>("x=y=1d")
                .unwrap()
                .0
                .keys()
                .collect::<Vec<_>>(),
            ["x=y"],
        );
        assert!(
            read::<Overrides>("a")
                .unwrap_err()
                .contains("by event name")
        );
        assert!(read::<Overrides>("=1d").unwrap_err().contains("missing"));
        assert!(
            read::<Overrides>("a=1d,a=2d")
                .unwrap_err()
                .contains("twice")
        );
        let number = read::<Overrides>(r#"{"a": 604800}"#).unwrap_err();
        assert!(
            number.contains("\"a\"") && number.contains("604800"),
            "{number}"
        );
    }

    #[test]
    fn the_listener_needs_a_host_and_a_port() {
        for text in [
            "127.0.0.1:4280",
            "[::1]:0",
            "0.0.0.0:80",
            "localhost:4280",
            "off",
        ] {
            assert_eq!(shown::<Listen>(text), text);
        }
        for text in [
            "4280",
            ":4280",
            "127.0.0.1",
            "::1:4280",
            "host:99999",
            "a b:1",
            "OFF",
        ] {
            assert!(read::<Listen>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_module() {
        for text in ["info", "WARN", "warn,actix_web=debug", "off"] {
            assert_eq!(shown::<LogFilter>(text), text);
        }
        for text in ["", "inof", "info,debgu", "a=b", "=info"] {
            assert!(read::<LogFilter>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = read("user:password").unwrap();
        assert_eq!(secret.reveal(), "user:password");
        assert_eq!(secret.show(), "***");
        assert_eq!(format!("{secret:?}"), "***");
    }
}
