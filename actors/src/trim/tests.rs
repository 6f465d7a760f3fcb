use chrono::TimeZone;
use futures_util::future::LocalBoxFuture;
use uuid::Uuid;

use super::*;
use crate::delivery::{Batch, BatchId};
use crate::lifeline::lifeline;
use crate::status::ComponentState;
use crate::store::Outcome;
use crate::testing::{EventFixture, ManualClock, MemoryStore, event_entry, pause_time};

const HOUR: Duration = Duration::from_secs(60 * 60);

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).unwrap()
}

fn settings(retention: Duration) -> TrimSettings {
    TrimSettings {
        every: Some(Duration::from_secs(600)),
        retention,
        overrides: BTreeMap::new(),
        batch_size: NonZeroUsize::new(2).unwrap(),
    }
}

/// A store with one event for each age in hours, all of this name.
async fn store_with(name: &str, ages: impl IntoIterator<Item = i64>) -> MemoryStore {
    let store = MemoryStore::with_clock(Arc::new(ManualClock::at(now())));
    let entries = ages.into_iter().map(|hours| {
        event_entry(
            EventFixture {
                event: name.to_owned(),
                occurred: now() - TimeDelta::hours(hours),
                id: Uuid::from_u128(hours as u128),
                ..EventFixture::default()
            }
            .build(),
        )
    });
    let batch = Batch::new(BatchId(1), entries.collect());
    store.write(Arc::new(batch)).await.unwrap();
    store
}

fn trimmer(store: &MemoryStore, settings: TrimSettings) -> Addr<TrimActor> {
    trimmer_by(Arc::new(ManualClock::at(now())), store, settings)
}

fn trimmer_by(
    clock: Arc<dyn Clock>,
    store: &MemoryStore,
    settings: TrimSettings,
) -> Addr<TrimActor> {
    trimmer_of(parts(clock), store, settings)
}

fn parts(clock: Arc<dyn Clock>) -> TrimParts {
    TrimParts {
        component: Component::new("trim"),
        passes: Passes::default(),
        metrics: Metrics::new().unwrap(),
        clock,
    }
}

fn trimmer_of(parts: TrimParts, store: &MemoryStore, settings: TrimSettings) -> Addr<TrimActor> {
    let (alive, _) = lifeline();
    TrimActor::new((store.open_store())(), settings, parts, alive).start()
}

fn ages(store: &MemoryStore) -> Vec<u128> {
    store.events().keys().map(Uuid::as_u128).collect()
}

#[test]
fn a_retention_beyond_all_time_is_refused() {
    let absurd = settings(Duration::MAX);
    assert!(matches!(
        cutoffs(&absurd, now()),
        Err(TrimError::AbsurdCutoff(_))
    ));
    let mut absurd = settings(HOUR);
    absurd
        .overrides
        .insert("heartbeat".to_owned(), Duration::MAX);
    let error = cutoffs(&absurd, now()).unwrap_err().to_string();
    assert!(error.contains("heartbeat"), "{error}");
}

#[actix::test]
async fn removes_what_is_too_old_in_bounded_steps_and_nothing_else() {
    pause_time();
    let store = store_with("e", [1, 2, 3, 4, 5, 6, 7]).await;
    let trimmer = trimmer(&store, settings(4 * HOUR));
    let trimmed = trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(
        trimmed,
        Trimmed {
            events: 3,
            resources: 6
        }
    );
    assert_eq!(
        ages(&store),
        [1, 2, 3, 4],
        "an event exactly as old is kept"
    );
    assert_eq!(store.num_trims(), 3, "two, then one, then nothing");
    let again = trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(again, Trimmed::default(), "safe to repeat");
}

