//! Clients that cost next to nothing beside the server that they share the processors with: bytes
//! that were made beforehand, connections that are kept, and no look at an answer beyond its end.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What a client sends before it waits for an answer.
pub(crate) type Portion = Vec<u8>;

/// How clients and server speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `POST /api/events`, a list of so many events a request; the answer is 204.
    Post(usize),
    /// `WS /api/events/in` as Prefect's client uses it: a ping after so many events at most; the
    /// answer is its pong.
    Socket(usize),
}

impl Protocol {
    /// The portions in which so many clients send these events.
    pub(crate) fn portions(self, events: &[String], num_clients: usize) -> Vec<Portion> {
        match self {
            Self::Post(size) => events.chunks(size).map(request).collect(),
            Self::Socket(size) => {
                // Where there are few events, each client gets a share.
                let share = events.len().div_ceil(num_clients);
                events.chunks(size.min(share)).map(frames).collect()
            }
        }
    }

    async fn connect(self, address: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if let Self::Socket(_) = self {
            shake_hands(&mut stream, address, "in").await;
        }
        stream
    }

    async fn answer(self, stream: &mut TcpStream, buffer: &mut Vec<u8>) {
        buffer.clear();
        match self {
            Self::Post(_) => {
                read_head(stream, buffer).await;
                let is_committed = buffer.starts_with(b"HTTP/1.1 204 ");
                assert!(is_committed, "{}", String::from_utf8_lossy(buffer));
            }
            Self::Socket(_) => read_pong(stream).await,
        }
    }
}

/// Sends all portions from so many clients, each of which takes the next one when its last was
/// answered; returns how long each waited for its answer.
pub(crate) async fn send_all(
    protocol: Protocol,
    address: &str,
    portions: &[Portion],
    num_clients: usize,
) -> Vec<Duration> {
    let next = Cell::new(0);
    let client = || async {
        let mut waits = Vec::new();
        let mut buffer = Vec::new();
        let mut stream = protocol.connect(address).await;
        while let Some(portion) = portions.get(next.replace(next.get() + 1)) {
            let started = Instant::now();
            stream.write_all(portion).await.unwrap();
            protocol.answer(&mut stream, &mut buffer).await;
            waits.push(started.elapsed());
        }
        waits
    };
    join_all((0..num_clients).map(|_| client())).await.concat()
}

/// A WebSocket on which events are told from now on, so many a second at most.
pub(crate) async fn follow(address: &str, at_most: Option<u64>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    shake_hands(&mut stream, address, "out").await;
    let mut frame = Vec::new();
    let mut filter = json!({"type": "filter", "filter": {}, "backfill": false, "missed": true});
    filter["at_most"] = json!(at_most);
    let filter = filter.to_string();
    push_frame(TEXT, filter.as_bytes(), &mut frame);
    stream.write_all(&frame).await.unwrap();
    stream
}

fn request(events: &[String]) -> Portion {
    let body = format!("[{}]", events.join(","));
    let head = format!(
        "POST /api/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

fn frames(events: &[String]) -> Portion {
    let mut bytes = Vec::new();
    for event in events {
        push_frame(TEXT, event.as_bytes(), &mut bytes);
    }
    push_frame(PING, b"", &mut bytes);
    bytes
}

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// A client's frames are masked; a mask of zeros leaves the payload as it is.
fn push_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    const FINAL: u8 = 0x80;
    const MASKED: u8 = 0x80;
    out.push(FINAL | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => out.push(MASKED | length),
        (_, Ok(length)) => {
            out.push(MASKED | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend(payload);
}

async fn shake_hands(stream: &mut TcpStream, address: &str, way: &str) {
    let head = format!(
        "GET /api/events/{way} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: prefect\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    read_head(stream, &mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{answer:?}");
    let mut auth = Vec::new();
    let message = json!({"type": "auth", "token": null}).to_string();
    push_frame(TEXT, message.as_bytes(), &mut auth);
    stream.write_all(&auth).await.unwrap();
    let (opcode, answer) = read_frame(stream).await;
    assert_eq!(opcode, TEXT);
    assert_eq!(answer, br#"{"type":"auth_success"}"#);
}

/// Reads to the end of an answer's head, behind which nothing comes unasked.
async fn read_head(stream: &mut TcpStream, head: &mut Vec<u8>) {
    while !head.ends_with(b"\r\n\r\n") {
        let num_bytes = stream.read_buf(head).await.unwrap();
        assert_ne!(num_bytes, 0, "{}", String::from_utf8_lossy(head));
    }
}

async fn read_pong(stream: &mut TcpStream) {
    loop {
        match read_frame(stream).await {
            (PONG, _) => return,
            (CLOSE, reason) => panic!("closed: {}", String::from_utf8_lossy(&reason)),
            // The server's own pings; none of them comes so often that it must be answered here.
            _ => {}
        }
    }
}

/// A server's frames are not masked, and those that come here are short.
async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut start = [0; 2];
    stream.read_exact(&mut start).await.unwrap();
    assert!(start[1] < 126, "a longer frame than any that is expected");
    let mut payload = vec![0; start[1].into()];
    stream.read_exact(&mut payload).await.unwrap();
    (start[0] & 0xf, payload)
}
