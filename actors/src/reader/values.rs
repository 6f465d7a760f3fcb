//! The values of a request, read as leniently as Prefect reads them: a number may be a text, a truth a number.

use chrono::{DateTime, Utc};
use serde_json::{Map, Number, Value};
use uuid::Uuid;

use super::problems::{Loc, Problems};
use crate::event;

pub(super) type Object = Map<String, Value>;

pub(super) fn object<'v>(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &'v Value,
) -> Option<&'v Object> {
    let object = value.as_object();
    if object.is_none() {
        problems.add(at, "model_attributes_type", "give an object");
    }
    object
}

/// Names the members that do not belong there.
pub(super) fn no_others(problems: &mut Problems, at: &Loc<'_>, object: &Object, known: &[&str]) {
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        let msg = format!("there is no such key; the keys are {}", known.join(", "));
        problems.add(&at.key(key), "extra_forbidden", msg);
    }
}

/// A member that may be absent or null.
pub(super) fn given<'v>(object: &'v Object, key: &str) -> Option<&'v Value> {
    object.get(key).filter(|value| !value.is_null())
}

pub(super) fn list<'v>(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &'v Value,
) -> Option<&'v [Value]> {
    let list = value.as_array().map(Vec::as_slice);
    if list.is_none() {
        problems.add(at, "list_type", "give a list");
    }
    list
}

pub(super) fn text<'v>(problems: &mut Problems, at: &Loc<'_>, value: &'v Value) -> Option<&'v str> {
    let text = value.as_str();
    if text.is_none() {
        problems.add(at, "string_type", "give a text");
    }
    text
}

pub(super) fn texts(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<Vec<String>> {
    let list = list(problems, at, value)?;
    let mut texts = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        texts.extend(text(problems, &at.index(index), value).map(str::to_owned));
    }
    Some(texts)
}

pub(super) fn uuid(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<Uuid> {
    let Some(text) = value.as_str() else {
        problems.add(at, "uuid_type", "give the text of a UUID");
        return None;
    };
    let uuid = event::uuid_from_text(text);
    if uuid.is_none() {
        problems.add(at, "uuid_parsing", "give a UUID");
    }
    uuid
}

pub(super) fn moment(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &Value,
) -> Option<DateTime<Utc>> {
    let read = match value {
        Value::String(text) => event::datetime_from_text(text),
        Value::Number(number) => event::datetime_from_number(number),
        _ => Err("give a datetime, such as 2026-01-02T03:04:05Z".to_owned()),
    };
    match read {
        Ok(moment) => Some(moment),
        Err(msg) => {
            problems.add(at, "value_error", msg);
            None
        }
    }
}

pub(super) fn truth(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<bool> {
    const YES: [&str; 6] = ["1", "on", "t", "true", "y", "yes"];
    const NO: [&str; 6] = ["0", "off", "f", "false", "n", "no"];
    let (kind, truth) = match value {
        Value::Bool(truth) => ("", Some(*truth)),
        Value::Number(number) if is_small_and_whole(number) => ("bool_parsing", {
            let number = number.as_f64();
            (number == Some(1.0))
                .then_some(true)
                .or((number == Some(0.0)).then_some(false))
        }),
        Value::String(text) => ("bool_parsing", {
            let text = text.to_ascii_lowercase();
            let is_in = |names: [&str; 6]| names.contains(&text.as_str());
            is_in(YES).then_some(true).or(is_in(NO).then_some(false))
        }),
        _ => ("bool_type", None),
    };
    if truth.is_none() {
        problems.add(at, kind, "give true or false");
    }
    truth
}

/// Whether pydantic takes it for an integer of 64 bits.
fn is_small_and_whole(number: &Number) -> bool {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let is_whole = |number: f64| number.fract() == 0.0 && number.abs() < BEYOND;
    number.as_i64().is_some() || number.as_f64().is_some_and(is_whole)
}

/// A whole number within bounds.
pub(super) fn whole(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &Value,
    bounds: std::ops::RangeInclusive<i64>,
) -> Option<i64> {
    let msg = || {
        format!(
            "give a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        )
    };
    let read = match value {
        Value::Bool(truth) => Ok(i64::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(whole),
            // Larger than any bound, whatever it is.
            (None, _) if number.is_u64() => Ok(i64::MAX),
            (None, Some(float)) if float.fract() != 0.0 => Err("int_from_float"),
            (None, Some(float)) if float.abs() < 9e18 => Ok(float as i64),
            _ => Err("int_parsing_size"),
        },
        Value::String(text) => whole_of_text(text).ok_or("int_parsing"),
        _ => Err("int_type"),
    };
    let problem = match read {
        Ok(number) if number < *bounds.start() => "greater_than_equal",
        Ok(number) if number > *bounds.end() => "less_than_equal",
        Ok(number) => return Some(number),
        Err(kind) => kind,
    };
    problems.add(at, problem, msg());
    None
}

/// Digits with a sign, perhaps with a fraction of nothing.
fn whole_of_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let (digits, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_nothing = !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0');
    is_nothing.then(|| digits.parse().ok())?
}

/// A number that is not smaller than the bound.
pub(super) fn float(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &Value,
    at_least: f64,
) -> Option<f64> {
    let read = match value {
        Value::Bool(truth) => Ok(f64::from(u8::from(*truth))),
        Value::Number(number) => number.as_f64().ok_or("float_parsing"),
        Value::String(text) => text.trim().parse().map_err(|_| "float_parsing"),
        _ => Err("float_type"),
    };
    let problem = match read {
        Ok(number) if number >= at_least && f64::is_finite(number) => return Some(number),
        Ok(number) if number < at_least => "greater_than_equal",
        Ok(_) => "finite_number",
        Err(kind) => kind,
    };
    problems.add(at, problem, format!("give a number, at least {at_least}"));
    None
}
