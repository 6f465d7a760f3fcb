//! What the dead letters of every store promise: they are counted, found and removed.

use std::sync::Arc;

use chrono::TimeDelta;
use event_persister_actors::delivery::{Content, Entry, Position};
use event_persister_actors::store::Stage;
use event_persister_actors::store::operator::{DeadLetter, LetterFilter, LetterVersion};
use event_persister_actors::testing::{event_entry, rejected_entry};

use super::{Fixture, any_event, batch, events, letters, limit};

pub(super) async fn a_letter_that_comes_again_is_counted(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let refused = any_event();
    fixture.refuse(refused.id);
    let both = batch(vec![
        rejected_entry("1", b"{", "not JSON"),
        event_entry(refused),
        rejected_entry("1", b"[", "other bytes, another letter"),
        rejected_entry("2", b"{", "another place, another letter"),
    ]);
    let first = store.write(Arc::clone(&both)).await.unwrap();
    assert_eq!(store.write(both).await.unwrap(), first);
    let letters = letters(fixture).await;
    assert_eq!(letters.len(), 4);
    for letter in letters {
        assert_eq!(letter.attempts, 2, "{letter:?}");
        assert!(letter.last_seen >= letter.first_seen);
    }
}

pub(super) async fn lists_the_newest_letters_first_and_in_pages(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    for position in ["1", "2", "3", "4", "5"] {
        let one = batch(vec![rejected_entry(position, b"{", "not JSON")]);
        store.write(one).await.unwrap();
    }
    let positions = async |before, limit_| {
        let letters = fixture.operator();
        let page = letters
            .list_letters(&LetterFilter::default(), before, limit(limit_))
            .await;
        let page = page.unwrap();
        let last = page.last().map(|letter| letter.id);
        let positions: Vec<_> = page.into_iter().map(|letter| letter.position).collect();
        (positions, last)
    };
    let (page, last) = positions(None, 2).await;
    assert_eq!(page, ["5", "4"]);
    let (page, last) = positions(last, 2).await;
    assert_eq!(page, ["3", "2"]);
    let (page, _) = positions(last, 2).await;
    assert_eq!(page, ["1"]);
}

pub(super) async fn a_letter_shows_what_is_wrong_with_it_now(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let event = any_event();
    let rejection = |reason: &str| {
        let entry = rejected_entry("1", event.text().as_bytes(), reason);
        batch(vec![entry])
    };
    store.write(rejection("first")).await.unwrap();
    store.write(rejection("second")).await.unwrap();
    let listed = letters(fixture).await;
    assert_eq!(
        (listed[0].reason.as_str(), listed[0].attempts),
        ("second", 2)
    );
    fixture.refuse(event.id);
    let same = Entry {
        source: "test".into(),
        position: Position::new("1"),
        content: Content::Event(event.clone()),
    };
    store.write(batch(vec![Arc::new(same)])).await.unwrap();
    let now = letters(fixture).await;
    assert_eq!(now.len(), 1);
    assert_eq!((now[0].id, now[0].attempts), (listed[0].id, 3));
    assert_eq!(now[0].stage, Stage::Store);
    assert_eq!(now[0].event_id, Some(event.id));
    assert!(now[0].reason.contains("the test refuses"), "{now:?}");
}

/// One that the parser rejected, then one that the database refused.
async fn write_two_letters(fixture: &impl Fixture) -> [DeadLetter; 2] {
    let store = (fixture.open_store())();
    let rejected = rejected_entry("1", b"{", "100% not JSON");
    store.write(batch(vec![rejected])).await.unwrap();
    let refused = any_event();
    fixture.refuse(refused.id);
    store.write(events([refused])).await.unwrap();
    let mut both = letters(fixture).await;
    both.reverse();
    both.try_into().unwrap()
}

/// Filters with what they leave of the two letters.
fn filters([parse, store]: &[DeadLetter; 2]) -> Vec<(LetterFilter, Vec<i64>)> {
    let any = LetterFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let (first, second, both) = (vec![parse.id], vec![store.id], vec![store.id, parse.id]);
    let instant = TimeDelta::microseconds(1);
    #[rustfmt::skip]
    let filters = vec![
        (any(), both.clone()),
        (LetterFilter { ids: Some(vec![store.id, store.id + 1]), ..any() }, second.clone()),
        (LetterFilter { ids: Some(vec![]), ..any() }, vec![]),
        (LetterFilter { source: text("test"), ..any() }, both.clone()),
        (LetterFilter { source: text("tes"), ..any() }, vec![]),
        (LetterFilter { stage: Some(Stage::Parse), ..any() }, first.clone()),
        (LetterFilter { stage: Some(Stage::Store), ..any() }, second.clone()),
        (LetterFilter { reason: text("0% not"), ..any() }, first.clone()),
        (LetterFilter { reason: text("%"), ..any() }, first.clone()),
        (LetterFilter { reason: text("_"), ..any() }, vec![]),
        (LetterFilter { reason: text("not json"), ..any() }, vec![]),
        (LetterFilter { code: text("no code"), ..any() }, vec![]),
        (LetterFilter { since: Some(parse.last_seen), ..any() }, both.clone()),
        (LetterFilter { since: Some(parse.last_seen + instant), ..any() }, second.clone()),
        (LetterFilter { since: Some(store.last_seen + instant), ..any() }, vec![]),
        (LetterFilter { until: Some(store.last_seen), ..any() }, first.clone()),
        (LetterFilter { until: Some(store.last_seen + instant), ..any() }, both),
        (LetterFilter { until: Some(parse.last_seen), ..any() }, vec![]),
        (LetterFilter { until: Some(store.last_seen), stage: Some(Stage::Store), ..any() }, vec![]),
    ];
    let code = store.sqlstate.clone();
    let with_code = code.map(|code| LetterFilter {
        code: Some(code),
        ..any()
    });
    let with_code = with_code.map(|filter| (filter, second));
    filters.into_iter().chain(with_code).collect()
}

