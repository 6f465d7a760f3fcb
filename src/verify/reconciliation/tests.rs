use std::sync::Arc;

use bytes::Bytes;
use chrono::TimeDelta;
use event_persister_actors::delivery::Position;
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::store::operator::Unreadable;

use super::*;

const ID: &str = "6f1e2d3c-4b5a-4678-8765-0123456789ab";

fn moment(day: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(day)
}

/// What occurred before day 100 is not kept, and heartbeats not before day 200.
fn cutoffs() -> Cutoffs {
    Cutoffs {
        default: moment(100),
        overrides: BTreeMap::from([("heartbeat".to_owned(), moment(200))]),
    }
}

fn entry_of(data: String) -> Entry {
    Entry::parse(
        Arc::from("redis"),
        Position::new("5-1"),
        Bytes::from(data),
        &EventLimits::default(),
        Received::FromText {
            default: moment(150),
        },
    )
}

fn wanted_of(data: String) -> Wanted {
    let entry = entry_of(data);
    // It was there, and the same, or would not be looked up.
    Wanted::of(&entry, Compared::Refused { is_there: true })
}

fn wanted(day: i64, name: &str) -> Wanted {
    let occurred = moment(day).to_rfc3339();
    // Upper case, as some publisher may write it.
    let id = ID.to_uppercase();
    wanted_of(format!(
        r#"{{"id":"{id}","occurred":"{occurred}","event":"{name}","resource":{{"prefect.resource.id":"r"}}}}"#
    ))
}

fn rows(num_events: u64, num_expected: u64, num_resources: u64) -> EventRows {
    EventRows {
        event_id: ID.to_owned(),
        num_events,
        num_expected,
        num_resources,
        ..EventRows::default()
    }
}

fn stored() -> FoundRows {
    FoundRows::new(vec![rows(1, 1, 1)], Vec::new())
}

fn a_letter() -> FoundRows {
    FoundRows::new(Vec::new(), vec!["5-1".to_owned()])
}

/// Judged by the first answer, settled by the second.
fn reconciled(wanted: Wanted, first: &FoundRows, second: &FoundRows) -> Reconciliation {
    let mut state = Reconciliation::new(10);
    state.judge(wanted, first, &cutoffs());
    settle(&mut state, second);
    state
}

fn settle(state: &mut Reconciliation, found: &FoundRows) {
    let suspects = state.take_suspects();
    for wanted in suspects.missing {
        state.settle_missing(wanted, found, &cutoffs());
    }
    for flawed in &suspects.flawed {
        state.settle_flawed(flawed, found);
    }
}

#[test]
fn every_entry_that_was_checked_is_counted_once() {
    let nothing = FoundRows::default();
    for (wanted, first, second, counts) in [
        (wanted(150, "a"), &stored(), &nothing, (1, 0, 0, 0)),
        (wanted(150, "a"), &a_letter(), &nothing, (0, 1, 0, 0)),
        (wanted(99, "a"), &nothing, &nothing, (0, 0, 1, 0)),
        (wanted(150, "heartbeat"), &nothing, &nothing, (0, 0, 1, 0)),
        (wanted(150, "a"), &nothing, &nothing, (0, 0, 0, 1)),
        (wanted(150, "a"), &nothing, &stored(), (1, 0, 0, 0)),
        (wanted(150, "a"), &nothing, &a_letter(), (0, 1, 0, 0)),
        // What retention may have removed and has not is stored like any other.
        (wanted(99, "a"), &stored(), &nothing, (1, 0, 0, 0)),
        (
            wanted_of("{".to_owned()),
            &a_letter(),
            &nothing,
            (0, 1, 0, 0),
        ),
        (wanted_of("{".to_owned()), &nothing, &nothing, (0, 0, 0, 1)),
    ] {
        let state = reconciled(wanted.clone(), first, second);
        let StreamCounts {
            checked,
            stored,
            dead_letters,
            expired,
            ..
        } = state.stream;
        let missing = state.num(Kind::Missing);
        assert_eq!(
            (stored, dead_letters, expired, missing),
            counts,
            "{wanted:?}"
        );
        assert_eq!(checked, 1);
        assert_eq!(state.all_is_well(), missing == 0);
        assert_eq!(state.findings.len() as u64, missing);
    }
}

