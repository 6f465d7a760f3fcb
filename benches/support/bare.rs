//! The least that a client does who takes all that is in a stream and acknowledges it: it reads nothing of it.

#[cfg(feature = "nats")]
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
#[cfg(feature = "nats")]
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

#[cfg(feature = "nats")]
use super::nats::{NatsServer, STREAM};
use super::redis::RedisServer;

/// Nothing takes that long without any progress.
#[cfg(feature = "nats")]
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages of one request, as many as the product asks for at most.
const AT_ONCE: usize = 1_000;
/// Only a client that finds nothing left waits for so long, and the clock stands still then.
#[cfg(feature = "nats")]
const EXPIRES: Duration = Duration::from_millis(200);

/// Its name, and each entry with its id.
type Stream = (Value, Vec<(String, Value)>);

/// Takes so many, with so many clients; how long that took.
pub(crate) fn from_redis(server: &RedisServer, num_events: usize, num_clients: usize) -> Duration {
    let _: Value = server
        .stream()
        .command("XGROUP CREATE events bare 0 MKSTREAM");
    together(num_events, num_clients, |number, taken| {
        let mut connection = server.stream().connect();
        let name = format!("client {number}");
        move || {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg("bare").arg(&name);
            read.arg("COUNT").arg(AT_ONCE).arg("STREAMS").arg("events");
            let read: Option<Vec<Stream>> = read.arg(">").query(&mut connection).unwrap();
            let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
            let ids: Vec<String> = entries.map(|(id, _)| id).collect();
            if !ids.is_empty() {
                let mut acknowledge = redis::cmd("XACK");
                acknowledge.arg("events").arg("bare").arg(&ids);
                let _: usize = acknowledge.query(&mut connection).unwrap();
            }
            taken.fetch_add(ids.len(), Ordering::Relaxed);
        }
    })
}

/// The same; an acknowledgement is sent, and not confirmed.
#[cfg(feature = "nats")]
pub(crate) fn from_nats(server: &NatsServer, num_events: usize, num_clients: usize) -> Duration {
    let body = serde_json::json!({
        "stream_name": STREAM,
        "config": { "durable_name": "bare", "ack_policy": "explicit", "max_ack_pending": -1 },
    });
    let what = format!("CONSUMER.DURABLE.CREATE.{STREAM}.bare");
    let made = server.stream().api(&what, &body);
    assert!(made["error"].is_null(), "{made}");
    together(num_events, num_clients, |number, taken| {
        let mut client = NatsClient::connect(server.port(), number);
        move || {
            taken.fetch_add(client.take_some(), Ordering::Relaxed);
        }
    })
}

/// Each client takes again and again, until all is taken.
fn together<T: FnMut() + Send>(
    num_events: usize,
    num_clients: usize,
    connect: impl Fn(usize, &'static AtomicUsize) -> T,
) -> Duration {
    // Of all clients; the few bytes stay until the end of the process.
    let taken: &'static AtomicUsize = Box::leak(Box::default());
    let clients: Vec<T> = (0..num_clients)
        .map(|number| connect(number, taken))
        .collect();
    let started = Instant::now();
    let took = OnceLock::new();
    std::thread::scope(|scope| {
        for mut take in clients {
            let took = &took;
            scope.spawn(move || {
                while taken.load(Ordering::Relaxed) < num_events {
                    take();
                }
                took.get_or_init(|| started.elapsed());
            });
        }
    });
    took.into_inner().unwrap()
}

#[cfg(feature = "nats")]
struct NatsClient {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
    line: String,
    payload: Vec<u8>,
}

#[cfg(feature = "nats")]
impl NatsClient {
    fn connect(port: u16, number: usize) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let inbox = format!("bare.{number}");
        let options = r#"{"verbose":false,"headers":true,"no_responders":true}"#;
        let hello = format!("CONNECT {options}\r\nSUB {inbox} 1\r\n");
        (&stream).write_all(hello.as_bytes()).unwrap();
        // It ends when there are no more, and waits for the first as long as that, as the product's do.
        let expires = EXPIRES.as_nanos();
        let body = format!(r#"{{"batch":{AT_ONCE},"no_wait":true,"expires":{expires}}}"#);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.bare");
        let request = format!("PUB {subject} {inbox} {}\r\n{body}\r\n", body.len());
        Self {
            reader: BufReader::with_capacity(1 << 18, stream),
            request: request.into_bytes(),
            line: String::new(),
            payload: Vec::new(),
        }
    }

    /// One request, and the acknowledgements of what it brings.
    fn take_some(&mut self) -> usize {
        self.reader.get_mut().write_all(&self.request).unwrap();
        let mut acknowledgements = Vec::new();
        let mut num = 0;
        while num < AT_ONCE {
            let Some(reply) = self.next() else { break };
            acknowledgements.extend_from_slice(format!("PUB {reply} 4\r\n+ACK\r\n").as_bytes());
            num += 1;
        }
        self.reader.get_mut().write_all(&acknowledgements).unwrap();
        num
    }

    /// Where to acknowledge the next message; `None` where there are no more for the moment.
    fn next(&mut self) -> Option<String> {
        loop {
            self.line.clear();
            self.reader.read_line(&mut self.line).unwrap();
            let words: Vec<&str> = self.line.split_whitespace().collect();
            let length = |word: &str| word.parse::<usize>().unwrap() + 2;
            let (reply, length) = match words[..] {
                ["MSG", _, _, reply, total] => (Some(reply.to_owned()), length(total)),
                ["HMSG", _, _, reply, _, total] => (Some(reply.to_owned()), length(total)),
                // A status, which has no reply.
                ["HMSG", .., total] => (None, length(total)),
                ["PING"] => {
                    self.reader.get_mut().write_all(b"PONG\r\n").unwrap();
                    continue;
                }
                _ => continue,
            };
            self.payload.resize(length, 0);
            self.reader.read_exact(&mut self.payload).unwrap();
            return reply;
        }
    }
}
