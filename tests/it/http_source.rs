//! The HTTP and WebSocket routes with real clients; the test plays the pipeline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpServer};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::{Content, Entry, Receipt};
use event_persister_actors::event::EventLimits;
use event_persister_actors::retention::Retention;
use event_persister_actors::source::http::{AuthString, EventRoutes, HttpSettings};
use event_persister_actors::source::intake::{Intake, IntakeSettings, IntakeSource};
use event_persister_actors::source::{Body, EventSource, Permit};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use super::support::socket::{
    self, Socket as Client, auth, closed, next, ping, send, send_events, send_ping, text,
};

const ALL: Permit = Permit {
    max_messages: 100_000,
    max_bytes: usize::MAX,
};

struct Server {
    source: Arc<IntakeSource>,
    intake: Intake,
    address: SocketAddr,
    handle: actix_web::dev::ServerHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

fn start(settings: HttpSettings, intake: IntakeSettings) -> Server {
    start_with(settings, intake, 1_000)
}

fn start_with(settings: HttpSettings, intake: IntakeSettings, max_connections: usize) -> Server {
    let (source, intake) = IntakeSource::new("http", intake);
    let routes = EventRoutes::new(
        intake.clone(),
        settings,
        EventLimits::default(),
        Arc::new(SystemClock),
    );
    let server = HttpServer::new(move || {
        let routes = routes.clone();
        App::new().configure(move |app| routes.configure(app))
    })
    .workers(1)
    .max_connections(max_connections)
    .disable_signals()
    .bind(("127.0.0.1", 0))
    .expect("a free port");
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Server {
        source,
        intake,
        address,
        handle,
    }
}

fn with_auth() -> HttpSettings {
    HttpSettings {
        auth: Some(AuthString::new("admin:secret")),
        ..HttpSettings::default()
    }
}

impl Server {
    fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let url = format!("http://{}/api/events", self.address);
        crate::support::client::client().post(url).body(body)
    }

    async fn connect(&self, subprotocol: Option<&'static str>) -> Result<Client, Error> {
        socket::connect(&self.address.to_string(), subprotocol).await
    }

    async fn authenticated(&self) -> Client {
        let mut client = self.connect(Some("prefect")).await.expect("connected");
        socket::authenticate(&mut client, json!("admin:secret")).await;
        client
    }

    async fn read(&self, num: usize) -> Vec<(Receipt, Arc<Entry>)> {
        let mut entries = Vec::new();
        while entries.len() < num {
            let chunk = self.source.read(ALL).await.expect("the source works");
            for message in chunk.messages {
                let Body::Entry(entry) = message.body else {
                    panic!("the routes submit entries");
                };
                entries.push((message.receipt, entry));
            }
        }
        entries
    }

    async fn acknowledge(&self, entries: &[(Receipt, Arc<Entry>)]) {
        let receipts: Vec<Receipt> = entries.iter().map(|(receipt, _)| *receipt).collect();
        self.source
            .acknowledge(&receipts)
            .await
            .expect("acknowledged");
    }
}

fn event() -> Value {
    json!({
        "id": Uuid::new_v4(),
        "occurred": "2024-01-02T03:04:05.678Z",
        "event": "test.happened",
        "resource": {"prefect.resource.id": "test.1"},
    })
}

fn list(num: usize) -> String {
    Value::from((0..num).map(|_| event()).collect::<Vec<_>>()).to_string()
}

/// Asserts that nothing comes, by something that the server does in the meantime.
async fn nothing_comes(client: &mut Client, server: &Server) {
    // Another connection is served by the same worker: its pong shows that the first had its turn.
    let mut other = server.authenticated().await;
    ping(&mut other, "other").await;
    tokio::select! {
        biased;
        message = client.next() => panic!("too early: {message:?}"),
        () = tokio::task::yield_now() => {}
    }
}

async fn body(response: reqwest::Response) -> Value {
    response.json().await.expect("a JSON body")
}

#[actix_web::test]
async fn a_list_is_answered_once_all_of_it_is_durable() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let mut request = std::pin::pin!(server.post(list(3)).send());
    let entries = tokio::select! {
        _ = &mut request => panic!("answered before anything was durable"),
        entries = server.read(3) => entries,
    };
    assert!(entries.iter().all(|(_, entry)| entry.event().is_some()));
    server.acknowledge(&entries[1..]).await;
    tokio::select! {
        biased;
        _ = &mut request => panic!("answered before all of it was durable"),
        () = tokio::task::yield_now() => {}
    }
    server.acknowledge(&entries[..1]).await;
    assert_eq!(request.await.expect("answered").status(), 204);
}

