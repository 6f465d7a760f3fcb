//! The rules: what each step does.

use stateright::{Model, Property};

use crate::actions::{self, Action, Fate, Reply};
use crate::mutations::Mutation;
use crate::properties;
use crate::state::{Content, Entries, Entry, Id, State, Trial};

/// The protocol on one stream, with one rule taken out or none.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    /// The stream, from its oldest entry.
    pub(crate) entries: Vec<Entry>,
    pub(crate) mutation: Option<Mutation>,
    actions: Vec<Action>,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let guard = if self.has(Mutation::NoGuard) {
            None
        } else if self.has(Mutation::GuardMadeAtZero) {
            Some(Id::ZERO)
        } else {
            Some(Id::START)
        };
        vec![State::new(guard)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend(&self.actions);
    }

    /// `None` where a step is not possible, or makes no difference.
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Protocol {
    pub(crate) fn new(entries: &[Entry], mutation: Option<Mutation>) -> Self {
        Self {
            entries: entries.to_vec(),
            mutation,
            actions: actions::all(entries),
        }
    }

    /// The same without some of the steps.
    pub(crate) fn without(mut self, left_out: fn(&Action) -> bool) -> Self {
        self.actions.retain(|action| !left_out(action));
        self
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Read(replica, reply) => self.read(state, replica, reply),
            Action::ReadAgain(replica) => self.read_again(state, replica),
            Action::Claim(replica, entry, reply) => self.claim(state, replica, entry, reply),
            Action::Heartbeat(replica) => heartbeat(state, replica),
            Action::Write(replica) => write(state, replica),
            Action::GoDown => state.is_down = true,
            Action::ComeBack => come_back(state),
            Action::Suspect(replica, entry) => self.suspect(state, replica, entry),
            Action::Control(replica, entry) => control(state, replica, entry),
            Action::Try(replica) => self.try_alone(state, replica),
            Action::ControlAgain(replica) => control_again(state, replica),
            Action::Commit(replica, reply) => self.commit(state, replica, reply),
            Action::RollBack(replica) => self.fail(state, replica),
            Action::Acknowledge(replica, reply) => self.acknowledge(state, replica, reply),
            Action::Look => self.look(state),
            Action::MoveGuard(position) => self.move_guard(state, position),
            Action::Crash(replica, fate) => crash(state, replica, fate),
            Action::Rewind(replica, fate) => rewind(state, replica, fate),
            Action::EndOrphan { commits } => self.end_orphan(state, commits),
            Action::Trim {
                num_seen,
                passes_over_ours,
            } => self.trim(state, num_seen, passes_over_ours),
            Action::Tidy => {
                // DELCONSUMER discards what is pending; whoever has something pending is kept.
                if self.has(Mutation::RemovesConsumersUnchecked) {
                    state.abandoned = Entries::NONE;
                }
            }
        }
    }

    // Redis hands out.

    fn read(&self, state: &mut State, replica: usize, reply: Reply) {
        // What was trimmed unread is not there to be read.
        let entry = state.num_delivered.max(state.num_trimmed);
        if entry == self.entries.len() {
            return;
        }
        state.num_delivered = entry + 1;
        let entry = Entries::one(entry);
        let replica = &mut state.replicas[replica];
        replica.pending = replica.pending.with(entry);
        if reply == Reply::Arrives {
            replica.in_flight = replica.in_flight.with(entry);
        }
    }

    fn read_again(&self, state: &mut State, replica: usize) {
        if self.has(Mutation::NeverReadsAgain) {
            return;
        }
        let replica = &mut state.replicas[replica];
        let trimmed = Entries::first(state.num_trimmed);
        let known = replica.in_flight.with(replica.committed);
        let unknown = replica.pending.without(known);
        // An entry without its text is lost: it is counted, and acknowledged.
        replica.pending = replica.pending.without(unknown.and(trimmed));
        replica.in_flight = replica.in_flight.with(unknown.without(trimmed));
    }

    fn claim(&self, state: &mut State, replica: usize, entry: usize, reply: Reply) {
        let claimed = Entries::one(entry);
        let of_others = state.pending().without(state.replicas[replica].pending);
        if self.has(Mutation::NeverClaims) || !of_others.has(entry) {
            return;
        }
        state.no_longer_pending(claimed);
        if !state.is_on_stream(entry) {
            // XAUTOCLAIM drops what has no text.
            return;
        }
        let replica = &mut state.replicas[replica];
        replica.pending = replica.pending.with(claimed);
        if reply == Reply::Arrives {
            // What is here already is not taken twice.
            let new = claimed.without(replica.committed);
            replica.in_flight = replica.in_flight.with(new);
        }
    }

    // The database.

    fn commit(&self, state: &mut State, replica: usize, reply: Reply) {
        let batch = state.replicas[replica].writing;
        if batch.is_empty() || !self.store(state, batch) {
            return;
        }
        match reply {
            Reply::Arrives => settle(state, replica),
            // The outcome is unknown: the batch is written once more.
            Reply::IsLost => self.fail(state, replica),
        }
    }

    /// One transaction: rows for events, letters for what is refused. Whether it could be done.
    fn store(&self, state: &mut State, batch: Entries) -> bool {
        let is_culprit = |entry: usize| self.entries[entry].content == Content::Culprit;
        if state.is_down || batch.iter().any(is_culprit) {
            return false;
        }
        let is_poison = |entry: usize| self.entries[entry].content == Content::Poison;
        if self.has(Mutation::PoisonFailsItsBatch) && batch.iter().any(is_poison) {
            return false;
        }
        for entry in batch.iter() {
            let count = match self.entries[entry].content {
                Content::Event(event) => &mut state.rows[event],
                Content::Poison if self.has(Mutation::DropsPoison) => continue,
                Content::Poison | Content::Culprit => &mut state.letters[entry],
            };
            // ON CONFLICT DO NOTHING, by the event's id or by the letter's position.
            if *count == 0 || self.has(Mutation::InsertsBlindly) {
                *count = (*count + 1).min(2);
            }
        }
        true
    }

    fn fail(&self, state: &mut State, replica: usize) {
        if self.has(Mutation::TakesFailureForSuccess) {
            settle(state, replica);
        }
        state.replicas[replica].writing = Entries::NONE;
    }

    // Whose fault it is.

    fn suspect(&self, state: &mut State, replica: usize, entry: usize) {
        if self.has(Mutation::NeverIsolates) {
            return;
        }
        let is_culprit = self.entries[entry].content == Content::Culprit;
        let replica = &mut state.replicas[replica];
        // An innocent fails while the database is away.
        let may_fail = is_culprit || state.is_down;
        if may_fail && replica.in_flight.has(entry) && !replica.writing.has(entry) {
            replica.suspects = replica.suspects.with(Entries::one(entry));
        }
    }

    fn try_alone(&self, state: &mut State, replica: usize) {
        let Some(trial) = state.replicas[replica]
            .trial
            .filter(|trial| !trial.has_failed)
        else {
            return;
        };
        if self.store(state, Entries::one(trial.entry)) {
            return settle_alone(state, replica, trial.entry);
        }
        state.replicas[replica].trial = Some(Trial {
            has_failed: true,
            ..trial
        });
        if self.has(Mutation::CondemnsWithoutControl) {
            condemn(state, replica, trial.entry);
        }
    }

    fn end_orphan(&self, state: &mut State, commits: bool) {
        let batch = std::mem::take(&mut state.orphaned);
        if commits {
            self.store(state, batch);
        }
    }

    fn acknowledge(&self, state: &mut State, replica: usize, reply: Reply) {
        let ours = state.replicas[replica];
        let mut done = ours.committed;
        if self.has(Mutation::AcknowledgesBeforeCommit) {
            done = done.with(ours.in_flight);
        }
        // XACK does not ask in whose name an entry is pending.
        state.no_longer_pending(done);
        if reply == Reply::Arrives {
            state.replicas[replica].committed = Entries::NONE;
        }
    }

    // The guard.

    fn look(&self, state: &mut State) {
        let uncommitted = state
            .pending()
            .smallest()
            .map(|entry| self.entries[entry].id);
        let safe = match uncommitted {
            Some(_) if self.has(Mutation::GuardAtLastDelivered) => self.last_delivered(state),
            Some(smallest) => smallest,
            None => self.last_delivered(state),
        };
        state.found = state.found.max(self.position(safe));
    }

    /// Where the guard stands for a safe id.
    fn position(&self, safe: Id) -> Id {
        if self.has(Mutation::GuardAtTheEntry) {
            safe
        } else {
            safe.start_of_millisecond()
        }
    }

    fn move_guard(&self, state: &mut State, position: Id) {
        let was_found = position <= state.found && self.position(position) == position;
        if was_found && !self.has(Mutation::NoGuard) {
            state.guard = Some(position);
        }
    }

    fn last_delivered(&self, state: &State) -> Id {
        match state.num_delivered {
            0 => Id::START,
            num => self.entries[num - 1].id,
        }
    }

    /// XTRIM MINID at the smallest of the groups' positions, compared as texts.
    fn trim(&self, state: &mut State, num_seen: usize, passes_over_ours: bool) {
        let theirs = self.entries[num_seen - 1].id;
        let ours = (!passes_over_ours).then(|| self.last_delivered(state));
        let guard = state.guard.filter(|position| *position != Id::ZERO);
        let groups = [Some(theirs), ours, guard];
        let Some(min) = groups.into_iter().flatten().min_by_key(Id::to_string) else {
            return;
        };
        let behind = self
            .entries
            .iter()
            .take_while(|entry| entry.id < min)
            .count();
        state.num_trimmed = state.num_trimmed.max(behind);
    }
}

