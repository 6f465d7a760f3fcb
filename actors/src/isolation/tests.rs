use proptest::prelude::*;

use super::*;

fn fault(kind: FaultKind) -> Fault {
    Fault { kind, code: None }
}

fn faults() -> impl Strategy<Value = Option<FaultKind>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(FaultKind::Contention)),
        2 => Just(Some(FaultKind::Resources)),
        2 => Just(Some(FaultKind::Transient)),
        2 => Just(Some(FaultKind::Lasting)),
    ]
}

fn controls() -> impl Strategy<Value = Control> {
    prop_oneof![
        1 => Just(Control::NotTried),
        5 => Just(Control::Passed),
        1 => Just(Control::Failed),
        1 => Just(Control::FailedBefore),
    ]
}

/// How many failures beside controls that pass it takes.
fn needed_for(kind: FaultKind) -> Option<usize> {
    let mut suspect = Suspect::default();
    (1..100).find(|_| suspect.failed(Some(&fault(kind)), Control::Passed, 0) == Verdict::Culprit)
}

#[test]
fn what_may_go_by_itself_has_to_be_seen_more_often() {
    assert_eq!(needed_for(FaultKind::Lasting), Some(2));
    assert_eq!(needed_for(FaultKind::Transient), Some(3));
    assert_eq!(needed_for(FaultKind::Resources), Some(3));
    assert_eq!(
        needed_for(FaultKind::Contention),
        None,
        "somebody else's lock"
    );
}

#[test]
fn a_control_that_fails_starts_the_count_again_and_raises_it() {
    let mut suspect = Suspect::default();
    let transient = fault(FaultKind::Transient);
    for _ in 0..2 {
        assert_eq!(
            suspect.failed(Some(&transient), Control::Passed, 0),
            Verdict::Keep
        );
    }
    assert_eq!(suspect.failed(None, Control::Failed, 0), Verdict::Keep);
    for _ in 0..3 {
        assert_eq!(
            suspect.failed(Some(&transient), Control::Passed, 0),
            Verdict::Keep
        );
    }
    assert_eq!(
        suspect.failed(Some(&transient), Control::Passed, 0),
        Verdict::Culprit
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_up_and_down_lately_is_trusted_less() {
    let mut unrest = Unrest::default();
    for _ in 0..100 {
        unrest.note(Instant::now());
    }
    assert_eq!(unrest.recent(Instant::now()), MAX_NEEDED, "bounded");
    let lasting = fault(FaultKind::Lasting);
    let needed = |unrest: u32| {
        let mut suspect = Suspect::default();
        (1..100)
            .find(|_| suspect.failed(Some(&lasting), Control::Passed, unrest) == Verdict::Culprit)
    };
    assert_eq!(needed(unrest.recent(Instant::now())), Some(MAX_NEEDED));
    tokio::time::advance(RESTLESS_FOR).await;
    assert_eq!(needed(unrest.recent(Instant::now())), Some(NEEDED));
}

#[test]
fn the_allowance_takes_what_there_is_room_for_and_one_that_is_larger() {
    let mut allowance = Allowance::new(3, 100);
    assert!(allowance.take(60));
    assert!(allowance.take(1_000), "the one that is larger");
    assert!(!allowance.take(1), "no bytes left");
    assert_eq!(allowance.num_bytes(), 1_060);
    allowance.give_back(1_000);
    assert!(allowance.take(1));
    assert!(allowance.take(1));
    assert!(!allowance.take(1), "no events left");
    let mut exact = Allowance::new(3, 100);
    assert!(exact.take(100));
    assert!(!exact.take(1), "not one byte is left");
}

proptest! {
    /// Whatever comes in whatever order: the last failures that made it a culprit were all its own,
    /// and each had a control that passed.
    #[test]
    fn no_event_is_a_culprit_without_as_many_failures_beside_controls_that_pass(
        history in prop::collection::vec((faults(), controls()), 0..60),
    ) {
        let mut suspect = Suspect::default();
        let mut in_a_row = 0;
        for (kind, control) in history {
            let counts = kind.is_some_and(|kind| kind != FaultKind::Contention);
            match control {
                Control::NotTried => {}
                Control::Passed if counts => in_a_row += 1,
                Control::Passed | Control::Failed | Control::FailedBefore => in_a_row = 0,
            }
            let fault = kind.map(fault);
            if suspect.failed(fault.as_ref(), control, 0) == Verdict::Culprit {
                prop_assert_eq!(control, Control::Passed);
                let needed = kind.and_then(needed_for);
                prop_assert!(needed.is_some_and(|needed| in_a_row >= needed), "{in_a_row}");
                break;
            }
        }
    }

    /// However long an outage lasts and however it shows.
    #[test]
    fn an_outage_makes_no_culprit(
        before in prop::collection::vec(faults(), 0..3),
        kinds in prop::collection::vec(faults(), 1..100),
    ) {
        let mut suspect = Suspect::default();
        for kind in before {
            if suspect.failed(kind.map(fault).as_ref(), Control::Passed, 0) == Verdict::Culprit {
                return Ok(());
            }
        }
        for kind in kinds {
            let verdict = suspect.failed(kind.map(fault).as_ref(), Control::Failed, 0);
            prop_assert_eq!(verdict, Verdict::Keep);
        }
    }

    /// One that always fails is found out, however often it was disturbed before.
    #[test]
    fn a_culprit_is_found_out(
        kind in prop_oneof![
            Just(FaultKind::Resources), Just(FaultKind::Transient), Just(FaultKind::Lasting)
        ],
        disturbances in 0_usize..100,
    ) {
        let mut suspect = Suspect::default();
        for _ in 0..disturbances {
            suspect.failed(None, Control::Failed, 0);
        }
        let mut attempts = 1..=MAX_NEEDED;
        let fault = fault(kind);
        let is_found = attempts.any(|_| suspect.failed(Some(&fault), Control::Passed, 0) == Verdict::Culprit);
        prop_assert!(is_found);
    }
}