#[actix_web::test]
async fn an_empty_list_is_done_at_once() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    assert_eq!(
        server.post("[]").send().await.expect("answered").status(),
        204
    );
}

#[actix_web::test]
async fn what_is_not_json_is_400() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    for text in [
        &b"nonsense"[..],
        b"",
        b"[",
        b"[{\"id\":}]",
        b"[] []",
        b"[\xff]",
        b"{\"a\"}",
    ] {
        let response = server.post(text).send().await.expect("answered");
        assert_eq!(response.status(), 400, "{text:?}");
        let detail = body(response).await["detail"].to_string();
        assert!(detail.contains("send a JSON list of events"), "{detail}");
    }
}

#[actix_web::test]
async fn a_list_with_invalid_events_is_refused_whole_and_each_is_named() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let mut unnamed = event();
    unnamed["resource"] = json!({});
    let deep = json!({"id": Uuid::new_v4()}).to_string();
    let deep = deep.replace(
        '}',
        &format!(",\"payload\":{}{}}}", "[".repeat(500), "]".repeat(500)),
    );
    let text = format!("[{}, {unnamed}, 17, {deep}, \"\\ud800\"]", event());
    let response = server.post(text).send().await.expect("answered");
    assert_eq!(response.status(), 422);
    let body = body(response).await;
    let detail = body["detail"].as_array().expect("a list");
    let indexes: Vec<_> = detail
        .iter()
        .map(|detail| detail["index"].clone())
        .collect();
    assert_eq!(indexes, [1, 2, 3, 4]);
    assert!(
        detail
            .iter()
            .all(|detail| !detail["reason"].as_str().unwrap_or("").is_empty())
    );
    assert_eq!(server.intake.usage().num_events, 0);
    for text in ["{}", "null", "17"] {
        let response = server.post(text).send().await.expect("answered");
        assert_eq!(response.status(), 422, "{text}");
    }
}

#[actix_web::test]
async fn nan_in_a_payload_is_taken_as_prefect_does() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let text = format!("[{}]", event()).replace("}]", ",\"payload\":{\"x\":NaN}}]");
    let request = server.post(text).send();
    let consume = async {
        let entries = server.read(1).await;
        assert_eq!(
            entries[0].1.event().expect("an event").payload(),
            r#"{"x":null}"#
        );
        server.acknowledge(&entries).await;
    };
    let (response, ()) = tokio::join!(request, consume);
    assert_eq!(response.expect("answered").status(), 204);
}

#[actix_web::test]
async fn only_those_who_know_the_auth_string_are_let_in() {
    let server = start(with_auth(), IntakeSettings::default());
    for request in [
        server.post("[]"),
        server.post("[]").basic_auth("admin", Some("wrong")),
        server.post("[]").bearer_auth("admin:secret"),
    ] {
        let response = request.send().await.expect("answered");
        assert_eq!(response.status(), 401);
        assert_eq!(
            body(response).await,
            json!({"exception_message": "Unauthorized"})
        );
    }
    let request = server.post("[]").basic_auth("admin", Some("secret"));
    assert_eq!(request.send().await.expect("answered").status(), 204);
}

/// A browser sends plain text for any page without asking first, and opens its WebSockets.
#[actix_web::test]
async fn a_page_of_another_origin_puts_nothing_in() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let own = format!("http://{}", server.address);
    let connect = async |origin: &str| {
        let headers = [("origin", origin)];
        let address = server.address.to_string();
        socket::connect_to(&address, "/api/events/in", None, &headers).await
    };
    for origin in ["http://elsewhere.example", "http://127.0.0.1:1", "null"] {
        let request = server.post(list(1)).header("origin", origin);
        let request = request.header("content-type", "text/plain;charset=UTF-8");
        let refused = request.send().await.expect("answered");
        assert_eq!(refused.status(), 403, "{origin}");
        let Err(Error::Http(refused)) = connect(origin).await else {
            panic!("{origin} opens a WebSocket");
        };
        assert_eq!(refused.status(), 403, "{origin}");
    }
    assert_eq!(server.intake.usage().num_events, 0);
    let request = server.post("[]").header("origin", &own);
    assert_eq!(request.send().await.expect("answered").status(), 204);
    connect(&own).await.expect("a page of its own");
}

