//! What a batcher does while the store refuses nearly everything.

use super::isolation::fails_with;
use super::*;
use crate::status::ComponentState;
use crate::store::{RefusalCounts, RefusalReason};

/// The store makes dead letters of all of it.
fn refuse_all(asked: Asked<Flush>) {
    let num_entries = asked.message.batch.len();
    asked.answer(Ok(Flushed {
        refused_by_store: RefusalCounts::of(RefusalReason::Raised, num_entries as u64),
        letters: (0..num_entries).collect(),
        ..Flushed::default()
    }));
}

fn is_paused(bench: &Bench) -> bool {
    bench.refusals.snapshot().state == ComponentState::Failing
}

#[actix::test]
async fn of_several_batches_held_in_a_pause_one_at_a_time_goes_out_each_a_back_off_later() {
    let mut bench = Bench::start(2, 100).await;
    drop(bench.enqueue_these(events(0..1_500), false));
    let under_way = bench.flush(1).await;
    while !is_paused(&bench) {
        refuse_all(bench.flush(0).await);
        settle().await;
    }
    refuse_all(under_way);
    let backoff = BatcherSettings::default().backoff;
    for num_probes in 2..8 {
        let refused_at = Instant::now();
        let flush = bench.flush(0).await;
        let waited = refused_at.elapsed();
        assert!(waited >= backoff.delay(num_probes, 0.0), "{waited:?}");
        let longest = backoff.delay(num_probes, 1.0) + Duration::from_millis(2);
        assert!(waited <= longest, "{waited:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(bench.writers[1].try_next().is_none(), "one beside it");
        refuse_all(flush);
    }
}

#[actix::test]
async fn a_suspect_is_tried_in_time_although_the_next_probe_may_be_far_off() {
    let mut bench = Bench::start(1, 100).await;
    drop(bench.enqueue_these(events(0..1_500), false));
    for _ in 0..15 {
        refuse_all(bench.flush(0).await);
        settle().await;
    }
    // How far off is left to chance, up to three seconds.
    for number in 2_000..2_020 {
        assert!(is_paused(&bench));
        // What an idle source is asked for to probe with.
        drop(bench.enqueue_these(events(number..number + 1), false));
        let mut flush = unrehearsed(&mut bench).await;
        for _ in 0..2 {
            let failed_at = Instant::now();
            refuse(flush, fails_with(FaultKind::Transient));
            flush = unrehearsed(&mut bench).await;
            assert_eq!(positions(&flush), [number.to_string()]);
            let waited = failed_at.elapsed();
            assert!(waited < Duration::from_millis(1_010), "{waited:?}");
        }
        refuse_all(flush);
    }
}

/// What goes out besides the event that was refused last, which is refused again.
async fn unrehearsed(bench: &mut Bench) -> Asked<Flush> {
    loop {
        let flush = bench.flush(0).await;
        if flush.message.purpose != Purpose::Rehearse {
            return flush;
        }
        refuse_all(flush);
    }
}
