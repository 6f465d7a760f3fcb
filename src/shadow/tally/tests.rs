use bytes::Bytes;
use chrono::{DateTime, Utc};
use event_persister_actors::delivery::Position;
use event_persister_actors::event::{EventLimits, Received};
use serde_json::json;

use super::*;

fn moment(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn entry(id: Uuid, change: &[(&str, &str)]) -> Entry {
    let mut event = json!({
        "id": id, "event": "test", "occurred": "2026-01-01T00:00:00Z",
        "resource": {"prefect.resource.id": "a"},
    });
    for (field, value) in change {
        event[*field] = (*value).into();
    }
    let received = Received::FromText {
        default: moment("2026-01-01T00:00:00Z"),
    };
    let raw = Bytes::from(event.to_string());
    let limits = EventLimits::default();
    Entry::parse("redis".into(), Position::new("5-1"), raw, &limits, received)
}

fn cutoffs() -> Cutoffs {
    Cutoffs {
        default: moment("2025-12-31T00:00:00Z"),
        overrides: BTreeMap::from([("kept".to_owned(), moment("2000-01-01T00:00:00Z"))]),
    }
}

/// What a message that was looked at twice, with the same result, is.
fn judged(tally: &mut Tally, entry: &Entry, compared: Compared) -> Class {
    for look in [Look::First, Look::Second] {
        if let Some(class) = tally.judge(entry, compared.clone(), &cutoffs(), look) {
            let is_expected = matches!(class, Class::Identical | Class::Duplicate);
            assert_eq!(look == Look::First, is_expected, "{class:?}");
            return class;
        }
    }
    panic!("not settled");
}

#[test]
fn each_answer_has_its_class_and_only_faults_of_ours_are_faults() {
    let payload = || Compared::Differing(vec!["payload".to_owned()]);
    let rejected = &[("event", "x".repeat(2000))];
    let rejected: Vec<_> = rejected.iter().map(|(a, b)| (*a, b.as_str())).collect();
    for (change, compared, class, is_well) in [
        (&[][..], Compared::Identical, Class::Identical, true),
        (&[], payload(), Class::Differing, false),
        (&[], Compared::Absent, Class::LostByPrefect, true),
        (&[], Compared::Unclear, Class::Unclear, true),
        (
            &[],
            Compared::Refused { is_there: true },
            Class::RefusedOnlyByUs,
            false,
        ),
        (
            &rejected,
            Compared::Refused { is_there: false },
            Class::RefusedByBoth,
            true,
        ),
        (
            &rejected,
            Compared::Refused { is_there: true },
            Class::RefusedOnlyByUs,
            false,
        ),
    ] {
        let mut tally = Tally::new(5);
        let entry = entry(Uuid::new_v4(), change);
        assert_eq!(judged(&mut tally, &entry, compared), class);
        assert_eq!((tally.count(class), tally.num_compared()), (1, 1));
        assert_eq!(tally.is_well(), is_well, "{class:?}");
        assert_eq!(tally.findings.len(), usize::from(class.is_named()));
    }
}

#[test]
fn what_retention_removes_is_not_lost() {
    let old = [("occurred", "2025-12-30T00:00:00Z")];
    let kept = [old[0], ("event", "kept")];
    let half = |column: &str| Compared::Differing(vec![column.to_owned()]);
    for (change, compared, class) in [
        (&old[..], Compared::Absent, Class::Expired),
        (&old, half(RESOURCES), Class::Expired),
        (&old, half("payload"), Class::Differing),
        (&kept, Compared::Absent, Class::LostByPrefect),
    ] {
        let entry = entry(Uuid::new_v4(), change);
        assert_eq!(judged(&mut Tally::new(5), &entry, compared), class);
    }
}

#[test]
fn copies_are_counted_and_not_judged() {
    let (mut tally, id) = (Tally::new(5), Uuid::new_v4());
    let (event, bad) = (entry(id, &[]), entry(id, &[("occurred", "never")]));
    assert_eq!(
        judged(&mut tally, &event, Compared::Absent),
        Class::LostByPrefect
    );
    assert_eq!(
        judged(&mut tally, &event, Compared::Absent),
        Class::Duplicate
    );
    let there = Compared::Refused { is_there: true };
    assert_eq!(judged(&mut tally, &bad, there), Class::Duplicate);
    assert!(tally.is_well());
}

#[test]
fn a_copy_that_came_first_and_was_bad_is_known_at_the_second_look() {
    let (mut tally, id) = (Tally::new(5), Uuid::new_v4());
    let (event, bad) = (entry(id, &[]), entry(id, &[("occurred", "never")]));
    let there = Compared::Refused { is_there: true };
    let first = tally.judge(&bad, there.clone(), &cutoffs(), Look::First);
    assert_eq!(first, None);
    judged(&mut tally, &event, Compared::Identical);
    let second = tally.judge(&bad, there, &cutoffs(), Look::Second);
    assert_eq!(second, Some(Class::Duplicate));
}

#[test]
fn names_only_so_many_of_each_class() {
    let mut tally = Tally::new(2);
    for _ in 0..5 {
        judged(&mut tally, &entry(Uuid::new_v4(), &[]), Compared::Absent);
        let columns = vec!["payload".to_owned(), "event".to_owned()];
        let differing = Compared::Differing(columns);
        judged(&mut tally, &entry(Uuid::new_v4(), &[]), differing);
    }
    assert_eq!(tally.findings.len(), 4);
    assert_eq!(tally.columns["payload"], 5);
    assert_eq!(tally.count(Class::Differing), 5);
}

#[test]
fn forgets_the_oldest_ids() {
    let mut seen = Seen::default();
    let first = Uuid::new_v4();
    assert!(seen.insert(first) && !seen.insert(first));
    for _ in 0..MAX_SEEN {
        seen.insert(Uuid::new_v4());
    }
    assert!(!seen.contains(first));
    assert_eq!(seen.ids.len(), MAX_SEEN);
}