#[actix_web::test]
async fn bodies_and_events_that_are_too_large_are_refused() {
    let settings = HttpSettings {
        max_body_bytes: 3000.try_into().expect("not zero"),
        max_event_bytes: 1000.try_into().expect("not zero"),
        ..HttpSettings::default()
    };
    let intake = IntakeSettings {
        max_events: 3.try_into().expect("not zero"),
        ..IntakeSettings::default()
    };
    let server = start(settings, intake);
    let response = server
        .post(" ".repeat(3001))
        .send()
        .await
        .expect("answered");
    assert_eq!(response.status(), 413);
    // The same without a length in the head.
    let chunk = format!("64\r\n{}\r\n", " ".repeat(100));
    let request = format!(
        "POST /api/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}",
        chunk.repeat(40)
    );
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("answered");
    assert_eq!(&head, b"HTTP/1.1 413");
    assert_eq!(
        server
            .post(list(4))
            .send()
            .await
            .expect("answered")
            .status(),
        413
    );
    let mut large = event();
    large["payload"] = json!({"x": "x".repeat(1000)});
    let text = Value::from(vec![event(), large]).to_string();
    let response = server.post(text).send().await.expect("answered");
    assert_eq!(response.status(), 422);
    assert_eq!(body(response).await["detail"][0]["index"], 1);
}

#[actix_web::test]
async fn compressed_bodies_are_refused() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let request = server.post("[]").header("content-encoding", "gzip");
    let response = request.send().await.expect("answered");
    assert_eq!(response.status(), 415);
    let detail = body(response).await["detail"].to_string();
    assert!(detail.contains("without Content-Encoding"), "{detail}");
}

#[actix_web::test]
async fn when_the_store_is_away_the_client_is_told_and_its_retry_joins() {
    let settings = HttpSettings {
        request_timeout: Duration::from_millis(50),
        ..HttpSettings::default()
    };
    let intake = IntakeSettings {
        max_events: 3.try_into().expect("not zero"),
        ..IntakeSettings::default()
    };
    let server = start(settings, intake);
    let text = list(2);
    for _ in 0..3 {
        let response = server.post(text.clone()).send().await.expect("answered");
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        assert!(
            body(response).await["detail"]
                .as_str()
                .is_some_and(|why| why.contains("taken"))
        );
        assert_eq!(
            server.intake.usage().num_events,
            2,
            "the retry takes no new room"
        );
    }
    let response = server.post(list(2)).send().await.expect("answered");
    assert_eq!(response.status(), 503);
    assert!(
        body(response).await["detail"]
            .as_str()
            .is_some_and(|why| why.contains("full"))
    );
}

#[actix_web::test]
async fn a_repetition_joins_what_a_client_left_behind() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let (first, second, third) = (event(), event(), event());
    let both = json!([first, second]).to_string();
    let held = {
        let request = server.post(both).send();
        tokio::select! {
            _ = request => panic!("answered before anything was durable"),
            entries = server.read(2) => entries,
        }
    };
    let mut request = std::pin::pin!(
        server
            .post(json!([second, first, third]).to_string())
            .send()
    );
    // The new one arrives, so the others have joined.
    let new = tokio::select! {
        _ = &mut request => panic!("answered before anything was durable"),
        entries = server.read(1) => entries,
    };
    assert_eq!(server.intake.usage().num_events, 3);
    server.acknowledge(&new).await;
    tokio::select! {
        biased;
        _ = &mut request => panic!("answered before what it joined was durable"),
        () = tokio::task::yield_now() => {}
    }
    server.acknowledge(&held).await;
    assert_eq!(request.await.expect("answered").status(), 204);
}

#[actix_web::test]
async fn closing_tells_those_who_wait_that_nothing_is_durable() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let request = server.post(list(1)).send();
    let close = async {
        server.read(1).await;
        server.source.close().await.expect("closed");
    };
    let (response, ()) = tokio::join!(request, close);
    assert_eq!(response.expect("answered").status(), 503);
    assert_eq!(
        server
            .post(list(1))
            .send()
            .await
            .expect("answered")
            .status(),
        503
    );
}

