//! `https` and `wss`.

use futures_util::SinkExt as _;
use serde_json::json;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::support::certificates;
use crate::support::events::ids;
use crate::support::tls::{FILES, ask, connect_to, until_ready};

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn events_come_in_encrypted() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let server = Server::start(&folder, &FILES);
    let events = events(2);
    until_ready(&folder, &server).await;
    let mut client = connect_to(&folder, &server).await;
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let answer = ask(&mut client, "POST /api/events", "", &list(&events[..1])).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");

    let client = connect_to(&folder, &server).await;
    let url = format!("wss://{}/api/events/in", server.address());
    let (mut socket, _) = client_async(url, client).await.unwrap();
    let event = Message::text(events[1].to_string());
    socket.send(event).await.unwrap();
    socket.send(Message::Ping("stored?".into())).await.unwrap();
    let pong = in_time("stored", futures_util::StreamExt::next(&mut socket)).await;
    assert_eq!(pong.unwrap().unwrap(), Message::Pong("stored?".into()));
    server.database().has_all(&ids(&events));

    // In the clear there is nothing.
    let mut plain = connect(&server).await;
    plain.write_all(HEALTH).await.unwrap();
    assert!(!answer_or_end(&mut plain).await.contains("HTTP"));
    drop(socket);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn what_is_answered_leads_back_to_https() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let auth = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "ada:hush");
    let server = Server::start(&folder, &[FILES[0], FILES[1], auth]);
    until_ready(&folder, &server).await;
    let ask = async |head: &str, headers: &str, body: Value| {
        let headers = format!(
            "authorization: Basic YWRhOmh1c2g=\r\ncontent-type: application/json\r\n{headers}"
        );
        let mut client = connect_to(&folder, &server).await;
        ask(&mut client, head, &headers, &body.to_string()).await
    };
    ask("POST /api/events", "", events(2).into()).await;
    let first_of_two = json!({ "limit": 1 });
    let next_page = async |headers| {
        let answer = ask("POST /api/events/filter", headers, first_of_two.clone()).await;
        let (_, page) = answer.split_once("\r\n\r\n").unwrap();
        let page: Value = serde_json::from_str(page).unwrap();
        page["next_page"].as_str().unwrap().to_owned()
    };
    let next = next_page("").await;
    let path = next.strip_prefix("https://localhost/").expect(&next);
    let second = ask(&format!("GET /{path}"), "", Value::Null).await;
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    // A proxy before it knows better.
    let by_proxy = next_page("x-forwarded-proto: http\r\n").await;
    assert!(by_proxy.starts_with("http://localhost/"), "{by_proxy}");

    let credentials = json!({ "user": "ada", "password": "hush" });
    let signed_in = ask("POST /api/session", "", credentials).await;
    assert!(signed_in.contains("; Secure\r\n"), "{signed_in}");
    server.terminate().in_good_order();
}

async fn answer_or_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // It may be reset.
    drop(in_time("at its end", stream.read_to_end(&mut answer)).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn who_connects_and_shakes_no_hands_is_closed() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let idle = ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "300ms");
    let server = Server::start(&folder, &[FILES[0], FILES[1], idle]);
    let mut silent = connect(&server).await;
    until_closed(&mut silent, b"").await;
    server.terminate().in_good_order();
}

/// It never is silent for too long by itself, and must not keep the last place either.
#[tokio::test]
async fn in_a_crowd_who_shakes_no_hands_makes_room() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let idle = ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "1h");
    let limit = ("EVENT_PERSISTER_HTTP_MAX_CONNECTIONS", "1");
    let server = Server::start(&folder, &[FILES[0], FILES[1], idle, limit]);
    let mut silent = connect(&server).await;
    until_closed(&mut silent, b"").await;
    // Its place is free once the server has heard of the end as well.
    let answered = async {
        loop {
            let mut next = connect_to(&folder, &server).await;
            let answer = ask(&mut next, "GET /metrics", "", "").await;
            if answer.starts_with("HTTP/1.1 200") {
                break;
            }
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
    };
    in_time("free: its place", answered).await;
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let folder = Folder::new();
    certificates::make(folder.path());
    let server = Server::start(&folder, &FILES);
    let first = shown(&connect_to(&folder, &server).await);
    certificates::sign(folder.path());
    server.logged("the certificate has changed; new connections see the new one");
    let second = shown(&connect_to(&folder, &server).await);
    assert_ne!(first, second);
    // What cannot be used changes nothing.
    folder.write("server.pem", "nonsense");
    let line = server.logged("cannot be used; the one before stays");
    assert!(line.contains("server.pem"), "{line}");
    assert_eq!(shown(&connect_to(&folder, &server).await), second);
    server.terminate().in_good_order();
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_at_the_start() {
    let folder = Folder::new();
    let serve = |files: &[(&str, &str)]| folder.run_with(&[], files);
    let missing = serve(&FILES).exits(1);
    missing.complains(&["http.tls_cert_file server.pem cannot be used"]);
    let alone = serve(&FILES[..1]).exits(2);
    alone.complains(&["http.tls_cert_file and http.tls_key_file are used together"]);
    certificates::make(folder.path());
    std::fs::copy(
        folder.path().join("ca.key"),
        folder.path().join("server.key"),
    )
    .unwrap();
    let mixed = serve(&FILES).exits(1);
    mixed.complains(&["the key in server.key does not belong to the certificate in server.pem"]);
}
