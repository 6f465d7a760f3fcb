//! Requests that do not wait for the answers before them.

use serde_json::json;
use tokio::net::tcp::OwnedReadHalf;

use super::*;
use crate::support::events::id;

/// What a client sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Health,
    HeadOfHealth,
    Nowhere,
    Good,
    /// Larger than what is read at once.
    Large,
    Chunked,
    Expecting,
    /// A list that is refused once it is read.
    NoEvent,
    /// Refused by its head alone; its body comes all the same.
    Compressed,
    CompressedExpecting,
    TooLarge,
    Nonsense,
}

impl Kind {
    /// Those that leave the connection as it was.
    const LASTING: [Self; 8] = [
        Self::Health,
        Self::HeadOfHealth,
        Self::Nowhere,
        Self::Good,
        Self::Large,
        Self::Chunked,
        Self::Expecting,
        Self::NoEvent,
    ];
    /// Those that end it.
    const LAST: [Self; 4] = [
        Self::Compressed,
        Self::CompressedExpecting,
        Self::TooLarge,
        Self::Nonsense,
    ];

    fn status(self) -> u16 {
        match self {
            Self::Health | Self::HeadOfHealth => 200,
            Self::Nowhere => 404,
            Self::Good | Self::Large | Self::Chunked | Self::Expecting => 204,
            Self::NoEvent => 422,
            Self::Compressed | Self::CompressedExpecting => 415,
            Self::TooLarge => 413,
            Self::Nonsense => 400,
        }
    }

    /// The bytes, and the event in them.
    fn request(self) -> (Vec<u8>, Option<Value>) {
        let mut event = event();
        if self == Self::Large {
            event["payload"] = json!({ "text": "x".repeat(100_000) });
        }
        let body = list(std::slice::from_ref(&event));
        let post = |headers: &str, body: &str| {
            let length = body.len();
            format!(
                "POST /api/events HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}"
            )
        };
        let with_event = |request: String| (request.into_bytes(), Some(event));
        let plain = |request: &str| (request.as_bytes().to_vec(), None);
        match self {
            Self::Health => (HEALTH.to_vec(), None),
            Self::HeadOfHealth => plain("HEAD /api/health HTTP/1.1\r\nhost: x\r\n\r\n"),
            Self::Nowhere => plain("\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"),
            Self::Good | Self::Large => with_event(post("", &body)),
            Self::Chunked => {
                let (first, second) = body.split_at(20);
                with_event(format!(
                    "POST /api/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                     {:x}\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\n\r\n",
                    first.len(),
                    second.len()
                ))
            }
            Self::Expecting => with_event(post("expect: 100-continue\r\n", &body)),
            Self::NoEvent => plain(&post("", "[1]")),
            Self::Compressed => plain(&post("content-encoding: gzip\r\n", &body)),
            Self::CompressedExpecting => plain(&post(
                "content-encoding: gzip\r\nexpect: 100-continue\r\n",
                &body,
            )),
            Self::TooLarge => {
                plain("POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n[")
            }
            Self::Nonsense => plain("nonsense\r\n\r\n"),
        }
    }
}

/// The answers to requests that are sent at once, or piece by piece.
struct Answers {
    stream: OwnedReadHalf,
    read: Vec<u8>,
}

impl Answers {
    async fn more(&mut self) -> bool {
        let read = in_time("answered", self.stream.read_buf(&mut self.read)).await;
        // It may be reset once it has ended.
        let num = read.unwrap_or(0);
        num > 0
    }

    async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more().await, "{}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Reads one answer, whole; whether the connection ends with it.
    async fn is_to(&mut self, kind: Kind) -> bool {
        let mut head = self.head().await;
        if head.starts_with("HTTP/1.1 100") {
            assert!(matches!(kind, Kind::Expecting | Kind::CompressedExpecting));
            head = self.head().await;
        }
        let expected = format!("HTTP/1.1 {} ", kind.status());
        assert!(head.starts_with(&expected), "{kind:?}: {head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if kind != Kind::HeadOfHealth {
            while self.read.len() < length {
                assert!(self.more().await, "half an answer to {kind:?}");
            }
            self.read.drain(..length);
        }
        head.contains("connection: close")
    }
}

/// Sends all of them, in pieces of this size, while the database is locked or not, and reads what comes.
async fn exchange(server: &Server, kinds: &[Kind], step: usize, is_locked: bool) {
    let lock = is_locked.then(|| server.database().lock());
    let (mut bytes, mut stored, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_over = false;
    for kind in kinds {
        let (request, event) = kind.request();
        bytes.extend(request);
        let fate = if is_over { &mut refused } else { &mut stored };
        fate.extend(event.as_ref().map(id));
        is_over |= Kind::LAST.contains(kind);
    }
    let stream = connect(server).await;
    stream.set_nodelay(true).unwrap();
    let (stream, mut writer) = stream.into_split();
    let write = async {
        for piece in bytes.chunks(step) {
            if writer.write_all(piece).await.is_err() {
                // Cut off, as it may be behind the last answer.
                break;
            }
        }
        writer
    };
    let mut answers = Answers {
        stream,
        read: Vec::new(),
    };
    let read = async {
        if let Some(lock) = lock {
            tokio::time::sleep(Duration::from_millis(50)).await;
            lock.release();
        }
        for kind in kinds {
            let closes = answers.is_to(*kind).await;
            if Kind::LAST.contains(kind) {
                assert!(closes || *kind == Kind::Nonsense, "{kind:?}");
                while answers.more().await {}
                break;
            }
            assert!(!closes, "{kind:?} of {kinds:?}");
        }
        // Nothing comes that was not asked for.
        assert!(
            answers.read.is_empty(),
            "{:?}",
            String::from_utf8_lossy(&answers.read)
        );
    };
    let (writer, ()) = tokio::join!(write, read);
    drop(writer);
    let there = server.database().complete_events();
    assert!(stored.iter().all(|id| there.contains(id)), "{kinds:?}");
    assert!(!refused.iter().any(|id| there.contains(id)), "{kinds:?}");
}

#[tokio::test]
async fn all_are_answered_in_their_order_byte_by_byte_and_at_once() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    for step in [1, 500, usize::MAX] {
        for is_locked in [false, true] {
            exchange(&server, &Kind::LASTING, step, is_locked).await;
            let reversed: Vec<Kind> = Kind::LASTING.into_iter().rev().collect();
            exchange(&server, &reversed, step, is_locked).await;
        }
    }
    server.terminate().in_good_order();
}

#[tokio::test]
async fn behind_one_that_is_refused_before_its_body_none_is_begun() {
    use Kind::{Chunked, Expecting, Good, HeadOfHealth, Health, Large};

    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    for last in Kind::LAST {
        for step in [1, usize::MAX] {
            exchange(&server, &[last, Good, Health], step, false).await;
            let kinds = [Good, HeadOfHealth, Chunked, last, Good, Large, Expecting];
            exchange(&server, &kinds, step, true).await;
        }
    }
    server.terminate().in_good_order();
}

#[tokio::test]
async fn any_number_in_any_order_is_answered() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    for _ in 0..20 {
        let num = fastrand::usize(1..60);
        let kinds: Vec<Kind> = (0..num)
            .map(|_| Kind::LASTING[fastrand::usize(..Kind::LASTING.len())])
            .collect();
        let step = [3, 100, 1_000, 70_000][fastrand::usize(..4)];
        exchange(&server, &kinds, step, fastrand::bool()).await;
    }
    server.terminate().in_good_order();
}
