//! What a batcher does while the store refuses nearly everything.

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
