//! What every `EventStore` promises, run against each of them.
//!
//! The memory store is held to the same promises, or tests that use it would prove nothing.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::delivery::{Batch, BatchId, Entry};
use event_persister_actors::event::ReceivedEvent;
use event_persister_actors::store::operator::{DeadLetter, LetterFilter, StoreOperator};
use event_persister_actors::store::{
    Cutoffs, EventStore, OpenStore, Outcome, RefusalReason, Stage, StoreError, TrimStep, Trimmed,
};
use event_persister_actors::testing::{EventFixture, event, event_entry, rejected_entry};
use uuid::Uuid;

mod letters;
mod memory;
#[cfg(feature = "service-tests")]
mod partitioned;
#[cfg(feature = "service-tests")]
mod postgres;
mod sqlite;

use letters::*;

/// A database under test, with what the port does not show.
trait Fixture {
    fn open_store(&self) -> OpenStore;
    fn operator(&self) -> Arc<dyn StoreOperator>;
    /// From now on the database refuses this event.
    fn refuse(&self, id: Uuid);
    /// While broken, every write fails as a whole.
    fn set_broken(&self, broken: bool);
    /// The stored ids, each with `(resource id, role)` of its resources, sorted.
    fn rows(&self) -> BTreeMap<Uuid, Vec<(String, String)>>;
}

fn batch(entries: Vec<Arc<Entry>>) -> Arc<Batch> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = BatchId(NEXT.fetch_add(1, Ordering::Relaxed));
    Arc::new(Batch::new(id, entries))
}

fn events(events: impl IntoIterator<Item = ReceivedEvent>) -> Arc<Batch> {
    batch(events.into_iter().map(event_entry).collect())
}

fn any_event() -> ReceivedEvent {
    event(Uuid::new_v4())
}

fn limit(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).unwrap()
}

fn pair(id: &str, role: &str) -> (String, String) {
    (id.to_owned(), role.to_owned())
}

async fn letters(fixture: &impl Fixture) -> Vec<DeadLetter> {
    let all = LetterFilter::default();
    let listed = fixture
        .operator()
        .list_letters(&all, None, limit(100))
        .await;
    listed.unwrap()
}

async fn stores_each_event_with_all_of_its_resources(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let without = EventFixture {
        related: Vec::new(),
        ..EventFixture::default()
    }
    .build();
    let with = EventFixture {
        resource_id: "flow-run".to_owned(),
        related: vec![pair("a", "tag"), pair("b", ""), pair("a", "tag")],
        ..EventFixture::default()
    }
    .build();
    let outcomes = store.write(events([without.clone(), with.clone()])).await;
    assert_eq!(outcomes.unwrap(), [Outcome::Stored, Outcome::Stored]);
    let rows = fixture.rows();
    assert_eq!(rows[&without.id], [pair("test.resource", "")]);
    let expected = [
        pair("a", "tag"),
        pair("a", "tag"),
        pair("b", ""),
        pair("flow-run", ""),
    ];
    assert_eq!(rows[&with.id], expected);
}

async fn answers_in_the_order_of_the_entries(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let (known, refused) = (any_event(), any_event());
    store.write(events([known.clone()])).await.unwrap();
    fixture.refuse(refused.id);
    let mixed = batch(vec![
        rejected_entry("1", b"{", "not JSON"),
        event_entry(any_event()),
        event_entry(refused),
        event_entry(known),
        event_entry(any_event()),
        rejected_entry("2", b"[", "not JSON"),
    ]);
    assert_eq!(
        store.write(mixed).await.unwrap(),
        [
            Outcome::RejectedAtParse,
            Outcome::Stored,
            Outcome::RefusedByStore(RefusalReason::Raised),
            Outcome::Duplicate,
            Outcome::Stored,
            Outcome::RejectedAtParse,
        ]
    );
    assert_eq!(fixture.rows().len(), 3);
}

async fn a_duplicate_changes_nothing(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let id = Uuid::new_v4();
    let again = EventFixture {
        id,
        resource_id: "another".to_owned(),
        ..EventFixture::default()
    }
    .build();
    let outcomes = store.write(events([event(id), again.clone()])).await;
    assert_eq!(outcomes.unwrap(), [Outcome::Stored, Outcome::Duplicate]);
    let rows = fixture.rows();
    let outcomes = store.write(events([again.clone(), again])).await;
    assert_eq!(outcomes.unwrap(), [Outcome::Duplicate, Outcome::Duplicate]);
    assert_eq!(fixture.rows(), rows);
    assert_eq!(rows[&id].len(), 2);
}