pub(super) async fn finds_the_letters_that_fit_every_part_of_a_filter(fixture: &impl Fixture) {
    let both = write_two_letters(fixture).await;
    let letters = fixture.operator();
    let ids = |listed: Vec<DeadLetter>| -> Vec<i64> {
        listed.into_iter().map(|letter| letter.id).collect()
    };
    for (filter, expected) in filters(&both) {
        let listed = letters
            .list_letters(&filter, None, limit(10))
            .await
            .unwrap();
        assert_eq!(ids(listed), expected, "{filter:?}");
        let count = letters.count_letters(&filter, None).await.unwrap();
        assert_eq!(count, expected.len() as u64, "{filter:?}");
        let before = both[1].id;
        let listed = letters.list_letters(&filter, Some(before), limit(10)).await;
        let older: Vec<_> = expected.into_iter().filter(|id| *id < before).collect();
        let count = letters.count_letters(&filter, Some(before)).await.unwrap();
        assert_eq!(count, older.len() as u64, "{filter:?}");
        assert_eq!(ids(listed.unwrap()), older, "{filter:?}");
    }
}

pub(super) async fn removes_the_letters_that_it_is_given_and_no_others(fixture: &impl Fixture) {
    let both = write_two_letters(fixture).await;
    let dead_letters = fixture.operator();
    let remove = async |letter: &DeadLetter| {
        let version = LetterVersion {
            id: letter.id,
            attempts: letter.attempts,
        };
        let removed = dead_letters.remove_letters(&[version]).await.unwrap();
        (removed, letters(fixture).await.len())
    };
    assert_eq!(remove(&both[1]).await, (1, 1));
    assert_eq!(remove(&both[1]).await, (0, 1));
    assert_eq!(letters(fixture).await[0].id, both[0].id);
    assert_eq!(remove(&both[0]).await, (1, 0));
    // An id is not given to another letter, or an operator would remove what he has not seen.
    let store = (fixture.open_store())();
    let again = batch(vec![rejected_entry("1", b"{", "not JSON")]);
    store.write(again).await.unwrap();
    assert!(letters(fixture).await[0].id > both[1].id);
}

pub(super) async fn a_letter_that_came_again_is_not_removed_as_it_was(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let three = |reason| {
        let rejected = |position| rejected_entry(position, b"{", reason);
        batch(vec![rejected("1"), rejected("2"), rejected("3")])
    };
    store.write(three("first")).await.unwrap();
    let once = batch(vec![rejected_entry("2", b"{", "again")]);
    store.write(Arc::clone(&once)).await.unwrap();
    let version = |letter: &DeadLetter| LetterVersion {
        id: letter.id,
        attempts: letter.attempts,
    };
    let listed = letters(fixture).await;
    let versions: Vec<_> = listed.iter().map(version).collect();
    store
        .write(batch(vec![rejected_entry("1", b"{", "again")]))
        .await
        .unwrap();
    let dead_letters = fixture.operator();
    assert_eq!(dead_letters.remove_letters(&versions).await.unwrap(), 2);
    assert_eq!(dead_letters.remove_letters(&versions).await.unwrap(), 0);
    assert_eq!(dead_letters.remove_letters(&[]).await.unwrap(), 0);
    let left = letters(fixture).await;
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].position.as_str(), left[0].attempts), ("1", 2));
}

pub(super) async fn opens_many_letters_at_once(fixture: &impl Fixture) {
    // More than SQLite takes parameters.
    const MANY: i64 = 40_000;
    let both = write_two_letters(fixture).await;
    let letters = fixture.operator();
    let ids: Vec<_> = (0..MANY).collect();
    let opened = letters.open_letters(&ids).await.unwrap();
    let [older, newer] = &both;
    assert_eq!(opened.len(), 2);
    assert_eq!(&opened[0].0, newer);
    assert_eq!(opened[1], (older.clone(), b"{".to_vec()));
    let filter = LetterFilter {
        ids: Some(ids),
        ..LetterFilter::default()
    };
    assert_eq!(letters.count_letters(&filter, None).await.unwrap(), 2);
    assert_eq!(letters.open_letters(&[]).await.unwrap(), []);
}

pub(super) async fn peeks_at_the_beginning_of_a_letter(fixture: &impl Fixture) {
    let store = (fixture.open_store())();
    let raw = b"\xffab\0cdef";
    store
        .write(batch(vec![rejected_entry("1", raw, "not UTF-8")]))
        .await
        .unwrap();
    let letter = letters(fixture).await.remove(0);
    let operator = fixture.operator();
    for (asked, expected) in [(5, &raw[..5]), (8, &raw[..]), (9, &raw[..])] {
        let (peeked, beginning) = operator
            .peek_letter(letter.id, asked)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&peeked, &beginning[..]), (&letter, expected));
    }
    assert_eq!(operator.peek_letter(letter.id + 1, 5).await.unwrap(), None);
}