#[actix_web::test]
async fn a_pong_comes_when_everything_before_it_is_durable() {
    const NUM: usize = 5000;
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.authenticated().await;
    let events: Vec<Value> = (0..NUM).map(|_| event()).collect();
    send_events(&mut client, &events).await;
    send_ping(&mut client, "done?").await;
    let mut entries = server.read(NUM).await;
    nothing_comes(&mut client, &server).await;
    let last = entries.split_off(NUM - 1);
    server.acknowledge(&entries).await;
    nothing_comes(&mut client, &server).await;
    server.acknowledge(&last).await;
    assert_eq!(next(&mut client).await, Message::Pong("done?".into()));
    assert_eq!(server.intake.usage().num_events, 0);
}

#[actix_web::test]
async fn a_ping_with_nothing_before_it_is_answered_even_before_authentication() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.connect(Some("prefect")).await.expect("connected");
    ping(&mut client, "there?").await;
    send(&mut client, auth(json!("admin:secret"))).await;
    assert_eq!(text(&mut client).await, r#"{"type":"auth_success"}"#);
    ping(&mut client, "again").await;
}

#[actix_web::test]
async fn who_does_not_authenticate_is_closed_with_1008() {
    let settings = HttpSettings {
        auth_timeout: Duration::from_millis(200),
        ..with_auth()
    };
    let server = start(settings, IntakeSettings::default());
    for message in [
        auth(json!("wrong")),
        auth(json!("")),
        auth(Value::Null),
        auth(json!(17)),
        Message::text(r#"{"type":"auth"}"#),
        Message::text(r#"{"type":"filter","token":"admin:secret"}"#),
        Message::text("nonsense"),
        Message::Ping("only this, and then nothing".into()),
    ] {
        let mut client = server.connect(Some("prefect")).await.expect("connected");
        let is_ping = message.is_ping();
        send(&mut client, message.clone()).await;
        if is_ping {
            next(&mut client).await;
        }
        assert_eq!(
            u16::from(closed(&mut client).await.code),
            1008,
            "{message:?}"
        );
    }
    let Err(Error::Http(response)) = server.connect(None).await else {
        panic!("let in without the subprotocol");
    };
    assert_eq!(response.status(), 403);
    assert_eq!(server.intake.usage().num_events, 0);
}

#[actix_web::test]
async fn without_an_auth_string_any_token_will_do_and_old_clients_need_none() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    for token in [Value::Null, json!("whatever")] {
        let mut client = server
            .connect(Some("other, prefect"))
            .await
            .expect("connected");
        send(&mut client, auth(token)).await;
        assert_eq!(text(&mut client).await, r#"{"type":"auth_success"}"#);
    }
    let mut client = server.connect(None).await.expect("connected");
    send_events(&mut client, [&event()]).await;
    assert!(server.read(1).await[0].1.event().is_some());
}

/// Prefect's client sends it twice when two of its tasks reconnect at once.

#[actix_web::test]
async fn an_invalid_message_becomes_a_rejection_and_the_connection_stays() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.authenticated().await;
    send(&mut client, Message::text("no event")).await;
    let not_utf_8 = Frame::message(&b"\xff\xfe"[..], OpCode::Data(Data::Text), true);
    send(&mut client, Message::Frame(not_utf_8)).await;
    send(&mut client, Message::binary(event().to_string())).await;
    send_ping(&mut client, "done?").await;
    let entries = server.read(3).await;
    let raws: Vec<&[u8]> = entries[..2].iter().map(|(_, entry)| entry.raw()).collect();
    assert_eq!(raws, [&b"no event"[..], b"\xff\xfe"]);
    for (_, entry) in &entries[..2] {
        assert!(matches!(&entry.content, Content::Rejected(why) if !why.reason.is_empty()));
    }
    assert!(entries[2].1.event().is_some());
    server.acknowledge(&entries).await;
    assert_eq!(next(&mut client).await, Message::Pong("done?".into()));

    // The same message again is the same dead letter.
    let mut client = server.authenticated().await;
    send(&mut client, Message::text("no event")).await;
    let again = server.read(1).await;
    assert_eq!(again[0].1.position, entries[0].1.position);
    assert_eq!(again[0].1.source, entries[0].1.source);
}

#[actix_web::test]
async fn a_token_that_comes_again_is_checked_and_never_becomes_a_dead_letter() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.authenticated().await;
    send(&mut client, auth(json!("admin:secret"))).await;
    assert_eq!(text(&mut client).await, r#"{"type":"auth_success"}"#);
    send(&mut client, auth(json!("wrong"))).await;
    assert_eq!(u16::from(closed(&mut client).await.code), 1008);
    assert_eq!(server.intake.usage().num_events, 0);
}

#[actix_web::test]
async fn while_the_intake_is_full_nothing_is_read_and_due_pongs_still_go_out() {
    let intake = IntakeSettings {
        max_events: 2.try_into().expect("not zero"),
        ..IntakeSettings::default()
    };
    let server = start(with_auth(), intake);
    let mut client = server.authenticated().await;
    for number in 0..2 {
        send_events(&mut client, [&event()]).await;
        send(&mut client, Message::Ping(number.to_string().into())).await;
    }
    for _ in 0..3 {
        send_events(&mut client, [&event()]).await;
    }
    send_ping(&mut client, "last").await;
    let held = server.read(2).await;
    nothing_comes(&mut client, &server).await;
    assert_eq!(server.intake.usage().num_events, 2);
    server.acknowledge(&held[..1]).await;
    assert_eq!(next(&mut client).await, Message::Pong("0".into()));
    assert_eq!(
        server.intake.usage().num_events,
        2,
        "the next one has taken its place"
    );
    server.acknowledge(&held[1..]).await;
    assert_eq!(next(&mut client).await, Message::Pong("1".into()));
    let mut num = 0;
    while num < 3 {
        let entries = server.read(1).await;
        num += entries.len();
        server.acknowledge(&entries).await;
    }
    assert_eq!(next(&mut client).await, Message::Pong("last".into()));
}

/// While nothing is read from a connection, only a write finds out that the client has gone.
#[actix_web::test]
async fn a_client_that_goes_while_the_intake_is_full_leaves_no_connection_behind() {
    let settings = HttpSettings {
        request_timeout: Duration::from_millis(100),
        ping_every: Duration::from_millis(50),
        ..with_auth()
    };
    let intake = IntakeSettings {
        max_events: 1.try_into().expect("not zero"),
        ..IntakeSettings::default()
    };
    // There is room for one connection: another is served once the first has been let go.
    let server = start_with(settings, intake, 1);
    let mut client = server.authenticated().await;
    for _ in 0..2_000 {
        let sent = client.send(Message::text(event().to_string()));
        sent.await.expect("sent");
    }
    let held = server.read(1).await;
    drop(client);
    let next = tokio::time::timeout(Duration::from_secs(20), server.authenticated());
    next.await.expect("the first connection is still held");
    server.acknowledge(&held).await;
}

#[actix_web::test]
async fn who_stops_in_the_middle_keeps_the_room_for_large_messages_from_nobody() {
    let settings = HttpSettings {
        request_timeout: Duration::from_millis(100),
        max_body_bytes: 100_000.try_into().expect("not zero"),
        max_frame_bytes: 100_000.try_into().expect("not zero"),
        max_buffered_bytes: 1.try_into().expect("not zero"),
        ..HttpSettings::default()
    };
    let server = start(settings, IntakeSettings::default());
    let mut client = server.authenticated().await;
    begin_large_frame(&mut client, &[0; 100]).await;
    let close = closed(&mut client).await;
    assert_eq!(u16::from(close.code), 1013, "{close:?}");

    let mut request = begin_large_post(&server).await;
    request.write_all(b"[").await.expect("sent");
    let mut status = [0; 12];
    request.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 408");

    let answer = server.post("[]").send().await.expect("an answer");
    assert_eq!(answer.status(), 204);
}

#[actix_web::test]
async fn what_trickles_keeps_the_room_for_large_messages_from_nobody() {
    let settings = HttpSettings {
        body_timeout: Duration::from_millis(300),
        max_body_bytes: 100_000.try_into().expect("not zero"),
        max_frame_bytes: 100_000.try_into().expect("not zero"),
        max_buffered_bytes: 1.try_into().expect("not zero"),
        ..HttpSettings::default()
    };
    let server = start(settings, IntakeSettings::default());
    let mut client = server.authenticated().await;
    let stream = begin_large_frame(&mut client, &[0; 4]).await;
    // The first byte of the answer is that of a close.
    assert_eq!(trickle(stream).await[0], 0x88);

    let mut request = begin_large_post(&server).await;
    let answer = trickle(&mut request).await;
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");

    let answer = server.post("[]").send().await.expect("an answer");
    assert_eq!(answer.status(), 204);
}

/// Sends the head of a frame of 100,000 bytes, and the first of them.
async fn begin_large_frame<'a>(
    client: &'a mut Client,
    first: &[u8],
) -> &'a mut tokio::net::TcpStream {
    let tokio_tungstenite::MaybeTlsStream::Plain(stream) = client.get_mut() else {
        panic!("no TLS here");
    };
    let mut frame = vec![0x81, 0xff];
    frame.extend(100_000_u64.to_be_bytes());
    frame.extend(first);
    stream.write_all(&frame).await.expect("sent");
    stream
}

