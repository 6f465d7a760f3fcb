//! Clients that mean no good, many at once, for tests and for a benchmark.
//!
//! Each comes back when it is thrown out, and none of them knows the auth string.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A head of which this many let a byte trickle now and then.
const NUM_TRICKLING: usize = 500;
/// These say nothing.
const NUM_SILENT: usize = 1_000;
/// These send bodies of this size, as fast as they are read.
const NUM_LARGE: usize = 4;
const LARGE_BYTES: usize = 10_000_000;
/// These send frames that are none.
const NUM_FRAMES: usize = 8;
/// These try tokens.
const NUM_TOKENS: usize = 8;

/// Between two bytes of a head, and before a client that was thrown out comes back.
const PAUSE: Duration = Duration::from_millis(500);

/// How often each of them was thrown out or refused.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) trickling: AtomicUsize,
    pub(crate) silent: AtomicUsize,
    pub(crate) large: AtomicUsize,
    pub(crate) frames: AtomicUsize,
    pub(crate) tokens: AtomicUsize,
}

impl Refused {
    /// Whether all kinds were.
    pub(crate) fn all(&self) -> bool {
        [
            &self.trickling,
            &self.silent,
            &self.large,
            &self.frames,
            &self.tokens,
        ]
        .iter()
        .all(|kind| kind.load(Ordering::Relaxed) > 0)
    }
}

/// All of them at work, until it is dropped.
pub(crate) struct Abuse {
    pub(crate) refused: Arc<Refused>,
    _clients: JoinSet<()>,
}

impl Abuse {
    pub(crate) fn of(address: &str) -> Self {
        let refused = Arc::new(Refused::default());
        let mut clients = JoinSet::new();
        let mut spawn = |kind: Kind, num: usize| {
            for number in 0..num {
                let (address, refused) = (address.to_owned(), Arc::clone(&refused));
                clients.spawn(async move {
                    for round in 0.. {
                        // That it cannot connect, or is cut off, is what it deserves.
                        if kind.once(&address, number + round).await.is_ok() {
                            kind.count(&refused).fetch_add(1, Ordering::Relaxed);
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                });
            }
        };
        spawn(Kind::Trickling, NUM_TRICKLING);
        spawn(Kind::Silent, NUM_SILENT);
        spawn(Kind::Large, NUM_LARGE);
        spawn(Kind::Frames, NUM_FRAMES);
        spawn(Kind::Tokens, NUM_TOKENS);
        Self {
            refused,
            _clients: clients,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Trickling,
    Silent,
    Large,
    Frames,
    Tokens,
}

impl Kind {
    fn count(self, refused: &Refused) -> &AtomicUsize {
        match self {
            Self::Trickling => &refused.trickling,
            Self::Silent => &refused.silent,
            Self::Large => &refused.large,
            Self::Frames => &refused.frames,
            Self::Tokens => &refused.tokens,
        }
    }

    /// Connects, and does what it does until it is refused.
    async fn once(self, address: &str, number: usize) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        match self {
            Self::Trickling => {
                stream
                    .write_all(b"POST /api/events HTTP/1.1\r\nx: ")
                    .await?;
                let (mut read, mut write) = stream.split();
                let trickle = async {
                    while write.write_all(b"y").await.is_ok() {
                        tokio::time::sleep(PAUSE).await;
                    }
                    pending::<()>().await;
                };
                tokio::select! {
                    _ = read.read_u8() => {}
                    () = trickle => {}
                }
            }
            Self::Silent => drop(stream.read_u8().await),
            Self::Large => {
                let head = post(number, LARGE_BYTES);
                stream.write_all(head.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                let body = vec![b' '; LARGE_BYTES];
                let send = async {
                    drop(write.write_all(&body).await);
                    pending::<()>().await;
                };
                tokio::select! {
                    refused = is_refused(&mut read) => refused?,
                    () = send => {}
                }
            }
            Self::Frames => {
                stream.write_all(UPGRADE.as_bytes()).await?;
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await?;
                let frame = FRAMES[number % FRAMES.len()];
                stream.write_all(frame).await?;
                // Closed it must be; in what way is for other tests.
                stream.read_to_end(&mut Vec::new()).await?;
            }
            Self::Tokens => {
                stream.write_all(post(number, 2).as_bytes()).await?;
                stream.write_all(b"[]").await?;
                is_refused(&mut stream).await?;
            }
        }
        Ok(())
    }
}

/// The head of a request with a wrong token.
fn post(number: usize, length: usize) -> String {
    const TOKENS: [&str; 3] = ["Basic YWRtaW46d3Jvbmc=", "Bearer x", "Basic !"];
    let token = TOKENS[number % TOKENS.len()];
    format!(
        "POST /api/events HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\
         content-length: {length}\r\n\r\n"
    )
}

/// Waits for the answer, which must not be that it was let in.
async fn is_refused(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    assert!(
        [&b"HTTP/1.1 401"[..], b"HTTP/1.1 503"].contains(&&answer[..]),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

const UPGRADE: &str = "GET /api/events/in HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
                       upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       sec-websocket-protocol: prefect\r\n\r\n";

/// Unmasked; of no known kind; larger than anything; the end of what never began; a wrong token.
const FRAMES: [&[u8]; 5] = [
    b"\x81\x02hi",
    b"\x83\x80\0\0\0\0",
    b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
    b"\x80\x82\0\0\0\0hi",
    b"\x81\x9f\0\0\0\0{\"type\":\"auth\",\"token\":\"wrong\"}",
];
