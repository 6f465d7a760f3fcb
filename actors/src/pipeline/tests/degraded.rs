//! An event that is held up while others are stored.

use uuid::Uuid;

use super::*;
use crate::store::{Fault, FaultKind};

#[actix::test]
async fn what_is_held_up_while_others_are_stored_is_named_and_the_rest_is_ready() {
    let bench = Bench::new();
    let waiting = Uuid::from_u128(3);
    bench.store.fail_with(
        waiting,
        Fault {
            kind: FaultKind::Contention,
            code: Some("55P03".to_owned()),
        },
    );
    let pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(0..10);
    bench.source.wait_for_acknowledged(9).await;
    sleep(Duration::from_secs(5)).await;
    let early = status(&pipeline).await;
    assert!(early.ready && early.degraded.is_none(), "{early:?}");
    sleep(Duration::from_secs(10)).await;
    let late = status(&pipeline).await;
    assert!(late.ready, "{late:?}");
    let degraded = late.degraded.expect("degraded");
    assert!(degraded.contains(&waiting.to_string()), "{degraded}");
    assert!(degraded.contains("failed"), "{degraded}");
    assert!(late.warnings.contains(&degraded));
    bench.store.accept(waiting);
    bench.source.wait_for_acknowledged(10).await;
    let after = status(&pipeline).await;
    assert!(after.ready && after.degraded.is_none(), "{after:?}");
}

#[actix::test]
async fn a_store_that_goes_away_is_noticed_although_a_suspect_waits_in_a_writer() {
    let bench = Bench::new();
    let waiting = Uuid::from_u128(3);
    let fault = Fault {
        kind: FaultKind::Contention,
        code: Some("55P03".to_owned()),
    };
    bench.store.fail_with(waiting, fault);
    let pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(0..10);
    bench.source.wait_for_acknowledged(9).await;
    bench.store.hold();
    sleep(Duration::from_secs(10)).await;
    assert!(status(&pipeline).await.ready, "it waits in a writer");
    bench.store.set_available(false);
    sleep(Duration::from_secs(10)).await;
    assert!(!status(&pipeline).await.ready);
    bench.store.set_available(true);
    bench.store.accept(waiting);
    bench.store.release();
    bench.source.wait_for_acknowledged(10).await;
    until(&pipeline, |status| status.ready).await;
}

#[actix::test]
async fn a_probe_does_not_hide_that_controls_beside_a_suspect_fail() {
    let bench = Bench::new();
    let waiting = Uuid::from_u128(0);
    let fault = Fault {
        kind: FaultKind::Contention,
        code: Some("55P03".to_owned()),
    };
    bench.store.fail_with(waiting, fault);
    let pipeline = bench.pipeline(settings(1, 100)).start();
    bench.push(0..5);
    bench.source.wait_for_acknowledged(4).await;
    bench.store.fail_all(Some(Fault {
        kind: FaultKind::Lasting,
        code: Some("42501".to_owned()),
    }));
    until(&pipeline, |status| !status.ready).await;
    for _ in 0..600 {
        sleep(Duration::from_millis(100)).await;
        assert!(!status(&pipeline).await.ready);
    }
    bench.store.fail_all(None);
    until(&pipeline, |status| status.ready).await;
    bench.store.accept(waiting);
    bench.source.wait_for_acknowledged(5).await;
}

#[actix::test]
async fn where_nothing_is_stored_it_is_not_ready() {
    let bench = Bench::new();
    let fault = Fault {
        kind: FaultKind::Lasting,
        code: Some("42501".to_owned()),
    };
    bench.store.fail_all(Some(fault));
    let pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(0..10);
    sleep(Duration::from_secs(30)).await;
    let status = status(&pipeline).await;
    assert!(!status.ready && status.degraded.is_none(), "{status:?}");
    assert_eq!(bench.store.dead_letters().len(), 0);
}

/// The values that are scraped under these names, one for each label.
fn scraped(bench: &Bench, name: &str) -> HashMap<String, f64> {
    let registry = prometheus::Registry::new();
    bench.metrics.register(&registry).unwrap();
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let of_each = family.unwrap().get_metric().iter().map(|metric| {
        let label = metric.get_label().first();
        let label = label.map_or("", |label| label.value());
        (label.to_owned(), metric.get_gauge().get_value())
    });
    of_each.collect()
}

#[actix::test]
async fn the_load_is_scraped_and_gone_with_the_commit() {
    let bench = Bench::new();
    bench.store.hold();
    let _pipeline = bench.pipeline(settings(2, 100)).start();
    bench.push(0..10);
    bench.store.wait_for_write_started().await;
    let busy = || scraped(&bench, "event_persister_writers_busy")[""];
    let num_bytes = || scraped(&bench, "event_persister_in_flight_bytes")[""];
    assert_eq!(busy(), 1.0);
    assert!(num_bytes() > 0.0);
    bench.store.release();
    bench.source.wait_for_acknowledged(10).await;
    assert_eq!((busy(), num_bytes()), (0.0, 0.0));
}

#[actix::test]
async fn what_is_scraped_follows_within_a_second() {
    let bench = Bench::new();
    let waiting = Uuid::from_u128(3);
    let fault = Fault {
        kind: FaultKind::Contention,
        code: None,
    };
    let pipeline = bench.pipeline(settings(2, 100)).start();
    let shown = async |ready: f64, degraded: f64, store: f64| {
        sleep(Duration::from_millis(1_001)).await;
        assert_eq!(scraped(&bench, "event_persister_ready")[""], ready);
        assert_eq!(scraped(&bench, "event_persister_degraded")[""], degraded);
        let up = scraped(&bench, "event_persister_component_up");
        assert_eq!((up["store"], up["source.memory"]), (store, 1.0));
    };
    until(&pipeline, |status| status.ready).await;
    shown(1.0, 0.0, 1.0).await;
    bench.store.set_available(false);
    bench.push(0..10);
    until(&pipeline, |status| !status.ready).await;
    sleep(Duration::from_secs(20)).await;
    shown(0.0, 0.0, 0.0).await;
    bench.store.fail_with(waiting, fault);
    bench.store.set_available(true);
    bench.source.wait_for_acknowledged(9).await;
    until(&pipeline, |status| status.degraded.is_some()).await;
    shown(1.0, 1.0, 1.0).await;
    bench.store.accept(waiting);
    bench.source.wait_for_acknowledged(10).await;
    shown(1.0, 0.0, 1.0).await;
}
