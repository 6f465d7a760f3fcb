//! What a batcher does while nothing, or next to nothing, can be written.

use super::*;

#[actix::test]
async fn attempts_do_not_add_up_in_an_outage_and_its_end_frees_all() {
    let mut bench = Bench::start(2, 1_000).await;
    let mut attempts = [0, 0];
    for number in 0..1_200 {
        drop(bench.enqueue(number..number + 1, false));
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Some(flush) = bench.writers.iter_mut().find_map(Inbox::try_next) {
            attempts[usize::from(number >= 600)] += 1;
            flush.answer(Err(StoreError::unavailable("away").into()));
            settle().await;
        }
    }
    let [_, late] = attempts;
    assert!((60..=130).contains(&late), "{late} attempts in 30 s");

    let back_at = Instant::now();
    let mut num_acknowledged = 0;
    while num_acknowledged < 1_200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Some(flush) = bench.writers.iter_mut().find_map(Inbox::try_next) {
            commit(flush);
            num_acknowledged += bench.acknowledged().await.len();
        }
    }
    let took = back_at.elapsed();
    assert!(took < Duration::from_millis(600), "{took:?}");
}

#[actix::test]
async fn many_batches_that_always_fail_keep_no_other_from_being_written() {
    let mut bench = Bench::start(1, 1).await;
    let mut num_failed = 0;
    for number in 0..20 {
        drop(bench.enqueue(number..number + 1, false));
    }
    while num_failed < 400 {
        let flush = bench.flush(0).await;
        num_failed += 1;
        flush.answer(Err(StoreError::unavailable("always").into()));
    }
    drop(bench.enqueue(20..21, false));
    let mut num_before = 0;
    loop {
        let flush = bench.flush(0).await;
        if positions(&flush) == ["20"] {
            commit(flush);
            break;
        }
        num_before += 1;
        assert!(num_before <= 2, "the new one does not get its turn");
        flush.answer(Err(StoreError::unavailable("always").into()));
    }
    assert_eq!(bench.acknowledged().await, [20]);
}

#[actix::test]
async fn only_what_has_failed_before_goes_out_behind_a_control() {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue(0..1, false));
    let flush = bench.flush(0).await;
    assert_eq!(flush.message.purpose, Purpose::Write);
    flush.answer(Err(StoreError::unavailable("away").into()));
    let flush = bench.flush(0).await;
    let fault = FaultKind::Transient;
    assert_eq!(flush.message.purpose, Purpose::Retry { fault });
    commit(flush);
    assert_eq!(bench.acknowledged().await, [0]);
}
