//! What comes in by HTTP is published to the bus, by a service that stores as well or by one that only publishes.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::binary::Folder;
#[cfg(feature = "nats")]
use crate::support::bus::NatsBus;
use crate::support::bus::{Bus, TestBus};
use crate::support::events;
use crate::support::server::Server;
use crate::support::socket;
use crate::support::wait::in_time;

const PUBLISH: &str = "EVENT_PERSISTER_HTTP_PUBLISH";

/// A bus that can be looked into, and taken away.
trait Bridged: TestBus {
    fn set(&mut self, name: &'static str, value: &str);

    fn num_messages(&self) -> usize;

    fn kill(&mut self);

    fn launch(&mut self);
}

impl Bridged for Bus {
    fn set(&mut self, name: &'static str, value: &str) {
        Self::set(self, name, value);
    }

    fn num_messages(&self) -> usize {
        self.stream.len()
    }

    fn kill(&mut self) {
        self.redis.kill();
    }

    fn launch(&mut self) {
        self.redis.launch();
    }
}

#[cfg(feature = "nats")]
impl Bridged for NatsBus {
    fn set(&mut self, name: &'static str, value: &str) {
        Self::set(self, name, value);
    }

    fn num_messages(&self) -> usize {
        let info = self.stream.info();
        info["state"]["messages"]
            .as_u64()
            .unwrap()
            .try_into()
            .unwrap()
    }

    fn kill(&mut self) {
        self.servers.servers[0].kill();
    }