async fn an_empty_batch_is_nothing(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    assert_eq!(store.write(batch(Vec::new())).await.unwrap(), []);
}

async fn keeps_a_rejected_message_with_its_reason(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let raw = b"\xff\x00 not JSON";
    let outcomes = store
        .write(batch(vec![rejected_entry("line 7", raw, "not UTF-8")]))
        .await;
    assert_eq!(outcomes.unwrap(), [Outcome::RejectedAtParse]);
    let listed = letters(fixture).await;
    let [letter] = listed.as_slice() else {
        panic!("one letter, not {listed:?}");
    };
    assert_eq!(letter.source, "test");
    assert_eq!(letter.position, "line 7");
    assert_eq!(letter.reason, "not UTF-8");
    assert_eq!(letter.stage, Stage::Parse);
    assert_eq!((letter.sqlstate.as_deref(), letter.event_id), (None, None));
    assert_eq!((letter.attempts, letter.num_bytes), (1, raw.len() as u64));
    assert_eq!(letter.first_seen, letter.last_seen);
    let operator = fixture.operator();
    let shown = operator.open_letters(&[letter.id]).await.unwrap();
    assert_eq!(shown, [(letter.clone(), raw.to_vec())]);
    let none = operator.open_letters(&[letter.id + 1]).await.unwrap();
    assert_eq!(none, []);
}

async fn a_refused_event_harms_no_neighbour(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    store.write(events([any_event()])).await.unwrap();
    let all: Vec<_> = (0..20).map(|_| any_event()).collect();
    for culprit in all.iter().step_by(7) {
        fixture.refuse(culprit.id);
    }
    let outcomes = store.write(events(all.clone())).await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        let expected = if index % 7 == 0 {
            Outcome::RefusedByStore(RefusalReason::Raised)
        } else {
            Outcome::Stored
        };
        assert_eq!(*outcome, expected, "entry {index}");
    }
    let rows = fixture.rows();
    assert_eq!(rows.len(), 18);
    assert!(rows.values().all(|resources| resources.len() == 2));
    let letters = letters(fixture).await;
    assert_eq!(letters.len(), 3);
    for letter in &letters {
        assert_eq!(letter.stage, Stage::Store);
        assert!(!letter.reason.is_empty());
        let culprit = all.iter().find(|event| Some(event.id) == letter.event_id);
        let (_, raw) = fixture
            .operator()
            .open_letters(&[letter.id])
            .await
            .unwrap()
            .remove(0);
        assert_eq!(raw, culprit.unwrap().text().as_bytes());
    }
    // A batch without culprits goes through as before.
    let outcomes = store.write(events([any_event()])).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
}

async fn a_write_after_a_failed_one_works(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    store.write(events([any_event()])).await.unwrap();
    let again = events([any_event(), any_event()]);
    fixture.set_broken(true);
    for _ in 0..2 {
        let error = store.write(Arc::clone(&again)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    }
    fixture.set_broken(false);
    assert_eq!(fixture.rows().len(), 1, "a failed write leaves nothing");
    let outcomes = store.write(again).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Stored]);
}

async fn a_closed_store_opens_again(fixture: &impl Fixture) {
    let open_store = fixture.open_store();
    let store = open_store();
    store.close().await.unwrap();
    store.check().await.unwrap();
    let known = any_event();
    store.write(events([known.clone()])).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    let outcomes = store.write(events([known.clone()])).await.unwrap();
    assert_eq!(outcomes, [Outcome::Duplicate]);
    let outcomes = open_store().write(events([known])).await.unwrap();
    assert_eq!(
        outcomes,
        [Outcome::Duplicate],
        "all handles see the same rows"
    );
}

async fn two_stores_write_at_once(fixture: &impl Fixture) {
    let open_store = fixture.open_store();
    let (a, b) = (open_store(), open_store());
    let write = async |store: Arc<dyn EventStore>| {
        for _ in 0..10 {
            let two = events([any_event(), any_event()]);
            store.write(two).await.unwrap();
        }
    };
    tokio::join!(write(a), write(b));
    assert_eq!(fixture.rows().len(), 40);
}

