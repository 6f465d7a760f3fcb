use super::*;
use crate::clock::SystemClock;
use crate::delivery::BatchId;
use crate::reader::{Answer, Countable, EventCount, EventPage, Overview};
use crate::testing::{MemoryStore, event, event_entry, pause_time};

async fn commit(store: &dyn EventStore, ids: std::ops::Range<u128>) {
    let entries = ids
        .map(|id| event_entry(event(Uuid::from_u128(id))))
        .collect();
    let batch = Batch::new(BatchId(0), entries);
    store.write(Arc::new(batch)).await.unwrap();
}

async fn ids(watching: &mut Watching, num: usize) -> Vec<u128> {
    let mut ids = Vec::new();
    for _ in 0..num {
        match watching.next().await {
            Live::Event(event) => ids.push(event.id.as_u128()),
            Live::Missed(missed) => panic!("missed {missed}"),
        }
    }
    ids
}

#[actix::test]
async fn watchers_are_told_each_event_once_and_how_many_they_missed() {
    let live = LiveEvents::default();
    let store = live.told_by(MemoryStore::new().open_store())();
    commit(&*store, 0..3).await;
    let (mut one, mut other) = (live.watch(), live.watch());
    commit(&*store, 2..5).await;
    assert_eq!(ids(&mut one, 2).await, [3, 4]);
    assert_eq!(ids(&mut other, 1).await, [3]);
    let num = MAX_KEPT_EVENTS as u128;
    commit(&*store, 10..10 + num).await;
    assert!(matches!(other.next().await, Live::Missed(1)));
    assert_eq!(ids(&mut other, 2).await, [10, 11]);
    commit(&*store, 100_000..100_005).await;
    assert!(matches!(other.next().await, Live::Missed(3)));
    assert_eq!(ids(&mut other, 1).await, [15]);
    assert!(matches!(one.next().await, Live::Missed(5)));
    let nothing_new = tokio::time::timeout(Duration::ZERO, async {
        let mut late = live.watch();
        late.next().await
    });
    assert!(nothing_new.await.is_err());
}

#[cfg(feature = "http")]
#[actix::test]
async fn what_waits_for_a_watcher_is_counted_with_what_is_no_longer_kept() {
    let live = LiveEvents::default();
    let store = live.told_by(MemoryStore::new().open_store())();
    let mut watching = live.watch();
    assert_eq!(watching.num_waiting(), 0);
    let num = MAX_KEPT_EVENTS as u64 + 3;
    commit(&*store, 0..u128::from(num)).await;
    assert_eq!(watching.num_waiting(), num);
    assert!(matches!(watching.now(), Some(Live::Missed(3))));
    assert_eq!(watching.num_waiting(), num - 3);
}

/// What was committed by anybody.
#[derive(Default)]
struct Committed(Mutex<Vec<StoredEvent>>);

impl Committed {
    fn add(&self, id: u128) {
        let event = StoredEvent::from(&event(Uuid::from_u128(id)));
        lock(&self.0).push(event);
    }
}

impl EventReader for Committed {
    fn written_since(&self, _: DateTime<Utc>, _: usize) -> Answer<'_, Vec<Uuid>> {
        let ids = lock(&self.0).iter().map(|event| event.id).collect();
        Box::pin(async { Ok(ids) })
    }

    fn page<'a>(&'a self, filter: &'a EventFilter, _: Part) -> Answer<'a, EventPage> {
        let mut events = lock(&self.0).clone();
        events.retain(|event| filter.id.contains(&event.id));
        let page = EventPage {
            events,
            ..EventPage::default()
        };
        Box::pin(async { Ok(page) })
    }

    fn count<'a>(&'a self, _: &'a EventFilter, _: &'a Countable) -> Answer<'a, Vec<EventCount>> {
        panic!("nobody asks for it")
    }

    fn event(&self, _: Uuid) -> Answer<'_, Option<StoredEvent>> {
        panic!("nobody asks for it")
    }

    fn overview(&self) -> Answer<'_, Overview> {
        panic!("nobody asks for it")
    }

    fn close(&self) -> Answer<'_, ()> {
        panic!("nobody asks for it")
    }
}

#[actix::test]
async fn what_others_commit_is_told_from_the_moment_on_that_what_is_there_was_noted() {
    pause_time();
    let (live, committed) = (LiveEvents::default(), Arc::new(Committed::default()));
    let (looking, reader) = (live.clone(), Arc::clone(&committed));
    actix::spawn(async move { looking.look(reader, Arc::new(SystemClock)).await });
    committed.add(1);
    let mut one = live.watch();
    let note = || live.note_what_is_there(&*committed, SystemClock.now());
    note().await.unwrap();
    committed.add(2);
    // A second one has nothing left out that the first has not been told.
    let mut other = live.watch();
    note().await.unwrap();
    assert_eq!(ids(&mut one, 1).await, [2]);
    assert_eq!(ids(&mut other, 1).await, [2]);
    drop((one, other));
    // All is new to those who come when nobody watches.
    let mut late = live.watch();
    note().await.unwrap();
    committed.add(3);
    assert_eq!(ids(&mut late, 1).await, [3]);
}

#[actix::test]
async fn an_event_of_our_own_that_is_found_before_it_is_told_is_told_all_the_same() {
    let (live, committed) = (LiveEvents::default(), Committed::default());
    let store = live.told_by(MemoryStore::new().open_store())();
    let mut watching = live.watch();
    committed.add(1);
    live.note_what_is_there(&committed, SystemClock.now())
        .await
        .unwrap();
    commit(&*store, 1..2).await;
    assert_eq!(ids(&mut watching, 1).await, [1]);
}
