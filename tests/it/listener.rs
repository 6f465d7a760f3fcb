//! The listener against clients that are slow, silent, greedy or too many.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Error;

use super::support::binary::Folder;
use super::support::events::{event, events, list};
use super::support::server::Server;
use super::support::socket;
use super::support::wait::in_time;

mod pipelining;
mod tls;

const HEALTH: &[u8] = b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n";

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

/// Reads one answer without a body's length: the head, and as much of the body as came with it.
async fn answer(stream: &mut TcpStream) -> String {
    let mut read = vec![0; 10_000];
    let num = in_time("answered", stream.read(&mut read)).await;
    let num = num.expect("readable");
    String::from_utf8_lossy(&read[..num]).into_owned()
}

/// Returns once the server has closed the connection, while a byte goes there now and then.
async fn until_closed(stream: &mut TcpStream, trickle: &[u8]) {
    let closed = async {
        let mut rest = trickle.iter();
        let mut sink = [0; 100];
        loop {
            tokio::select! {
                read = stream.read(&mut sink) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(num) => panic!("answered: {}", String::from_utf8_lossy(&sink[..num])),
                },
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    // That it is closed is for the read to find.
                    let Some(byte) = rest.next() else { continue };
                    drop(stream.write_all(&[*byte]).await);
                }
            }
        }
    };
    in_time("closed", closed).await;
}

#[tokio::test]
async fn who_is_silent_or_lets_a_head_trickle_is_closed() {
    let folder = Folder::new();
    let idle = ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "300ms");
    let server = Server::start(&folder, &[idle]).ready().await;
    // A WebSocket may idle: it is there before all others, and answers after they are gone.
    let mut quiet = server.authenticated().await;
    // It never ends, however long it trickles.
    let endless = [
        b"GET /api/health HTTP/1.1\r\nx: ".to_vec(),
        vec![b'y'; 5_000],
    ]
    .concat();
    for trickle in [&b""[..], b"GET", &endless] {
        let mut first = connect(&server).await;
        until_closed(&mut first, trickle).await;
        // The same behind a request that was answered.
        let mut second = connect(&server).await;
        second.write_all(HEALTH).await.unwrap();
        assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
        until_closed(&mut second, trickle).await;
    }
    // And in one piece with it.
    let (begun, rest) = endless.split_at(5);
    let mut pipelined = connect(&server).await;
    let both = [HEALTH, begun].concat();
    pipelined.write_all(&both).await.unwrap();
    assert!(answer(&mut pipelined).await.starts_with("HTTP/1.1 200"));
    until_closed(&mut pipelined, rest).await;
    socket::ping(&mut quiet, "still there?").await;
    server.terminate().in_good_order();
}

/// Whoever can connect could fill the disk with it.
#[tokio::test]
async fn what_a_client_does_wrong_is_no_error_of_ours() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    for wrong in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /api/health HTTP/1.1\r\nhost x\r\n\r\n",
    ] {
        let mut client = connect(&server).await;
        client.write_all(wrong.as_bytes()).await.unwrap();
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 400"));
        until_closed(&mut client, b"").await;
    }
    let mut gone = connect(&server).await;
    gone.write_all(b"POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n[")
        .await
        .unwrap();
    drop(gone);
    let ended = server.terminate().in_good_order();
    let is_ours = |line: &&str| !line.contains(" WARN ") && !line.contains(" ERROR ");
    assert_eq!(ended.log.lines().find(|line| !is_ours(line)), None);
}