/// Ten days ago, and so on; the same for every call.
fn days_ago(days: i64) -> DateTime<Utc> {
    use std::sync::OnceLock;
    static NOW: OnceLock<DateTime<Utc>> = OnceLock::new();
    *NOW.get_or_init(|| SystemClock.now()) - TimeDelta::days(days)
}

fn aged(name: &str, days: i64) -> ReceivedEvent {
    EventFixture {
        event: name.to_owned(),
        occurred: days_ago(days),
        ..EventFixture::default()
    }
    .build()
}

/// Seven days for most and, said once more, for `other`, two for `short`, thirty for `long`.
fn cutoffs() -> Cutoffs {
    let overrides = [("short", 2), ("other", 7), ("long", 30), ("of no event", 1)];
    Cutoffs {
        default: days_ago(7),
        overrides: overrides
            .into_iter()
            .map(|(name, days)| (name.to_owned(), days_ago(days)))
            .collect(),
    }
}

/// Two of each kind on either side of their cutoffs; returns those that are kept.
async fn write_old_and_new(store: &dyn EventStore) -> Vec<Uuid> {
    let mut kept = Vec::new();
    for (name, days) in [("plain", 7), ("other", 7), ("short", 2), ("long", 30)] {
        let old = [aged(name, days + 1), aged(name, days + 40)];
        // What occurred exactly at the cutoff is kept.
        let new = [aged(name, days), aged(name, days - 1)];
        kept.extend(new.iter().map(|event| event.id));
        store
            .write(events(old.into_iter().chain(new)))
            .await
            .unwrap();
    }
    kept.sort_unstable();
    kept
}

async fn trims_what_each_name_no_longer_keeps(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let kept = write_old_and_new(&*store).await;
    let expected = Trimmed {
        events: 8,
        resources: 16,
    };
    let cutoffs = cutoffs();
    assert_eq!(
        fixture.operator().count_expired(&cutoffs).await.unwrap(),
        expected
    );
    assert_eq!(fixture.rows().len(), 16, "counting removes nothing");
    let mut total = Trimmed::default();
    while let TrimStep::Removed(removed) = store.trim(&cutoffs, limit(3)).await.unwrap() {
        let trimmed = removed.rows;
        assert!((1..=3).contains(&trimmed.events), "{trimmed:?}");
        assert_eq!(trimmed.resources, 2 * trimmed.events);
        total += trimmed;
        assert!(total.events <= 8, "it never ends");
    }
    assert_eq!(total, expected);
    let rows = fixture.rows();
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), kept);
    assert!(rows.values().all(|resources| resources.len() == 2));
    let again = store.trim(&cutoffs, limit(3)).await.unwrap();
    assert_eq!(again, TrimStep::Finished);
    let none = fixture.operator().count_expired(&cutoffs).await.unwrap();
    assert_eq!(none, Trimmed::default());
}

async fn remembers_the_last_pass_and_knows_what_was_there_before(fixture: &impl Fixture) {
    let store = fixture.open_store()();
    let later = SystemClock.now() + TimeDelta::hours(1);
    let unknown = store.last_pass(later).await.unwrap();
    assert_eq!((unknown.at, unknown.is_noted), (None, false));

    let started = SystemClock.now() - TimeDelta::seconds(1);
    let long_ago = DateTime::UNIX_EPOCH + TimeDelta::days(10_000);
    let named = |name: &str, days: i64| {
        event_entry(
            EventFixture {
                event: name.to_owned(),
                occurred: long_ago + TimeDelta::days(days),
                id: Uuid::new_v4(),
                ..EventFixture::default()
            }
            .build(),
        )
    };
    let entries = vec![
        named("e", 1),
        named("e", 3),
        named("long", 1),
        named("short", 3),
    ];
    store.write(batch(entries)).await.unwrap();
    let newest = store.last_pass(later).await.unwrap();
    assert!(!newest.is_noted);
    assert!(newest.at.is_some_and(|at| at >= started), "{newest:?}");

    let cutoffs = Cutoffs {
        default: long_ago + TimeDelta::days(2),
        overrides: [("long", 0), ("short", 4)]
            .map(|(name, days)| (name.to_owned(), long_ago + TimeDelta::days(days)))
            .into(),
    };
    let held = store.count_events(&cutoffs, later).await.unwrap();
    assert_eq!((held.num_events, held.num_expired), (4, 2));
    let before = store.count_events(&cutoffs, started).await.unwrap();
    assert_eq!((before.num_events, before.num_expired), (0, 0));

    for at in [started, long_ago] {
        store.note_pass(at).await.unwrap();
        let noted = fixture.open_store()().last_pass(later).await.unwrap();
        assert!(noted.is_noted);
        let off = noted.at.unwrap() - at;
        assert!(off.abs() < TimeDelta::milliseconds(1), "{noted:?}");
        assert!(
            (noted.now - SystemClock.now()).abs() < TimeDelta::minutes(1),
            "{noted:?}"
        );
    }
}