/// Sends the head of a request of 90,000 bytes.
async fn begin_large_post(server: &Server) -> tokio::net::TcpStream {
    let mut request = tokio::net::TcpStream::connect(server.address)
        .await
        .expect("connected");
    let head = "POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n";
    request.write_all(head.as_bytes()).await.expect("sent");
    request
}

/// Sends byte after byte, never resting, until there is an answer; its beginning.
async fn trickle(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let mut answer = vec![0; 1000];
    loop {
        tokio::select! {
            biased;
            num = stream.read(&mut answer) => {
                answer.truncate(num.expect("readable"));
                return answer;
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        stream.write_all(b" ").await.expect("sent");
    }
}

#[actix_web::test]
async fn what_was_read_stays_when_the_connection_ends_and_its_repetition_joins() {
    let server = start(with_auth(), IntakeSettings::default());
    let text = event().to_string();
    let mut client = server.authenticated().await;
    send(&mut client, Message::text(text.clone())).await;
    client.close(None).await.expect("sent");
    let Message::Close(_) = next(&mut client).await else {
        panic!("the close is not answered");
    };
    drop(client);
    let mut client = server.authenticated().await;
    send(&mut client, Message::text(text)).await;
    send_ping(&mut client, "done?").await;
    let entries = server.read(1).await;
    nothing_comes(&mut client, &server).await;
    assert_eq!(server.intake.usage().num_events, 1);
    server.acknowledge(&entries).await;
    assert_eq!(next(&mut client).await, Message::Pong("done?".into()));
}

#[actix_web::test]
async fn events_sent_just_before_a_close_are_all_taken() {
    let intake = IntakeSettings {
        max_events: 10.try_into().expect("not zero"),
        ..IntakeSettings::default()
    };
    let server = start(with_auth(), intake);
    let mut client = server.authenticated().await;
    for _ in 0..100 {
        client
            .feed(Message::text(event().to_string()))
            .await
            .expect("sent");
    }
    client.close(None).await.expect("sent");
    let mut num = 0;
    while num < 100 {
        let entries = server.read(1).await;
        num += entries.len();
        server.acknowledge(&entries).await;
    }
}

#[actix_web::test]
async fn a_message_that_is_too_large_closes_with_1009() {
    let settings = HttpSettings {
        max_frame_bytes: 300_000.try_into().expect("not zero"),
        max_event_bytes: 250_000.try_into().expect("not zero"),
        ..with_auth()
    };
    let server = start(settings, IntakeSettings::default());
    let mut client = server.authenticated().await;
    let mut event = event();
    event["payload"] = json!({"x": "x".repeat(200_000)});
    send(&mut client, Message::text(event.to_string())).await;
    assert!(server.read(1).await[0].1.event().is_some());
    // Beyond the limit of events, within that of messages: kept as a dead letter.
    event["payload"] = json!({"x": "x".repeat(260_000)});
    send(&mut client, Message::text(event.to_string())).await;
    assert!(server.read(1).await[0].1.event().is_none());
    event["payload"] = json!({"x": "x".repeat(300_000)});
    send(&mut client, Message::text(event.to_string())).await;
    assert_eq!(u16::from(closed(&mut client).await.code), 1009);
}

/// Where no dead letters are kept it is taken from nobody, by HTTP or by WebSocket.
#[actix_web::test]
async fn on_the_way_to_a_bus_an_event_that_is_too_large_closes_with_1009() {
    let settings = HttpSettings {
        max_event_bytes: 1_000.try_into().expect("not zero"),
        keeps_letters: false,
        ..with_auth()
    };
    let server = start(settings, IntakeSettings::default());
    let mut large = event();
    large["payload"] = json!({"x": "x".repeat(1_000)});
    let mut client = server.authenticated().await;
    send_events(&mut client, [&event()]).await;
    send_ping(&mut client, "the one before").await;
    send_events(&mut client, [&large, &event()]).await;
    send_ping(&mut client, "all").await;
    let entries = server.read(2).await;
    assert!(entries.iter().all(|(_, entry)| entry.event().is_some()));
    server.acknowledge(&entries).await;
    assert_eq!(
        next(&mut client).await,
        Message::Pong("the one before".into())
    );
    let closed = closed(&mut client).await;
    assert_eq!(u16::from(closed.code), 1009);
    assert!(closed.reason.contains("http.max_event_bytes"), "{closed:?}");
    assert_eq!(server.intake.usage().num_events, 0);
}

#[actix_web::test]
async fn draining_confirms_what_becomes_durable_and_closes_with_1001() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut idle = server.authenticated().await;
    let mut client = server.authenticated().await;
    send_events(&mut client, [&event()]).await;
    send_ping(&mut client, "done?").await;
    let entries = server.read(1).await;
    // Its ping is read before the drain begins.
    nothing_comes(&mut client, &server).await;
    server.intake.stop_accepting();
    assert_eq!(u16::from(closed(&mut idle).await.code), 1001);
    server.acknowledge(&entries).await;
    assert_eq!(next(&mut client).await, Message::Pong("done?".into()));
    assert_eq!(u16::from(closed(&mut client).await.code), 1001);
    assert_eq!(
        server
            .post(list(1))
            .basic_auth("admin", Some("secret"))
            .send()
            .await
            .expect("answered")
            .status(),
        503
    );
}

#[actix_web::test]
async fn closing_never_confirms_what_is_not_durable() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.authenticated().await;
    send_events(&mut client, [&event()]).await;
    send_ping(&mut client, "done?").await;
    server.read(1).await;
    server.source.close().await.expect("closed");
    assert_eq!(u16::from(closed(&mut client).await.code), 1001);
}

