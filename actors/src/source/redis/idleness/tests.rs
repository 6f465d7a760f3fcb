use proptest::prelude::*;

use super::*;

const NAME: &str = "event-persister:host:1:00000000";

fn limits() -> Limits {
    Limits::of(&RedisSettings::default())
}

/// Milliseconds between two heartbeats, at their slowest.
const HEARTBEAT: i64 = 2_500;

/// A heartbeat and a look never fall into the same millisecond, or not for long.
const BESIDE: i64 = 37;

/// A replica that has one entry pending, a Redis whose clock is set now and then, and those who look.
struct Bench {
    idleness: Idleness,
    began: Instant,
    /// By our clock, in milliseconds.
    time: i64,
    /// How far Redis's clock is ahead of ours.
    offset: i64,
    delivered: i64,
}

impl Bench {
    fn new() -> Self {
        let offset = 1_700_000_000_000;
        Self {
            idleness: Idleness::default(),
            began: Instant::now(),
            time: 0,
            offset,
            delivered: offset,
        }
    }

    fn redis_now(&self) -> i64 {
        self.time + self.offset
    }

    fn heartbeat(&mut self) {
        self.delivered = self.redis_now();
    }

    /// Whether the entry is claimed.
    fn look(&mut self) -> bool {
        self.time += BESIDE;
        let is_claimed = self.judge();
        self.time -= BESIDE;
        is_claimed
    }

    fn judge(&mut self) -> bool {
        let entry = PendingEntry {
            id: StreamId {
                millis: 1,
                number: 0,
            },
            consumer: NAME.to_owned(),
            idle: (self.redis_now() - self.delivered).max(0),
        };
        let is_late = entry.idle >= i64::try_from(limits().late().as_millis()).unwrap();
        let observed = Observed {
            now: self.redis_now(),
            first_of_replicas: vec![entry.clone()],
            late: is_late.then_some(entry).into_iter().collect(),
        };
        let now = self.began + Duration::from_millis(u64::try_from(self.time).unwrap());
        let judged = self.idleness.observe(observed, now, limits());
        !judged.left.is_empty() || !judged.dead.is_empty()
    }
}

/// A moment, and by how much the clock is set then.
fn steps() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let step = prop_oneof![
        Just(60_000),
        Just(3_600_000),
        Just(15_000),
        1_000..100_000_i64,
    ];
    let step = (step, any::<bool>());
    let step = step.prop_map(|(step, is_back)| if is_back { -step } else { step });
    prop::collection::vec((0..60_000_i64, step), 0..4)
}

/// Lets time pass in steps of 100 ms, and looks about every 2 s; when the entry is claimed, if it is.
fn claimed_after(
    steps: &[(i64, i64)],
    lives_until: i64,
    until: i64,
    late_by: &[i64],
) -> Option<i64> {
    let mut bench = Bench::new();
    let (mut next_look, mut next_beat) = (0, 0);
    let mut delays = late_by.iter().copied().cycle();
    while bench.time < until {
        for (_, step) in steps.iter().filter(|(at, _)| *at / 100 == bench.time / 100) {
            bench.offset += step;
        }
        if bench.time >= next_beat && bench.time <= lives_until {
            bench.heartbeat();
            next_beat = bench.time + HEARTBEAT;
        }
        if bench.time >= next_look {
            if bench.look() {
                return Some(bench.time);
            }
            next_look = bench.time + 2_000 + delays.next().unwrap();
        }
        bench.time += 100;
    }
    None
}

proptest! {
    #[test]
    fn whatever_the_clock_does_nobody_who_lives_is_taken_for_dead(
        steps in steps(),
        late_by in prop::collection::vec(0..1_000_i64, 1..5),
    ) {
        prop_assert_eq!(claimed_after(&steps, i64::MAX, 150_000, &late_by), None);
    }

    #[test]
    fn whatever_the_clock_does_the_dead_are_found_in_time(
        steps in steps(),
        died in 0..60_000_i64,
        late_by in prop::collection::vec(0..1_000_i64, 1..5),
    ) {
        let claimed = claimed_after(&steps, died, 150_000, &late_by);
        let Some(claimed) = claimed else {
            return Err(TestCaseError::fail("never claimed"));
        };
        let last_step = steps.iter().map(|(at, _)| *at).max().unwrap_or(0);
        let since = died.max(last_step.min(claimed));
        prop_assert!(claimed - since <= 20_000 + 10_000, "{} ms", claimed - since);
        prop_assert!(claimed > died, "it lived");
    }
}

#[test]
fn without_a_step_the_dead_are_found_no_later_than_by_redis_alone() {
    let claimed = claimed_after(&[], 0, 60_000, &[0]).unwrap();
    assert!((20_000..=22_500).contains(&claimed), "{claimed}");
}

#[test]
fn a_process_that_starts_believes_in_an_old_entry_after_a_few_heartbeats() {
    let mut bench = Bench::new();
    bench.delivered -= 3_600_000;
    let mut claimed = false;
    while !claimed {
        claimed = bench.look();
        bench.time += 1_000;
        assert!(bench.time < 10_000);
    }
    assert!(bench.time > 6_000, "{}", bench.time);
}

#[test]
fn a_step_is_told_of() {
    let mut bench = Bench::new();
    let mut stepped = |offset: i64| {
        bench.offset += offset;
        bench.time += 2_000;
        let now = bench.began + Duration::from_millis(u64::try_from(bench.time).unwrap());
        let observed = Observed {
            now: bench.redis_now(),
            ..Observed::default()
        };
        bench.idleness.observe(observed, now, limits()).stepped
    };
    let steps = [0, 500, -60_000, 3_600_000, 0].map(&mut stepped);
    assert_eq!(steps, [None, None, Some(-60_000), Some(3_600_000), None]);
}
