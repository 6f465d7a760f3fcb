//! The whole protocol on one page. A host sends the messages that are public; the others stay between
//! the actors.
//!
//! | Message | Way | Reply |
//! |---|---|---|
//! | `Join` | consumer → batcher, once | the first [`Permit`] |
//! | `Enqueue` | consumer → batcher | the [`Permit`] for the next read, once there is room |
//! | `Flush` | batcher → writer | `Flushed`, or why not; the batcher keeps the batch until then |
//! | `Ack` | batcher → consumer | none |
//! | `StopReading` | pipeline → consumer | once its last chunk is with the batcher |
//! | `AwaitEnd` | pipeline → consumer | once its source has ended and its last chunk is with the batcher |
//! | `ReplaceWriter` | pipeline → batcher | none; the new writer gets work |
//! | [`Retire`] | pipeline → each | none; it stops at once |
//! | [`Trim`] | schedule or operator → trimmer | [`Trimmed`] |
//! | [`Drain`] | host → pipeline → each | [`Drained`] |
//! | [`Finish`] | host → pipeline | [`Drained`], once every source has come to its end |
//! | [`Status`] | host → pipeline | [`PipelineStatus`] |
//!
//! Forward edges are bounded and awaited: a slow store slows the sources. The one backward edge,
//! `Ack`, never waits, or the cycle would deadlock; the credit bounds it instead.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use actix::prelude::*;

use crate::delivery::{Batch, Delivery, Entry, Receipt, SourceIndex};
use crate::isolation::Control;
use crate::retention::HeldBack;
use crate::source::Permit;
use crate::status::PipelineStatus;
use crate::store::{FaultKind, Outcome, RefusalCounts, StoreError, Trimmed};

#[derive(Message)]
#[rtype(result = "Result<Permit, EnqueueRefused>")]
pub(crate) struct Join {
    pub(crate) source: SourceIndex,
    pub(crate) acks: Recipient<Ack>,
}

/// Hands a chunk to the batcher, which takes it at once; what waits is the reply.
#[derive(Debug, Message)]
#[rtype(result = "Result<Permit, EnqueueRefused>")]
pub(crate) struct Enqueue {
    pub(crate) source: SourceIndex,
    pub(crate) deliveries: Vec<Delivery>,
    /// Whether more is to be had at once, so that filling the batch is worth the wait.
    pub(crate) more_ready: bool,
}

/// The batcher has taken what it was given and wants no more: the pipeline is draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pipeline is draining and takes no more events")]
pub(crate) struct EnqueueRefused;

#[derive(Debug, Message)]
#[rtype(result = "Result<Flushed, FlushError>")]
pub(crate) struct Flush {
    /// Shared: the batcher writes it again if this writer fails or dies.
    pub(crate) batch: Arc<Batch>,
    pub(crate) purpose: Purpose,
    /// An event that was stored, as a pattern for controls.
    pub(crate) template: Option<Arc<Entry>>,
    /// Set once the controls before the attempt have passed: a writer that dies in the attempt tells no
    /// more than that.
    pub(crate) controls_passed: Arc<AtomicBool>,
}

impl Flush {
    pub(crate) fn alone(batch: Arc<Batch>, purpose: Purpose) -> Self {
        Self {
            batch,
            purpose,
            template: None,
            controls_passed: Arc::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Write it. Should the store not take it, see by a control whether it takes anything.
    Write,
    /// Write what has failed before, behind a control: in an outage that is all that is tried.
    Retry { fault: FaultKind },
    /// Write an event that has failed alone before, between controls.
    Examine { fault: FaultKind },
    /// See what would become of it, and leave nothing behind.
    Rehearse,
}

/// A batch is not durable, or perhaps not.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct FlushError {
    /// The failure of the batch, or of the controls before it.
    pub(crate) error: StoreError,
    /// Whether the store takes anything at all.
    pub(crate) control: Control,
}

impl From<StoreError> for FlushError {
    fn from(error: StoreError) -> Self {
        Self {
            error,
            control: Control::NotTried,
        }
    }
}

/// A batch is durable; the counts of what became of its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) inserted: u64,
    pub(crate) duplicates: u64,
    pub(crate) rejected_at_parse: u64,
    pub(crate) refused_by_store: RefusalCounts,
    /// Which entries of the batch became dead letters, of either kind: their places in it, in order.
    pub(crate) letters: Vec<usize>,
}