#[test]
fn resources_alone_are_no_event() {
    let orphan = FoundRows::new(vec![rows(0, 0, 1)], Vec::new());
    let state = reconciled(wanted(150, "a"), &orphan, &orphan);
    assert_eq!((state.stream.stored, state.num(Kind::Missing)), (0, 1));
}

#[test]
fn a_letter_that_was_replayed_is_found_by_the_id_of_its_event() {
    let text = format!(r#"{{"id":"{ID}","occurred":7}}"#);
    let state = reconciled(wanted_of(text.clone()), &stored(), &stored());
    assert_eq!((state.stream.stored, state.num(Kind::Missing)), (1, 0));
    // Before that it is a letter, though another entry may have brought the event.
    let both = FoundRows::new(vec![rows(1, 1, 1)], vec!["5-1".to_owned()]);
    let state = reconciled(wanted_of(text), &both, &both);
    assert_eq!((state.stream.stored, state.stream.dead_letters), (0, 1));
}

#[test]
fn an_event_that_both_sides_meet_is_found_once_with_its_place() {
    let half = FoundRows::new(vec![rows(1, 4, 3)], Vec::new());
    for settles_between in [false, true] {
        let mut state = Reconciliation::new(10);
        state.judge(wanted(150, "a"), &half, &cutoffs());
        if settles_between {
            settle(&mut state, &half);
        }
        state.suspect(ID.to_owned());
        settle(&mut state, &half);
        assert_eq!(state.stream.stored, 1);
        assert_eq!(state.num(Kind::HalfWritten), 1);
        let found = &state.findings[0];
        assert_eq!(found.kind, Kind::HalfWritten);
        assert_eq!(found.stream_id.as_deref(), Some("5-1"));
        assert_eq!(found.detail, "in events, with 3 resources instead of 4");
    }
}

#[test]
fn what_is_sound_or_gone_at_the_second_look_was_no_fault() {
    for second in [
        stored(),
        FoundRows::default(),
        FoundRows::new(vec![rows(0, 0, 0)], Vec::new()),
    ] {
        let mut state = Reconciliation::new(10);
        state.suspect(ID.to_owned());
        settle(&mut state, &second);
        assert!(state.all_is_well(), "{second:?}");
    }
}

#[test]
fn each_flaw_says_what_is_there() {
    for (rows, kind, detail) in [
        (
            rows(0, 0, 2),
            Kind::HalfWritten,
            "2 in event_resources and no row in events",
        ),
        (
            rows(1, 4, 0),
            Kind::HalfWritten,
            "without any of its 4 resources",
        ),
        (
            rows(1, 4, 8),
            Kind::Doubled,
            "with 8 resources instead of 4",
        ),
        (
            rows(2, 1, 2),
            Kind::Doubled,
            "2 times in events, with 2 resources",
        ),
    ] {
        let mut state = Reconciliation::new(10);
        state.suspect(ID.to_owned());
        settle(&mut state, &FoundRows::new(vec![rows], Vec::new()));
        let found = &state.findings[0];
        assert_eq!(found.kind, kind);
        assert!(found.detail.contains(detail), "{found:?}");
    }
}

#[test]
fn counts_go_on_where_findings_end() {
    let mut state = Reconciliation::new(2);
    for _ in 0..5 {
        state.judge(wanted(150, "a"), &FoundRows::default(), &cutoffs());
    }
    settle(&mut state, &FoundRows::default());
    assert_eq!((state.num(Kind::Missing), state.findings.len()), (5, 2));
    assert!(!state.all_is_well());
}

#[test]
fn asks_for_a_second_look_before_it_holds_too_much() {
    let mut state = Reconciliation::new(2);
    while !state.is_full() {
        state.suspect(state.flawed.len().to_string());
    }
    assert_eq!(state.take_suspects().flawed.len(), MAX_SUSPECTS);
    assert!(!state.is_full());
}

/// An entry whose event was received on this day, as it was compared.
fn compared(received: i64, compared: Compared) -> Wanted {
    let (occurred, received) = (moment(150).to_rfc3339(), moment(received).to_rfc3339());
    let text = format!(
        r#"{{"id":"{ID}","occurred":"{occurred}","received":"{received}","event":"a","resource":{{"prefect.resource.id":"r"}}}}"#
    );
    Wanted::of(&entry_of(text), compared)
}

fn differing(columns: &[&str]) -> Compared {
    let columns = columns.iter().map(|column| (*column).to_owned());
    Compared::Differing(columns.collect())
}

/// Judged, and settled without another copy in the stream.
fn settled(wanted: Wanted, rows: EventRows) -> Reconciliation {
    let found = FoundRows::new(vec![rows], Vec::new());
    reconciled(wanted, &found, &found)
}

#[test]
fn a_row_that_is_not_what_its_entry_says_differs() {
    let state = settled(compared(150, differing(&["payload"])), rows(1, 1, 1));
    assert_eq!((state.stream.stored, state.num(Kind::Differing)), (1, 1));
    assert_eq!(state.findings[0].kind, Kind::Differing);
    assert_eq!(state.findings[0].stream_id.as_deref(), Some("5-1"));
    let detail = "not what the stream's entry says: payload";
    assert_eq!(state.findings[0].detail, detail);
    // Of the letter of an entry somebody may have made another event.
    let mut state = Reconciliation::new(1);
    let both = FoundRows::new(vec![rows(1, 1, 1)], vec!["5-1".to_owned()]);
    state.judge(compared(150, differing(&["payload"])), &both, &cutoffs());
    settle(&mut state, &both);
    assert_eq!((state.stream.dead_letters, state.all_is_well()), (1, true));
}

#[test]
fn a_row_that_was_received_before_its_entry_is_an_earlier_copy() {
    let received = |day: Option<i64>| EventRows {
        received: day.map(moment),
        ..rows(1, 1, 1)
    };
    for (columns, row, is_well) in [
        (&["received"][..], Some(149), true),
        (&["received"], Some(151), false),
        (&["received"], None, false),
        (&["received", "payload"], Some(149), false),
    ] {
        let state = settled(compared(150, differing(columns)), received(row));
        assert_eq!(state.all_is_well(), is_well, "{columns:?} {row:?}");
    }
}

#[test]
fn one_copy_that_is_the_same_is_enough() {
    let other = || compared(150, differing(&["payload"]));
    let entry = entry_of(format!(
        r#"{{"id":"{ID}","occurred":"2026-01-01","event":"a","resource":{{"prefect.resource.id":"r"}}}}"#
    ));
    for (copies, is_well) in [
        (vec![Compared::Identical, differing(&["payload"])], true),
        (vec![differing(&["payload"]), Compared::Identical], true),
        (vec![differing(&["payload"])], false),
        (vec![Compared::Refused { is_there: true }], false),
        (vec![], false),
    ] {
        let mut state = Reconciliation::new(1);
        state.judge(other(), &stored(), &cutoffs());
        let mut flawed = state.take_suspects().flawed;
        let mut known = Copies::of(&flawed);
        assert!(known.are_about(&entry));
        for copy in &copies {
            known.learn(&entry, copy.clone());
        }
        for flawed in &mut flawed {
            flawed.compared(&known);
            state.settle_flawed(flawed, &stored());
        }
        assert_eq!(state.all_is_well(), is_well, "{copies:?}");
    }
}

#[test]
fn what_came_between_the_looks_is_still_compared() {
    let mut state = Reconciliation::new(1);
    state.judge(
        compared(150, Compared::Absent),
        &FoundRows::default(),
        &cutoffs(),
    );
    settle(&mut state, &stored());
    assert_eq!(state.stream.stored, 1);
    assert!(state.has_suspects(), "it has not been compared yet");
    let flawed = state.take_suspects().flawed;
    assert!(!Copies::of(&flawed).is_empty());
}

#[test]
fn rows_that_contradict_one_another_or_cannot_be_read_say_so() {
    let contradicting = EventRows {
        contradicting: vec!["resource_id".to_owned(), RESOURCES.to_owned()],
        ..rows(1, 1, 1)
    };
    let state = settled(
        compared(150, differing(&["payload", RESOURCES])),
        contradicting.clone(),
    );
    assert_eq!(
        state.findings[0].detail,
        "not what its columns resource and related say: resource_id, event_resources; not what the \
         stream's entry says: payload"
    );
    let unreadable = EventRows {
        unreadable: Some(Unreadable::NoJson),
        ..rows(1, 1, 1)
    };
    let state = settled(compared(150, differing(&["payload"])), unreadable);
    assert_eq!((state.num(Kind::Unreadable), state.num_faults()), (1, 1));
    assert_eq!(state.findings[0].kind, Kind::Unreadable);
}
