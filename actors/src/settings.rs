//! How settings are written, in a configuration file or a variable.
//!
//! A setting is a documented field of the settings struct of the part that it steers. The field's
//! name is the key, its documentation the help, its value in `Default` the default, and
//! `#[serde(with = "As::<…>")]` says how it is written. Reference pages, examples and JSON schemas
//! are derived from the struct.
//!
//! Fields keep the types that the code works with, so a host that fills a struct in never sees a
//! spelling. Every [`Spelling`] takes texts, also for numbers, since variables and flags are texts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::Value as Json;

pub trait Spelling {
    type Value;

    /// Reads a value; the error says what would be right.
    fn read(given: &Json) -> Result<Self::Value, String>;

    /// The value as a person would have written it; secrets come out masked.
    fn write(value: &Self::Value) -> Json;

    /// What may be written; a text, where nothing else is said.
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

pub fn text<S: Spelling>(value: &S::Value) -> String {
    plain(&S::write(value))
}

pub fn plain(written: &Json) -> String {
    match written {
        Json::String(text) => text.clone(),
        Json::Object(pairs) if !pairs.is_empty() => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(name, value)| format!("{name}={}", plain(value)))
                .collect();
            pairs.join(",")
        }
        other => other.to_string(),
    }
}

/// Reads and writes a field by a spelling, for serde's derived code: `#[serde(with = "As::<Period>")]`.
pub struct As<S>(PhantomData<S>);

impl<S: Spelling> As<S> {
    pub fn serialize<Ser: Serializer>(
        value: &S::Value,
        serializer: Ser,
    ) -> Result<Ser::Ok, Ser::Error> {
        S::write(value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<S::Value, D::Error> {
        S::read(&Json::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<S: Spelling> JsonSchema for As<S> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Spelling".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        S::schema()
    }
}

/// Why a URL cannot be used. Holds no part of it that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl From<&str> for InvalidUrl {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}

impl From<String> for InvalidUrl {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl<S: Spelling> Spelling for Option<S> {
    type Value = Option<S::Value>;

    fn read(given: &Json) -> Result<Self::Value, String> {
        S::read(given).map(Some)
    }

    fn write(value: &Self::Value) -> Json {
        value.as_ref().map_or(Json::Null, S::write)
    }

    fn schema() -> Schema {
        S::schema()
    }
}

/// A whole number of at least 1.
pub struct Count<T = NonZeroUsize>(PhantomData<T>);

impl<T: Serialize + DeserializeOwned> Spelling for Count<T> {
    type Value = T;

    fn read(given: &Json) -> Result<T, String> {
        let number: Option<NonZeroU64> = match given {
            Json::String(text) => text.trim().parse().ok(),
            number => number.as_u64().and_then(NonZeroU64::new),
        };
        number
            .and_then(|number| serde_json::from_value(number.get().into()).ok())
            .ok_or_else(|| "give a whole number of at least 1".to_owned())
    }

    fn write(value: &T) -> Json {
        serde_json::to_value(value).unwrap_or_default()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": 1 })
    }
}

pub struct AtMost<const MAX: usize>;

impl<const MAX: usize> Spelling for AtMost<MAX> {
    type Value = NonZeroUsize;

    fn read(given: &Json) -> Result<NonZeroUsize, String> {
        Count::<NonZeroUsize>::read(given)
            .ok()
            .filter(|count| count.get() <= MAX)
            .ok_or_else(|| format!("give a whole number of at least 1 and at most {MAX}"))
    }

    fn write(value: &NonZeroUsize) -> Json {
        Count::<NonZeroUsize>::write(value)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": MAX })
    }
}

/// A number of bytes, such as `8MiB`; never zero, since nothing moves where there is room for nothing.
pub struct Size;

impl Size {
    /// From the largest to the smallest; a size is shown in the first that divides it.
    const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    const DECIMAL_UNITS: [(&str, usize); 4] = [
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
        ("B", 1),
    ];

    fn parse(text: &str) -> Option<NonZeroUsize> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let factor = if unit.is_empty() {
            1
        } else {
            Self::UNITS
                .iter()
                .chain(&Self::DECIMAL_UNITS)
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
                .1
        };
        let number: usize = digits.trim_end().parse().ok()?;
        NonZeroUsize::new(number.checked_mul(factor)?)
    }
}

impl Spelling for Size {
    type Value = NonZeroUsize;

    fn read(given: &Json) -> Result<NonZeroUsize, String> {
        match given {
            Json::String(text) => Self::parse(text),
            number => Count::read(number).ok(),
        }
        .ok_or_else(|| {
            "give a number of bytes of at least 1, such as 8388608 or \"8MiB\"".to_owned()
        })
    }

    fn write(value: &NonZeroUsize) -> Json {
        let bytes = value.get();
        Self::UNITS
            .iter()
            .find(|(_, factor)| bytes.is_multiple_of(*factor))
            .map_or_else(
                || bytes.into(),
                |(unit, factor)| format!("{}{unit}", bytes / factor).into(),
            )
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "integer"], "minimum": 1 })
    }
}