fn utf_16(text: &str, endian: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(endian).collect()
}

/// As a real Prefect 3.8 server takes them: asked case by case, they are answered 204 there.
#[actix_web::test]
async fn a_list_in_any_encoding_of_unicode_is_taken_as_prefect_does() {
    let server = start(HttpSettings::default(), IntakeSettings::default());
    let mut named = event();
    named["event"] = "tést 🦀".into();
    let text = format!("[{named}]");
    let marked = format!("\u{feff}{text}");
    let utf_32 = |text: &str| -> Vec<u8> {
        let units = text.chars().map(u32::from);
        units.flat_map(u32::to_le_bytes).collect()
    };
    for body in [
        marked.clone().into_bytes(),
        format!("\u{feff} \n{text}").into_bytes(),
        utf_16(&text, u16::to_le_bytes),
        utf_16(&text, u16::to_be_bytes),
        utf_16(&marked, u16::to_le_bytes),
        utf_16(&marked, u16::to_be_bytes),
        utf_32(&text),
        utf_32(&marked),
    ] {
        let consume = async {
            let entries = server.read(1).await;
            let event = entries[0].1.event().expect("an event").clone();
            server.acknowledge(&entries).await;
            event.event.to_string()
        };
        let (response, name) = tokio::join!(server.post(body).send(), consume);
        assert_eq!(response.expect("answered").status(), 204);
        assert_eq!(name, "tést 🦀");
    }
    for empty in [b"\xef\xbb\xbf[]".to_vec(), utf_16("[]", u16::to_le_bytes)] {
        let response = server.post(empty).send().await.expect("answered");
        assert_eq!(response.status(), 204);
    }
    let lone = [b'[', 0, b'"', 0, 0, 0xD8, b'"', 0, b']', 0].to_vec();
    let two_marks = format!("\u{feff}{marked}").into_bytes();
    let odd = [utf_16(&text, u16::to_le_bytes), vec![b' ']].concat();
    for wrong in [
        two_marks,
        odd,
        b"\xef\xbb\xbf".to_vec(),
        [b"\0", text.as_bytes()].concat(),
        lone,
    ] {
        let response = server.post(wrong.clone()).send().await.expect("answered");
        assert_eq!(response.status(), 400, "{wrong:?}");
    }
    assert_eq!(server.intake.usage().num_events, 0);
}

