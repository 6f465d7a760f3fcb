//! What there is: the stream and its group in Redis, two replicas, and the database.

use std::fmt;

/// The replicas that share the consumer group, by number.
pub(crate) const REPLICAS: [usize; 2] = [0, 1];

/// The most entries that a stream may hold.
pub(crate) const MAX_ENTRIES: usize = 4;

/// The most events that differ.
pub(crate) const MAX_EVENTS: usize = 2;

/// What an entry of the stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The event with this id. The same may stand in several entries: a client that did not hear
    /// of the outcome sends again.
    Event(usize),
    /// What no parser or no database accepts, and what therefore becomes a dead letter.
    Poison,
    /// An event that fails every transaction that it is part of, in a way that any outage may look like.
    Culprit,
}

/// The id of an entry or the position of a group; compared as Redis does, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) millis: u8,
    pub(crate) number: u8,
}

impl Id {
    /// Where a group stands that was made at `0`: Prefect's trimming passes over it.
    pub(crate) const ZERO: Self = id(0, 0);
    /// Where ours and the guard are made instead: behind every entry, and not passed over.
    pub(crate) const START: Self = id(0, 1);

    /// The smallest of its millisecond as a number, and as a text too. (But `0-0` does not count.)
    pub(crate) fn start_of_millisecond(self) -> Self {
        id(self.millis, u8::from(self.millis == 0))
    }
}

pub(crate) const fn id(millis: u8, number: u8) -> Id {
    Id { millis, number }
}

/// One entry of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) content: Content,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of entries, each by its place in the stream.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Entries(u8);

impl Entries {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn one(entry: usize) -> Self {
        Self(1 << entry)
    }

    /// The first so many of the stream.
    pub(crate) fn first(num: usize) -> Self {
        Self((1 << num) - 1)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn has(self, entry: usize) -> bool {
        self.0 & (1 << entry) != 0
    }

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The oldest.
    pub(crate) fn smallest(self) -> Option<usize> {
        self.iter().next()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_ENTRIES).filter(move |entry| self.has(*entry))
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// One process, and what Redis and the database do in its name.
///
/// There is no "dead": a replica that is down does nothing, as one does that is slow. A crash
/// takes its memory and its name; the next incarnation begins where this one was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Replica {
    /// Redis: delivered to the present name and not acknowledged.
    pub(crate) pending: Entries,
    /// Memory: taken, and not known to be durable.
    pub(crate) in_flight: Entries,
    /// Memory: durable, and XACK not confirmed.
    pub(crate) committed: Entries,
    /// Database: in the transaction that this replica waits for.
    pub(crate) writing: Entries,
    /// Memory: of what is in flight, what has failed alone and is left out of batches.
    pub(crate) suspects: Entries,
    /// Memory: a suspect between its controls.
    pub(crate) trial: Option<Trial>,
}

/// How far the trial of a suspect is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Trial {
    pub(crate) entry: usize,
    /// It was tried, and failed; the control behind it is to come.
    pub(crate) has_failed: bool,
}

/// Everything. All entries are published from the beginning: one that nobody has read yet differs
/// from one that is not there yet only in that it can be lost already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    /// So many of the oldest entries have been trimmed off the stream.
    pub(crate) num_trimmed: usize,
    /// So many of the oldest entries have been delivered to our group.
    pub(crate) num_delivered: usize,
    /// Redis: pending in the name of consumers that are no more.
    pub(crate) abandoned: Entries,
    /// Where the guard stands; `None` without one.
    pub(crate) guard: Option<Id>,
    /// The furthest position that anybody has found right for the guard. Whoever found it, or one
    /// before it, may still be about to move the guard there, while others go on.
    pub(crate) found: Id,
    pub(crate) replicas: [Replica; REPLICAS.len()],
    /// Database: takes nothing from anybody.
    pub(crate) is_down: bool,
    /// Database: in a transaction whose writer is gone, and which may yet commit.
    pub(crate) orphaned: Entries,
    /// Database: how many rows each event has.
    pub(crate) rows: [u8; MAX_EVENTS],
    /// Database: how many letters each entry has.
    pub(crate) letters: [u8; MAX_ENTRIES],
}

impl State {
    pub(crate) fn new(guard: Option<Id>) -> Self {
        Self {
            num_trimmed: 0,
            num_delivered: 0,
            abandoned: Entries::NONE,
            guard,
            found: Id::START,
            replicas: [Replica::default(); REPLICAS.len()],
            is_down: false,
            orphaned: Entries::NONE,
            rows: [0; MAX_EVENTS],
            letters: [0; MAX_ENTRIES],
        }
    }

    /// What XPENDING shows of the whole group.
    pub(crate) fn pending(&self) -> Entries {
        let [first, second] = &self.replicas;
        self.abandoned.with(first.pending).with(second.pending)
    }

    pub(crate) fn is_on_stream(&self, entry: usize) -> bool {
        entry >= self.num_trimmed
    }

    /// Whether its row or its letter is there.
    pub(crate) fn is_stored(&self, entry: usize, content: Content) -> bool {
        match content {
            Content::Event(event) => self.rows[event] > 0,
            Content::Poison | Content::Culprit => self.letters[entry] > 0,
        }
    }

    /// Entries leave what is pending, in whoever's name they are.
    pub(crate) fn no_longer_pending(&mut self, entries: Entries) {
        self.abandoned = self.abandoned.without(entries);
        for replica in &mut self.replicas {
            replica.pending = replica.pending.without(entries);
        }
    }
}

/// The replicas are alike: of two states that differ only in which is which, one will do.
impl stateright::Representative for State {
    fn representative(&self) -> Self {
        let mut swapped = *self;
        swapped.replicas.reverse();
        swapped.min(*self)
    }
}
