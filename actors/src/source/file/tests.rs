use std::io::Cursor;
use std::sync::mpsc::{Receiver, sync_channel};

use super::lines::{MAX_KEPT_BYTES, READ_BUFFER_BYTES};
use super::*;
use crate::source::Message;

const ALL: Permit = Permit {
    max_messages: 1000,
    max_bytes: usize::MAX,
};

fn source(data: impl Into<Vec<u8>>, max_line_bytes: usize) -> FileSource {
    FileSource::new(
        Box::new(Cursor::new(data.into())),
        "in.jsonl",
        max_line_bytes,
    )
    .unwrap()
}

fn text(body: &Body) -> (String, Vec<u8>) {
    match body {
        Body::Raw { position, data } => (position.to_string(), data.to_vec()),
        Body::Entry(entry) => (entry.position.to_string(), entry.raw().to_vec()),
    }
}

async fn read_all(source: &FileSource, permit: Permit) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let chunk = source.read(permit).await.unwrap();
        messages.extend(chunk.messages);
        if chunk.more == More::Ended {
            return messages;
        }
    }
}

#[tokio::test]
async fn splits_at_newlines_alone_and_counts_lines_as_editors_do() {
    let data = "{\"a\":\"\u{2028}\u{85}\r\"}\r\n\n \t\r\nsecond\nlast without end";
    let source = source(data, 1000);
    let lines: Vec<_> = read_all(&source, ALL)
        .await
        .iter()
        .map(|message| text(&message.body))
        .collect();
    let expected = [
        ("in.jsonl:1", "{\"a\":\"\u{2028}\u{85}\r\"}\r"),
        ("in.jsonl:4", "second"),
        ("in.jsonl:5", "last without end"),
    ]
    .map(|(position, line)| (position.to_owned(), line.as_bytes().to_vec()));
    assert_eq!(lines, expected);
    assert_eq!(source.progress().num_lines(), 3);
    assert_eq!(source.progress().num_bytes(), data.len() as u64);
}

#[tokio::test]
async fn hands_on_what_is_not_utf_8() {
    let source = source(b"\xff\xfd\n".to_vec(), 1000);
    let messages = read_all(&source, ALL).await;
    assert_eq!(text(&messages[0].body).1, b"\xff\xfd");
}

#[tokio::test]
async fn a_line_beyond_the_limit_is_rejected_with_its_beginning_and_reading_goes_on() {
    let long = MAX_KEPT_BYTES + 3 * READ_BUFFER_BYTES + 17;
    let mut data = vec![b'x'; long];
    data.extend_from_slice(b"\n12345678\n123456789\n");
    let limit = MAX_KEPT_BYTES + 1;
    let source = source(data.clone(), limit);
    let messages = read_all(&source, ALL).await;
    let Body::Entry(entry) = &messages[0].body else {
        panic!("the long line was not rejected");
    };
    let Content::Rejected(rejection) = &entry.content else {
        panic!("the long line was not rejected");
    };
    assert_eq!(entry.position.as_str(), "in.jsonl:1");
    assert_eq!(rejection.raw.len(), MAX_KEPT_BYTES);
    assert!(
        rejection.reason.contains(&long.to_string()),
        "{}",
        rejection.reason
    );
    assert!(
        rejection.reason.contains(&limit.to_string()),
        "{}",
        rejection.reason
    );
    assert_eq!(
        text(&messages[1].body),
        ("in.jsonl:2".into(), b"12345678".to_vec())
    );
    assert_eq!(messages.len(), 3);
    assert_eq!(source.progress().num_bytes(), data.len() as u64);
}

#[tokio::test]
async fn the_limit_is_exact() {
    for (line, is_event) in [("1234", true), ("12345", false), ("12345\n", false)] {
        let source = source(line, 4);
        let messages = read_all(&source, ALL).await;
        assert_eq!(
            matches!(messages[0].body, Body::Raw { .. }),
            is_event,
            "{line}"
        );
        assert_eq!(messages.len(), 1);
    }
    let source = source("1234\n", 4);
    assert!(matches!(
        read_all(&source, ALL).await[0].body,
        Body::Raw { .. }
    ));
}

