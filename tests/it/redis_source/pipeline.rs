//! The whole pipeline between a Redis stream and a store in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::{Actor as _, Addr};
use event_persister_actors::messages::{Drain, Status};
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::source::redis::{RedisSettings, RedisSource, RedisStats};
use event_persister_actors::testing::MemoryStore;
use tokio::time::sleep;
use uuid::Uuid;

use super::{PATIENCE, in_time, source, until};
use crate::support::redis::{RedisServer, TestStream};

fn event(id: Uuid) -> String {
    format!(
        r#"{{"id":"{id}","occurred":"2026-11-24T03:00:00Z","event":"e","resource":{{"prefect.resource.id":"r"}},"related":[],"payload":{{}}}}"#
    )
}

fn events(num: usize) -> Vec<String> {
    (0..num).map(|_| event(Uuid::new_v4())).collect()
}

struct Bench {
    store: MemoryStore,
    stats: RedisStats,
    pipeline: Addr<PipelineActor>,
}

fn start(stream: &TestStream) -> Bench {
    start_with(stream.settings())
}

fn start_with(settings: RedisSettings) -> Bench {
    let source: RedisSource = source(settings);
    let store = MemoryStore::new();
    let stats = source.stats();
    let parts = PipelineParts::new(vec![Arc::new(source)], store.open_store()).unwrap();
    let settings = PipelineSettings::default().without_retention();
    Bench {
        store,
        stats,
        pipeline: PipelineActor::new(settings, parts).start(),
    }
}

#[actix_web::test]
async fn everything_is_stored_once_and_acknowledged() {
    let server = RedisServer::start();
    let stream = server.stream();
    let bench = start(&stream);
    stream.publish(&events(5000));
    stream.publish(&["no event", ""]);
    until("all is stored", || bench.store.num_events() == 5000).await;
    until("all is acknowledged", || {
        stream.num_pending() == 0 && bench.store.dead_letters().len() == 1
    })
    .await;
    let status = bench.pipeline.send(Status).await.unwrap();
    assert!(status.ready, "{:?}", status.reason);
    assert!(status.ledger.balances(), "{:?}", status.ledger);
    assert_eq!(status.ledger.received, 5002);
    assert_eq!(status.ledger.duplicates, 0);
    assert_eq!((status.ledger.ignored, status.ledger.dead_lettered), (1, 1));
    let timeout = Duration::from_secs(10);
    let drained = bench.pipeline.send(Drain { timeout }).await.unwrap();
    assert_eq!(drained.released, 0);
    assert!(
        stream.consumers("event-persister").is_empty(),
        "it has left"
    );
}

#[actix_web::test]
async fn an_outage_of_the_store_and_a_death_in_the_pipeline_lose_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    let bench = start(&stream);
    bench.store.set_available(false);
    stream.publish(&events(9000));
    until("the pipeline is full", || {
        bench.stats.status().own_pending >= 3000
    })
    .await;
    sleep(Duration::from_millis(1500)).await;
    let status = bench.stats.status();
    assert!(status.own_pending <= 5000, "{status:?}");
    bench.store.panic_next(2);
    bench.store.set_available(true);
    until("all is stored", || bench.store.num_events() == 9000).await;
    until("all is acknowledged", || stream.num_pending() == 0).await;
    let status = bench.pipeline.send(Status).await.unwrap();
    assert!(status.ledger.balances(), "{:?}", status.ledger);
    assert_eq!(bench.stats.status().num_lost, 0);
}

#[actix_web::test]
async fn two_pipelines_and_a_server_that_is_killed_lose_and_double_nothing() {
    let mut server = RedisServer::start_with(crate::support::redis::ServerOptions {
        durable: true,
        ..Default::default()
    });
    let stream = server.stream();
    let benches = [start(&stream), start(&stream)];
    for _ in 0..3 {
        stream.publish(&events(1000));
        server.kill();
        server.launch();
    }
    let stored = || {
        let mut all = benches[0].store.events();
        all.extend(benches[1].store.events());
        all.len()
    };
    until("all is stored", || stored() == 3000).await;
    until("all is acknowledged", || stream.num_pending() == 0).await;
}

const DRAIN: Drain = Drain { timeout: PATIENCE };

#[actix_web::test]
async fn a_shutdown_under_load_leaves_nothing_pending() {
    let server = RedisServer::start();
    let stream = server.stream();
    for _ in 0..5 {
        let bench = start(&stream);
        let done = Arc::new(AtomicBool::new(false));
        let publishing = {
            let (stream, done) = (stream.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    stream.publish(&events(1));
                }
            })
        };
        until("it is under load", || bench.store.num_events() >= 200).await;
        let drained = bench.pipeline.send(DRAIN).await.unwrap();
        done.store(true, Ordering::Relaxed);
        publishing.join().unwrap();
        assert_eq!(drained.released, 0);
        assert_eq!(stream.num_pending(), 0);
        assert_eq!(stream.consumers("event-persister"), [], "it has left");
        let ledger = bench.pipeline.send(Status).await.unwrap().ledger;
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!((ledger.received, ledger.redelivered), (ledger.stored, 0));
        assert_eq!(ledger.stored as usize, bench.store.num_events());
    }
}

#[actix_web::test]
async fn a_shutdown_does_not_wait_for_a_read_that_waits() {
    let server = RedisServer::start();
    let stream = server.stream();
    let bench = start_with(RedisSettings {
        block: 10 * PATIENCE,
        ..stream.settings()
    });
    stream.publish(&events(10));
    until("all is stored", || bench.store.num_events() == 10).await;
    until("a read waits", || {
        let clients: String = stream.command("CLIENT LIST");
        clients.contains("cmd=xreadgroup")
    })
    .await;
    let drained = in_time("drained", bench.pipeline.send(DRAIN)).await;
    assert_eq!(drained.unwrap().released, 0);
    assert_eq!(stream.consumers("event-persister"), [], "it has left");
}

#[actix_web::test]
async fn a_shutdown_waits_for_its_read_where_it_may_not_end_it() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("ACL SETUSER default -client");
    let bench = start(&stream);
    stream.publish(&events(10));
    until("all is stored", || bench.store.num_events() == 10).await;
    bench.pipeline.send(DRAIN).await.unwrap();
    assert_eq!(stream.num_pending(), 0);
    assert_eq!(stream.consumers("event-persister"), [], "it has left");
}

#[actix_web::test]
async fn a_shutdown_without_the_server_still_stores_what_is_held() {
    let mut server = RedisServer::start();
    let stream = server.stream();
    let bench = start(&stream);
    bench.store.set_available(false);
    stream.publish(&events(100));
    until("all is held", || bench.stats.status().own_pending == 100).await;
    server.kill();
    let drained = actix_web::rt::spawn(bench.pipeline.send(Drain {
        timeout: Duration::from_secs(10),
    }));
    bench.store.set_available(true);
    drained.await.unwrap().unwrap();
    assert_eq!(bench.store.num_events(), 100);
}