fn heartbeat(state: &mut State, replica: usize) {
    let held = state.replicas[replica].in_flight.and(state.pending());
    state.no_longer_pending(held);
    // XCLAIM drops what has no text, as XAUTOCLAIM does.
    let there = held.without(Entries::first(state.num_trimmed));
    let replica = &mut state.replicas[replica];
    replica.pending = replica.pending.with(there);
}

fn write(state: &mut State, replica: usize) {
    let replica = &mut state.replicas[replica];
    if replica.writing.is_empty() {
        replica.writing = replica.in_flight.without(replica.suspects);
    }
}

/// An outage that fits between the controls of a trial does not pass for one here: what the rule asks
/// for, several trials with time between them, is to make that next to impossible.
fn come_back(state: &mut State) {
    let has_failed = |trial: Trial| trial.has_failed;
    let mut replicas = state.replicas.iter();
    if !replicas.any(|replica| replica.trial.is_some_and(has_failed)) {
        state.is_down = false;
    }
}

fn control(state: &mut State, replica: usize, entry: usize) {
    let replica = &mut state.replicas[replica];
    if !state.is_down && replica.suspects.has(entry) && replica.trial.is_none() {
        replica.trial = Some(Trial {
            entry,
            has_failed: false,
        });
    }
}

fn control_again(state: &mut State, replica: usize) {
    let Some(trial) = state.replicas[replica]
        .trial
        .filter(|trial| trial.has_failed)
    else {
        return;
    };
    if state.is_down {
        // An outage: it is tried again from the start.
        state.replicas[replica].trial = None;
    } else {
        condemn(state, replica, trial.entry);
    }
}

