//! A store that refuses nearly everything.

use super::*;
use crate::store::{Fault, FaultKind};

/// Of a source that always has more, and a store that refuses all of it.
async fn paused(bench: &Bench, writers: usize) -> Addr<PipelineActor> {
    bench.store.refuse_all(true);
    let pipeline = bench.pipeline(settings(writers, 100)).start();
    bench.push(0..8_000);
    until(&pipeline, |status| {
        let reason = status.reason.as_deref().unwrap_or_default();
        reason.contains("reading pauses")
    })
    .await;
    pipeline
}

fn paused_metric(metrics: &Metrics) -> f64 {
    let registry = prometheus::Registry::new();
    metrics.register(&registry).unwrap();
    let families = registry.gather();
    let paused = families
        .iter()
        .find(|family| family.name() == "event_persister_reading_paused");
    paused.unwrap().get_metric()[0].get_gauge().get_value()
}

#[actix::test]
async fn reading_pauses_and_says_why_and_what_to_do() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 2).await;
    let status = status(&pipeline).await;
    assert!(!status.ready);
    let reason = status.reason.unwrap();
    for part in [
        "store.refusals: reading pauses",
        "refused 500 of the last 500 events",
        "event-persister dead-letters list --stage store",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(paused_metric(&bench.metrics), 1.0);
    let letters = bench.store.dead_letters().len();
    assert!(
        letters <= 900,
        "{letters} letters: no more than was in flight"
    );
}

#[actix::test]
async fn while_reading_pauses_little_is_read_and_nothing_is_lost() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 2).await;
    sleep(Duration::from_secs(20)).await;
    let before = bench.store.num_commits();
    sleep(Duration::from_secs(60)).await;
    let probes = bench.store.num_commits() - before;
    // One every 1.5 to 3 s.
    assert!((18..=42).contains(&probes), "{probes} probes in a minute");
    let ledger = status(&pipeline).await.ledger;
    assert!(ledger.balances(), "{ledger:?}");
    assert!(ledger.in_flight <= 400, "{ledger:?}");
    assert_eq!(
        ledger.refused_by_store,
        bench.store.dead_letters().len() as u64
    );
    let held = bench.source.num_held() as u64;
    assert_eq!(held + ledger.refused_by_store, 8_000, "held or a letter");
}

#[actix::test]
async fn reading_goes_on_by_itself_once_a_probe_is_accepted() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 2).await;
    sleep(Duration::from_secs(60)).await;
    let refused = bench.metrics.ledger().refused_by_store;
    bench.store.refuse_all(false);
    let mended = Instant::now();
    until(&pipeline, |status| status.ready).await;
    assert!(mended.elapsed() <= Duration::from_secs(4));
    assert_eq!(paused_metric(&bench.metrics), 0.0);
    bench.source.wait_for_acknowledged(8_000).await;
    let ledger = status(&pipeline).await.ledger;
    assert_eq!(ledger.stored + refused, 8_000);
    assert_eq!(bench.store.num_events() as u64, ledger.stored);
}

#[actix::test]
async fn an_outage_meanwhile_changes_nothing() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 2).await;
    bench.store.set_available(false);
    sleep(Duration::from_secs(60)).await;
    bench.store.refuse_all(false);
    bench.store.set_available(true);
    until(&pipeline, |status| status.ready).await;
    bench.source.wait_for_acknowledged(8_000).await;
    assert!(bench.metrics.ledger().balances());
}

#[actix::test]
async fn another_source_still_probes_while_one_has_nothing() {
    let mut bench = Bench::new();
    let idle = Arc::new(MemorySource::new("idle"));
    bench.parts.sources.insert(0, idle);
    let pipeline = paused(&bench, 1).await;
    sleep(Duration::from_secs(60)).await;
    bench.store.refuse_all(false);
    until(&pipeline, |status| status.ready).await;
    bench.source.wait_for_acknowledged(8_000).await;
}

#[actix::test]
async fn a_suspect_that_is_held_keeps_a_pause_from_nothing() {
    let bench = Bench::new();
    let fault = Fault {
        kind: FaultKind::Contention,
        code: None,
    };
    bench.store.fail_with(Uuid::from_u128(10_000), fault);
    let pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(10_000..10_010);
    bench.source.wait_for_acknowledged(9).await;
    bench.store.refuse_all(true);
    bench.push(0..3_000);
    until(&pipeline, |status| {
        let reason = status.reason.as_deref().unwrap_or_default();
        reason.contains("reading pauses")
    })
    .await;
    sleep(Duration::from_secs(60)).await;
    bench.store.refuse_all(false);
    let mended = Instant::now();
    until(&pipeline, |status| status.ready).await;
    assert!(mended.elapsed() <= Duration::from_secs(4));
    bench.source.wait_for_acknowledged(3_009).await;
}

#[actix::test]
async fn a_drain_writes_what_is_held_although_reading_pauses() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 1).await;
    let started = Instant::now();
    let drained = pipeline.send(a_minute()).await.unwrap();
    assert_eq!(drained, Drained { released: 0 });
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    let ledger = bench.metrics.ledger();
    assert_eq!(ledger.received, ledger.refused_by_store);
    assert_eq!(bench.source.acknowledged().len() as u64, ledger.received);
}

#[actix::test]
async fn a_source_with_an_end_is_read_to_it_without_a_pause() {
    let bench = Bench::new();
    bench.store.refuse_all(true);
    let mut settings = settings(2, 100);
    settings.batch.pauses_when_refused = false;
    let pipeline = bench.pipeline(settings).start();
    bench.push(0..3_000);
    bench.source.end();
    let started = Instant::now();
    pipeline.send(Finish).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(bench.store.dead_letters().len(), 3_000);
}

#[actix::test]
async fn a_new_generation_starts_without_a_pause() {
    let bench = Bench::new();
    let pipeline = paused(&bench, 1).await;
    bench.store.refuse_all(false);
    bench.source.panic_next_read();
    until(&pipeline, |status| status.generation == 2 && status.ready).await;
    bench.source.wait_for_acknowledged(8_000).await;
}

#[actix::test]
async fn reading_goes_on_by_itself_although_no_source_has_anything() {
    let bench = Bench::new();
    bench.store.refuse_all(true);
    let pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(0..600);
    until(&pipeline, |status| !status.ready).await;
    bench.source.wait_for_acknowledged(600).await;
    sleep(Duration::from_secs(60)).await;
    assert!(
        !status(&pipeline).await.ready,
        "it still refuses everything"
    );
    assert_eq!(
        bench.store.dead_letters().len(),
        600,
        "what is tried leaves nothing behind"
    );
    bench.store.refuse_all(false);
    let mended = Instant::now();
    until(&pipeline, |status| status.ready).await;
    assert!(mended.elapsed() <= Duration::from_secs(4));
    assert_eq!(
        bench.store.num_events(),
        0,
        "what is tried leaves nothing behind"
    );
}