/// 503 would have a client send them again and again.
#[actix_web::test]
async fn a_large_body_in_utf_16_that_can_never_be_taken_is_refused_for_good() {
    let limit = std::num::NonZeroUsize::new(100_000).expect("not zero");
    let settings = HttpSettings {
        max_body_bytes: limit,
        max_frame_bytes: limit,
        max_buffered_bytes: limit,
        ..HttpSettings::default()
    };
    let server = start(settings, IntakeSettings::default());
    let with_text = |text: &str| {
        let mut event = event();
        event["payload"]["text"] = text.into();
        utf_16(&format!("[{event}]"), u16::to_le_bytes)
    };
    let half_a_unit = [with_text(&"x".repeat(45_000)), vec![b' ']].concat();
    for (body, status, reason) in [
        (with_text(&"x".repeat(45_000)), 413, "send it in UTF-8"),
        (
            with_text(&"\u{4e2d}".repeat(45_000)),
            413,
            "more than 100000 bytes",
        ),
        (half_a_unit, 400, "UTF-16LE"),
    ] {
        let response = server.post(body).send().await.expect("answered");
        assert_eq!(response.status(), status);
        let answer = response.text().await.expect("whole");
        assert!(answer.contains(reason), "{answer}");
    }
}

/// Prefect closes the connection on these; here each is one dead letter, as every wrong message is.
#[actix_web::test]
async fn a_message_with_a_mark_or_in_utf_16_is_no_event() {
    let server = start(with_auth(), IntakeSettings::default());
    let mut client = server.authenticated().await;
    let text = event().to_string();
    send(&mut client, Message::text(format!("\u{feff}{text}"))).await;
    for message in [utf_16(&text, u16::to_le_bytes), text.clone().into_bytes()] {
        send(&mut client, Message::binary(message)).await;
    }
    let entries = server.read(3).await;
    let is_event: Vec<_> = entries
        .iter()
        .map(|(_, entry)| entry.event().is_some())
        .collect();
    assert_eq!(is_event, [false, false, true]);
    server.acknowledge(&entries).await;
}

