//! Thousands of questions to a database that Prefect wrote and was asked itself; see `tests/filters/run.sh`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use tokio::time::Instant;

use chrono::{DateTime, Utc};
use event_persister_actors::reader::{CountRequest, EventReader, PageRequest, Problems};
use event_persister_actors::store::postgres::{PostgresReader, PostgresSettings};
use event_persister_actors::store::sqlite::{SqliteReader, SqliteSettings};
use serde_json::Value;
use uuid::Uuid;

use super::{body_of, difference};

fn given(name: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    std::env::var(name).unwrap()
}

/// The reader of a database, and what Prefect calls its kind.
fn opened(url: &str) -> (&'static str, Arc<dyn EventReader>) {
    match url.strip_prefix("sqlite+aiosqlite:///") {
        Some(path) => (
            "sqlite",
            Arc::new(SqliteReader::new(SqliteSettings::new(path))),
        ),
        None => {
            let settings = PostgresSettings::from_url(url).unwrap();
            ("postgresql", Arc::new(PostgresReader::new(settings)))
        }
    }
}

/// Why we refuse a request: sentence or problems; `None` where we answer it.
fn refused(case: &Value, now: DateTime<Utc>) -> Option<Result<Problems, String>> {
    let body = body_of(case);
    let path = case["path"].as_str().unwrap();
    match path.strip_prefix("count-by/") {
        None => PageRequest::parse(body.as_bytes(), now).err().map(Ok),
        Some(what) => match CountRequest::parse(what, body.as_bytes(), now) {
            Ok(request) => {
                let refused = request.countable(now).err();
                refused.map(|error| Err(error.to_string()))
            }
            Err(problems) => Some(Ok(problems)),
        },
    }
}

/// Where something is wrong, and of what kind, in any order. Of broken JSON each parser names another place. An
/// integer of more than 64 bits is too large for our parser, and above the bound for Prefect's.
fn sorted(mut wrong: Vec<Value>, has_large_numbers: bool) -> Vec<Value> {
    for one in &mut wrong {
        let one = one.as_array_mut().unwrap();
        let kind = one.last_mut().unwrap();
        if has_large_numbers && kind == "less_than_equal" {
            *kind = "int_parsing_size".into();
        }
        if kind == "json_invalid" {
            one.remove(1);
        }
    }
    wrong.sort_by_key(Value::to_string);
    wrong
}

fn difference_of_refusals(case: &Value, expected: &Value, now: DateTime<Utc>) -> Option<String> {
    let has_large_numbers = body_of(case).contains(&format!("1{:030}", 0));
    let ours = match refused(case, now) {
        Some(Ok(problems)) => {
            let problems = problems.0.iter().map(|problem| {
                let mut steps = serde_json::to_value(&problem.loc).unwrap();
                let steps = steps.as_array_mut().unwrap();
                steps.push(problem.kind.into());
                Value::Array(std::mem::take(steps))
            });
            Some(sorted(problems.collect(), has_large_numbers))
        }
        Some(Err(_)) => Some(Vec::new()),
        None => None,
    };
    let theirs = match (&expected["status"], &expected["wrong"]) {
        (status, _) if *status != 422 => None,
        (_, Value::Array(wrong)) => Some(sorted(wrong.clone(), has_large_numbers)),
        _ => Some(Vec::new()),
    };
    (ours != theirs).then(|| format!("{case}\n  ours {ours:?}\n  theirs {theirs:?}"))
}

#[actix::test]
#[ignore = "of the database TEST_FILTERS_DATABASE, with Prefect's answers in the file TEST_FILTERS"]
async fn answers_as_prefect_did() {
    let (name, reader) = opened(&given("TEST_FILTERS_DATABASE"));
    let file = BufReader::new(std::fs::File::open(given("TEST_FILTERS")).unwrap());
    let mut lines = file.lines().map(|line| line.unwrap());
    let head: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    let now: DateTime<Utc> = head["now"].as_str().unwrap().parse().unwrap();
    let max_pages = usize::try_from(head["max_pages"].as_u64().unwrap()).unwrap();
    let ids = head["ids"].as_array().unwrap().iter();
    let places: BTreeMap<Uuid, usize> = ids
        .enumerate()
        .map(|(place, id)| (id.as_str().unwrap().parse().unwrap(), place))
        .collect();
    let (mut num_refused, mut num_answered, mut num_failed) = (0, 0, 0);
    let (mut wrong, mut took) = (Vec::new(), Vec::new());
    for line in lines {
        let line: Value = serde_json::from_str(&line).unwrap();
        let (case, expected) = (&line["case"], &line[name]);
        if case.get("method").is_some() {
            continue;
        }
        match expected["status"].as_u64().unwrap() {
            200 => num_answered += 1,
            422 => num_refused += 1,
            // Where Prefect fails there is nothing to be equal to.
            _ => {
                num_failed += 1;
                eprintln!("Prefect answers {}: {case}", expected["status"]);
                continue;
            }
        }
        let refusals = difference_of_refusals(case, expected, now);
        let is_answered = refusals.is_none() && expected["status"] == 200;
        wrong.extend(refusals);
        if is_answered {
            let asked = (case, expected);
            let started = Instant::now();
            wrong.extend(difference(&*reader, asked, now, &places, max_pages).await);
            took.push((started.elapsed(), case.clone()));
        }
    }
    eprintln!(
        "{name}, {} events: {num_answered} answered, {num_refused} refused, {num_failed} where Prefect fails, \
         {} differ",
        places.len(),
        wrong.len()
    );
    took.sort_by_key(|(took, _)| Reverse(*took));
    for (took, case) in took.iter().take(5) {
        eprintln!("took {took:.1?}: {case}");
    }
    let num_wrong = wrong.len();
    wrong.truncate(20);
    assert!(num_wrong == 0, "{}", wrong.join("\n"));
}
