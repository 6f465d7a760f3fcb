//! The protocol by which no event is lost, as a model in which everything happens that can.
//!
//! A few entries stand in a stream of Redis. Two replicas read them, as one consumer group, write
//! them to a database, and acknowledge them. Between any two steps a replica may crash, a reply
//! may be lost, a transaction may fail, or commit when nobody waits for it any more; an entry may
//! be claimed while its first holder is slow but not dead; and Prefect's consumers trim the
//! stream, as they do beside us, behind what was delivered to every group. The checker goes
//! through every order of these steps, any number of times, until no new state is found.
//!
//! - [`state`]: what there is;
//! - [`actions`]: what can happen;
//! - [`protocol`]: what each step does, and so the rules;
//! - [`properties`]: what is promised;
//! - [`mutations`]: the rules taken out one by one, and what breaks.
//!
//! What the model leaves out: streams and groups that vanish as a whole, losses that are only
//! counted, sizes, and time. Where the real thing waits (an entry must be idle for 20 s to be
//! claimed), the model does not: what holds here holds for any waiting. It checks the rules, not
//! the code that follows them: that is for the tests beside that code and over real servers.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model as _};

mod actions;
mod mutations;
mod properties;
mod protocol;
mod state;

use actions::{Action, Fate, Reply};
use mutations::Mutation;
use properties::Promise;
use protocol::Protocol;
use state::{Content, Entry, Id, id};

const A: Content = Content::Event(0);
const B: Content = Content::Event(1);
const POISON: Content = Content::Poison;
const CULPRIT: Content = Content::Culprit;

/// Two ids of one millisecond, which sort the other way round as texts; and a later one.
const IDS: [Id; 3] = [id(1, 2), id(1, 10), id(2, 1)];

fn stream<const N: usize>(ids: [Id; N], contents: [Content; N]) -> Vec<Entry> {
    let entries = ids.into_iter().zip(contents);
    entries.map(|(id, content)| Entry { id, content }).collect()
}

/// One event twice, and poison between them.
fn three() -> Vec<Entry> {
    stream(IDS, [A, POISON, A])
}

/// Goes through everything that can happen. Fewer states than `at_least` would mean that the model
/// can no longer do what it is about, and so would a state out of reach, but for the one named.
fn keeps_its_promises(model: Protocol, at_least: usize, out_of_reach: Option<&str>) {
    let checker = model.checker().symmetry().threads(2).spawn_dfs().join();
    for property in checker.model().properties() {
        let name = property.name;
        let is_found = checker.discovery(name).is_some();
        if property.expectation.discovery_is_failure() {
            assert!(!is_found, "not so: {name}");
        } else {
            assert_eq!(is_found, out_of_reach != Some(name), "reached: {name}");
        }
    }
    let num_states = checker.unique_state_count();
    assert!(num_states >= at_least, "only {num_states} states");
}

#[test]
fn loses_and_doubles_nothing_over_two_milliseconds() {
    let entries = stream([IDS[1], IDS[2]], [A, POISON]);
    keeps_its_promises(Protocol::new(&entries, None), 30_000, None);
}

#[test]
fn loses_and_doubles_nothing_of_different_events() {
    let entries = stream([IDS[1], IDS[2]], [A, B]);
    keeps_its_promises(Protocol::new(&entries, None), 30_000, None);
}

#[test]
fn loses_and_doubles_nothing_of_one_event_in_two_entries() {
    let entries = stream([IDS[1], IDS[2]], [A, A]);
    keeps_its_promises(Protocol::new(&entries, None), 20_000, None);
}

#[test]
fn loses_and_doubles_nothing_of_three_entries_if_transactions_end_with_their_writers() {
    let runs_on = |action: &Action| {
        matches!(
            action,
            Action::Crash(_, Fate::RunsOn) | Action::Rewind(_, Fate::RunsOn)
        )
    };
    let model = Protocol::new(&three(), None).without(runs_on);
    keeps_its_promises(model, 300_000, Some(properties::ORPHAN_REPEATS));
}

/// Whose fault a failure is: the way over Redis is that of the other tests, and is left as plain as it
/// can be.
#[test]
fn finds_out_culprits_and_makes_letters_of_no_others() {
    let is_beside_the_point = |action: &Action| {
        matches!(
            action,
            Action::Look
                | Action::MoveGuard(_)
                | Action::Trim { .. }
                | Action::Rewind(..)
                | Action::Heartbeat(_)
                | Action::Crash(_, Fate::RunsOn)
                | Action::Read(_, Reply::IsLost)
                | Action::Claim(_, _, Reply::IsLost)
        )
    };
    let entries = stream([IDS[1], IDS[2]], [A, CULPRIT]);
    let model = Protocol::new(&entries, None).without(is_beside_the_point);
    let checker = model.checker().symmetry().threads(2).spawn_dfs().join();
    for property in checker.model().properties() {
        if property.expectation.discovery_is_failure() {
            let name = property.name;
            assert!(checker.discovery(name).is_none(), "not so: {name}");
        }
    }
    assert!(
        checker.discovery(properties::IS_DONE).is_some(),
        "never done"
    );
    let num_states = checker.unique_state_count();
    assert!(num_states >= 10_000, "only {num_states} states");
}

/// `cargo test --release --test model -- --ignored`
#[test]
#[ignore = "three million states: takes minutes"]
fn loses_and_doubles_nothing_of_three_entries() {
    keeps_its_promises(Protocol::new(&three(), None), 2_500_000, None);
}

#[test]
fn each_rule_is_needed() {
    for (mutation, promise) in mutations::ALL {
        let broken = promise.name();
        let entries = if promise == Promise::NoInnocentLetter || mutation == Mutation::NeverIsolates
        {
            stream([IDS[1], IDS[2]], [A, CULPRIT])
        } else {
            three()
        };
        let model = Protocol::new(&entries, Some(mutation));
        let until = HasDiscoveries::AllOf(BTreeSet::from([broken]));
        // Breadth first: the way that is found, which a debugger may want to see, is a short one.
        let checker = model.checker().finish_when(until).spawn_bfs().join();
        assert!(
            checker.discovery(broken).is_some(),
            "{mutation:?} breaks nothing"
        );
    }
}