async fn trims_the_oldest_first(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let ages = [("plain", 20), ("short", 25), ("plain", 30), ("short", 10)];
    let all: Vec<_> = ages.map(|(name, days)| aged(name, days)).into();
    store.write(events(all.clone())).await.unwrap();
    let cutoffs = cutoffs();
    for oldest in [2, 1, 0, 3] {
        assert!(fixture.rows().contains_key(&all[oldest].id));
        store.trim(&cutoffs, limit(1)).await.unwrap();
        assert!(!fixture.rows().contains_key(&all[oldest].id), "{oldest}");
    }
    let rest = store.trim(&cutoffs, limit(1)).await.unwrap();
    assert_eq!(rest, TrimStep::Finished);
}

async fn trims_what_comes_late_too(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let cutoffs = cutoffs();
    let removed = async |store: &dyn EventStore| match store.trim(&cutoffs, limit(1)).await {
        Ok(TrimStep::Removed(removed)) => removed.rows.events,
        Ok(_) => 0,
        Err(error) => panic!("{error}"),
    };
    store
        .write(events([
            aged("plain", 9),
            aged("long", 20),
            aged("plain", 8),
        ]))
        .await
        .unwrap();
    assert_eq!(removed(&*store).await, 1);
    store.write(events([aged("plain", 50)])).await.unwrap();
    assert_eq!(removed(&*store).await, 1);
    assert_eq!(removed(&*store).await, 1);
    assert_eq!(removed(&*store).await, 0);
    assert_eq!(fixture.rows().len(), 1, "the one that is kept longer");
}

async fn a_cutoff_in_the_future_removes_nothing(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    store.write(events([aged("plain", 9)])).await.unwrap();
    let default = Cutoffs {
        default: days_ago(-1),
        ..cutoffs()
    };
    let mut of_one_name = cutoffs();
    of_one_name
        .overrides
        .insert("plain".to_owned(), days_ago(-1));
    for future in [default, of_one_name] {
        let refused = [
            store.trim(&future, limit(1)).await.unwrap_err(),
            fixture.operator().count_expired(&future).await.unwrap_err(),
        ];
        for error in refused {
            assert!(error.to_string().contains("in the future"), "{error}");
        }
    }
    assert_eq!(fixture.rows().len(), 1);
}

/// One test for each promise and each store.
macro_rules! store_contract_tests {
    ($new:expr; $($promise:ident)*) => {
        $(
            #[actix::test]
            async fn $promise() {
                super::$promise(&$new).await;
            }
        )*
    };
    ($new:expr) => {
        store_contract_tests! { $new;
            stores_each_event_with_all_of_its_resources
            answers_in_the_order_of_the_entries
            a_duplicate_changes_nothing
            an_empty_batch_is_nothing
            keeps_a_rejected_message_with_its_reason
            a_refused_event_harms_no_neighbour
            a_letter_that_comes_again_is_counted
            lists_the_newest_letters_first_and_in_pages
            a_letter_shows_what_is_wrong_with_it_now
            finds_the_letters_that_fit_every_part_of_a_filter
            removes_the_letters_that_it_is_given_and_no_others
            a_letter_that_came_again_is_not_removed_as_it_was
            opens_many_letters_at_once
            peeks_at_the_beginning_of_a_letter
            a_write_after_a_failed_one_works
            a_closed_store_opens_again
            two_stores_write_at_once
            trims_what_each_name_no_longer_keeps
            trims_the_oldest_first
            trims_what_comes_late_too
            remembers_the_last_pass_and_knows_what_was_there_before
            a_cutoff_in_the_future_removes_nothing
        }
    };
}
use store_contract_tests;
