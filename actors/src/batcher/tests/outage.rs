//! What a batcher does while nothing can be written.

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
            flush.answer(Err(StoreError::unavailable("away")));
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