#[actix::test]
async fn a_pass_of_a_process_that_writes_nothing_tells_of_each_step() {
    pause_time();
    let store = store_with("e", [1, 2, 3, 4, 5, 6, 7]).await;
    let cutoffs = cutoffs(&settings(4 * HOUR), now()).unwrap();
    let mut told = Vec::new();
    let note = |removed: &Trimmed| told.push(removed.events);
    let removed = run_pass(&store, &cutoffs, NonZeroUsize::new(2).unwrap(), note).await;
    assert_eq!(removed.unwrap().events, 3);
    assert_eq!(told, [2, 1]);
    assert_eq!(ages(&store), [1, 2, 3, 4]);
}

#[actix::test]
async fn steps_are_small_and_rest_while_the_pipeline_writes() {
    pause_time();
    for (is_writing, num_trims, least) in [(false, 2, 0), (true, 3, 300)] {
        let store = store_with("e", 1..=1_500).await;
        let parts = parts(Arc::new(ManualClock::at(now())));
        parts.metrics.received(usize::from(is_writing), 0);
        let settings = TrimSettings {
            batch_size: NonZeroUsize::new(5_000).unwrap(),
            ..settings(HOUR / 2)
        };
        let started = Instant::now();
        let trimmed = trimmer_of(parts, &store, settings).send(Trim).await;
        assert_eq!(trimmed.unwrap().unwrap().events, 1_500);
        assert_eq!(store.num_trims(), num_trims, "{is_writing}");
        assert!(started.elapsed() >= Duration::from_millis(least));
    }
}

#[actix::test]
async fn a_step_that_is_always_too_slow_is_made_smaller_three_times_and_then_told() {
    pause_time();
    let store = store_with("e", 1..=100).await;
    let parts = parts(Arc::new(ManualClock::at(now())));
    let component = parts.component.clone();
    let settings = TrimSettings {
        batch_size: NonZeroUsize::new(80).unwrap(),
        ..settings(HOUR / 2)
    };
    let trimmer = trimmer_of(parts, &store, settings);
    store.trim_too_slowly_above(Some(0));
    let failed = trimmer.send(Trim).await.unwrap().unwrap_err();
    let is_told = matches!(failed, TrimError::Store(StoreError::TooSlow { .. }));
    assert!(is_told, "{failed:?}");
    assert_eq!(store.trim_steps(), [80, 40, 20, 10]);
    assert_eq!(component.snapshot().state, ComponentState::Failing);
    assert_eq!(store.num_events(), 100);

    store.trim_too_slowly_above(Some(30));
    trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(store.trim_steps()[4..], [80, 40, 20, 20, 20, 20, 20, 20]);
    assert_eq!(store.num_events(), 0);
}

#[actix::test]
async fn retention_works_again_with_the_first_pass_that_succeeds() {
    pause_time();
    let store = store_with("e", [100]).await;
    let parts = parts(Arc::new(ManualClock::at(now())));
    let component = parts.component.clone();
    let trimmer = trimmer_of(parts, &store, settings(HOUR));
    store.set_available(false);
    trimmer.send(Trim).await.unwrap().unwrap_err();
    store.set_available(true);
    trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(component.closes(), None, "that is told already");
    let is_first = component.failed("again".to_owned(), now());
    assert!(is_first, "the next trouble is another one");
}

#[actix::test]
async fn overrides_shorten_and_lengthen() {
    pause_time();
    for (retention, expected) in [(2, vec![1, 2]), (6, vec![1, 2, 3, 4, 5, 6])] {
        let store = store_with("heartbeat", 1..=8).await;
        let mut settings = settings(4 * HOUR);
        settings
            .overrides
            .insert("heartbeat".to_owned(), retention * HOUR);
        let trimmer = trimmer(&store, settings);
        trimmer.send(Trim).await.unwrap().unwrap();
        assert_eq!(ages(&store), expected);
    }
}

#[actix::test]
async fn trims_on_its_own_interval() {
    pause_time();
    let store = store_with("e", [1, 100]).await;
    let _trimmer = trimmer(&store, settings(4 * HOUR));
    tokio::time::sleep(Duration::from_secs(479)).await;
    assert_eq!(store.num_trims(), 0, "before its interval");
    tokio::time::sleep(Duration::from_secs(122)).await;
    assert_eq!(ages(&store), [1]);
    let after_first = store.num_trims();
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert!(store.num_trims() > after_first, "only once");
}