#[actix_web::test]
async fn a_request_is_told_of_its_dead_letters_and_of_what_is_too_old() {
    const LETTERS: &str = "event-persister-dead-letters";
    const OLDER: &str = "event-persister-older-than-retention";
    let settings = HttpSettings {
        retention: Some(Retention {
            default: Duration::from_secs(60),
            overrides: [("kept".to_owned(), Duration::from_secs(1_000_000_000))].into(),
        }),
        ..HttpSettings::default()
    };
    let server = start(settings, IntakeSettings::default());
    let mut events = [event(), event(), event()];
    events[0]["event"] = "kept".into();
    events[1]["occurred"] = SystemClock.now().to_rfc3339().into();
    let list = Value::from(events.to_vec()).to_string();
    let consume = async {
        let entries = server.read(3).await;
        server
            .source
            .note_dead_letters(&[entries[0].0, entries[2].0]);
        server.acknowledge(&entries).await;
    };
    let (response, ()) = tokio::join!(server.post(list).send(), consume);
    let response = response.expect("answered");
    assert_eq!(response.status(), 204);
    assert_eq!(response.headers()[LETTERS], "2");
    assert_eq!(response.headers()[OLDER], "1");
    // Nothing to tell: no header.
    let mut new = event();
    new["occurred"] = SystemClock.now().to_rfc3339().into();
    let consume = async {
        let entries = server.read(1).await;
        server.acknowledge(&entries).await;
    };
    let (response, ()) = tokio::join!(server.post(format!("[{new}]")).send(), consume);
    let response = response.expect("answered");
    assert_eq!(response.status(), 204);
    assert!(
        [LETTERS, OLDER]
            .iter()
            .all(|name| !response.headers().contains_key(*name))
    );
}
