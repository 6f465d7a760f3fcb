//! Against what a real Prefect made of the same events: row by row, case by case, to the letter.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::support::binary::{Folder, data};
use super::support::database::{Database, EVENT_COLUMNS, RESOURCE_COLUMNS, Row};
use super::support::server::Server;

/// Lines end at line feeds alone: one event holds a raw U+2028, which is a line's end to some.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

/// The rows of a table, sorted, against those of Prefect's own database.
fn compare_table(database: &Database, table: &str, columns: &[&str]) {
    let truth = data(&format!("truth-dev-sqlite-{table}.raw.jsonl.gz"));
    let mut expected: Vec<Row> = lines(&truth)
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let mut found = database.rows(table, columns);
    expected.sort();
    found.sort();
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found, "in {table}");
    }
    assert_eq!(expected.len(), found.len(), "rows in {table}");
}

#[test]
fn a_capture_becomes_the_very_rows_of_prefect_however_often_it_is_imported() {
    let folder = Folder::new();
    folder.write("events.jsonl", data("prefect-events-dev.jsonl.gz"));
    let database = folder.database();
    for summary in [
        "read 3126, stored 3126, duplicates 0, dead letters 0,",
        "read 3126, stored 0, duplicates 3126, dead letters 0,",
    ] {
        folder
            .run(&["import", "events.jsonl"])
            .exits(0)
            .prints(&[summary]);
        compare_table(&database, "events", &EVENT_COLUMNS);
        compare_table(&database, "event_resources", &RESOURCE_COLUMNS);
    }
    assert!(folder.dead_letters().is_empty());
}

/// One hostile or odd message, and what Prefect did with it.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    data: Option<String>,
    /// Where it is not UTF-8.
    data_b64: Option<String>,
    prefect: Verdict,
}

#[derive(Deserialize)]
struct Verdict {
    parse: String,
    /// What another Python makes of it, where that differs; then either is right.
    parse_python313: Option<String>,
    parse_error: Option<String>,
    /// What is another value at every run.
    #[serde(default)]
    nondeterministic: Vec<String>,
    id: Option<String>,
    sqlite: Option<Stored>,
    api: Api,
}

#[derive(Deserialize)]
struct Api {
    status: u16,
}

#[derive(Deserialize)]
struct Stored {
    /// `stored` or `failed`.
    result: String,
    raw_events: Option<Text>,
    event_resources: Option<Text>,
}

/// A text, or where it is long what identifies it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Long { sha256: String },
}

impl Case {
    pub(crate) fn all() -> Vec<Self> {
        let cases: Vec<Self> = lines(&data("prefect-truth-table.jsonl.gz"))
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert!(cases.len() > 200);
        cases
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (&self.data, &self.data_b64) {
            (Some(data), _) => data.clone().into_bytes(),
            (None, Some(data)) => from_base64(data),
            (None, None) => panic!("{} has no data", self.name),
        }
    }

    /// Whether Prefect takes it as an event; either is right where its Pythons differ.
    pub(crate) fn may_be(&self, accepted: bool) -> bool {
        let verdicts = [
            Some(&self.prefect.parse),
            self.prefect.parse_python313.as_ref(),
        ];
        verdicts
            .into_iter()
            .flatten()
            .any(|verdict| (verdict == "accepted") == accepted)
    }

    /// The field that Prefect names first, if it names one; a label behind the resource it is of.
    fn wrong_field(&self) -> Vec<&str> {
        let error = self.prefect.parse_error.as_deref().unwrap_or_default();
        let path = error.split_once(": ").map_or("", |(path, _)| path);
        if path.is_empty() || path.contains(' ') {
            return Vec::new();
        }
        let num_digits = path
            .strip_prefix("related.")
            .map_or(0, |rest| rest.find('.').unwrap_or(rest.len()));
        let resource = match num_digits {
            0 => path.find('.').unwrap_or(path.len()),
            num_digits => "related.".len() + num_digits,
        };
        let (field, label) = path.split_at(resource);
        let label = label.strip_prefix('.');
        std::iter::once(field).chain(label).collect()
    }