    fn launch(&mut self) {
        self.servers.servers[0].launch();
    }
}

/// Posts a list, and is told that it is on the bus.
async fn post(server: &Server, events: &[Value]) {
    assert_eq!(server.post_status(events::list(events)).await, 204);
}

fn ids(events: &[Value]) -> BTreeSet<String> {
    events::ids(events).into_iter().collect()
}

/// The two of it balance, each for itself.
async fn numbers(server: &Server) -> impl Fn(&str) -> u64 {
    let metrics = server.metrics().await;
    let of_bridge = |name: &str| metrics.count(&format!("bridge_{name}"));
    assert_eq!(
        of_bridge("received_total") + of_bridge("redelivered_total"),
        of_bridge("published_total")
            + of_bridge("refused_total")
            + of_bridge("released_total")
            + of_bridge("in_flight"),
        "{}",
        metrics.text()
    );
    move |name| metrics.count(name)
}

async fn until_numbers(server: &Server, are_right: impl Fn(&dyn Fn(&str) -> u64) -> bool) {
    let right = async {
        while !are_right(&numbers(server).await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("the numbers", right).await;
}

async fn publishes_and_stores(mut bus: impl Bridged) {
    bus.set(PUBLISH, "on");
    let server = bus.start().ready().await;
    let good = events::events(120);
    for events in good.chunks(40) {
        post(&server, events).await;
    }
    // Each was on the bus when its request was answered.
    assert_eq!(bus.num_messages(), 120);
    let mut socket = server.authenticated().await;
    let by_socket = events::events(3);
    socket::send_events(&mut socket, &by_socket).await;
    socket::ping(&mut socket, "all are there").await;
    assert_eq!(bus.num_messages(), 123);

    // A list with one that is wrong does not reach it.
    let wrong = json!([events::event(), { "event": "no more" }]).to_string();
    assert_eq!(server.post_status(wrong).await, 422);
    assert_eq!(server.post_status("[").await, 400);
    assert_eq!(bus.num_messages(), 123);
    // By WebSocket it does, as it came, and becomes a dead letter where it is read.
    socket::send(&mut socket, Message::text("no event")).await;
    socket::ping(&mut socket, "that one too").await;
    assert_eq!(bus.num_messages(), 124);

    bus.until_settled(&server).await;
    // They are looked at every second.
    until_numbers(&server, |of| of("ready") == 1 && of("bridge_ready") == 1).await;
    let all = [good, by_socket].concat();
    assert_eq!(server.database().complete_events(), ids(&all));
    let letters = bus.folder().dead_letters();
    assert_eq!(letters.len(), 1);
    assert_ne!(letters[0]["source"], "http");
    let of = numbers(&server).await;
    assert_eq!(of("bridge_received_total"), 124);
    assert_eq!(of("bridge_published_total"), 124);
    assert_eq!(of("received_total"), 124);
    assert_eq!(of("stored_total"), 123);
    let (_, ready) = server.readiness().await;
    let parts = ready["components"].as_array().unwrap().iter();
    let parts: Vec<&str> = parts.map(|part| part["name"].as_str().unwrap()).collect();
    assert!(
        parts.contains(&"bus") && parts.contains(&"source.http"),
        "{ready}"
    );
    let ended = server.terminate().in_good_order();
    assert_eq!(ended.ledger()("stored"), 123);
}

#[tokio::test]
async fn a_service_publishes_to_redis_and_stores() {
    publishes_and_stores(Bus::into_sqlite()).await;
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn a_service_publishes_to_nats_and_stores() {
    publishes_and_stores(NatsBus::into_sqlite()).await;
}

async fn only_publishes(mut bus: impl Bridged) {
    let reader = bus.start().ready().await;
    bus.set(PUBLISH, "only");
    let taking = Folder::new();
    let publishing = Server::start(&taking, &bus.variables()).ready().await;
    let events = events::events(50);
    post(&publishing, &events).await;
    assert_eq!(bus.num_messages(), 50);
    bus.until_settled(&reader).await;
    assert_eq!(reader.database().complete_events(), ids(&events));
    let of = numbers(&publishing).await;
    assert_eq!(of("bridge_published_total"), 50);
    // What others store is not counted here.
    let metrics = publishing.metrics().await;
    assert_eq!(metrics.value("stored_total"), None, "{}", metrics.text());
    assert_eq!(publishing.get("/api/status").await.status(), 404);
    assert_eq!(publishing.get("/").await.status(), 404);
    let mut variables = bus.variables();
    variables.push(("EVENT_PERSISTER_LISTEN", "127.0.0.1:0"));
    let checked = taking.run_with(&["check", "--json"], &variables);
    let checked = checked.exits(0).json();
    let found = checked["findings"].to_string();
    assert!(found.contains("http.publish"), "{found}");
    publishing.terminate().in_good_order();
    // There is no database of its own.
    assert!(taking.is_empty());
}

/// The subject is none of the stream's, and is held against them before the first event comes.
#[cfg(feature = "nats")]
#[tokio::test]
async fn a_subject_that_the_stream_does_not_take_is_found_by_check() {
    let mut bus = NatsBus::into_sqlite();
    bus.set(PUBLISH, "only");
    bus.set("EVENT_PERSISTER_NATS_PUBLISH_SUBJECT", "other");
    let mut variables = bus.variables();
    variables.push(("EVENT_PERSISTER_LISTEN", "127.0.0.1:0"));
    let checked = Folder::new().run_with(&["check"], &variables);
    checked
        .exits(1)
        .prints(&["does not take the subject other"]);
}

#[tokio::test]
async fn a_service_that_only_publishes_to_redis_needs_no_database() {
    only_publishes(Bus::into_sqlite()).await;
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn a_service_that_only_publishes_to_nats_needs_no_database() {
    only_publishes(NatsBus::into_sqlite()).await;
}

/// What was answered with 204 is stored in the end, whatever happens to the bus meanwhile.
async fn the_bus_is_away(mut bus: impl Bridged) {
    bus.set(PUBLISH, "on");
    bus.set("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "2s");
    let server = bus.start().ready().await;
    let before = events::events(10);
    post(&server, &before).await;
    bus.kill();
    let refused = events::events(10);
    let answer = server.post(events::list(&refused)).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let reason = answer.text().await.unwrap();
    assert!(
        reason.contains("not yet published, since the bus"),
        "{reason}"
    );
    server
        .until_readiness(|status, ready| {
            let mut parts = ready["components"].as_array().unwrap().iter();
            let fails = |part: &Value| part["name"] == "bus" && part["state"] == "failing";
            status == 503 && parts.any(fails)
        })
        .await;
    until_numbers(&server, |of| {
        of("bridge_in_flight") == 10
            && of("bridge_oldest_unpublished_seconds") >= 2
            && of("bridge_published_total") == 10
            && of("bridge_ready") == 0
    })
    .await;
    bus.launch();
    server.until_ready_is(200).await;
    // They waited here, or come again: each is stored once.
    post(&server, &refused).await;
    let mut all = [before, refused].concat();
    for _ in 0..3 {
        bus.kill();
        bus.launch();
        let events = events::events(20);
        while server.post_status(events::list(&events)).await != 204 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        all.extend(events);
    }
    bus.until_settled(&server).await;
    assert_eq!(server.database().complete_events(), ids(&all));
    let of = numbers(&server).await;
    assert_eq!(of("bridge_in_flight"), 0);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn redis_is_away_and_comes_back() {
    the_bus_is_away(Bus::into_sqlite()).await;
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn nats_is_away_and_comes_back() {
    the_bus_is_away(NatsBus::into_sqlite()).await;
}

/// What the bus has confirmed, and nobody was told of, is published once more, and stored once.
#[tokio::test]
async fn a_bridge_whose_part_dies_starts_over() {
    let mut bus = Bus::into_sqlite();
    let reader = bus.start().ready().await;
    bus.set(PUBLISH, "only");
    bus.set(
        "FAILPOINTS",
        "consumer::before-acknowledge=1*panic(on purpose)",
    );
    let taking = Folder::new();
    let publishing = Server::start(&taking, &bus.variables()).ready().await;
    let events = events::events(10);
    post(&publishing, &events).await;
    until_numbers(&publishing, |of| of("bridge_in_flight") == 0).await;
    let of = numbers(&publishing).await;
    assert_eq!(of("bridge_received_total"), 10);
    assert!(of("bridge_redelivered_total") > 0);
    assert!(of("bridge_released_total") <= of("bridge_redelivered_total"));
    assert_eq!(of("bridge_published_total"), bus.num_messages() as u64);
    bus.until_settled(&reader).await;
    assert_eq!(reader.database().complete_events(), ids(&events));
    publishing.terminate().in_good_order();
}

/// No dead letter is kept on the way, so that it would be lost to say that it is there.
#[cfg(feature = "nats")]
#[tokio::test]
async fn an_event_that_the_bus_does_not_take_is_not_accepted() {
    let mut bus = NatsBus::into_sqlite();
    bus.set(PUBLISH, "on");
    let server = bus.start().ready().await;
    let mut large = events::event();
    large["payload"]["text"] = events::incompressible(1 << 20).into();
    let small = events::event();
    let list = events::list(&[small.clone(), large.clone()]);
    let answer = server.post(list).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    let reason = answer.text().await.unwrap();
    assert!(reason.contains("does not take 1 of these"), "{reason}");
    assert_eq!(bus.num_messages(), 1);
    let mut socket = server.authenticated().await;
    socket::send_events(&mut socket, [&large]).await;
    let closed = socket::closed(&mut socket).await;
    assert_eq!(u16::from(closed.code), 1009, "{closed:?}");
    assert_eq!(numbers(&server).await("bridge_refused_total"), 2);
    let mut variables = bus.variables();
    variables.push(("EVENT_PERSISTER_LISTEN", "127.0.0.1:0"));
    let checked = bus.folder.run_with(&["check"], &variables);
    checked
        .exits(0)
        .prints(&["set http.max_event_bytes to 1048064"]);
    // Then it says which one.
    server.terminate().in_good_order();
    bus.set("EVENT_PERSISTER_HTTP_MAX_EVENT_BYTES", "1048064");
    let server = bus.start().ready().await;
    let answer = server
        .post(events::list(&[small, large]))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 422);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["detail"][0]["index"], 1, "{answer}");
    server.terminate().in_good_order();
}

#[test]
fn without_a_bus_there_is_nothing_to_publish_to() {
    let folder = Folder::new();
    let variables = [(PUBLISH, "only"), ("EVENT_PERSISTER_LISTEN", "127.0.0.1:0")];
    let refused = folder.run_with(&["serve"], &variables).exits(2);
    refused.complains(&["http.publish", "--redis-url"]);
    let checked = folder.run_with(&["check"], &variables).exits(1);
    checked.prints(&["http.publish", "no bus is named"]);
    let deaf = [
        (PUBLISH, "only"),
        ("EVENT_PERSISTER_REDIS_URL", "redis://127.0.0.1:1"),
        ("EVENT_PERSISTER_LISTEN", "off"),
    ];
    let refused = folder.run_with(&["serve"], &deaf).exits(2);
    refused.complains(&["the listener is off"]);
}
