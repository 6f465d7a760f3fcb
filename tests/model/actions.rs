//! What can happen next, in any order and any number of times.

use crate::state::{Content, Entry, Id, REPLICAS};

/// What becomes of an answer on its way to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Arrives,
    /// The connection broke: it was done, and the replica does not know.
    IsLost,
}

/// What the database does with a transaction that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    RollsBack,
    /// It was sent, and may commit at any later moment.
    RunsOn,
}

/// One step. Commands that do not reach Redis or the database change nothing and are no steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// XREADGROUP `>`: takes the next entry that the group was not given yet.
    Read(usize, Reply),
    /// XREADGROUP of `0`, after a failure and once a minute: takes what is pending in the
    /// replica's name and in neither of its sets.
    ReadAgain(usize),
    /// XAUTOCLAIM: takes over an entry that another left, or is slow with. How slow, the model
    /// does not ask: it may happen at any time.
    Claim(usize, usize, Reply),
    /// XCLAIM by the heartbeat: what is in flight is ours, even if it was claimed meanwhile.
    Heartbeat(usize),
    /// Sends a transaction with everything that is in flight.
    Write(usize),
    /// The database commits it.
    Commit(usize, Reply),
    /// The database refuses it, or is away.
    RollBack(usize),
    /// XACK of everything that is committed and not confirmed.
    Acknowledge(usize, Reply),
    /// XINFO GROUPS and XPENDING in one script: somebody finds out where the guard has to stand.
    Look,
    /// XGROUP SETID: somebody moves the guard there, however old that look is.
    MoveGuard(Id),
    /// Loses everything in memory, and the name in the group.
    Crash(usize, Fate),
    /// The pipeline begins anew within its process: what was in flight comes again.
    Rewind(usize, Fate),
    /// The transaction of a writer that is gone ends.
    EndOrphan { commits: bool },
    /// A consumer of Prefect's trims the stream: up to the smallest last-delivered id of all groups
    /// as it compares them. `num_seen` is how far its own group is; our group it passes over if it
    /// was idle for long.
    Trim {
        num_seen: usize,
        passes_over_ours: bool,
    },
    /// The database goes away. It stays away for longer than a trial takes.
    GoDown,
    /// It is there again.
    ComeBack,
    /// A batch has failed, and was split until this entry stood alone and failed: it is set aside.
    Suspect(usize, usize),
    /// A control passes, and a suspect is to be tried next.
    Control(usize, usize),
    /// The suspect is tried alone.
    Try(usize),
    /// The control behind a suspect that has failed: if it passes, that is a culprit.
    ControlAgain(usize),
    /// Removes consumers that are gone and have nothing pending; no change but to a list of names.
    Tidy,
}

/// Everything that might be possible, in whatever state.
pub(crate) fn all(entries: &[Entry]) -> Vec<Action> {
    let num_entries = entries.len();
    let mut actions = vec![
        Action::EndOrphan { commits: true },
        Action::EndOrphan { commits: false },
        Action::Look,
        Action::Tidy,
    ];
    for entry in entries {
        // The right one, and a wrong one.
        actions.extend([entry.id.start_of_millisecond(), entry.id].map(Action::MoveGuard));
    }
    for num_seen in 1..=num_entries {
        for passes_over_ours in [false, true] {
            actions.push(Action::Trim {
                num_seen,
                passes_over_ours,
            });
        }
    }
    for replica in REPLICAS {
        actions.extend([
            Action::ReadAgain(replica),
            Action::Heartbeat(replica),
            Action::Write(replica),
            Action::RollBack(replica),
        ]);
        for fate in [Fate::RollsBack, Fate::RunsOn] {
            actions.extend([Action::Crash(replica, fate), Action::Rewind(replica, fate)]);
        }
        for reply in [Reply::Arrives, Reply::IsLost] {
            actions.extend([
                Action::Read(replica, reply),
                Action::Commit(replica, reply),
                Action::Acknowledge(replica, reply),
            ]);
            let claims = (0..num_entries).map(|entry| Action::Claim(replica, entry, reply));
            actions.extend(claims);
        }
    }
    // Where nothing fails for reasons of its own these steps only multiply what there is to look at.
    if entries
        .iter()
        .any(|entry| entry.content == Content::Culprit)
    {
        actions.extend(of_isolation(num_entries));
    }
    actions
}

/// How it is found out whose fault a failure is.
fn of_isolation(num_entries: usize) -> Vec<Action> {
    let mut actions = vec![Action::GoDown, Action::ComeBack];
    for replica in REPLICAS {
        actions.extend([Action::Try(replica), Action::ControlAgain(replica)]);
        for entry in 0..num_entries {
            actions.extend([
                Action::Suspect(replica, entry),
                Action::Control(replica, entry),
            ]);
        }
    }
    actions
}
