use proptest::prelude::*;

use super::*;
use crate::store::{RefusalCounts, RefusalReason};

fn flushed(accepted: u64, refused: u64) -> Flushed {
    Flushed {
        inserted: accepted,
        refused_by_store: RefusalCounts::of(RefusalReason::Raised, refused),
        ..Flushed::default()
    }
}

fn guard() -> Refusals {
    Refusals::new(Backoff::default())
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn pauses_at_more_than_half_and_at_least_five_hundred() {
    let now = Instant::now();
    assert_eq!(guard().committed(&flushed(0, 499), now, 1.0), None);
    let all = Change::Paused {
        refused: 500,
        of: 500,
    };
    assert_eq!(guard().committed(&flushed(0, 500), now, 1.0), Some(all));
    assert_eq!(guard().committed(&flushed(500, 500), now, 1.0), None);
    let most = Change::Paused {
        refused: 501,
        of: 1_000,
    };
    assert_eq!(guard().committed(&flushed(499, 501), now, 1.0), Some(most));
}

#[tokio::test(start_paused = true)]
async fn forgets_what_is_older_than_the_window() {
    let mut guard = guard();
    let now = Instant::now();
    assert_eq!(guard.committed(&flushed(100, 400), now, 1.0), None);
    assert_eq!(guard.committed(&flushed(1_000, 0), now, 1.0), None);
    for _ in 0..4 {
        assert_eq!(guard.committed(&flushed(0, 100), now, 1.0), None);
    }
    assert!(!guard.is_paused(), "400 of the last 1,400 and 400 before");
}

#[tokio::test(start_paused = true)]
async fn neither_parse_failures_nor_duplicates_are_refusals() {
    let mut guard = guard();
    let now = Instant::now();
    let of_the_parser = Flushed {
        rejected_at_parse: 5_000,
        ..Flushed::default()
    };
    assert_eq!(guard.committed(&of_the_parser, now, 1.0), None);
    let known = Flushed {
        duplicates: 501,
        refused_by_store: RefusalCounts::of(RefusalReason::Raised, 500),
        ..Flushed::default()
    };
    assert_eq!(guard.committed(&known, now, 1.0), None);
}

#[tokio::test(start_paused = true)]
async fn probes_are_a_growing_back_off_apart_up_to_its_cap() {
    let mut guard = guard();
    let mut now = Instant::now();
    guard.committed(&flushed(0, 1_000), now, 1.0);
    let mut delays = Vec::new();
    for _ in 0..8 {
        let at = guard.may_write(now).expect_err("a probe waits");
        delays.push((at - now).as_millis());
        now = at;
        assert_eq!(guard.may_write(now), Ok(()));
        assert_eq!(guard.committed(&flushed(0, 10), now, 1.0), None);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_mostly_accepted_ends_the_pause() {
    let mut guard = guard();
    let start = Instant::now();
    guard.committed(&flushed(0, 1_000), start, 1.0);
    let now = start + millis(150);
    assert_eq!(guard.committed(&flushed(4, 5), now, 1.0), None);
    let of_the_parser = Flushed {
        rejected_at_parse: 5,
        ..Flushed::default()
    };
    assert_eq!(
        guard.committed(&of_the_parser, now, 1.0),
        None,
        "says nothing"
    );
    assert!(guard.is_paused());
    let resumed = Change::Resumed {
        after: millis(150),
        refused: 1_010,
    };
    assert_eq!(guard.committed(&flushed(5, 5), now, 1.0), Some(resumed));
    assert_eq!(guard.may_write(now), Ok(()));
    // What was before the pause is no reason for the next.
    assert_eq!(guard.committed(&flushed(0, 499), now, 1.0), None);
}

#[tokio::test(start_paused = true)]
async fn one_permit_a_back_off_while_there_is_nothing_to_probe_with() {
    let mut guard = guard();
    let start = Instant::now();
    guard.committed(&flushed(0, 1_000), start, 1.0);
    assert_eq!(guard.take_permit(start, 1.0), Err(start + millis(100)));
    let now = start + millis(100);
    assert_eq!(guard.take_permit(now, 1.0), Ok(()));
    assert_eq!(guard.take_permit(now, 1.0), Err(now + millis(100)));
    assert_eq!(
        guard.may_write(now),
        Ok(()),
        "what the permit brings goes out at once"
    );
}

proptest! {
    /// Against the plain definition, applied to the whole history.
    #[test]
    fn pauses_exactly_when_the_definition_says_so(
        history in prop::collection::vec((0_u64..700, 0_u64..400), 0..30),
    ) {
        let now = Instant::now();
        let mut guard = guard();
        for end in 1..=history.len() {
            let (accepted, refused) = history[end - 1];
            let change = guard.committed(&flushed(accepted, refused), now, 0.0);
            let (mut total, mut of_these) = (0, 0);
            for (accepted, refused) in history[..end].iter().rev() {
                if total >= WINDOW {
                    break;
                }
                total += accepted + refused;
                of_these += refused;
            }
            let flooded = of_these >= 500 && of_these * 2 > total;
            let expected = flooded.then_some(Change::Paused { refused: of_these, of: total });
            prop_assert_eq!(&change, &expected);
            if change.is_some() {
                break;
            }
            prop_assert!(guard.batches.len() <= 1_001, "bounded");
        }
    }

    /// Whatever comes, a pause lets out at most one batch in each half of a back-off, and never
    /// makes a probe wait longer than the cap.
    #[test]
    fn a_pause_lets_little_through_and_never_all_of_it_wait(
        probes in prop::collection::vec((0_u64..10, 0.0..=1.0), 1..50),
    ) {
        let mut guard = guard();
        let mut now = Instant::now();
        guard.committed(&flushed(0, 500), now, 1.0);
        for (accepted, jitter) in probes {
            let at = guard.may_write(now).expect_err("waits after each");
            prop_assert!(at - now <= Backoff::default().cap);
            prop_assert!(at - now >= Backoff::default().base / 2);
            now = at;
            guard.committed(&flushed(accepted, 10), now, jitter);
            prop_assert!(guard.is_paused());
        }
        guard.committed(&flushed(1, 0), now, 1.0);
        prop_assert!(!guard.is_paused());
    }
}