#[tokio::test]
async fn reports_its_end_again_after_a_rewind() {
    let source = source("1\n2\n", 100);
    let first = read_all(&source, ALL).await;
    source.acknowledge(&[first[0].receipt]).await.unwrap();
    source.rewind().await.unwrap();
    let again = read_all(&source, ALL).await;
    assert_eq!(again.len(), 1);
    assert!(again[0].redelivered);
    assert_eq!(again[0].receipt, first[1].receipt);
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
}

#[tokio::test]
async fn an_empty_file_ends_at_once() {
    let source = source("", 100);
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
}

/// Fails once behind its data, and then claims to be at its end.
struct Failing(Cursor<Vec<u8>>, bool);

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 if !std::mem::replace(&mut self.1, true) => Err(io::Error::other("disk on fire")),
            num => Ok(num),
        }
    }
}

#[tokio::test]
async fn a_failing_reader_is_never_taken_for_an_end() {
    let data = b"1\n2\nhalf a li".to_vec();
    let reader = Box::new(Failing(Cursor::new(data), false));
    let source = FileSource::new(reader, "in.jsonl", 100).unwrap();
    let mut lines = Vec::new();
    let error = loop {
        match source.read(ALL).await {
            Ok(chunk) => {
                assert_ne!(chunk.more, More::Ended);
                lines.extend(chunk.messages);
            }
            Err(error) => break error.to_string(),
        }
    };
    assert_eq!(
        lines.len(),
        2,
        "whole lines before the failure are handed out, half ones not"
    );
    assert!(
        error.contains("in.jsonl") && error.contains("line 3"),
        "{error}"
    );
    assert!(error.contains("disk on fire"), "{error}");
    assert!(source.read(ALL).await.is_err(), "the failure is final");
    source.rewind().await.unwrap();
    assert_eq!(source.read(ALL).await.unwrap().messages.len(), 2);
    assert_eq!(source.progress().failure(), Some(error));
}

struct Panicking;

impl Read for Panicking {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("a reader that panics")
    }
}

#[tokio::test]
async fn a_panicking_reader_is_an_error() {
    let source = FileSource::new(Box::new(Panicking), "in.jsonl", 100).unwrap();
    assert!(source.read(ALL).await.is_err());
}

/// Gives what a test sends, as a pipe does.
struct Pipe(Receiver<Vec<u8>>);

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let data = self.0.recv().unwrap_or_default();
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }
}

#[tokio::test]
async fn lines_of_a_pipe_do_not_wait_for_later_ones() {
    let (pipe, receiver) = sync_channel(8);
    let source = FileSource::new(Box::new(Pipe(receiver)), "-", 100).unwrap();
    pipe.send(b"1\n2\nthr".to_vec()).unwrap();
    let mut lines = Vec::new();
    while lines.len() < 2 {
        lines.extend(source.read(ALL).await.unwrap().messages);
    }
    pipe.send(b"ee\n".to_vec()).unwrap();
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!(
        text(&chunk.messages[0].body),
        ("-:3".into(), b"three".to_vec())
    );
}

#[tokio::test]
async fn a_dropped_read_loses_nothing_even_while_the_thread_reads() {
    let (pipe, receiver) = sync_channel(8);
    let source = FileSource::new(Box::new(Pipe(receiver)), "-", 100).unwrap();
    {
        let read = source.read(ALL);
        tokio::select! {
            biased;
            _ = read => panic!("nothing was sent"),
            () = tokio::task::yield_now() => {}
        }
    }
    pipe.send(b"1\n2\n".to_vec()).unwrap();
    drop(pipe);
    assert_eq!(read_all(&source, ALL).await.len(), 2);
}

#[tokio::test]
async fn closing_ends_it() {
    let (pipe, receiver) = sync_channel(8);
    let source = FileSource::new(Box::new(Pipe(receiver)), "-", 100).unwrap();
    pipe.send(b"1\n".to_vec()).unwrap();
    assert_eq!(source.read(ALL).await.unwrap().messages.len(), 1);
    source.close().await.unwrap();
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
}