#[actix::test]
async fn keeps_its_interval_when_a_pass_fails() {
    pause_time();
    let store = store_with("e", [1, 100]).await;
    store.set_available(false);
    let trimmer = trimmer(&store, settings(4 * HOUR));
    let failed = trimmer.send(Trim).await.unwrap();
    assert!(matches!(failed, Err(TrimError::Store(_))));
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(ages(&store), [1, 100]);
    store.set_available(true);
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(ages(&store), [1]);
}

/// The wall clock as the store and the trimmer see it, which goes as (paused) time does until it
/// is put by something.
#[derive(Debug)]
struct SettableClock {
    started: Instant,
    put_by: ManualClock,
}

impl Clock for SettableClock {
    fn now(&self) -> DateTime<Utc> {
        let passed = TimeDelta::from_std(self.started.elapsed()).unwrap();
        self.put_by.now() + passed
    }
}

#[actix::test]
async fn a_clock_that_is_put_forward_by_an_hour_removes_nothing_before_it_is_believed() {
    pause_time();
    let clock = Arc::new(SettableClock {
        started: Instant::now(),
        put_by: ManualClock::at(now()),
    });
    let store = MemoryStore::with_clock(clock.clone());
    let event = EventFixture {
        occurred: now() - TimeDelta::minutes(30),
        ..EventFixture::default()
    };
    let batch = Batch::new(BatchId(1), vec![event_entry(event.build())]);
    store.write(Arc::new(batch)).await.unwrap();
    let trimmer = trimmer_by(clock.clone(), &store, settings(HOUR));

    clock.put_by.advance(TimeDelta::hours(1));
    let refused = trimmer.send(Trim).await.unwrap().unwrap_err();
    assert!(matches!(refused, TrimError::AbsurdCutoff(_)), "{refused}");
    assert_eq!(store.num_events(), 1);
    // It was a mistake, and is mended.
    clock.put_by.advance(TimeDelta::hours(-1));
    tokio::time::sleep(HOUR / 4).await;
    trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(store.num_events(), 1, "half an hour and a quarter old");
    // It is right, and stays.
    clock.put_by.advance(TimeDelta::hours(1));
    assert!(trimmer.send(Trim).await.unwrap().is_err());
    tokio::time::sleep(HOUR / 4).await;
    trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(store.num_events(), 0);
}

const DAY: TimeDelta = TimeDelta::days(1);

/// The warning of a component that has failed once.
fn held_back(refused: &TrimError) -> String {
    assert!(matches!(refused, TrimError::HeldBack(_)), "{refused}");
    refused.to_string()
}

/// A service that starts when the clock says something else than when everything was stored.
async fn started_at(
    clock: &ManualClock,
    store: &MemoryStore,
    at: DateTime<Utc>,
) -> Addr<TrimActor> {
    clock.advance(at - clock.now());
    let trimmer = trimmer_by(
        Arc::new(ManualClock::at(at)),
        store,
        settings(7 * 24 * HOUR),
    );
    // Its first message finds it started, and it has looked around before it takes the next one.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    trimmer
}

/// A store with events of the last hours, and its clock.
async fn store_of_today() -> (Arc<ManualClock>, MemoryStore) {
    let clock = Arc::new(ManualClock::at(now()));
    let store = MemoryStore::with_clock(clock.clone());
    let event = |minutes: i64| EventFixture {
        occurred: now() - TimeDelta::minutes(minutes),
        id: Uuid::from_u128(minutes as u128),
        ..EventFixture::default()
    };
    let entries = (1..=10).map(|minutes| event_entry(event(minutes).build()));
    let batch = Batch::new(BatchId(1), entries.collect());
    store.write(Arc::new(batch)).await.unwrap();
    (clock, store)
}