/// Longer than anybody means, and short enough to be added to any date or timer.
pub const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A duration with its unit, such as `5s`; zero is allowed.
pub struct Period;

impl Spelling for Period {
    type Value = Duration;

    fn read(given: &Json) -> Result<Duration, String> {
        let duration = given
            .as_str()
            .and_then(|text| humantime::parse_duration(text.trim()).ok())
            .ok_or("give a duration with its unit, such as \"5s\", \"15m\" or \"7d\"")?;
        if duration > LONGEST {
            return Err("give a duration of at most 100 years".to_owned());
        }
        Ok(duration)
    }

    /// In the largest unit that divides it.
    fn write(value: &Duration) -> Json {
        const UNITS: [(&str, u128); 5] = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ];
        let millis = value.as_millis();
        if value.is_zero() {
            return "0s".into();
        }
        if !value.subsec_nanos().is_multiple_of(1_000_000) {
            return humantime::format_duration(*value).to_string().into();
        }
        let unit = UNITS
            .iter()
            .find(|(_, factor)| millis.is_multiple_of(*factor));
        let (unit, factor) = unit.copied().unwrap_or(("ms", 1));
        format!("{}{unit}", millis / factor).into()
    }
}

/// A duration that zero would make senseless or destructive.
pub struct LongerThanZero;

impl Spelling for LongerThanZero {
    type Value = Duration;

    fn read(given: &Json) -> Result<Duration, String> {
        match Period::read(given)? {
            Duration::ZERO => Err("give a duration longer than zero".to_owned()),
            duration => Ok(duration),
        }
    }

    fn write(value: &Duration) -> Json {
        Period::write(value)
    }
}

/// How often something happens, or `off`.
pub struct Interval;

impl Spelling for Interval {
    type Value = Option<Duration>;

    fn read(given: &Json) -> Result<Option<Duration>, String> {
        if given.as_str().is_some_and(|text| text.trim() == "off") {
            return Ok(None);
        }
        LongerThanZero::read(given)
            .map(Some)
            .map_err(|expected| format!("{expected}, or \"off\""))
    }

    fn write(value: &Option<Duration>) -> Json {
        value.as_ref().map_or_else(|| "off".into(), Period::write)
    }
}

/// `on` or `off`; `true` and `false` will do.
pub struct Toggle;

impl Spelling for Toggle {
    type Value = bool;

    fn read(given: &Json) -> Result<bool, String> {
        match plain(given).trim() {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err("give on or off".to_owned()),
        }
    }

    fn write(value: &bool) -> Json {
        if *value { "on" } else { "off" }.into()
    }

    fn schema() -> Schema {
        json_schema!({ "enum": ["on", "off", true, false] })
    }
}

pub trait Named: Copy + PartialEq + 'static {
    const ALL: &'static [(&'static str, Self)];
}

pub struct OneOf<T>(PhantomData<T>);

impl<T: Named> Spelling for OneOf<T> {
    type Value = T;