/// What is read, with its position, and why no more.
async fn read_until_it_fails(source: &FileSource) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    let mut read = Vec::new();
    loop {
        match source.read(ALL).await {
            Ok(chunk) => {
                read.extend(chunk.messages.iter().map(|message| text(&message.body)));
                if chunk.more == More::Ended {
                    return (read, None);
                }
            }
            Err(error) => return (read, Some(error.to_string())),
        }
    }
}

fn all(expected: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let owned = |(position, text): &(&str, &str)| {
        let position = format!("in.jsonl:{position}");
        (position, text.as_bytes().to_vec())
    };
    expected.iter().map(owned).collect()
}

#[tokio::test]
async fn a_list_and_events_over_several_lines_are_read_as_what_they_are() {
    for (data, expected) in [
        (
            r#"[{"a":1},{"b":[2,"]}"]}]"#,
            vec![("1[0]", r#"{"a":1}"#), ("1[1]", r#"{"b":[2,"]}"]}"#)],
        ),
        (
            "\n [\n{\"a\":1}\n,\n\n{\"b\":\n2}\n]\n",
            vec![("3[0]", r#"{"a":1}"#), ("6[1]", "{\"b\":\n2}")],
        ),
        (
            "{\n \"a\": 1\n}\n{\n \"b\": 2\n}",
            vec![("1", "{\n \"a\": 1\n}"), ("4", "{\n \"b\": 2\n}")],
        ),
        (
            "{\"a\": {},\n \"b\": 2}\n\n{\"c\":3}\n",
            vec![("1", "{\"a\": {},\n \"b\": 2}"), ("4", "{\"c\":3}")],
        ),
        (
            "[]\n[1]\r\n[\"\\\"]\",[2],null]",
            vec![
                ("2[0]", "1"),
                ("3[0]", "\"\\\"]\""),
                ("3[1]", "[2]"),
                ("3[2]", "null"),
            ],
        ),
        ("{}\n[1]\n{\n", vec![("1", "{}"), ("2", "[1]"), ("3", "{")]),
        (
            "{\"a\":1,\n{\"b\":2}\n",
            vec![("1", "{\"a\":1,"), ("2", "{\"b\":2}")],
        ),
        (
            "{\"a\":\"1\n{\"b\":2}\n",
            vec![("1", "{\"a\":\"1"), ("2", "{\"b\":2}")],
        ),
        (" \n \n", vec![]),
        ("{", vec![("1", "{")]),
    ] {
        let source = source(data, 1000);
        let (read, failure) = read_until_it_fails(&source).await;
        assert_eq!(read, all(&expected), "{data}");
        assert_eq!(failure, None, "{data}");
        assert_eq!(source.progress().num_bytes(), data.len() as u64, "{data}");
        assert_eq!(
            source.progress().num_lines(),
            expected.len() as u64,
            "{data}"
        );
    }
}

#[tokio::test]
async fn what_is_no_list_ends_with_its_line_and_all_before_it_is_handed_out() {
    for (data, num_read, why) in [
        (
            "[{\"a\":1},\n{\"b\":2}\n{\"c\":3}]",
            2,
            "line 3: a comma is missing",
        ),
        ("[{\"a\":1},\n]", 1, "line 2: an event is missing"),
        ("[,1]", 0, "line 1: an event is missing"),
        (
            "[1,\n2",
            2,
            "line 2: the list that begins on line 1 has no end",
        ),
        (
            "[1,\n\n{\"a\":\n",
            1,
            "line 4: what begins on line 3 has no end",
        ),
        (
            "[1,\n{\"a\n\":2},3]",
            1,
            "line 2: a line ends within a string",
        ),
        ("[1]\nx", 1, "line 2: here stands neither"),
    ] {
        let source = source(data, 1000);
        let (read, failure) = read_until_it_fails(&source).await;
        assert_eq!(read.len(), num_read, "{data}");
        let failure = failure.unwrap_or_default();
        assert!(failure.contains(why), "{data}: {failure}");
        assert_eq!(source.progress().failure(), Some(failure));
    }
}

#[tokio::test]
async fn an_element_beyond_the_limit_is_rejected_and_its_neighbours_are_not() {
    let data = format!(
        "[{{\"a\":1}}, \"{}\", {{\"b\":2}}]",
        "x".repeat(2 * READ_BUFFER_BYTES)
    );
    let source = source(data, 1000);
    let messages = read_all(&source, ALL).await;
    let positions: Vec<_> = messages.iter().map(|m| text(&m.body).0).collect();
    assert_eq!(
        positions,
        ["in.jsonl:1[0]", "in.jsonl:1[1]", "in.jsonl:1[2]"]
    );
    let Body::Entry(entry) = &messages[1].body else {
        panic!("the long one was not rejected");
    };
    let Content::Rejected(rejection) = &entry.content else {
        panic!("the long one was not rejected");
    };
    let expected = format!("the event has {} bytes", 2 * READ_BUFFER_BYTES + 2);
    assert!(
        rejection.reason.starts_with(&expected),
        "{}",
        rejection.reason
    );
    assert_eq!(rejection.raw.len(), 1001);
}

#[tokio::test]
async fn a_mark_is_passed_over_and_other_encodings_are_refused_before_anything_is_taken() {
    for data in [
        "\u{feff}{\"a\":1}\n",
        "\u{feff}[{\"a\":1}]",
        "\u{feff}\n{\n\"a\":1}",
    ] {
        let (read, failure) = read_until_it_fails(&source(data, 1000)).await;
        assert_eq!((read.len(), failure), (1, None), "{data}");
    }
    for (mark, encoding) in [("\u{feff}", "UTF-16LE"), ("", "UTF-16LE")] {
        let text = format!("{mark}{{\"a\":1}}\n{{\"b\":2}}\n");
        let data: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let (read, failure) = read_until_it_fails(&source(data, 1000)).await;
        assert_eq!(read, []);
        let failure = failure.unwrap_or_default();
        let cure = format!("iconv -f {encoding} -t UTF-8");
        assert!(
            failure.contains(&cure) && failure.contains("nothing of it was taken"),
            "{failure}"
        );
    }
}

/// One byte at a time, as a slow pipe gives them: nothing depends on what one read brings.
struct ByteByByte(Cursor<Vec<u8>>);

impl Read for ByteByByte {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let one = buffer.len().min(1);
        self.0.read(&mut buffer[..one])
    }
}

fn any_json() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        r#"[\\"\[\]{},: \nü]{0,8}"#.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a\"\\[]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest::proptest! {
    /// The same elements in every form that a file of them may have.
    #[test]
    fn every_form_holds_the_same_elements(
        list in proptest::collection::vec(any_json(), 0..6),
        slowly: bool,
        marked: bool,
    ) {
        use serde_json::Value;
        // What is no object does not begin an event over several lines.
        let objects: Vec<Value> = list.iter().map(|value| serde_json::json!({ "value": value })).collect();
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap() + "\n";
        let compact = |value: &Value| value.to_string() + "\n";
        let forms = [
            (serde_json::to_string(&list).unwrap(), &list),
            (serde_json::to_string_pretty(&list).unwrap(), &list),
            (objects.iter().map(pretty).collect(), &objects),
            (objects.iter().map(compact).collect(), &objects),
        ];
        for (text, expected) in forms {
            let mark = if marked { "\u{feff}" } else { "" };
            let data = Cursor::new(format!("{mark}{text}").into_bytes());
            let reader: Box<dyn Read + Send> = if slowly {
                Box::new(ByteByByte(data))
            } else {
                Box::new(data)
            };
            let source = FileSource::new(reader, "in.jsonl", 1000).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (read, failure) = runtime.block_on(read_until_it_fails(&source));
            proptest::prop_assert_eq!(failure, None);
            let read: Vec<Value> = read
                .iter()
                .map(|(_, text)| serde_json::from_slice(text).unwrap())
                .collect();
            proptest::prop_assert_eq!(&read, expected);
        }
    }
}
