//! The end of a pipeline: what it waits for, and for how long.

use super::*;

#[actix::test]
async fn everything_is_acknowledged_before_it_says_that_it_has_drained() {
    let bench = Bench::new();
    bench.source.hold_acks();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.stored == 15).await;
    let drained = actix_rt::spawn(pipeline.send(a_minute()));
    sleep(Duration::from_secs(10)).await;
    assert!(!drained.is_finished(), "an acknowledgement is under way");
    assert!(bench.source.acknowledged().is_empty());
    bench.source.release_acks();
    assert_eq!(drained.await.unwrap().unwrap(), Drained { released: 0 });
    assert_eq!(bench.source.acknowledged().len(), 15);
}

/// How long a drain takes that may take a minute, and how much it leaves.
async fn drained_within(pipeline: &Addr<PipelineActor>) -> (Duration, Drained) {
    let started = Instant::now();
    let drained = pipeline.send(a_minute()).await.unwrap();
    (started.elapsed(), drained)
}

#[actix::test]
async fn a_drain_ends_within_its_time_although_the_store_is_stuck() {
    let bench = Bench::new();
    bench.store.hold();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.in_flight == 15).await;
    let (took, drained) = drained_within(&pipeline).await;
    assert_eq!(took.as_secs(), 60, "{took:?}");
    assert_eq!(drained, Drained { released: 15 });
    assert!(bench.source.is_closed());
    assert!(bench.source.acknowledged().is_empty());
}

#[actix::test]
async fn a_drain_ends_within_its_time_although_a_source_takes_no_receipt_back() {
    let bench = Bench::new();
    bench.source.hold_acks();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.stored == 15).await;
    let (took, drained) = drained_within(&pipeline).await;
    assert_eq!(took.as_secs(), 60, "{took:?}");
    assert_eq!(drained, Drained { released: 0 }, "all of it is stored");
    assert_eq!(bench.store.num_events(), 15);
}

#[actix::test]
async fn one_that_a_supervisor_restarts_goes_on_draining() {
    let bench = Bench::new();
    bench.store.hold();
    let actor = bench.pipeline(settings(2, 10));
    let pipeline = Supervisor::start(|_| actor);
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.in_flight == 15).await;
    let drained = actix_rt::spawn(pipeline.send(a_minute()));
    sleep(Duration::from_secs(1)).await;
    let num_opened = bench.store.num_opened();
    pipeline.send(Retire).await.unwrap();
    let drained = timeout(Duration::from_secs(60), drained).await;
    let drained = drained.expect("in time").unwrap().unwrap();
    assert_eq!(drained, Drained { released: 15 });
    assert_eq!(bench.store.num_opened(), num_opened, "it started nothing");
    assert!(bench.source.is_closed());
}

#[actix::test]
async fn a_second_drain_ends_with_the_first() {
    let bench = Bench::new();
    bench.store.hold();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.in_flight == 15).await;
    let first = actix_rt::spawn(pipeline.send(a_minute()));
    sleep(Duration::from_secs(30)).await;
    let (took, drained) = drained_within(&pipeline).await;
    assert_eq!(took.as_secs(), 30, "{took:?}");
    assert_eq!(drained, Drained { released: 15 });
    assert_eq!(first.await.unwrap().unwrap(), drained);
}

#[actix::test]
async fn all_that_wait_for_the_end_of_the_sources_are_told() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    let early = actix_rt::spawn(pipeline.send(Finish));
    until(&pipeline, |status| status.ready).await;
    let late = actix_rt::spawn(pipeline.send(Finish));
    bench.push(0..15);
    bench.source.end();
    for finished in [early, late] {
        assert_eq!(finished.await.unwrap().unwrap(), Drained { released: 0 });
    }
    let after = pipeline.send(Finish).await.unwrap();
    assert_eq!(after, Drained { released: 0 });
    assert_eq!(bench.store.num_events(), 15);
    assert_eq!(
        bench.store.num_closed(),
        3,
        "two writers and the probe, once"
    );
}

#[actix::test]
async fn the_end_of_the_sources_ends_it_only_when_somebody_waits_for_that() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    bench.source.end();
    bench.source.wait_for_acknowledged(15).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!status(&pipeline).await.draining);
    let finished = timeout(Duration::from_secs(60), pipeline.send(Finish)).await;
    let finished = finished.expect("in time").unwrap();
    assert_eq!(finished, Drained { released: 0 });
}