    fn read(given: &Json) -> Result<T, String> {
        let name = given.as_str().unwrap_or_default().trim();
        let named = T::ALL.iter().find(|(known, _)| *known == name);
        named.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = T::ALL.iter().map(|(name, _)| *name).collect();
            match names.split_last() {
                Some((last, others)) => format!("give {} or {last}", others.join(", ")),
                None => "nothing can be given".to_owned(),
            }
        })
    }

    fn write(value: &T) -> Json {
        let named = T::ALL.iter().find(|(_, known)| known == value);
        named.map_or(Json::Null, |(name, _)| (*name).into())
    }

    fn schema() -> Schema {
        let names: Vec<&str> = T::ALL.iter().map(|(name, _)| *name).collect();
        json_schema!({ "enum": names })
    }
}

pub struct Text;

impl Spelling for Text {
    type Value = String;

    fn read(given: &Json) -> Result<String, String> {
        given
            .as_str()
            .map(str::trim)
            .filter(|text| !text.is_empty() && !text.contains('\0'))
            .map(str::to_owned)
            .ok_or_else(|| "give a text that is not empty".to_owned())
    }

    fn write(value: &String) -> Json {
        value.clone().into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

pub struct File;

impl Spelling for File {
    type Value = PathBuf;

    fn read(given: &Json) -> Result<PathBuf, String> {
        Text::read(given)
            .map(PathBuf::from)
            .map_err(|_| "give the path of a file".to_owned())
    }

    fn write(value: &PathBuf) -> Json {
        value.display().to_string().into()
    }

    fn schema() -> Schema {
        Text::schema()
    }
}

/// Durations by the name of an event: a table, JSON, or `name=30d,other=1h`.
pub struct ByEvent;

impl ByEvent {
    fn from_list(text: &str) -> Result<BTreeMap<String, Duration>, String> {
        let mut durations = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            // An event's name may hold `=`, a duration never does.
            let (name, duration) = pair.rsplit_once('=').ok_or_else(Self::expected)?;
            Self::add(&mut durations, name.trim(), &duration.into())?;
        }
        Ok(durations)
    }

    /// A name with dots that was not quoted comes as tables in tables.
    fn flatten(
        prefix: &str,
        pairs: &serde_json::Map<String, Json>,
        into: &mut BTreeMap<String, Duration>,
    ) -> Result<(), String> {
        for (key, given) in pairs {
            let name = format!("{prefix}{key}");
            match given {
                Json::Object(nested) => Self::flatten(&format!("{name}."), nested, into)?,
                given => Self::add(into, &name, given)?,
            }
        }
        Ok(())
    }

    fn add(
        durations: &mut BTreeMap<String, Duration>,
        name: &str,
        given: &Json,
    ) -> Result<(), String> {
        if name.is_empty() {
            let expected = Self::expected();
            return Err(format!("an event's name is missing; {expected}"));
        }
        let duration = LongerThanZero::read(given)
            .map_err(|expected| format!("for {name:?} {expected}, not {given}"))?;
        match durations.insert(name.to_owned(), duration) {
            None => Ok(()),
            Some(_) => Err(format!("{name:?} stands there twice; keep one")),
        }
    }

    fn expected() -> String {
        "give durations by event name: in the file [trim.overrides] \"my.event\" = \"30d\", in a \
         variable my.event=30d,other.event=1h or {\"my.event\": \"30d\"}"
            .to_owned()
    }
}

impl Spelling for ByEvent {
    type Value = BTreeMap<String, Duration>;

    fn read(given: &Json) -> Result<Self::Value, String> {
        let pairs = match given {
            Json::Object(pairs) => Cow::Borrowed(pairs),
            Json::String(text) if text.trim_start().starts_with('{') => {
                Cow::Owned(serde_json::from_str(text).map_err(|error| {
                    let expected = Self::expected();
                    format!("this is not a JSON object ({error}); {expected}")
                })?)
            }
            Json::String(text) => return Self::from_list(text),
            _ => return Err(Self::expected()),
        };
        let mut durations = BTreeMap::new();
        Self::flatten("", &pairs, &mut durations)?;
        Ok(durations)
    }

