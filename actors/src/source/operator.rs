//! PORT: the bus as its operator looks at it: inspection, trim guard, audit and shadow.
//!
//! For tools beside the pipeline. The path of an event uses nothing of it.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::finding::Finding;

use super::{Body, Permit, SourceError};

/// A stream of the bus, for its operator.
pub trait BusOperator: Send + Sync {
    fn stream(&self) -> &str;

    fn group(&self) -> &str;

    /// Looks for what would stop or hurt a source there, and changes nothing. `retention` is how long
    /// events are kept in the store, if they are ever deleted there.
    fn inspect(&self, retention: Option<Duration>) -> LocalBoxFuture<'_, Vec<Finding>>;

    /// The version of the server that was reached; `None` if it does not say, or not to us.
    fn server_version(&self) -> LocalBoxFuture<'_, Result<Option<String>, SourceError>>;

    /// Where the trim guard and the group stand.
    fn show_guard(&self) -> LocalBoxFuture<'_, Result<GuardReport, SourceError>>;

    /// Removes the trim guard, so that others trim as they did without us. Returns whether it was there.
    ///
    /// A source that still runs with the guard on makes it again.
    fn remove_guard(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>>;

    /// Begins to read the stream at its oldest entry, and takes nothing. A stream or a group that is not
    /// there has nothing acknowledged.
    fn walk(&self) -> LocalBoxFuture<'_, Result<Box<dyn StreamWalk + '_>, SourceError>>;

    /// A reader beside the group at work, with a group of its own. It connects when it is first used.
    fn shadow(&self) -> Box<dyn StreamShadow>;
}

/// What holds the stream, and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardReport {
    pub stream: String,
    /// Entries in it; `None` if there is no such stream.
    pub stream_length: Option<u64>,
    /// The name of the guard's group.
    pub guard_group: String,
    /// Where the guard stands; `None` if there is none.
    pub guard_position: Option<String>,
    /// The last id of the stream; `None` if there is no such stream.
    pub last_id: Option<String>,
    /// What is wrong with the group's position, and what to do about it; `None` if it can be right.
    pub misplaced: Option<String>,
    pub group: String,
    /// How far it is; `None` if there is none.
    pub group_progress: Option<GroupProgress>,
}

/// How far the consumer group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// The last entry that was given to anyone.
    pub last_delivered: String,
    /// The first entry that is not acknowledged.
    pub smallest_pending: Option<String>,
    /// Entries that are not acknowledged.
    pub num_pending: u64,
    pub num_consumers: u64,
    /// Entries that nobody was given yet, where the server knows.
    pub lag: Option<u64>,
}

/// A walk through the stream, up to the entry that the group was given last when it began.
pub trait StreamWalk {
    /// The next entries; `None` at the end.
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<StreamPage>, SourceError>>;

    /// What was wrong with the group's position when the walk began, and what to do about it: then
    /// entries pass for acknowledged that nobody was given.
    fn misplaced(&self) -> Option<&str>;

    /// Entries that the group had not been given when the walk began; too many by those that others
    /// trimmed from the stream before the walk came to them.
    fn num_unread(&self) -> u64;
}

#[derive(Debug, Default)]
pub struct StreamPage {
    /// Those that are acknowledged, hence were committed before the page was read.
    pub acknowledged: Vec<Body>,
    pub pending: Vec<Body>,
}

/// Reads everything that is published from now on, beside the group at work.
pub trait StreamShadow {
    /// The name of its own group.
    fn own_group(&self) -> &str;

    /// Entries that were published since the last read; rests a moment where there are none.
    ///
    /// After an error the next read goes on where this one would have.
    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<ShadowRead, SourceError>>;

    /// What the group at work has done with entries from this position on; `None` if there is no such
    /// group.
    fn work_from<'a>(
        &'a self,
        position: &'a str,
    ) -> LocalBoxFuture<'a, Result<Option<Box<dyn GroupWork>>, SourceError>>;

    /// The names of other such groups, of shadows at work or killed.
    fn others(&self) -> LocalBoxFuture<'_, Result<Vec<String>, SourceError>>;

    /// Destroys its own group; whether it was there.
    fn destroy(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>>;
}

/// What a shadow's read brought.
#[derive(Debug, Default)]
pub struct ShadowRead {
    pub bodies: Vec<Body>,
    /// Entries that were trimmed before they could be read, as far as the server lets them be counted.
    pub num_gone: usize,
    /// Whether there is more at once.
    pub more: bool,
}

/// What the group at work has done with single entries.
pub trait GroupWork {
    /// Whether the entry at this position was given to a consumer and acknowledged.
    fn has_acknowledged(&self, position: &str) -> bool;

    /// Whether the entry at this position was given to a consumer.
    fn has_delivered(&self, position: &str) -> bool;
}