async fn store_more(store: &MemoryStore, ids: std::ops::Range<u128>, occurred: DateTime<Utc>) {
    let event = |id| EventFixture {
        occurred,
        id: Uuid::from_u128(id),
        ..EventFixture::default()
    };
    let entries = ids.map(|id| event_entry(event(id).build()));
    let batch = Batch::new(BatchId(2), entries.collect());
    store.write(Arc::new(batch)).await.unwrap();
}

#[actix::test]
async fn started_with_an_absurd_clock_it_removes_nothing_however_often_and_whatever_comes() {
    pause_time();
    let (clock, store) = store_of_today().await;
    let absurd = now() + DAY * 3_650;
    for day in 0..3 {
        let trimmer = started_at(&clock, &store, absurd + DAY * day).await;
        // What comes has the time of that clock, and soon is more than what was there.
        let first = 100 * (day as u128 + 1);
        store_more(&store, first..first + 50, absurd).await;
        let refused = trimmer.send(Trim).await.unwrap().unwrap_err();
        let told = held_back(&refused);
        assert!(told.contains("10 of 10 events would go"), "{told}");
        assert!(told.contains("`event-persister trim --yes`"), "{told}");
    }
    assert_eq!(store.num_events(), 160);
    // The clock is right again.
    let trimmer = started_at(&clock, &store, now() + DAY).await;
    trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(store.num_events(), 160);
}

#[actix::test]
async fn goes_on_once_somebody_has_said_so() {
    pause_time();
    let (clock, store) = store_of_today().await;
    let later = now() + DAY * 30;
    let trimmer = started_at(&clock, &store, later).await;
    held_back(&trimmer.send(Trim).await.unwrap().unwrap_err());
    // As `trim --yes` does.
    store.note_pass(later).await.unwrap();
    let trimmed = trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(trimmed.events, 10);
}

#[actix::test]
async fn the_first_pass_over_old_events_that_were_stored_now_waits_for_nobody() {
    pause_time();
    let clock = Arc::new(ManualClock::at(now()));
    let store = MemoryStore::with_clock(clock.clone());
    store_more(&store, 0..20, now() - DAY * 400).await;
    let trimmer = started_at(&clock, &store, now() + TimeDelta::hours(1)).await;
    assert_eq!(trimmer.send(Trim).await.unwrap().unwrap().events, 20);
    assert_eq!(store.num_events(), 0);
}

#[actix::test]
async fn an_absence_after_which_less_than_half_goes_is_none() {
    pause_time();
    let (clock, store) = store_of_today().await;
    store_more(&store, 100..111, now() + DAY * 4).await;
    let trimmer = started_at(&clock, &store, now() + DAY * 8).await;
    assert_eq!(trimmer.send(Trim).await.unwrap().unwrap().events, 10);
}

#[actix::test]
async fn what_expires_while_it_runs_goes_however_much_it_is() {
    tokio::time::pause(); // It sleeps for a week.
    let clock = Arc::new(SettableClock {
        started: Instant::now(),
        put_by: ManualClock::at(now()),
    });
    let store = MemoryStore::with_clock(clock.clone());
    store_more(&store, 0..20, now()).await;
    let trimmer = trimmer_by(clock, &store, settings(7 * 24 * HOUR));
    tokio::time::sleep(7 * 24 * HOUR + HOUR).await;
    assert_eq!(store.num_events(), 0);
    drop(trimmer);
}

#[actix::test]
async fn a_pass_beside_one_that_is_under_way_is_left_to_that_one() {
    pause_time();
    let store = store_with("e", 1..=1_500).await;
    let parts = parts(Arc::new(ManualClock::at(now())));
    let component = parts.component.clone();
    // Somebody writes, so that steps are small and rest.
    parts.metrics.received(1, 0);
    let settings = TrimSettings {
        batch_size: NonZeroUsize::new(1_000).unwrap(),
        ..settings(HOUR / 2)
    };
    let trimmer = trimmer_of(parts, &store, settings);
    let first = actix_rt::spawn(trimmer.send(Trim));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(store.num_events(), 500, "it rests");
    let second = trimmer.send(Trim).await.unwrap();
    assert!(matches!(second, Err(TrimError::UnderWay)), "{second:?}");
    assert_eq!(first.await.unwrap().unwrap().unwrap().events, 1_500);
    assert_eq!(component.snapshot().state, ComponentState::Ok);
    let third = trimmer.send(Trim).await.unwrap().unwrap();
    assert_eq!(third, Trimmed::default());
}

