//! How long Prefect keeps events.

use std::time::Duration;

use event_persister_actors::settings::{LONGEST, Period, text as spelled};
use serde_json::Value;

use super::pydantic;
use super::{Reader, Reading, ours};

pub(super) const PERIOD: [&str; 2] = [
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD",
    "PREFECT_EVENTS_RETENTION_PERIOD",
];
pub(super) const OVERRIDES: &str = "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES";
pub(super) const VACUUM_ENABLED: &str = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED";
const LOOP_SECONDS: &str = "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS";

pub(super) fn read(reader: &mut Reader<'_>) {
    reader.take(
        "trim.retention",
        &PERIOD,
        |value| match pydantic::time_delta(value) {
            None => Err("give a duration such as 7d, P7D or 12:00:00".to_owned()),
            Some(period) if !period.is_positive => Ok(Reading::Unusable(
                "not even events of this moment would be kept; the default counts".to_owned(),
            )),
            Some(period) => duration(period.length),
        },
    );
    reader.take("trim.overrides", &[OVERRIDES], overrides);
    every(reader);
}

fn duration(length: Duration) -> Result<Reading, String> {
    ours(&shown(length))
}

/// As a setting would say it. What is longer than a setting may be means "for ever" as well.
fn shown(length: Duration) -> String {
    spelled::<Period>(&length.min(LONGEST))
}

fn every(reader: &mut Reader<'_>) {
    let setting = "trim.every";
    // Whoever told Prefect to keep its events for ever must not lose them to us.
    if let Some(value) = reader.variables.get(VACUUM_ENABLED) {
        match vacuums_events(value) {
            Ok(true) => {
                reader.see(
                    VACUUM_ENABLED,
                    "it includes events, which are trimmed in any case",
                );
            }
            Ok(false) => {
                reader.take(setting, &[VACUUM_ENABLED], |_| ours("off"));
                reader.see_all(
                    &[LOOP_SECONDS],
                    &format!(
                        "{} does not include events",
                        reader.variables.place(VACUUM_ENABLED)
                    ),
                );
                return;
            }
            Err(expected) => {
                reader.refuse(VACUUM_ENABLED, Some(value), &expected);
                return;
            }
        }
    }
    reader.take(setting, &[LOOP_SECONDS], |value| {
        match pydantic::number(value) {
            Some(seconds) if seconds > 0.0 => {
                let every = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST);
                duration(every.max(Duration::from_millis(1)))
            }
            _ => Err("give a number of seconds above 0".to_owned()),
        }
    });
}

fn vacuums_events(value: &Value) -> Result<bool, String> {
    let known = ["events", "flow_runs", "orphans"];
    let expected = || format!("give some of {}", known.join(", "));
    let kinds: Vec<&str> = match value {
        // Booleans are from before there was a choice, when events were always among it.
        Value::Bool(_) | Value::Number(_) => {
            return pydantic::boolean(value).map(|_| true).ok_or_else(expected);
        }
        Value::String(text) if is_switch(text) => return Ok(true),
        Value::String(text) => {
            let kinds = text.split(',').map(str::trim);
            kinds.filter(|kind| !kind.is_empty()).collect()
        }
        Value::Array(kinds) => {
            let kinds = kinds.iter().map(Value::as_str);
            kinds.collect::<Option<_>>().ok_or_else(expected)?
        }
        _ => return Err(expected()),
    };
    match kinds.iter().find(|kind| !known.contains(kind)) {
        Some(unknown) => Err(format!("{unknown:?} is none of {}", known.join(", "))),
        None => Ok(kinds.contains(&"events")),
    }
}

fn is_switch(text: &str) -> bool {
    let switches = ["true", "1", "false", "0", ""];
    switches.contains(&&*text.trim().to_ascii_lowercase())
}

fn overrides(value: &Value) -> Result<Reading, String> {
    let Value::Object(object) = value else {
        return Err("give a JSON object of seconds by event name".to_owned());
    };
    let pairs = object
        .iter()
        .map(
            |(name, value)| match pydantic::seconds_or_time_delta(value) {
                Some(period) if period.is_positive => {
                    Ok((name.clone(), shown(period.length).into()))
                }
                _ => Err(format!("for {name:?} give a number of seconds above 0")),
            },
        )
        .collect::<Result<Vec<(String, Value)>, String>>()?;
    // A name that is empty is no event's.
    let pairs = pairs.into_iter().filter(|(name, _)| !name.is_empty());
    Ok(Reading::Value(Value::Object(pairs.collect())))
}
