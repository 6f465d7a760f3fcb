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
    let source = source(b"\xff\xfe\n".to_vec(), 1000);
    let messages = read_all(&source, ALL).await;
    assert_eq!(text(&messages[0].body).1, b"\xff\xfe");
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
