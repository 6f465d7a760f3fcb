use chrono::TimeZone;
use uuid::Uuid;

use super::*;
use crate::batch::{Batch, BatchId};
use crate::lifeline::lifeline;
use crate::testing::{EventFixture, ManualClock, MemoryStore, event_entry};

const HOUR: Duration = Duration::from_secs(60 * 60);

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).unwrap()
}

fn settings(retention: Duration) -> TrimSettings {
    TrimSettings {
        every: Duration::from_secs(600),
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
    let parts = TrimParts {
        component: Component::new("trim"),
        metrics: Metrics::new().unwrap(),
        clock,
    };
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
    tokio::time::pause();
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
async fn overrides_shorten_and_lengthen() {
    tokio::time::pause();
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
    tokio::time::pause();
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
    tokio::time::pause();
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
    tokio::time::pause();
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
