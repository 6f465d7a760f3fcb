//! What is stored, Prefect can read: against what a real Prefect made of numbers, times and texts that are hostile
//! to readers. `tests/readable/` has recorded it, and asks Prefect about any number of others.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::support::binary::{Folder, data};
use super::support::database::{EVENT_COLUMNS, Row};

/// A message, and what Prefect did with it.
#[derive(Deserialize)]
struct Case {
    name: String,
    data: String,
    prefect: Answers,
}

#[derive(Deserialize)]
struct Answers {
    /// `accepted`, or what is wrong.
    parse: String,
    id: Option<String>,
    #[cfg(feature = "service-tests")]
    postgres: Option<Answer>,
    sqlite: Option<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    /// `stored`, or why the database did not take it.
    write: String,
    /// `ok`, or why Prefect could not read its own row.
    read: Option<String>,
    payload: Option<String>,
    occurred: Option<String>,
    received: Option<String>,
}

/// What became of an event here.
#[derive(Debug)]
enum Found {
    Stored {
        payload: String,
        occurred: String,
        received: String,
    },
    /// With the stage that refused it.
    Refused(String),
}

impl Case {
    fn all() -> Vec<Self> {
        let table = data("prefect-readable.jsonl.gz");
        let lines = table.split(|byte| *byte == b'\n');
        let cases: Vec<Self> = lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert!(cases.len() > 200);
        cases
    }

    /// Whether the number that the case is about is an integer, whose digits nobody changes.
    fn is_of_integer(&self) -> bool {
        let number = self
            .data
            .split_once("\"payload\":{\"n\":")
            .map(|(_, rest)| rest);
        let number = number.and_then(|rest| rest.split_once('}'));
        number.is_some_and(|(number, _)| {
            number
                .bytes()
                .all(|byte| matches!(byte, b'-' | b'0'..=b'9'))
        })
    }

    /// What is wrong about what became of it here.
    fn difference(&self, answer: Option<&Answer>, found: Option<&Found>) -> Option<String> {
        let is_right = match (answer, found) {
            (None, Some(Found::Refused(stage))) => {
                self.prefect.parse != "accepted" && stage == "parse"
            }
            (Some(answer), Some(Found::Refused(stage))) => {
                stage == "store" && (answer.write != "stored" || self.is_too_long(answer))
            }
            (Some(answer), Some(found)) if answer.read.as_deref() == Some("ok") => {
                self.is_same(answer, found)
            }
            // What Prefect stores and cannot read is stored as it is.
            (
                Some(answer),
                Some(Found::Stored {
                    occurred, received, ..
                }),
            ) => {
                answer.write == "stored"
                    && !self.is_too_long(answer)
                    && [occurred, received].iter().any(|time| {
                        self.data
                            .contains(time.replace(' ', "T").trim_end_matches("+00"))
                    })
            }
            _ => false,
        };
        let prefect = answer.map(|answer| (&answer.write, &answer.read, &answer.payload));
        (!is_right).then(|| format!("{}: {found:.300?}, not {prefect:.300?}", self.name))
    }

    /// Whether Prefect's own search for a text failed on the row.
    fn is_too_long(&self, answer: &Answer) -> bool {
        let read = answer.read.as_deref().unwrap_or_default();
        read.contains("invalid memory alloc request size")
    }

    fn is_same(&self, answer: &Answer, found: &Found) -> bool {
        let Found::Stored {
            payload,
            occurred,
            received,
        } = found
        else {
            return false;
        };
        let theirs = answer.payload.as_deref().unwrap();
        let has_same_payload = if self.is_of_integer() {
            payload == theirs
        } else {
            is_same_but_for_digits(payload, theirs)
        };
        has_same_payload
            && Some(occurred) == answer.occurred.as_ref()
            && Some(received) == answer.received.as_ref()
    }
}

/// Whether two texts are the same JSON with the same doubles: those that Prefect rounds are exact here.
fn is_same_but_for_digits(ours: &str, theirs: &str) -> bool {
    let [ours, theirs] = [ours, theirs].map(split_numbers);
    ours.len() == theirs.len()
        && ours.iter().zip(&theirs).all(|(ours, theirs)| {
            let doubles = [ours, theirs].map(|text| text.parse::<f64>());
            match doubles {
                [Ok(one), Ok(other)] => one.is_finite() && one == other || ours == theirs,
                _ => ours == theirs,
            }
        })
}

