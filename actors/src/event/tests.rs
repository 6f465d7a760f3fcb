//! What a real Prefect accepted, refused and read, and the edges around it.

use std::io::Read;

use bytes::Bytes;
use chrono::SubsecRound;
use serde_json::Value;

use super::*;

mod edges;
mod properties;

/// Deliberately finer than a microsecond.
fn moment() -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(1_795_000_000_123_456_789)
}

fn parse(text: impl Into<ByteString>) -> Result<ReceivedEvent, ParseError> {
    let received = Received::FromText { default: moment() };
    ReceivedEvent::parse(text.into(), &EventLimits::default(), received)
}

fn reason(text: impl Into<ByteString>) -> String {
    parse(text).expect_err("must be refused").reason
}

fn lines_of(file: &str) -> Vec<String> {
    let path = format!("{}/../tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(path).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    // At line feeds alone: one event holds a raw U+2028, which is a line's end to some.
    text.split_terminator('\n').map(str::to_owned).collect()
}

/// What stands on the bus; in base64 where it is no text.
fn data_of(case: &Value) -> Bytes {
    match case["data"].as_str() {
        Some(data) => data.to_owned().into(),
        None => from_base64(case["data_b64"].as_str().unwrap()).into(),
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut num_bits, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.chars().filter(|digit| *digit != '=') {
        bits = bits << 6 | u32::try_from(DIGITS.find(digit).unwrap()).unwrap();
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
            bits &= (1 << num_bits) - 1;
        }
    }
    bytes
}

#[test]
fn accepts_refuses_and_reads_every_case_as_prefect_does() {
    let received = Received::FromText { default: moment() };
    let mut wrong = Vec::new();
    let cases = lines_of("prefect-truth-table.jsonl.gz");
    assert_eq!(cases.len(), 236);
    for line in cases {
        let case: Value = serde_json::from_str(&line).unwrap();
        let prefect = &case["prefect"];
        let parsed = ReceivedEvent::parse_bytes(data_of(&case), &EventLimits::default(), received);
        // Prefect's answer depends on its Python in a few cases; then either is right.
        let verdicts = [&prefect["parse"], &prefect["parse_python313"]];
        let verdict = if parsed.is_ok() {
            "accepted"
        } else {
            "rejected"
        };
        let is_right = verdicts
            .into_iter()
            .filter_map(Value::as_str)
            .any(|expected| {
                expected == verdict || (expected == "not-decodable" && parsed.is_err())
            });
        if !is_right {
            wrong.push(format!("{}: {verdict}: {parsed:?}", case["name"]));
        }
        if let (true, Ok(event)) = (is_right, parsed) {
            wrong.extend(differences(&case["name"], prefect, &event));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where the event differs from what Prefect read and from the rows that it wrote.
fn differences(name: &Value, prefect: &Value, event: &ReceivedEvent) -> Vec<String> {
    let mut pairs = vec![("id", prefect["id"].clone(), event.id.to_string().into())];
    let occurred = DateTime::parse_from_rfc3339(prefect["occurred"].as_str().unwrap());
    pairs.push((
        "occurred",
        occurred.unwrap().to_utc().to_string().into(),
        event.occurred.to_string().into(),
    ));
    // The tests' own JSON reader gives up at 128 levels, long before Prefect.
    let row = prefect["postgres"]["events"].as_str();
    if let Some(row) = row.and_then(|row| serde_json::from_str::<Value>(row).ok()) {
        let follows = event.follows.map(|id| id.to_string());
        let related_ids: Vec<_> = event.related_ids().collect();
        let related: Vec<_> = event.related.iter().map(object_of).collect();
        let received = event.received.format("%FT%T%.6fZ").to_string();
        pairs.extend([
            ("event", row["event"].clone(), event.event.as_str().into()),
            ("follows", row["follows"].clone(), follows.into()),
            (
                "resource",
                row["resource"].clone(),
                object_of(&event.resource),
            ),
            (
                "resource_id",
                row["resource_id"].clone(),
                event.resource.id().into(),
            ),
            ("related", row["related"].clone(), related.into()),
            (
                "related_resource_ids",
                row["related_resource_ids"].clone(),
                related_ids.into(),
            ),
        ]);
        // Where the text had none, the row has the time at which Prefect read it.
        if event.received != moment().trunc_subsecs(6) {
            pairs.push(("received", row["received"].clone(), received.into()));
        }
        if let Ok(payload) = serde_json::from_str::<Value>(event.payload()) {
            pairs.push(("payload", row["payload"].clone(), payload));
        }
    }
    pairs
        .into_iter()
        .filter(|(_, expected, actual)| !is_same(expected, actual))
        .map(|(column, expected, actual)| format!("{name}: {column}: {actual} is not {expected}"))
        .collect()
}

/// Equal but for the way in which a number is written, which is kept here and not by Prefect.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            // The tests' own JSON reader is off by a last digit for long fractions.
            (one - other).abs() <= one.abs() * 1e-15
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|((key, a), (same_key, b))| key == same_key && is_same(a, b))
        }
        _ => one == other,
    }
}

fn object_of(resource: &Resource) -> Value {
    let labels = resource.labels();
    Value::Object(
        labels
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect(),
    )
}

#[test]
fn reads_every_event_of_a_real_server() {
    let lines = lines_of("prefect-events-dev.jsonl.gz");
    assert_eq!(lines.len(), 3_126);
    for (number, line) in (1..).zip(lines) {
        let sent: Value = serde_json::from_str(&line).unwrap();
        let event = parse(line).unwrap_or_else(|error| panic!("line {number}: {error}"));
        assert_eq!(sent["id"], event.id.to_string(), "line {number}");
        assert_eq!(sent["event"], event.event, "line {number}");
        assert_eq!(
            sent["resource"],
            object_of(&event.resource),
            "line {number}"
        );
        let payload: Value = serde_json::from_str(event.payload()).unwrap();
        assert_eq!(sent["payload"], payload, "line {number}");
    }
}