    fn write(value: &Self::Value) -> Json {
        let pairs = value.iter();
        pairs
            .map(|(name, duration)| (name.clone(), Period::write(duration)))
            .collect()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["object", "string"], "additionalProperties": { "type": "string" } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<S: Spelling>(text: &str) -> Result<S::Value, String> {
        S::read(&text.into())
    }

    fn shown<S: Spelling>(given: &str) -> String {
        read::<S>(given).map_or_else(|error| format!("ERROR {error}"), |value| text::<S>(&value))
    }

    #[test]
    fn counts_begin_at_one() {
        assert_eq!(Count::read(&7.into()), Ok(7_usize));
        assert_eq!(shown::<Count>(" 7 "), "7");
        for wrong in ["0", "-1", "1.5", ""] {
            assert!(read::<Count>(wrong).is_err(), "{wrong}");
        }
        assert!(Count::<NonZeroUsize>::read(&Json::from(-1)).is_err());
        assert_eq!(shown::<AtMost<64>>("64"), "64");
        assert!(read::<AtMost<64>>("65").unwrap_err().ends_with("most 64"));
    }

    #[test]
    fn sizes_are_numbers_or_have_a_unit() {
        let bytes = |text| read::<Size>(text).unwrap().get();
        assert_eq!(bytes("8MiB"), 8 << 20);
        assert_eq!(bytes("8 mib"), 8 << 20);
        assert_eq!(bytes("1kB"), 1000);
        assert_eq!(bytes("17"), 17);
        assert_eq!(Size::write(&Size::read(&4096.into()).unwrap()), "4KiB");
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
            assert_eq!(shown::<Period>(text), text);
        }
        assert_eq!(shown::<Period>("1h 30m"), "90m");
        assert_eq!(shown::<Period>("24h"), "1d");
        assert_eq!(shown::<Period>("0s"), "0s");
        assert_eq!(shown::<Period>("1500us"), "1ms 500us");
        assert!(read::<Period>("5").unwrap_err().contains("with its unit"));
        assert!(Period::read(&5.into()).is_err());
        assert!(read::<Period>("200y").unwrap_err().contains("100 years"));
        let zero = read::<LongerThanZero>("0s").unwrap_err();
        assert!(zero.contains("longer than zero"), "{zero}");
    }

    #[test]
    fn an_interval_can_be_switched_off() {
        assert_eq!(read::<Interval>("off"), Ok(None));
        assert_eq!(shown::<Interval>("15m"), "15m");
        assert!(read::<Interval>("0s").unwrap_err().contains("\"off\""));
    }

    #[test]
    fn a_switch_is_on_or_off_also_as_a_boolean() {
        assert_eq!(read::<Toggle>("on"), Ok(true));
        assert_eq!(shown::<Toggle>("false"), "off");
        assert_eq!(Toggle::read(&true.into()), Ok(true));
        assert!(read::<Toggle>("1").is_err());
        assert!(Toggle::read(&1.into()).is_err());
    }

    #[test]
    fn texts_and_paths_are_not_empty() {
        assert_eq!(read::<Text>(" events "), Ok("events".to_owned()));
        assert!(read::<Text>(" ").is_err());
        assert!(read::<Text>("a\0b").is_err());
        assert!(read::<File>("").unwrap_err().contains("path"));
        assert_eq!(Option::<File>::write(&None), Json::Null);
    }

    #[test]
    fn durations_by_event_are_read_in_three_forms() {
        let expected = read::<ByEvent>("a.b=7d, c=1h").unwrap();
        let json = r#"{"a.b": "7d", "c": "1h"}"#;
        assert_eq!(read::<ByEvent>(json), Ok(expected.clone()));
        let nested = serde_json::json!({ "a": { "b": "7d" }, "c": "1h" });
        assert_eq!(ByEvent::read(&nested), Ok(expected.clone()));
        assert_eq!(text::<ByEvent>(&expected), "a.b=7d,c=1h");
        assert_eq!(shown::<ByEvent>("{}"), "{}");
        let with_sign = read::<ByEvent>("x=y=1d").unwrap();
        assert_eq!(with_sign.keys().collect::<Vec<_>>(), ["x=y"]);
        for (wrong, expected) in [
            ("a", "by event name"),
            ("=1d", "missing"),
            ("a=1d,a=2d", "twice"),
            (r#"{"a": 604800}"#, "604800"),
        ] {
            let error = read::<ByEvent>(wrong).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