/// The numbers outside of strings, and what stands between them.
fn split_numbers(json: &str) -> Vec<&str> {
    let (mut parts, mut start, mut is_in_string, mut is_escaped) = (Vec::new(), 0, false, false);
    let mut was_number = false;
    for (place, byte) in json.bytes().enumerate() {
        let is_number = !is_in_string && matches!(byte, b'0'..=b'9' | b'-' | b'.')
            || was_number && matches!(byte, b'e' | b'E' | b'+');
        if is_number != was_number {
            parts.push(&json[start..place]);
            (start, was_number) = (place, is_number);
        }
        is_in_string ^= byte == b'"' && !is_escaped;
        is_escaped = is_in_string && byte == b'\\' && !is_escaped;
    }
    parts.push(&json[start..]);
    parts
}

/// Compares what became of all cases.
fn compare<'c>(
    cases: &'c [Case],
    answer: impl Fn(&'c Case) -> Option<&'c Answer>,
    found: &BTreeMap<usize, Found>,
) {
    let differences: Vec<_> = (0..)
        .zip(cases)
        .filter_map(|(number, case)| case.difference(answer(case), found.get(&number)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_number_time_and_text_stands_in_sqlite_as_prefect_reads_it() {
    let folder = Folder::new();
    let cases = Case::all();
    let lines: Vec<&str> = cases.iter().map(|case| case.data.as_str()).collect();
    folder.write("cases.jsonl", lines.join("\n"));
    folder.run(&["import", "cases.jsonl"]).exits(1);

    let database = folder.database();
    let text = |row: &Row, column: &str| row[column].1.clone().unwrap();
    let mut found = BTreeMap::new();
    for row in database.rows("events", &EVENT_COLUMNS) {
        let is_of = |case: &Case| case.prefect.id.as_deref() == Some(&text(&row, "id"));
        let number = cases.iter().position(is_of).unwrap();
        let [payload, occurred, received] =
            ["payload", "occurred", "received"].map(|column| text(&row, column));
        found.insert(
            number,
            Found::Stored {
                payload,
                occurred,
                received,
            },
        );
    }
    for row in database.rows("event_persister_dead_letters", &["position", "stage"]) {
        let position = text(&row, "position");
        let (_, line) = position.rsplit_once(':').unwrap();
        let number: usize = line.parse().unwrap();
        found.insert(number - 1, Found::Refused(text(&row, "stage")));
    }
    compare(&cases, |case| case.prefect.sqlite.as_ref(), &found);
}

#[cfg(feature = "service-tests")]
mod postgres {
    use std::sync::Arc;

    use bytes::Bytes;
    use event_persister_actors::clock::SystemClock;
    use event_persister_actors::delivery::{Batch, BatchId, Entry, Position};
    use event_persister_actors::event::{EventLimits, Received, holds_unreadable_number};
    use event_persister_actors::store::EventStore as _;
    use event_persister_actors::store::operator::StoreOperator as _;
    use event_persister_actors::store::postgres::PostgresStore;

    use super::*;
    use crate::support::postgres::Server;

    #[actix::test]
    async fn every_number_time_and_text_stands_in_postgresql_as_prefect_reads_it() {
        let database = Server::shared().database();
        let store = PostgresStore::new(database.settings(), Arc::new(SystemClock));
        store.migrate().await.unwrap();
        let cases = Case::all();
        let received = Received::FromText {
            default: "2024-01-01T00:00:00Z".parse().unwrap(),
        };
        let entries = cases.iter().enumerate().map(|(number, case)| {
            Arc::new(Entry::parse(
                "test".into(),
                Position::new(number.to_string()),
                Bytes::from(case.data.clone()),
                &EventLimits::default(),
                received,
            ))
        });
        let batch = Batch::new(BatchId(0), entries.collect());
        store.write(Arc::new(batch)).await.unwrap();

        let mut found = BTreeMap::new();
        let text = |value: &Option<String>| value.clone().unwrap();
        for row in database
            .execute("SET TIME ZONE UTC; SELECT id, payload, occurred, received FROM events")
        {
            let [id, payload, occurred, received] = [0, 1, 2, 3].map(|column| text(&row[column]));
            assert!(!holds_unreadable_number(&payload));
            let is_of = |case: &Case| case.prefect.id.as_deref() == Some(&id);
            let number = cases.iter().position(is_of).unwrap();
            found.insert(
                number,
                Found::Stored {
                    payload,
                    occurred,
                    received,
                },
            );
        }
        for row in database.execute("SELECT position, stage FROM event_persister_dead_letters") {
            let number = text(&row[0]).parse().unwrap();
            found.insert(number, Found::Refused(text(&row[1])));
        }
        compare(&cases, |case| case.prefect.postgres.as_ref(), &found);
    }
}