/// The letter of a culprit, unless somebody has stored it after all.
fn condemn(state: &mut State, replica: usize, entry: usize) {
    let num_letters = &mut state.letters[entry];
    *num_letters = (*num_letters).max(1);
    settle_alone(state, replica, entry);
}

fn settle_alone(state: &mut State, replica: usize, entry: usize) {
    let entry = Entries::one(entry);
    let replica = &mut state.replicas[replica];
    replica.trial = None;
    replica.suspects = replica.suspects.without(entry);
    replica.in_flight = replica.in_flight.without(entry);
    replica.committed = replica.committed.with(entry);
}

/// What was written is durable, and is to be acknowledged.
fn settle(state: &mut State, replica: usize) {
    let replica = &mut state.replicas[replica];
    let done = std::mem::take(&mut replica.writing);
    replica.in_flight = replica.in_flight.without(done);
    replica.committed = replica.committed.with(done);
}

fn crash(state: &mut State, replica: usize, fate: Fate) {
    abandon_transaction(state, replica, fate);
    let gone = std::mem::take(&mut state.replicas[replica]);
    state.abandoned = state.abandoned.with(gone.pending);
}

fn rewind(state: &mut State, replica: usize, fate: Fate) {
    abandon_transaction(state, replica, fate);
    let replica = &mut state.replicas[replica];
    replica.in_flight = Entries::NONE;
    replica.suspects = Entries::NONE;
    replica.trial = None;
}

/// One transaction is left to itself at a time: a second would only repeat what the first shows.
fn abandon_transaction(state: &mut State, replica: usize, fate: Fate) {
    let transaction = std::mem::take(&mut state.replicas[replica].writing);
    if fate == Fate::RunsOn && state.orphaned.is_empty() {
        state.orphaned = transaction;
    }
}
