//! PORT: the bus as its operator looks at it: inspection, audit and, where the bus has them, trim guard and shadow.
//!
//! For tools beside the pipeline. The path of an event uses nothing of it.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use serde::Serialize;

use crate::finding::Finding;
use crate::primary::Primary;

use super::{Body, Permit, SourceError};

pub trait BusOperator: Send + Sync {
    /// The source's name in dead letters, metrics and settings.
    fn name(&self) -> &'static str;

    fn stream(&self) -> &str;

    /// The consumer group, or the consumer that all replicas share.
    fn group(&self) -> &str;

    /// Looks for what would stop or hurt a source there, and changes nothing. `retention` is how long
    /// events are kept in the store, if they are ever deleted there.
    fn inspect(&self, retention: Option<Duration>) -> LocalBoxFuture<'_, Vec<Finding>>;

    fn server_version(&self) -> LocalBoxFuture<'_, Result<Option<String>, SourceError>>;

    fn report(&self) -> LocalBoxFuture<'_, Result<BusReport, SourceError>>;

    /// The primary of the database on which the replicas have agreed, if they have.
    fn primary(&self) -> LocalBoxFuture<'_, Result<Option<Primary>, SourceError>>;

    /// The means to hold the stream, where others trim it.
    fn guard(&self) -> Option<&dyn TrimGuard>;

    /// Begins to read the stream at its oldest entry, and takes nothing.
    fn walk(&self) -> LocalBoxFuture<'_, Result<Box<dyn StreamWalk + '_>, SourceError>>;

    /// How to have everything from this position on read once more.
    fn read_again(&self, position: &str) -> Option<ReadAgain>;

    /// A reader beside the group at work, with a group of its own. It connects when it is first used. `None`
    /// where there is nobody to be compared with.
    fn shadow(&self) -> Option<Box<dyn StreamShadow>>;
}

/// Keeps others from trimming entries that are not committed yet.
pub trait TrimGuard {
    fn show(&self) -> LocalBoxFuture<'_, Result<GuardReport, SourceError>>;

    /// Removes the trim guard; whether it was there. A source that still runs with it makes it again.
    fn remove(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAgain {
    pub command: String,
    /// For how long that works, and what it needs: the end of a sentence.
    pub while_there: &'static str,
    pub does: &'static str,
}

/// What the stream holds, and how far those who read it are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum BusReport {
    Groups(GuardReport),
    Consumer(ConsumerReport),
}

/// A stream that is read through one consumer. What is not there is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConsumerReport {
    pub stream: String,
    pub messages: Option<u64>,
    pub bytes: Option<u64>,
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub consumer: String,
    pub consumer_state: Option<ConsumerProgress>,
    /// What is wrong with the consumer's position, and what to do about it; `None` if it can be right.
    pub misplaced: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConsumerProgress {
    pub delivered: u64,
    /// Everything up to here is acknowledged.
    pub acknowledged: u64,
    pub pending: u64,
    /// Messages that nobody was given yet.
    pub lag: u64,
}

/// What holds the stream, and how much it holds. Groups and stream that are not there are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardReport {
    pub stream: String,
    pub stream_length: Option<u64>,
    pub guard_group: String,
    pub guard_position: Option<String>,
    pub last_id: Option<String>,
    /// What is wrong with the group's position, and what to do about it; `None` if it can be right.
    pub misplaced: Option<String>,
    pub group: String,
    #[serde(rename = "group_state")]
    pub group_progress: Option<GroupProgress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupProgress {
    pub last_delivered: String,
    pub smallest_pending: Option<String>,
    #[serde(rename = "pending")]
    pub num_pending: u64,
    #[serde(rename = "consumers")]
    pub num_consumers: u64,
    /// Entries that nobody was given yet, where the server knows.
    pub lag: Option<u64>,
}

/// A walk through the stream, up to the entry that the group was given last when it began.
pub trait StreamWalk {
    fn next_page(&mut self) -> LocalBoxFuture<'_, Result<Option<StreamPage>, SourceError>>;

    /// What was wrong with the group's position when the walk began: then entries pass for acknowledged that
    /// nobody was given.
    fn misplaced(&self) -> Option<&str>;

    /// Why the walk shows nothing although all may be well; `None` where it shows what there is.
    fn shows_nothing(&self) -> Option<&'static str> {
        None
    }

    /// Entries that the group had not been given when the walk began, and those that were trimmed since.
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
    fn own_group(&self) -> &str;

    /// Entries that were published since the last read; rests a moment where there are none. After an error
    /// the next read goes on where this one would have.
    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<ShadowRead, SourceError>>;

    /// What the group at work has done with entries from this position on; `None` if there is no such
    /// group.
    fn work_from<'a>(
        &'a self,
        position: &'a str,
    ) -> LocalBoxFuture<'a, Result<Option<Box<dyn GroupWork>>, SourceError>>;

    fn others(&self) -> LocalBoxFuture<'_, Result<Vec<String>, SourceError>>;

    fn destroy(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>>;
}

#[derive(Debug, Default)]
pub struct ShadowRead {
    pub bodies: Vec<Body>,
    pub num_gone: usize,
    pub more: bool,
}

pub trait GroupWork {
    fn has_acknowledged(&self, position: &str) -> bool;

    fn has_delivered(&self, position: &str) -> bool;
}
