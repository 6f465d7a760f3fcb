use proptest::prelude::*;
use serde_json::Value;

use super::{rewrite, write_string};

fn rewritten(json: &str) -> String {
    let mut out = String::new();
    rewrite(json, &mut out);
    out
}

#[test]
fn separates_as_python_does() {
    assert_eq!(
        rewritten(" {\"b\" :1,\n\"a\":[ 1 ,2,[ ],{ }]\t} "),
        r#"{"b": 1, "a": [1, 2, [], {}]}"#
    );
    assert_eq!(rewritten("true"), "true");
    assert_eq!(rewritten("[null,false]"), "[null, false]");
}

#[test]
fn writes_numbers_as_python_does() {
    for (json, python) in [
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("-0e0", "-0.0"),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        ("1e2", "100.0"),
        ("1E+2", "100.0"),
        ("2.50", "2.5"),
        ("1.0", "1.0"),
        ("0.1", "0.1"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("0.00012345", "0.00012345"),
        ("-1.5e-7", "-1.5e-07"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("123456789012345680", "123456789012345680"),
        ("123456789012345678.0", "1.2345678901234568e+17"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("792433453575437.3", "792433453575437.2"),
        ("1e22", "1e+22"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("5e-324", "5e-324"),
        ("1e-400", "0.0"),
        ("1e400", "null"),
        ("-1e400", "null"),
    ] {
        assert_eq!(rewritten(json), python, "{json}");
    }
}

#[test]
fn escapes_as_python_does() {
    for (json, python) in [
        (r#""\u0041\/é€😀""#, r#""A/\u00e9\u20ac\ud83d\ude00""#),
        (r#""\uD83D\uDE00\u00E9""#, r#""\ud83d\ude00\u00e9""#),
        (
            r#""\b\f\n\r\t\"\\\u0008\u000A\u0022\u005c""#,
            r#""\b\f\n\r\t\"\\\b\n\"\\""#,
        ),
        (r#""\u0000\u001F\u007f""#, r#""\u0000\u001f\u007f""#),
        ("\"\u{7f}\u{2028}\"", r#""\u007f\u2028""#),
    ] {
        assert_eq!(rewritten(json), python, "{json}");
    }
    let mut out = String::new();
    write_string("a\"\\\n\u{0}\u{7f}é😀/", &mut out);
    assert_eq!(out, r#""a\"\\\n\u0000\u007f\u00e9\ud83d\ude00/""#);
}

#[test]
fn keeps_the_last_of_repeated_keys_in_the_place_of_the_first() {
    assert_eq!(rewritten(r#"{"a":1,"b":2,"a":3}"#), r#"{"a": 3, "b": 2}"#);
    assert_eq!(rewritten(r#"{"a":1,"\u0061":2}"#), r#"{"a": 2}"#);
    assert_eq!(
        rewritten(r#"{"x":{"a":1,"b":[{"k":1,"k":2}],"a":{"c":1,"c":2}},"x":{"y":1},"z":0}"#),
        r#"{"x": {"y": 1}, "z": 0}"#
    );
    assert_eq!(
        rewritten(r#"[{"a":{"c":1,"c":2},"a":{"d":[],"d":{"e":1,"e":2}}},{"a":1}]"#),
        r#"[{"a": {"d": {"e": 2}}}, {"a": 1}]"#
    );
}

#[test]
fn keeps_the_last_of_many_repeated_keys() {
    let members: Vec<String> = (0..100).map(|i| format!("\"k{}\":{i}", i % 40)).collect();
    let kept: Vec<String> = (0..40)
        .map(|i| format!("\"k{i}\": {}", if i < 20 { 80 + i } else { 40 + i }))
        .collect();
    assert_eq!(
        rewritten(&format!("{{{}}}", members.join(","))),
        format!("{{{}}}", kept.join(", "))
    );
}

#[test]
fn needs_no_stack_for_depth() {
    let deep = format!("{}1{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(rewritten(&deep), deep);
}

/// Any JSON value; keys are few, so that they repeat.
fn json_text() -> impl Strategy<Value = String> {
    let string = prop_oneof![
        any::<String>().prop_map(|text| Value::String(text).to_string()),
        "[a-c]{0,2}".prop_map(|text| format!("\"{text}\"")),
        any::<char>().prop_map(|char| {
            let mut units = [0; 2];
            let escaped: String = char
                .encode_utf16(&mut units)
                .iter()
                .map(|unit| format!("\\u{unit:04X}"))
                .collect();
            format!("\"{escaped}\"")
        }),
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>()
            .prop_filter("JSON has no such number", |number| number.is_finite())
            .prop_map(|number| format!("{number:e}")),
        string.clone(),
    ];
    leaf.prop_recursive(6, 64, 12, move |inner| {
        let member = (string.clone(), inner.clone()).prop_map(|(key, value)| key + " :" + &value);
        prop_oneof![
            prop::collection::vec(inner, 0..6)
                .prop_map(|values| format!("[{}]", values.join(" ,"))),
            prop::collection::vec(member, 0..12)
                .prop_map(|members| format!("{{ {}\n}}", members.join(","))),
        ]
    })
}

proptest! {
    #[test]
    fn means_the_same_in_ascii_and_is_its_own_form(json in json_text()) {
        let python = rewritten(&json);
        prop_assert!(python.is_ascii());
        let before: Value = serde_json::from_str(&json).unwrap();
        let after: Value = serde_json::from_str(&python).unwrap();
        prop_assert_eq!(before, after);
        prop_assert_eq!(rewritten(&python), python);
    }

    #[test]
    fn never_panics_on_what_is_not_json(text in any::<String>()) {
        prop_assert!(rewritten(&text).is_ascii());
    }

    #[test]
    fn never_panics_on_what_is_nearly_json(text in r#"[\[\]{}:,"\\u0-9a-fé.eE+-]{0,40}"#) {
        prop_assert!(rewritten(&text).is_ascii());
    }
}
