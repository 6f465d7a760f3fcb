//! What is promised, of every state that can be reached.

use stateright::{Model as _, Property};

use crate::actions::{Action, Reply};
use crate::protocol::Protocol;
use crate::state::{Content, Entries, REPLICAS, State};

/// What it is all for.
pub(crate) const IS_DONE: &str = "everything is stored and acknowledged";

/// Needs transactions that outlive their writers.
pub(crate) const ORPHAN_REPEATS: &str = "a transaction without a writer repeats what is stored";

/// What must hold in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    NothingLost,
    CommitFirst,
    OneRow,
    GuardBehind,
    CanBeStored,
    NoInnocentLetter,
}

impl Promise {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NothingLost => "what is not stored stands where somebody can read it",
            Self::CommitFirst => "nothing is acknowledged before it is stored",
            Self::OneRow => "an event has one row, a refused entry one letter",
            Self::GuardBehind => "the guard is behind everything that is not stored",
            Self::NoInnocentLetter => "no event that the database takes has a letter",
            Self::CanBeStored => "one replica that works is enough to store everything",
        }
    }
}

/// The promises; then what must be possible, or the promises would be about too little.
pub(crate) fn all() -> Vec<Property<Protocol>> {
    let always = |promise: Promise, holds| Property::always(promise.name(), holds);
    vec![
        always(Promise::NothingLost, nothing_is_lost),
        always(Promise::CommitFirst, commit_comes_first),
        always(Promise::OneRow, one_row_an_id),
        always(Promise::GuardBehind, guard_is_behind),
        always(Promise::CanBeStored, can_be_stored),
        always(Promise::NoInnocentLetter, no_innocent_has_a_letter),
        Property::sometimes(IS_DONE, is_done),
        Property::sometimes("two replicas write the same entry", |_, state: &State| {
            let [first, second] = state.replicas;
            !first.writing.and(second.writing).is_empty()
        }),
        Property::sometimes(
            "rows are there that no replica knows of",
            |model, state: &State| {
                let known = state.replicas.map(|replica| replica.committed);
                let unknown = state.pending().without(known[0].with(known[1]));
                unknown.iter().any(|entry| is_stored(model, state, entry))
            },
        ),
        Property::sometimes(ORPHAN_REPEATS, |model, state: &State| {
            let mut orphaned = state.orphaned.iter();
            orphaned.any(|entry| is_stored(model, state, entry))
        }),
        Property::sometimes(
            "the stream is trimmed while entries are pending",
            |_, state: &State| state.num_trimmed > 0 && !state.pending().is_empty(),
        ),
    ]
}

fn is_stored(model: &Protocol, state: &State, entry: usize) -> bool {
    state.is_stored(entry, model.entries[entry].content)
}

/// In the memory of a replica is not enough: that it may lose.
fn nothing_is_lost(model: &Protocol, state: &State) -> bool {
    let pending = state.pending();
    (0..model.entries.len()).all(|entry| {
        let is_unread = entry >= state.num_delivered;
        let can_be_read = state.is_on_stream(entry) && (is_unread || pending.has(entry));
        can_be_read || is_stored(model, state, entry)
    })
}

/// What was delivered and is no longer pending was acknowledged.
fn commit_comes_first(model: &Protocol, state: &State) -> bool {
    let acknowledged = Entries::first(state.num_delivered).without(state.pending());
    acknowledged
        .iter()
        .all(|entry| is_stored(model, state, entry))
}

fn one_row_an_id(_: &Protocol, state: &State) -> bool {
    state.rows.iter().chain(&state.letters).all(|num| *num <= 1)
}

fn no_innocent_has_a_letter(model: &Protocol, state: &State) -> bool {
    let mut entries = model.entries.iter().zip(state.letters);
    entries.all(|(entry, num_letters)| match entry.content {
        Content::Event(_) => num_letters == 0,
        Content::Poison | Content::Culprit => true,
    })
}

/// What was right when somebody looked stays right: where the guard may still be moved counts too.
fn guard_is_behind(model: &Protocol, state: &State) -> bool {
    (0..model.entries.len())
        .all(|entry| state.found <= model.entries[entry].id || is_stored(model, state, entry))
}

fn is_done(model: &Protocol, state: &State) -> bool {
    let num = model.entries.len();
    state.num_delivered == num
        && state.pending().is_empty()
        && (0..num).all(|entry| is_stored(model, state, entry))
}

/// Liveness, as a question to every state: suppose that from now on nothing fails, and that only
/// the first replica is heard of again. Does the plain round of its work bring everything home?
///
/// The checker's own `eventually` would say less: it looks for ways that never get there, and any
/// way that fails over and over again is one.
fn can_be_stored(model: &Protocol, state: &State) -> bool {
    let replica = REPLICAS[0];
    let entries = 0..model.entries.len();
    let mut round = vec![
        Action::EndOrphan { commits: false },
        Action::RollBack(replica),
        Action::ReadAgain(replica),
        // Trials under way come to their ends before the database is there again.
        Action::ControlAgain(REPLICAS[0]),
        Action::ControlAgain(REPLICAS[1]),
        Action::ComeBack,
    ];
    round.extend(
        entries
            .clone()
            .map(|entry| Action::Claim(replica, entry, Reply::Arrives)),
    );
    round.extend(
        entries
            .clone()
            .map(|_| Action::Read(replica, Reply::Arrives)),
    );
    // A trial that was begun is that of another suspect, perhaps.
    round.extend([Action::Try(replica), Action::ControlAgain(replica)]);
    for entry in entries {
        round.extend([
            Action::Suspect(replica, entry),
            Action::Control(replica, entry),
            Action::Try(replica),
            Action::ControlAgain(replica),
        ]);
    }
    round.extend([
        Action::Write(replica),
        Action::Commit(replica, Reply::Arrives),
        Action::Acknowledge(replica, Reply::Arrives),
    ]);
    let mut state = *state;
    for action in round {
        state = model.next_state(&state, action).unwrap_or(state);
    }
    is_done(model, &state)
}
