//! One generation after another, and the end of the last.

use super::*;

#[actix::test]
async fn a_retired_pipeline_reads_its_source_no_more() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..5);
    bench.source.wait_for_acknowledged(5).await;
    pipeline.send(Retire).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let num_reads = bench.source.num_reads();
    bench.push(5..10);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.source.num_reads(), num_reads);
    assert_eq!(bench.source.num_held(), 5);
    assert_eq!(bench.store.num_events(), 5);
}

#[actix::test]
async fn a_new_generation_opens_its_own_stores_and_no_more() {
    let bench = Bench::new();
    let settings = PipelineSettings {
        trim: Some(TrimSettings::default()),
        ..settings(2, 10)
    };
    let pipeline = bench.pipeline(settings).start();
    until(&pipeline, |status| status.ready).await;
    // One to probe with; two writers and the trimmer.
    assert_eq!(bench.store.num_opened(), 1 + 3);
    bench.source.panic_next_read();
    until(&pipeline, |status| status.generation == 2 && status.ready).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.store.num_opened(), 1 + 3 + 3);
    assert_eq!(status(&pipeline).await.generation, 2);
}

#[actix::test]
async fn a_new_generation_starts_after_the_back_off_that_was_configured() {
    let bench = Bench::new();
    let mut settings = settings(2, 10);
    settings.batch.backoff = Backoff {
        base: Duration::from_secs(20),
        cap: Duration::from_secs(20),
    };
    let pipeline = bench.pipeline(settings).start();
    until(&pipeline, |status| status.ready).await;
    bench.source.panic_next_read();
    sleep(Duration::from_secs(9)).await;
    let early = status(&pipeline).await;
    assert_eq!((early.generation, early.ready), (1, false));
    sleep(Duration::from_secs(12)).await;
    let late = status(&pipeline).await;
    assert_eq!((late.generation, late.ready), (2, true));
}

#[actix::test]
async fn restarts_in_a_row_are_ever_further_apart_until_a_generation_has_lived_for_long() {
    let bench = Bench::new();
    let mut settings = settings(2, 10);
    settings.batch.backoff = Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(1_000),
    };
    let backoff = settings.batch.backoff;
    let pipeline = bench.pipeline(settings).start();
    until(&pipeline, |status| status.ready).await;
    let mut generation = 1;
    let mut restart = async || {
        let died_at = Instant::now();
        bench.source.panic_next_read();
        generation += 1;
        until(&pipeline, |status| status.generation == generation).await;
        died_at.elapsed()
    };
    let slack = Duration::from_millis(100);
    for in_a_row in 1..6 {
        let took = restart().await;
        let expected = backoff.delay(in_a_row, 0.0)..=backoff.delay(in_a_row, 1.0) + slack;
        assert!(expected.contains(&took), "{in_a_row}: {took:?}");
    }
    sleep(HEALTHY_AFTER).await;
    let took = restart().await;
    assert!(took <= backoff.base + slack, "{took:?}");
}

#[actix::test]
async fn one_that_has_lost_a_part_has_not_settled() {
    const SOON: Duration = Duration::from_secs(10);
    let bench = Bench::new();
    let settings = settings(1, 10);
    let components = Components::new(&settings, &bench.parts);
    let starter = Starter::new(
        &settings,
        &bench.parts,
        &components,
        crate::store::Contention::Log,
    );
    for lost in ["nothing", "the batcher", "a consumer"] {
        let (writer, _) = starter.writer(0);
        let (batcher, _) = starter.batcher(std::slice::from_ref(&writer));
        let (consumer, _) = starter.consumer(0, &batcher).unwrap();
        let children = Children {
            batcher: batcher.clone(),
            consumers: vec![consumer.clone()],
            writers: vec![writer],
            trim: None,
            core: Vec::new(),
        };
        match lost {
            "the batcher" => batcher.send(Retire).await.unwrap(),
            "a consumer" => consumer.send(Retire).await.unwrap(),
            _ => {}
        }
        assert_eq!(children.settle(SOON).await, lost == "nothing", "{lost}");
    }
}
