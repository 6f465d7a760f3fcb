//! Crowds of clients that begin what they do not end: memory stays within the bound, and comes back.

use std::future::pending;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::support::binary::Folder;
use super::support::events::{event, list};
use super::support::server::Server;

/// Far beyond what anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const NUM_CLIENTS: usize = 1_000;

/// The sum of deploy/README.md, "Sizing", with the defaults and nothing that waits for the database: the service itself,
/// what each connection may have, and all that is on its way in.
const MAX_MEMORY_MIB: u64 = 64 + (NUM_CLIENTS as u64) / 8 + 128;
/// What may stay: the service itself, and what is kept for the next time.
const MAX_REST_MIB: u64 = 64 + 64;

const UPGRADE: &[u8] = b"GET /api/events/in HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
                         upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The header of a frame that announces a text of this many bytes.
fn header(num_bytes: u64) -> Vec<u8> {
    let mut header = vec![0x81, 0xff];
    header.extend(num_bytes.to_be_bytes());
    header.extend([0; 4]);
    header
}

async fn connect(address: &str) -> TcpStream {
    let connecting = timeout(PATIENCE, TcpStream::connect(address));
    connecting.await.expect("let in in time").expect("let in")
}

/// A WebSocket, as it is once it is open.
async fn socket(address: &str) -> TcpStream {
    let mut stream = connect(address).await;
    stream.write_all(UPGRADE).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await;
        head.push(byte.expect("an answer in time").unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

/// Clients that send so much, once they are in, and then keep still. Whoever is thrown out stays out.
async fn crowd(address: &str, sent: &[u8], is_socket: bool) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..NUM_CLIENTS {
        let mut stream = match is_socket {
            true => socket(address).await,
            false => connect(address).await,
        };
        let sent = sent.to_vec();
        clients.spawn(async move {
            // As far as the server reads it.
            drop(stream.write_all(&sent).await);
            pending::<()>().await;
        });
    }
    clients
}

/// Returns once it takes in nothing more.
async fn until_it_stops_growing(server: &Server) {
    let (started, mut largest, mut grew) = (Instant::now(), 0, Instant::now());
    while grew.elapsed() < Duration::from_secs(2) {
        assert!(started.elapsed() < PATIENCE, "it grows and grows");
        sleep(Duration::from_millis(100)).await;
        let now = server.memory();
        if now > largest {
            (largest, grew) = (now, Instant::now());
        }
    }
}

async fn serves_a_newcomer(server: &Server) {
    let posting = timeout(PATIENCE, server.post_status(list(&[event()])));
    assert_eq!(posting.await.expect("an answer in time"), 204);
    assert_eq!(server.readiness().await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_stay_within_the_bound_and_their_memory_comes_back() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let mut message = header(600_000);
    message.resize(message.len() + 599_999, b' ');
    let mut body =
        b"POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: 600000\r\n\r\n".to_vec();
    body.resize(body.len() + 599_999, b' ');
    let messages = (&message, true);
    for (round, (sent, is_socket)) in [messages, messages, messages, (&body, false)]
        .into_iter()
        .enumerate()
    {
        let clients = crowd(server.address(), sent, is_socket).await;
        until_it_stops_growing(&server).await;
        serves_a_newcomer(&server).await;
        let peak = server.peak_memory();
        assert!(peak < MAX_MEMORY_MIB, "{peak} MiB in round {round}");
        drop(clients);
        let gone = Instant::now();
        while server.memory() > MAX_REST_MIB {
            // Some 6 s on a machine that has nothing else to do.
            let (memory, since) = (server.memory(), gone.elapsed());
            assert!(since < PATIENCE, "{memory} MiB after {since:?}");
            sleep(Duration::from_millis(100)).await;
        }
        println!(
            "round {round}: {peak} MiB, {} after {:?}",
            server.memory(),
            gone.elapsed()
        );
    }
    server.terminate().in_good_order();
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_announced_takes_not_even_addresses() {
    let folder = Folder::new();
    let plain = folder.command(&["--listen", "127.0.0.1:0"]);
    // A gigabyte would do for what it has; a thousand times 60 MB would not fit.
    let mut limited = Command::new("prlimit");
    limited
        .arg("--as=8589934592")
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(folder.path());
    let server = Server::spawn(limited, &folder.database_path());
    let server = server.ready().await;

    let sockets = crowd(server.address(), &header(60_000_000), true).await;
    serves_a_newcomer(&server).await;
    drop(sockets);

    let head = b"POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: 67000000\r\n\r\n[";
    let posts = crowd(server.address(), head, false).await;
    serves_a_newcomer(&server).await;
    drop(posts);

    // In parts, of which the first is small.
    let mut part = header(60_000_000);
    part[0] = 0x01;
    let begun = [&[0x01, 0x81, 0, 0, 0, 0, b'{'][..], &[0x00][..], &part[1..]].concat();
    let parts = crowd(server.address(), &begun, true).await;
    serves_a_newcomer(&server).await;
    drop(parts);
    server.terminate().in_good_order();
}