impl Flushed {
    pub(crate) fn dead_lettered(&self) -> u64 {
        self.rejected_at_parse + self.refused_by_store.total()
    }

    pub(crate) fn total(&self) -> u64 {
        self.inserted + self.duplicates + self.dead_lettered()
    }
}

impl<'a> FromIterator<&'a Outcome> for Flushed {
    fn from_iter<I: IntoIterator<Item = &'a Outcome>>(outcomes: I) -> Self {
        let mut flushed = Self::default();
        for (place, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Outcome::Stored => flushed.inserted += 1,
                Outcome::Duplicate => flushed.duplicates += 1,
                Outcome::RejectedAtParse => {
                    flushed.rejected_at_parse += 1;
                    flushed.letters.push(place);
                }
                Outcome::RefusedByStore(reason) => {
                    flushed.refused_by_store.add(*reason);
                    flushed.letters.push(place);
                }
            }
        }
        flushed
    }
}

#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct Ack {
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) dead_letters: Vec<Receipt>,
}

/// Read nothing more; answered once the last chunk is with the batcher.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct StopReading;

/// Answered once the source has come to its end and its last chunk is with the batcher.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct AwaitEnd;

/// Stop at once; what is held stays with its source or is handed out again.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Retire;

#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct ReplaceWriter {
    pub(crate) index: usize,
    pub(crate) writer: Recipient<Flush>,
}

/// Asks for one retention pass, now.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Trimmed, TrimError>")]
pub struct Trim;

/// Why a retention pass did not run or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// The pipeline was started without retention, or has drained.
    #[error("trimming is off")]
    Off,
    /// A pass is under way.
    #[error("a retention pass is under way; it will do what this one would")]
    UnderWay,
    /// Another process is trimming the same database. It goes on where this pass stopped.
    #[error(
        "another process is trimming this database; it does the rest, and this one deleted {} events before",
        .0.events
    )]
    TakenByAnother(Trimmed),
    /// A cutoff makes no sense: clock or retention are wrong, and nothing was removed.
    #[error("refused to trim: {0}")]
    AbsurdCutoff(String),
    /// So much would go, after so long, that a person has to say that the clock is right.
    #[error("retention waits for a person: {0}")]
    HeldBack(HeldBack),
    /// The store could not be reached; what was removed before stays removed.
    #[error("the retention pass could not finish")]
    Store(#[from] StoreError),
}

/// Stop reading, make durable what is held, acknowledge it, and stop.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Drained")]
pub struct Drain {
    /// How long the store may take; what is not durable by then is left to the sources.
    pub timeout: Duration,
}

/// Half a minute.
impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
        }
    }
}

/// Read every source to its end, make all of it durable, acknowledge it, and stop.
///
/// Waits for as long as the store is away. Switch
/// [`pauses_when_refused`](crate::pipeline::BatcherSettings::pauses_when_refused) off before: a
/// pause would come to the same end, later.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Drained")]
pub struct Finish;

/// The reply to [`Drain`] and [`Finish`], once the pipeline has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Messages that were taken and neither stored nor acknowledged; they stay with their source.
    pub released: u64,
}

/// Asks how the pipeline and each of its parts are.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "PipelineStatus")]
pub struct Status;

/// Stops an actor that is told to [`Retire`].
macro_rules! stops_when_retired {
    ($actor:ty) => {
        impl Handler<$crate::messages::Retire> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::messages::Retire, ctx: &mut Self::Context) {
                ctx.stop();
            }
        }
    };
}
pub(crate) use stops_when_retired;
