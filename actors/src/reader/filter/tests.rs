use std::io::Read as _;

use flate2::read::GzDecoder;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::reader::{CountRequest, PageRequest, PageToken, Place};

/// Questions, and what Prefect 3.9.1 answered; see tests/filters.
fn recorded() -> (DateTime<Utc>, Vec<Value>) {
    let file = include_bytes!("../../../../tests/data/filters.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(&file[..]).read_to_string(&mut text).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let head = lines.next().unwrap();
    (utc(head["now"].as_str().unwrap()), lines.collect())
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The problems, as they are recorded: each location with the kind behind it.
fn wrong(problems: &Problems) -> Vec<Value> {
    let mut all: Vec<_> = problems
        .0
        .iter()
        .map(|problem| {
            let mut steps = serde_json::to_value(&problem.loc).unwrap();
            let steps = steps.as_array_mut().unwrap();
            // Where exactly a text stops being JSON is for each parser to say.
            if problem.kind == "json_invalid" {
                steps.pop();
            }
            steps.push(problem.kind.into());
            Value::Array(std::mem::take(steps))
        })
        .collect();
    all.sort_by_key(Value::to_string);
    all
}

#[test]
fn takes_and_refuses_what_prefect_does_for_the_same_reason_at_the_same_place() {
    let (now, cases) = recorded();
    let mut num_refused = 0;
    for recorded in &cases {
        let case = &recorded["case"];
        let answers = ["prefect", "postgresql"].into_iter();
        let answer = answers
            .filter_map(|name| recorded.get(name))
            .next()
            .unwrap();
        let (Some(status), None) = (answer["status"].as_u64(), case.get("method")) else {
            continue;
        };
        let body = match case.get("text") {
            Some(text) => text.as_str().unwrap().to_owned(),
            None => case["body"].to_string(),
        };
        let path = case["path"].as_str().unwrap();
        let refused = match path.strip_prefix("count-by/") {
            None => PageRequest::parse(body.as_bytes(), now).err().map(Ok),
            Some(what) => match CountRequest::parse(what, body.as_bytes(), now) {
                Ok(request) => request.countable(now).err().map(Err),
                Err(problems) => Some(Ok(problems)),
            },
        };
        assert_eq!(refused.is_some(), status == 422, "{case} {refused:?}");
        match refused {
            Some(Ok(problems)) => {
                num_refused += 1;
                let mut expected = answer["wrong"].as_array().expect(path).clone();
                for wrong in &mut expected {
                    let wrong = wrong.as_array_mut().unwrap();
                    if wrong.last().unwrap() == "json_invalid" {
                        wrong.remove(1);
                    }
                }
                expected.sort_by_key(Value::to_string);
                assert_eq!(wrong(&problems), expected, "{case}");
            }
            Some(Err(_)) => assert!(answer["wrong"].is_null(), "{case}"),
            None => {}
        }
    }
    assert_eq!((cases.len(), num_refused), (624, 125));
}

#[test]
fn where_nothing_is_said_the_last_half_year_is_meant() {
    let now = utc("2026-11-28T12:00:00.5Z");
    let request = PageRequest::parse(b"", now).unwrap();
    assert_eq!(request.limit, 50);
    assert_eq!(request.filter, EventFilter::all(now));
    assert_eq!(request.filter.occurred.since, utc("2026-06-01T00:00:00Z"));
    assert_eq!(request.filter.occurred.until, now);
}

#[test]
fn a_token_of_somebody_elses_is_none() {
    let now = utc("2026-11-28T12:00:00Z");
    let token = PageToken {
        filter: EventFilter::all(now),
        limit: 50,
        total: 120,
        num_shown: 50,
        after: Some(Place {
            occurred: utc("2026-11-20T00:00:00.000001Z"),
            id: Uuid::from_u128(7),
        }),
    };
    let text = token.to_json();
    assert_eq!(PageToken::parse(text.as_bytes()), Ok(token));
    let change = |key: &str, value: Value| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        PageToken::parse(json.to_string().as_bytes())
    };
    assert!(change("total", json!(121)).is_ok());
    for (key, value) in [
        ("limit", json!(51)),
        ("limit", json!(-1)),
        ("total", json!("x")),
        ("after", json!(["2027-01-01T00:00:00Z", Uuid::nil()])),
        ("after", json!(["2026-11-20T00:00:00Z", "x"])),
        ("after", json!([])),
        ("filter", json!({})),
        (
            "filter",
            json!({"occurred": {"until": "2026-11-28T12:00:00Z"}, "surplus": 1}),
        ),
    ] {
        assert!(change(key, value.clone()).is_err(), "{key} {value}");
    }
    for text in ["", "x", "{}", "[]", "null"] {
        assert!(PageToken::parse(text.as_bytes()).is_err(), "{text}");
    }
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec("[a-z*?!%_\\\\é\"]{0,6}", 0..3)
}

fn labels() -> impl Strategy<Value = Labels> {
    let one = ("[a-z.\"]{1,6}", texts());
    vec(one, 0..3).prop_map(|mut labels| {
        labels.sort();
        labels.dedup_by(|a, b| a.0 == b.0);
        Labels(labels)
    })
}

prop_compose! {
    fn filters()(
        (since, until) in (0_i64..2_000_000_000_000_000, 0_i64..2_000_000_000_000_000),
        (prefix, exclude_prefix, name, exclude_name) in (texts(), texts(), texts(), texts()),
        (ids, id_prefix, resource_labels, distinct) in (texts(), texts(), labels(), any::<bool>()),
        related in vec((texts(), texts(), labels(), vec(("[a-z]{0,3}", "[a-z]{0,3}"), 0..2)), 0..3),
        any_resource in vec((texts(), texts(), labels()), 0..3),
        (id, text, ascends) in (vec(any::<u128>(), 0..3), proptest::option::of(".{0,20}"), any::<bool>()),
    ) -> EventFilter {
        let moment = |micros| DateTime::from_timestamp_micros(micros).unwrap();
        EventFilter {
            occurred: Occurred { since: moment(since), until: moment(until) },
            event: NameFilter { prefix, exclude_prefix, name, exclude_name },
            resource: ResourceFilter { id: ids, id_prefix, labels: resource_labels, distinct },
            related: related.into_iter().map(|(id, role, labels, resources_in_roles)| {
                RelatedFilter { id, role, resources_in_roles, labels }
            }).collect(),
            any_resource: any_resource.into_iter().map(|(id, id_prefix, labels)| {
                AnyResourceFilter { id, id_prefix, labels }
            }).collect(),
            id: id.into_iter().map(Uuid::from_u128).collect(),
            text,
            order: if ascends { Order::Asc } else { Order::Desc },
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(filter in filters()) {
        let json = serde_json::to_value(&filter).unwrap();
        let read = EventFilter::parse(&json, DateTime::UNIX_EPOCH, "filter");
        prop_assert_eq!(read, Ok(filter));
    }
}

/// As pydantic 2.14 does, whatever the number came as.
#[test]
fn a_number_that_is_no_truth_is_refused_by_its_size() {
    for (text, kind) in [
        ("2", "bool_parsing"),
        ("2.0", "bool_parsing"),
        ("9223372036854775807", "bool_parsing"),
        ("1e18", "bool_parsing"),
        ("1.5", "bool_type"),
        ("9223372036854775808", "bool_type"),
        ("-9223372036854775809", "bool_type"),
        ("1e300", "bool_type"),
    ] {
        let value = format!(r#"{{"resource": {{"distinct": {text}}}}}"#);
        let value = serde_json::from_str(&value).unwrap();
        let problems = EventFilter::parse(&value, utc("2026-11-30T00:00:00Z"), "body").unwrap_err();
        let expected = json!([["body", "resource", "distinct", kind]]);
        assert_eq!(Value::Array(wrong(&problems)), expected, "{text}");
    }
}
