//! Edges of the rules, one by one.

use super::*;

const ID: &str = "764f43cf-bfdd-5145-b86b-da63a610aaaa";

/// A valid event with the given fields in place of its own, or added at the end.
fn event_with(fields: &[(&str, &str)]) -> String {
    let id = format!("\"{ID}\"");
    let mut all = vec![
        ("occurred", "\"2026-11-24T03:00:00.123456Z\""),
        ("event", "\"an.event\""),
        ("resource", r#"{"prefect.resource.id":"a.resource"}"#),
        ("id", id.as_str()),
    ];
    for (key, json) in fields {
        match all.iter_mut().find(|(known, _)| known == key) {
            Some(field) => field.1 = json,
            None => all.push((key, json)),
        }
    }
    let fields: Vec<_> = all
        .iter()
        .map(|(key, json)| format!("\"{key}\":{json}"))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn lists(num_lists: usize, content: &str) -> String {
    format!(
        "{}{content}{}",
        "[".repeat(num_lists),
        "]".repeat(num_lists)
    )
}

#[test]
fn names_every_wrong_field_in_one_reason() {
    let text = r#"{
        "event": 1,
        "resource": {"x": null, "y": "1", "a b": 2},
        "related": [
            {"prefect.resource.id": "a", "prefect.resource.role": "b"},
            {"prefect.resource.id": ""},
            "c"
        ],
        "payload": [],
        "id": "no",
        "follows": "",
        "received": null
    }"#;
    assert_eq!(
        reason(text),
        "occurred: missing; event: must be a string, not a number; \
         resource: label x must be a string, not null; \
         resource: label number 3 must be a string, not a number; \
         related.1: label prefect.resource.id empty; \
         related.1: label prefect.resource.role missing; \
         related.2: must be an object, not a string; \
         payload: must be an object, not an array; id: not a UUID; follows: not a UUID; \
         received: must be a datetime, not null"
    );
}

#[test]
fn reasons_hold_no_values_and_stay_short() {
    let labels: String = (0..10_000)
        .map(|n| format!("\"l{n}\":[\"SECRET\"],"))
        .collect();
    let resource = format!(r#"{{{labels}"\nSECRET":1,"{}":1}}"#, "SECRET".repeat(1_000));
    let texts = [
        event_with(&[
            ("occurred", r#""SECRET-10-10""#),
            ("event", r#"["SECRET"]"#),
            ("resource", &resource),
            ("related", &format!("[{resource},{resource}]")),
            ("payload", r#""SECRET""#),
            ("id", r#""SECRET""#),
            ("follows", r#""SECRET""#),
            ("received", r#"["SECRET"]"#),
        ]),
        event_with(&[("event", &format!("\"{}\"", "SECRET".repeat(200)))]),
        r#"{"SECRET":SECRET"#.to_owned(),
        r#"{"SECRET":"SECRET""#.to_owned(),
        "SECRET".to_owned(),
        r#"["SECRET"]"#.to_owned(),
    ];
    for text in texts {
        let reason = reason(text);
        assert!(!reason.is_empty() && !reason.contains("SECRET"), "{reason}");
        assert!(reason.len() < 2_000, "{reason}");
    }
}

#[test]
fn tells_where_the_text_stops_being_json() {
    assert_eq!(
        reason("{\"event\": \"x\",\n  \"id\": nope}"),
        "not JSON: expected ident at line 2 column 10"
    );
    assert_eq!(
        reason("[]"),
        "not an event: must be an object, not an array"
    );
    // A first letter tells no kind.
    for (text, expected) in [
        ("no", "not JSON: expected ident at line 1 column 2"),
        (
            "true story",
            "not JSON: trailing characters at line 1 column 6",
        ),
        (
            "\"",
            "not JSON: EOF while parsing a string at line 1 column 1",
        ),
        (
            "[1",
            "not JSON: EOF while parsing a list at line 1 column 2",
        ),
    ] {
        assert_eq!(reason(text), expected);
    }
    assert_eq!(reason("null "), "not an event: must be an object, not null");
    let not_text = ReceivedEvent::parse_bytes(
        Bytes::from_static(b"{\"event\":\"\xff\"}"),
        &EventLimits::default(),
        Received::Now(moment()),
    );
    assert_eq!(
        not_text.unwrap_err().reason,
        "not UTF-8: invalid byte at offset 10"
    );
}

#[test]
fn keeps_the_id_of_what_it_refuses_where_it_was_readable() {
    let id_of = |text: String| parse(text).unwrap_err().event_id.map(|id| id.to_string());
    let known = Some(ID.to_owned());
    assert_eq!(id_of(event_with(&[("event", "1")])), known);
    assert_eq!(id_of(format!(r#"{{"id":"{ID}","event":tru"#)), known);
    assert_eq!(id_of(format!(r#"{{"id":"{ID}"}} {{}}"#)), known);
    assert_eq!(
        id_of(format!(r#"{{"id":"{ID}","payload":{}}}"#, lists(300, ""))),
        known
    );
    assert_eq!(id_of(event_with(&[("id", "1")])), None);
    assert_eq!(id_of(format!(r#"{{"id":"{ID}","id":"other"}}"#)), None);
    assert_eq!(id_of(format!(r#"{{"event":tru,"id":"{ID}"}}"#)), None);
}

#[test]
fn the_last_of_repeated_fields_counts_whatever_the_others_are() {
    let text = event_with(&[("event", r#"1,"event":["x"],"event":"the last""#)]);
    assert_eq!(parse(text).unwrap().event, "the last");
    let text = event_with(&[(
        "resource",
        r#"{"a":1},"resource":{"prefect.resource.id":"b"}"#,
    )]);
    assert_eq!(parse(text).unwrap().resource.id(), "b");
    let text = event_with(&[("payload", r#"{"a":1},"payload":{"b":2}"#)]);
    assert_eq!(parse(text).unwrap().payload(), r#"{"b":2}"#);
    let text = event_with(&[("event", r#""first","event":1"#)]);
    assert_eq!(reason(text), "event: must be a string, not a number");
    // A key is what its escapes mean.
    let text = event_with(&[("event", r#"1,"\u0065vent":"escaped""#)]);
    assert_eq!(parse(text).unwrap().event, "escaped");
}

#[test]
fn a_repeated_label_keeps_its_place_and_takes_the_last_value() {
    let text = event_with(&[(
        "resource",
        r#"{"x":"1","prefect.resource.id":"","y":"2","x":"3","prefect.resource.id":"a"}"#,
    )]);
    let event = parse(text).unwrap();
    let labels: Vec<_> = event.resource.labels().collect();
    assert_eq!(
        labels,
        [("x", "3"), ("prefect.resource.id", "a"), ("y", "2")]
    );
    // Unlike a field, a label must be right even where a later one replaces it.
    let text = event_with(&[(
        "resource",
        r#"{"prefect.resource.id":1,"prefect.resource.id":"a"}"#,
    )]);
    assert_eq!(
        reason(text),
        "resource: label prefect.resource.id must be a string, not a number"
    );
}

#[test]
fn counts_distinct_labels_only() {
    let labels = |num_labels: usize| -> String {
        let labels: Vec<_> = (0..num_labels)
            .map(|n| format!(r#""l{n}":"{n}""#))
            .collect();
        labels.join(",")
    };
    let resource = |labels: &str| format!(r#"{{"prefect.resource.id":"a",{labels}}}"#);
    let (most, too_many) = (labels(499), labels(500));

    let event = parse(event_with(&[(
        "resource",
        &resource(&format!("{most},{most}")),
    )]))
    .unwrap();
    assert_eq!(event.resource.labels().len(), 500);
    assert_eq!(event.resource.get("l498"), Some("498"));
    assert_eq!(
        reason(event_with(&[("resource", &resource(&too_many))])),
        "resource: more than 500 labels"
    );
}

#[test]
fn limits_are_settings() {
    let limits = EventLimits {
        max_labels_per_resource: 2,
        max_related_resources: 1,
        max_event_name_length: 3,
    };
    let parse = |text: String| ReceivedEvent::parse(text.into(), &limits, Received::Now(moment()));
    let related = r#"{"prefect.resource.id":"a","prefect.resource.role":"b"}"#;
    let one = format!("[{related}]");
    let two = format!("[{related},{related}]");
    let three_labels = r#"{"prefect.resource.id":"a","b":"","c":""}"#;

    assert!(parse(event_with(&[("event", "\"äöü\""), ("related", &one)])).is_ok());
    let refused = parse(event_with(&[
        ("event", "\"äöüß\""),
        ("resource", three_labels),
        ("related", &two),
    ]));
    assert_eq!(
        refused.unwrap_err().reason,
        "event: longer than 3 characters; resource: more than 2 labels; \
         related: more than 1 resources"
    );
}

#[test]
fn nesting_is_limited_where_prefect_limits_it() {
    // (lists in an unknown field, what stands in the innermost, accepted)
    let unknown = [
        (199, "1", true),
        (199, "[ ]", true),
        (200, "", true),
        (200, " \n", true),
        (200, "1", false),
        (200, "\"\"", false),
        (201, "", false),
        (100_000, "", false),
    ];
    for (num_lists, content, is_accepted) in unknown {
        for field in ["unknown", "received"] {
            let text = event_with(&[(field, &lists(num_lists, content))]);
            let parsed = ReceivedEvent::parse(
                text.into(),
                &EventLimits::default(),
                Received::Now(moment()),
            );
            assert_eq!(
                parsed.is_ok(),
                is_accepted,
                "{field} {num_lists} {content:?}"
            );
        }
        // One level more, of objects, around one list less.
        let text = event_with(&[(
            "payload",
            &format!("{{\"k\":{}}}", lists(num_lists - 1, content)),
        )]);
        assert_eq!(
            parse(text).is_ok(),
            is_accepted,
            "payload {num_lists} {content:?}"
        );
        // A label's value stands two levels down; the field that holds it is replaced.
        let text = event_with(&[(
            "related",
            &format!(
                "[{{\"k\":{}}}],\"related\":[]",
                lists(num_lists - 2, content)
            ),
        )]);
        assert_eq!(
            parse(text).is_ok(),
            is_accepted,
            "related {num_lists} {content:?}"
        );
    }
}

#[test]
fn nesting_without_end_is_refused_and_does_not_exhaust_the_stack() {
    for open in ["[", "{\"k\":", "[{\"k\":"] {
        let nested = open.repeat(100_000);
        for field in [
            "payload", "resource", "related", "occurred", "id", "unknown",
        ] {
            let text = format!(r#"{{"{field}":{nested}"#);
            let reason = reason(text);
            assert!(
                reason.starts_with("nested too deeply at line 1 column "),
                "{reason}"
            );
        }
        assert!(parse(nested).is_err());
    }
}

#[test]
fn the_payload_is_a_slice_of_the_text() {
    let payload = "{ \"a\" : 2.50, \"b\":[1e308, \"NaN, -Infinity \\\" NaN\"],\"a\":\"\\u00e4\"}";
    let event = parse(event_with(&[("payload", payload)])).unwrap();
    assert_eq!(event.payload(), payload);
    assert!(
        event
            .text()
            .as_bytes()
            .as_ptr_range()
            .contains(&event.payload().as_ptr())
    );

    assert_eq!(parse(event_with(&[])).unwrap().payload(), "{}");
}

#[test]
fn what_only_python_takes_for_json_becomes_null() {
    let payload = r#"{"NaN":NaN,"b":[-Infinity, Infinity,NaN ,-1,"-Infinity\\"],"c":{"d":NaN}}"#;
    let event = parse(event_with(&[("payload", payload)])).unwrap();
    assert_eq!(
        event.payload(),
        r#"{"NaN":null,"b":[null, null,null ,-1,"-Infinity\\"],"c":{"d":null}}"#
    );
    assert!(event.text().contains(payload));
}

#[test]
fn what_is_beyond_the_range_of_a_double_is_not_kept_and_everything_else_keeps_its_text() {
    let zeros = "0".repeat(16_384);
    let long = "7".repeat(4_300);
    for (sent, kept) in [
        ("[1e400]", "[null]"),
        ("[ -1E+0400\n,2]", "[ null\n,2]"),
        ("[1e131071\t]", "[null\t]"),
        ("{\"1e400\" :1e400}", "{\"1e400\" :null}"),
        ("[1e-400,-1e-400]", "[0.0,-0.0]"),
        ("[[[1.5e308]],0.1e-07]", "[[[1.5e308]],0.1e-07]"),
        ("\"3e123-1e400, 1e400\"", "\"3e123-1e400, 1e400\""),
        ("[\" 1e400\", 1e400]", "[\" 1e400\", null]"),
        (&long, &long),
        (&format!("[2.{zeros}]"), "[2.0]"),
        (&format!("[1,{}.5]", &long[..309]), "[1,null]"),
    ] {
        let payload = |value| format!("{{\"k\":{value}}}");
        let event = parse(event_with(&[("payload", &payload(sent))])).unwrap();
        assert_eq!(event.payload(), payload(kept));
        assert!(event.text().contains(sent));
    }
}

#[test]
fn an_integer_that_python_does_not_read_is_refused_wherever_it_stands() {
    for (num_digits, is_accepted) in [(4_299, true), (4_300, true), (4_301, false), (9_000, false)]
    {
        for sign in ["", "-"] {
            for rest in ["", ".5", "e-4300", ".0e1"] {
                let number = format!("{sign}{}{rest}", "9".repeat(num_digits));
                for (field, value) in [
                    ("payload", format!("{{\"n\":{number}}}")),
                    ("payload", format!("{number},\"payload\":{{}}")),
                    ("unknown", format!("[{number}]")),
                ] {
                    let parsed = parse(event_with(&[(field, &value)]));
                    assert_eq!(
                        parsed.is_ok(),
                        is_accepted,
                        "{field} {num_digits} {sign}{rest}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_payload_of_64_mib_is_accepted() {
    let payload = format!("{{\"k\":\"{}\"}}", "x".repeat(64 << 20));
    let event = parse(event_with(&[("payload", &payload)])).unwrap();
    assert_eq!(event.payload().len(), payload.len());
}

#[test]
fn received_is_taken_from_the_text_only_where_the_text_is_trusted() {
    let whole_microseconds = moment().trunc_subsecs(6);
    assert_eq!(parse(event_with(&[])).unwrap().received, whole_microseconds);

    let sent = event_with(&[("received", "\"2026-11-24T03:00:01Z\"")]);
    assert_eq!(
        parse(sent.clone()).unwrap().received.to_rfc3339(),
        "2026-11-24T03:00:01+00:00"
    );
    for text in [
        sent,
        event_with(&[("received", "null")]),
        event_with(&[("received", "{\"a\":[1]}")]),
    ] {
        let received = Received::Now(moment());
        let event = ReceivedEvent::parse(text.into(), &EventLimits::default(), received).unwrap();
        assert_eq!(event.received, whole_microseconds);
    }
    assert_eq!(
        reason(event_with(&[("received", "null")])),
        "received: must be a datetime, not null"
    );
}

#[test]
fn reads_datetimes_as_pydantic_does() {
    let cases = [
        ("\"2026-11-24T03:00:00,5Z\"", "2026-11-24T03:00:00.500000Z"),
        (
            "\"2026-11-24T03:00:00.9999999Z\"",
            "2026-11-24T03:00:00.999999Z",
        ),
        (
            "\"2026-11-24 03:00\u{2212}08:00\"",
            "2026-11-24T11:00:00.000000Z",
        ),
        ("\"2026-11-24\"", "2026-11-24T00:00:00.000000Z"),
        ("\"1795000000.25\"", "2026-11-18T11:06:40.250000Z"),
        ("\"+1\"", "1970-01-01T00:00:01.000000Z"),
        ("-1.3", "1969-12-31T23:59:58.700000Z"),
        ("-1.3e0", "1969-12-31T23:59:58.700000Z"),
        ("20000000000", "2603-10-11T11:33:20.000000Z"),
        ("20000000001", "1970-08-20T11:33:20.001000Z"),
        ("1795000000123.5", "2026-11-18T11:06:40.123500Z"),
        (
            "\"0001-01-01T00:00:00+05:00\"",
            "0000-12-31T19:00:00.000000Z",
        ),
        (
            "\"9999-12-31T23:59:59-05:00\"",
            "+10000-01-01T04:59:59.000000Z",
        ),
        ("-62135596800000", "0001-01-01T00:00:00.000000Z"),
    ];
    for (json, expected) in cases {
        let event = parse(event_with(&[("occurred", json)]));
        let occurred = event.map(|event| event.occurred.format("%FT%T%.6fZ").to_string());
        assert_eq!(occurred.as_deref(), Ok(expected), "{json}");
    }
}

#[test]
fn tells_why_something_is_not_a_datetime() {
    let cases = [
        ("\"\"", "occurred: not a datetime: too short"),
        (
            "\"2026-13-24T03:00:00Z\"",
            "occurred: not a datetime: out of range month",
        ),
        (
            "\"0000-01-01T00:00:00Z\"",
            "occurred: not a datetime: the year is not 1 to 9999",
        ),
        (
            "-62135596801000",
            "occurred: not a datetime: the year is not 1 to 9999",
        ),
        (
            "99999999999999999999",
            "occurred: not a datetime: number out of range",
        ),
        ("NaN", "occurred: not a datetime: number out of range"),
        ("Infinity", "occurred: not a datetime: date too large"),
        ("1e400", "occurred: not a datetime: date too large"),
        ("-Infinity", "occurred: not a datetime: date too small"),
        ("true", "occurred: must be a datetime, not a boolean"),
    ];
    for (json, expected) in cases {
        assert_eq!(
            reason(event_with(&[("occurred", json)])),
            expected,
            "{json}"
        );
    }
}
