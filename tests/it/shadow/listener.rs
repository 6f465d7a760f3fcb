//! A shadow is asked through the same listener as a service, with the same bounds.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::support::certificates;
use crate::support::tls::{FILES, ask, connect_to};
use crate::support::wait::in_time;

/// A shadow beside nobody, with these settings of its listener.
fn shadow(bus: &Bus, variables: &[(&str, &str)]) -> Server {
    let mut command = bus.folder.command(&["serve", "--shadow"]);
    command
        .env("EVENT_PERSISTER_LISTEN", "0.0.0.0:0")
        .envs(bus.variables())
        .envs(variables.iter().copied());
    Server::spawn(command, &bus.folder.database_path())
}

#[tokio::test]
async fn a_shadow_speaks_tls_and_shows_its_numbers_to_who_knows_the_auth_string() {
    let bus = Bus::into_sqlite();
    certificates::make(bus.folder.path());
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "a:b");
    let shadow = shadow(&bus, &[FILES[0], FILES[1], secret]);
    for (request, headers, expected) in [
        ("GET /api/health", "", "HTTP/1.1 200"),
        ("GET /metrics", "", "HTTP/1.1 401"),
        (
            "GET /metrics",
            "authorization: Basic YTpi\r\n",
            "HTTP/1.1 200",
        ),
        (
            "POST /api/events",
            "authorization: Basic YTpi\r\n",
            "HTTP/1.1 503",
        ),
    ] {
        let mut client = connect_to(&bus.folder, &shadow).await;
        let answer = ask(&mut client, request, headers, "").await;
        assert!(answer.starts_with(expected), "{request}: {answer}");
        let has_numbers = answer.contains("event_persister_shadow_waiting");
        assert_eq!(
            has_numbers,
            answer.contains("200 OK") && request.contains("metrics")
        );
    }
    let mut plain = TcpStream::connect(shadow.address()).await.unwrap();
    let request = b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // It may be reset.
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn beyond_loopback_without_an_auth_string_a_shadow_shows_only_its_health() {
    let bus = Bus::into_sqlite();
    let shadow = shadow(&bus, &[]);
    shadow.logged("only /api/health and /api/ready are served");
    for (path, expected) in [
        ("/api/health", 200),
        ("/api/ready", 503),
        ("/metrics", 404),
        ("/api/events", 404),
    ] {
        assert_eq!(shadow.get(path).await.status(), expected, "{path}");
    }
}

#[tokio::test]
async fn beyond_the_limit_of_connections_a_shadow_answers_only_about_its_health() {
    let bus = Bus::into_sqlite();
    let limit = ("EVENT_PERSISTER_HTTP_MAX_CONNECTIONS", "1");
    let loopback = ("EVENT_PERSISTER_LISTEN", "127.0.0.1:0");
    let idle = ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "1h");
    let shadow = shadow(&bus, &[limit, loopback, idle]);
    let mut first = TcpStream::connect(shadow.address()).await.unwrap();
    // Once the head of a request has begun to be answered it has the place.
    let request = b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n";
    first.write_all(request).await.unwrap();
    first.read_exact(&mut [0; 12]).await.unwrap();
    assert_eq!(shadow.get("/metrics").await.status(), 503);
    assert_eq!(shadow.get("/api/health").await.status(), 200);
    // In the crowd who is silent goes, and leaves the place to others.
    let mut rest = Vec::new();
    let closed = in_time("closed", first.read_to_end(&mut rest)).await;
    closed.unwrap();
    // The client may see the end before the place is free.
    let served = async { while shadow.get("/metrics").await.status() != 200 {} };
    in_time("served", served).await;
}
