//! The ways to get it wrong. Each takes one rule out of the protocol, and the checker has to find
//! the damage: a model in which nothing can go wrong proves nothing.

use crate::properties::Promise;

/// One rule that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// XACK when an event is queued in memory, as Prefect's own consumer does.
    AcknowledgesBeforeCommit,
    /// A commit that failed or whose outcome is unknown counts as done.
    TakesFailureForSuccess,
    /// An insert that does not look whether the id is there.
    InsertsBlindly,
    /// Poison is acknowledged with its batch and leaves no letter.
    DropsPoison,
    /// A batch with poison in it is rolled back, innocents and all.
    PoisonFailsItsBatch,
    /// No trim guard.
    NoGuard,
    /// The guard is moved to what was delivered, committed or not.
    GuardAtLastDelivered,
    /// The guard stands at the first entry that is not committed, not at its whole millisecond.
    GuardAtTheEntry,
    /// The guard is made at `0-0`, which others pass over until it is moved.
    GuardMadeAtZero,
    /// What a dead replica left is left to it.
    NeverClaims,
    /// What was delivered by a reply that never arrived is not asked for again.
    NeverReadsAgain,
    /// An event that fails every batch that it is part of stays in all of them.
    NeverIsolates,
    /// An event that failed alone becomes a letter although nothing else was stored since.
    CondemnsWithoutControl,
    /// Consumers that are gone are removed without a look at what they have pending.
    RemovesConsumersUnchecked,
}

/// All, each with the promise that it breaks.
pub(crate) const ALL: [(Mutation, Promise); 14] = [
    (Mutation::AcknowledgesBeforeCommit, Promise::CommitFirst),
    (Mutation::TakesFailureForSuccess, Promise::CommitFirst),
    (Mutation::InsertsBlindly, Promise::OneRow),
    (Mutation::DropsPoison, Promise::CommitFirst),
    (Mutation::PoisonFailsItsBatch, Promise::CanBeStored),
    (Mutation::NoGuard, Promise::NothingLost),
    (Mutation::GuardAtLastDelivered, Promise::NothingLost),
    (Mutation::GuardAtTheEntry, Promise::NothingLost),
    (Mutation::GuardMadeAtZero, Promise::NothingLost),
    (Mutation::NeverClaims, Promise::CanBeStored),
    (Mutation::NeverReadsAgain, Promise::CanBeStored),
    (Mutation::NeverIsolates, Promise::CanBeStored),
    (Mutation::CondemnsWithoutControl, Promise::NoInnocentLetter),
    (Mutation::RemovesConsumersUnchecked, Promise::NothingLost),
];