#[actix::test]
async fn drain_closes_the_store_and_ends_the_trimmer() {
    pause_time();
    let store = store_with("e", [1, 100]).await;
    let trimmer = trimmer(&store, settings(4 * HOUR));
    let timeout = Duration::from_secs(1);
    let drained = trimmer.send(Drain { timeout }).await.unwrap();
    assert_eq!(drained, Drained { released: 0 });
    assert_eq!(store.num_closed(), 1);
    tokio::time::sleep(HOUR).await;
    assert_eq!(ages(&store), [1, 100], "no pass after the end");
    assert!(!trimmer.connected());
}

/// One whose uses take turns, as SQLite's do.
#[derive(Default)]
struct TakesTurns {
    turn: tokio::sync::Mutex<()>,
    is_waited_for: tokio::sync::Notify,
}

impl EventStore for TakesTurns {
    fn write(&self, _: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        unreachable!("a trimmer writes nothing")
    }

    fn rehearse(&self, _: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        unreachable!("a trimmer writes nothing")
    }

    fn trim<'a>(
        &'a self,
        _: &'a Cutoffs,
        _: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(async {
            self.is_waited_for.notify_one();
            drop(self.turn.lock().await);
            Ok(TrimStep::Finished)
        })
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            drop(self.turn.lock().await);
            Ok(())
        })
    }
}

#[actix::test]
async fn a_pass_that_waits_for_its_turn_does_not_hold_up_the_end() {
    pause_time();
    let store = Arc::new(TakesTurns::default());
    let turn = store.turn.lock().await;
    let (alive, _) = lifeline();
    let parts = parts(Arc::new(ManualClock::at(now())));
    let open: Arc<dyn EventStore> = store.clone();
    let trimmer = TrimActor::new(open, settings(HOUR), parts, alive).start();
    let pass = actix_rt::spawn(trimmer.send(Trim));
    store.is_waited_for.notified().await;
    let drain = actix_rt::spawn(trimmer.send(Drain { timeout: HOUR }));
    let given_up = tokio::time::timeout(HOUR, pass).await.unwrap();
    given_up.unwrap().unwrap_err();
    drop(turn);
    let drained = tokio::time::timeout(HOUR, drain).await.unwrap();
    assert_eq!(drained.unwrap().unwrap(), Drained { released: 0 });
}

#[actix::test]
async fn the_passes_that_were_and_the_next_one_are_told() {
    pause_time();
    let store = store_with("e", [1, 2, 3, 4, 5, 6, 7]).await;
    let parts = parts(Arc::new(ManualClock::at(now())));
    let passes = parts.passes.clone();
    let trimmer = trimmer_of(parts, &store, settings(4 * HOUR));
    trimmer.send(Trim).await.unwrap().unwrap();
    let told = passes.get();
    let next = (told.next_pass.unwrap() - now()).num_seconds();
    assert!((480..=600).contains(&next), "{next}");
    let last = told.last_pass.unwrap();
    assert_eq!((last.began, last.outcome), (now(), PassOutcome::Done));
    assert_eq!((last.removed.events, last.removed.resources), (3, 6));
    trimmer.send(Drain { timeout: HOUR }).await.unwrap();
    assert_eq!(passes.get().next_pass, None);
    let absurd = trimmer_of(
        TrimParts {
            passes: passes.clone(),
            ..self::parts(Arc::new(ManualClock::at(now())))
        },
        &store,
        settings(Duration::MAX),
    );
    absurd.send(Trim).await.unwrap().unwrap_err();
    let last = passes.get().last_pass.unwrap();
    assert_eq!(
        (last.outcome, last.removed),
        (PassOutcome::Failed, Trimmed::default())
    );
}