    fn is_deterministic(&self, column: &str) -> bool {
        let mut others = self.prefect.nondeterministic.iter();
        !others.any(|other| other.split(' ').next() == Some(column))
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

/// A row in the form in which the truth table has it.
fn texts_of(row: &Row) -> BTreeMap<&str, Option<&str>> {
    row.iter()
        .map(|(column, (_, value))| (column.as_str(), value.as_deref()))
        .collect()
}

/// The columns, as `(name, value)`, that differ from Prefect's row.
fn event_differences(case: &Case, row: &Row) -> Vec<String> {
    let stored = case.prefect.sqlite.as_ref().unwrap();
    let mut wrong: Vec<String> = row
        .iter()
        .filter(|(_, (kind, value))| kind != if value.is_some() { "text" } else { "null" })
        .map(|(column, (kind, _))| format!("{}: {column} is {kind}", case.name))
        .collect();
    match stored.raw_events.as_ref().unwrap() {
        Text::Whole(text) => {
            let expected: BTreeMap<String, Option<String>> = serde_json::from_str(text).unwrap();
            assert_eq!(expected.len(), row.len());
            wrong.extend(
                row.iter()
                    .filter(|(column, (_, value))| {
                        case.is_deterministic(column) && expected[*column] != *value
                    })
                    .map(|(column, (_, value))| {
                        let expected = &expected[column];
                        format!("{}: {column} {value:?}, not {expected:?}", case.name)
                    }),
            );
        }
        Text::Long { sha256 } => {
            // Python's own form: a space behind every comma and colon between the parts.
            let members: Vec<String> = texts_of(row)
                .iter()
                .map(|(column, value)| {
                    format!("{}: {}", json_text(column), serde_json::json!(value))
                })
                .collect();
            if hash(&format!("{{{}}}", members.join(", "))) != *sha256 {
                wrong.push(format!("{}: another row", case.name));
            }
        }
    }
    wrong
}

/// The canonical form of an event's resources: keys sorted, no spaces, one a line, lines sorted.
fn resource_differences(case: &Case, rows: &[&Row]) -> Option<String> {
    let stored = case.prefect.sqlite.as_ref().unwrap();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let members = texts_of(row).into_iter().map(|(column, value)| {
                let value = value.unwrap();
                let value = match column {
                    "resource" => {
                        let labels: BTreeMap<String, String> = serde_json::from_str(value).unwrap();
                        serde_json::to_string(&labels).unwrap()
                    }
                    "occurred" => json_text(&format!("{}Z", value.replace(' ', "T"))),
                    _ => json_text(value),
                };
                format!("{}:{value}", json_text(column))
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        })
        .collect();
    lines.sort();
    let found = lines.join("\n");
    let is_right = match stored.event_resources.as_ref().unwrap() {
        _ if !case.is_deterministic("occurred") => true,
        Text::Whole(expected) => found == *expected,
        Text::Long { sha256 } => hash(&found) == *sha256,
    };
    (!is_right).then(|| format!("{}: resources {found:.300}", case.name))
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A table's rows by the text of one column.
fn by_column<'r>(rows: &'r [Row], column: &str) -> BTreeMap<&'r str, Vec<&'r Row>> {
    let mut by_column: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = row[column].1.as_deref().unwrap();
        by_column.entry(key).or_default().push(row);
    }
    by_column
}

fn text_of<'r>(row: &'r Row, column: &str) -> &'r str {
    row[column].1.as_deref().unwrap()
}

fn in_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
fn every_case_is_stored_or_refused_as_prefect_does() {
    let folder = Folder::new();
    let cases = Case::all();
    let mut file = Vec::new();
    for case in &cases {
        let bytes = case.bytes();
        assert!(!bytes.contains(&b'\n'), "{} is not one line", case.name);
        file.extend_from_slice(&bytes);
        file.push(b'\n');
    }
    folder.write("cases.jsonl", file);
    folder.run(&["import", "cases.jsonl"]).exits(1);

    let database = folder.database();
    let place = folder.path().canonicalize().unwrap().join("cases.jsonl");
    let positions: Vec<String> = (1..=cases.len())
        .map(|number| format!("{}:{number}", place.display()))
        .collect();
    let (num_stored, num_refused) = compare_cases(&cases, &positions, &database);
    let num_events = database.number("SELECT count(*) AS number FROM events");
    assert_eq!(usize::try_from(num_events).unwrap(), num_stored);
    // A blank line is no message: there is nothing that could be lost.
    assert_eq!(num_stored + num_refused + 1, cases.len());
}