#[tokio::test]
async fn a_request_at_work_is_not_silence() {
    let folder = Folder::new();
    let idle = ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "100ms");
    let server = Server::start(&folder, &[idle]).ready().await;
    let lock = server.database().lock();
    let body = list(&events(1));
    let mut request = std::pin::pin!(server.post_status(body));
    let mut other = connect(&server).await;
    tokio::select! {
        status = &mut request => panic!("answered {status} while the database was locked"),
        // By then a silent connection is gone, and the request's has been silent for as long.
        () = until_closed(&mut other, b"") => {}
    }
    drop(lock);
    assert_eq!(request.await, 204);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn who_reads_no_answers_is_closed() {
    let folder = Folder::new();
    let patience = ("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "300ms");
    let server = Server::start(&folder, &[patience]).ready().await;
    let mut greedy = connect(&server).await;
    until_unwritable(&mut greedy, &HEALTH.repeat(100)).await;
    // Before it has said who it is: a ping is answered to anyone.
    let mut pings = server.connect().await;
    let MaybeTlsStream::Plain(stream) = pings.get_mut() else {
        panic!("no TLS here");
    };
    let ping = [&[0x89, 0xfd, 0, 0, 0, 0][..], &[0; 125]].concat();
    until_unwritable(stream, &ping.repeat(100)).await;
    server.terminate().in_good_order();
}

/// Writes, and never reads, until the server has had enough.
async fn until_unwritable(stream: &mut TcpStream, data: &[u8]) {
    let refused = async { while stream.write_all(data).await.is_ok() {} };
    in_time("closed", refused).await;
}

#[tokio::test]
async fn a_head_beyond_128_kib_is_refused() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let mut client = connect(&server).await;
    let head = [
        b"GET /api/health HTTP/1.1\r\nx: ".to_vec(),
        vec![b'y'; 200_000],
    ]
    .concat();
    // It may be refused, and the connection reset, before all of it is sent.
    drop(client.write_all(&head).await);
    let mut answer = Vec::new();
    let read = in_time("closed", client.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 431") || read.is_err(),
        "{answer}"
    );
    server.terminate().in_good_order();
}

#[tokio::test]
async fn beyond_the_limit_of_connections_only_health_is_answered() {
    let folder = Folder::new();
    let limit = ("EVENT_PERSISTER_HTTP_MAX_CONNECTIONS", "2");
    let server = Server::start(&folder, &[limit]);
    let _one = server.authenticated().await;
    let two = server.authenticated().await;
    let refused = server.post(list(&[event()])).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["connection"], "close");
    let refused = socket::connect(server.address(), Some("prefect")).await;
    let Err(Error::Http(refused)) = refused else {
        panic!("let in");
    };
    assert_eq!(refused.status(), 503);
    let health = server.get("/api/health").await;
    assert_eq!(health.status(), 200);
    assert_eq!(health.headers()["connection"], "close");
    server.until_ready_is(200).await;
    drop(two);
    let freed = async {
        while server.post_status(list(&[event()])).await != 204 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("free: the place that was left", freed).await;
    server.terminate().in_good_order();
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_health_needs_none() {
    let folder = Folder::new();
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2");
    let server = Server::start(&folder, &[secret]);
    server.until_ready_is(200).await;
    let wrong = ["", "hunter", "hunter2 ", "hunter22", "Hunter2"];
    let (started, mut peers) = (Instant::now(), Vec::new());
    for password in wrong {
        let request = server.post("[]").basic_auth("admin", Some(password));
        assert_eq!(request.send().await.unwrap().status(), 401, "{password}");
        let mut client = server.connect().await;
        let MaybeTlsStream::Plain(stream) = client.get_ref() else {
            panic!("no TLS here");
        };
        peers.push(format!("peer={} ", stream.local_addr().unwrap()));
        let token = format!("admin:{password}");
        socket::send_auth(&mut client, token.into()).await;
        let close = socket::closed(&mut client).await;
        assert_eq!(u16::from(close.code), 1008, "{password}");
    }
    let request = server.post("[]").basic_auth("admin", Some("hunter2"));
    assert_eq!(request.send().await.unwrap().status(), 204);
    let mut client = server.connect().await;
    socket::authenticate(&mut client, Value::from("admin:hunter2")).await;
    let ended = server.terminate().in_good_order();
    assert!(!ended.log.contains("hunter"), "{}", ended.log);
    let refused = ended.log.lines().filter(|line| line.contains("not let in"));
    let refused: Vec<&str> = refused.collect();
    // Anybody can do this: it is said now and then, and of whom.
    let most = 1 + started.elapsed().as_secs() / 10;
    assert!(refused.len() as u64 <= most, "{}", ended.log);
    assert!(refused[0].contains(&peers[0]), "{}", ended.log);
    assert!(refused[0].ends_with(" others=0"), "{}", ended.log);
}