/// Compares what became of the cases, which came in at these positions, with Prefect's; how many
/// were stored and how many refused. Other events may be there, other dead letters may not.
pub(crate) fn compare_cases(
    cases: &[Case],
    positions: &[String],
    database: &Database,
) -> (usize, usize) {
    let events = database.rows("events", &EVENT_COLUMNS);
    let events = by_column(&events, "id");
    let resources = database.rows("event_resources", &RESOURCE_COLUMNS);
    let resources = by_column(&resources, "event_id");
    let letters = database.rows(
        "event_persister_dead_letters",
        &["position", "stage", "reason", "hex(raw)"],
    );
    let letters = by_column(&letters, "position");

    let mut wrong = Vec::new();
    let (mut num_stored, mut num_refused) = (0, 0);
    for (case, position) in cases.iter().zip(positions) {
        let letter = letters.get(position.as_str());
        let row = case.prefect.id.as_deref().and_then(|id| events.get(id));
        match (row, letter) {
            (Some(row), None) if case.may_be(true) => {
                num_stored += 1;
                wrong.extend(event_differences(case, row[0]));
                let rows = &resources[case.prefect.id.as_deref().unwrap()];
                wrong.extend(resource_differences(case, rows));
            }
            (None, Some(letter)) => {
                num_refused += 1;
                wrong.extend(letter_differences(case, letter[0]));
            }
            (None, None) if case.name == "whitespace-data" => {}
            (row, letter) => wrong.push(format!("{}: {row:?} {letter:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(num_refused, letters.len());
    database.complete_events();
    (num_stored, num_refused)
}

/// What is not as it should be about the dead letter of a case.
fn letter_differences(case: &Case, letter: &Row) -> Vec<String> {
    let mut wrong = Vec::new();
    let (stage, reason) = (text_of(letter, "stage"), text_of(letter, "reason"));
    let failed = case
        .prefect
        .sqlite
        .as_ref()
        .is_some_and(|stored| stored.result == "failed");
    let is_right = match stage {
        "parse" => case.may_be(false),
        _ => failed,
    };
    if !is_right || reason.is_empty() {
        wrong.push(format!("{}: refused by {stage}: {reason}", case.name));
    }
    for part in case.wrong_field() {
        if !reason.contains(part) {
            wrong.push(format!("{}: {part} is not in: {reason}", case.name));
        }
    }
    if text_of(letter, "hex(raw)") != in_hexadecimal(&case.bytes()) {
        wrong.push(format!("{}: another message is kept", case.name));
    }
    wrong
}

/// What Prefect's API takes and its own persister then loses, and we refuse at once: nesting that
/// its parser does not read back, and half of a surrogate pair, which is no text.
const LOST_BY_PREFECT: [&str; 5] = [
    "lone-surrogate-key",
    "nest-list-200",
    "nest-list-201",
    "nest-list-255",
    "nest-object-200",
];

#[tokio::test]
async fn posted_cases_are_taken_or_refused_as_by_prefect_and_none_is_an_error_of_ours() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let cases = Case::all();
    let mut wrong = Vec::new();
    for case in &cases {
        let body = [&b"["[..], &case.bytes(), b"]"].concat();
        let status = server.post_status(body).await;
        let prefect = case.prefect.api.status;
        let is_lost = LOST_BY_PREFECT.contains(&case.name.as_str());
        let may_be_refused = prefect != 204 || case.prefect.parse_python313.is_some() || is_lost;
        // Where Prefect answers 500, it is the client's message that is wrong all the same; and
        // whether it is no JSON (400) or no event (422) Prefect tells otherwise in places.
        let is_right = match status {
            204 => prefect == 204 && !is_lost,
            400 | 422 => may_be_refused,
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{}: {status}, not {prefect}", case.name));
        }
    }
    // Taken means stored, as Prefect's own persister stores it; `received` is our clock's.
    let rows = server.database().rows("events", &EVENT_COLUMNS);
    let rows = by_column(&rows, "id");
    for case in &cases {
        let Some(row) = case.prefect.id.as_deref().and_then(|id| rows.get(id)) else {
            continue;
        };
        let Some(Text::Whole(text)) = &case.prefect.sqlite.as_ref().unwrap().raw_events else {
            continue;
        };
        let expected: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        for (column, value) in texts_of(row[0]) {
            if column != "received"
                && case.is_deterministic(column)
                && serde_json::json!(value) != expected[column]
            {
                wrong.push(format!("{}: {column} {value:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    server.terminate().in_good_order();
}
