//! PORT: where events come from.
//!
//! A source hands out messages with receipts and takes the receipts back once the messages are
//! durable. What was handed out and not acknowledged it must be able to hand out again.
//! Adapters implement this port; they never send actor messages.

use std::error::Error;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

pub(crate) use crate::lock::lock;

pub use self::retained::{Retain, Retained};

use crate::delivery::{Entry, Position, Receipt};

#[cfg(any(feature = "file", feature = "http"))]
mod encoding;
pub mod intake;
pub mod letters;
#[cfg(any(feature = "nats", feature = "redis"))]
#[doc(hidden)]
pub mod operator;
mod retained;

#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;

/// How much may be read next. Never zero of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Messages at most.
    pub max_messages: usize,
    /// Bytes at most; a single message may exceed it when it comes alone.
    pub max_bytes: usize,
}

impl Permit {
    /// For what is in memory already.
    pub(crate) const UNLIMITED: Self = Self {
        max_messages: usize::MAX,
        max_bytes: usize::MAX,
    };

    /// Whether so many messages of so many bytes may come together.
    pub fn covers(&self, num_messages: usize, num_bytes: usize) -> bool {
        num_messages <= self.max_messages && (num_bytes <= self.max_bytes || num_messages == 1)
    }
}

/// What one read brought; by default nothing.
#[derive(Debug, Default)]
pub struct Chunk {
    /// In the source's order; may be empty.
    pub messages: Vec<Message>,
    /// What to expect of the next read.
    pub more: More,
}

impl Chunk {
    pub(crate) fn nothing(more: More) -> Self {
        Self {
            messages: Vec::new(),
            more,
        }
    }
}

/// What a source knows about the messages after a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum More {
    /// The chunk was cut at the permit: there is more at once.
    Ready,
    /// Nothing more for the moment.
    #[default]
    Later,
    /// Nothing more, ever: the source has come to its end.
    Ended,
}

/// One message as the source hands it out.
#[derive(Debug)]
pub struct Message {
    /// To be given back by [`EventSource::acknowledge`].
    pub receipt: Receipt,
    /// Whether this message was handed out before, by this process or another.
    pub redelivered: bool,
    /// The message itself.
    pub body: Body,
}

/// A message, parsed by the source or not.
pub enum Body {
    /// As it came; the consumer parses it. An empty one is ignored, and acknowledged.
    Raw {
        /// Where it stands in the source.
        position: Position,
        /// The bytes, the text of an event if all is well.
        data: Bytes,
    },
    /// Parsed or rejected by the source, which had to look inside.
    Entry(Arc<Entry>),
}

impl Body {
    /// A message as it came, that stands there in its source.
    pub fn raw(position: impl Into<Arc<str>>, data: impl Into<Bytes>) -> Self {
        Self::Raw {
            position: Position::new(position),
            data: data.into(),
        }
    }

    /// Where the message stands in its source.
    pub fn position(&self) -> &Position {
        match self {
            Self::Raw { position, .. } => position,
            Self::Entry(entry) => &entry.position,
        }
    }

    /// What it counts for in a [`Permit`].
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Raw { data, .. } => data.len(),
            Self::Entry(entry) => entry.num_bytes(),
        }
    }
}

/// Sizes only, never the message.
impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Raw { position, data } => f
                .debug_struct("Raw")
                .field("position", position)
                .field("num_bytes", &data.len())
                .finish(),
            Self::Entry(entry) => entry.fmt(f),
        }
    }
}

/// A failure of a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// To be tried again after a back-off; nothing that was handed out is lost by it.
    #[error("{what}")]
    Unavailable {
        /// What failed, to what, and what to do about it.
        what: String,
        /// The adapter's own error.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The same, and no answer came in time: to less at once there may be one.
    #[error("{what}")]
    TimedOut {
        /// What failed, to what, and what to do about it.
        what: String,
        /// The adapter's own error.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// Nothing more can ever be read of it; every read says so.
    #[error("{what}")]
    Broken {
        /// What cannot be read, why, and what to do about it.
        what: String,
    },
}

impl SourceError {
    /// An [`SourceError::Unavailable`] with its cause.
    pub fn unavailable(
        what: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable {
            what: what.into(),
            source: Some(source.into()),
        }
    }
}

/// A source of events.
///
/// One consumer calls `read` and `acknowledge`, possibly at the same time, but never two reads or
/// two acknowledgements at once. Every future may be dropped at any point.
pub trait EventSource: Send + Sync {
    /// The source's name in dead letters, metrics and logs; one of a small fixed set.
    fn name(&self) -> &str;

    /// Waits for messages and takes at most what the permit allows.
    ///
    /// Returns an empty chunk rather than waiting for ever where waiting has a price. It is called again at
    /// once after one: the source itself waits between two looks. When the future is dropped, what it may
    /// have taken is handed out again, at the latest after [`EventSource::rewind`].
    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>>;

    /// What somebody should look at although messages come and go, each in a sentence or two.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Takes nothing more from where the messages are; a shutdown has begun. What was taken already
    /// is still handed out, by a read that is under way or those to come, and then
    /// [`More::Ended`], without waiting for more.
    ///
    /// Returns whether the source does so. Where it does not, because nothing is held up by what a
    /// read may have taken, reads are dropped instead. May be called again.
    fn end_reading(&self) -> bool {
        false
    }

    /// Hears which messages became dead letters, before their receipts are acknowledged. A source
    /// that answers to somebody may tell so; to all others it makes no difference.
    fn note_dead_letters(&self, receipts: &[Receipt]) {
        let _ = receipts;
    }

    /// Takes back receipts whose messages are durable. A receipt that is not known is ignored.
    ///
    /// On an error the same receipts are given again; acknowledging twice does no harm.
    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>>;

    /// Hands out again, marked as redelivered and before anything new, all that was handed out and
    /// not acknowledged. A receipt from before a rewind is still good: take it back as any other.
    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>>;

    /// Takes nothing more in and lets go of what it holds: the pipeline has drained.
    ///
    /// A sender that still waits for a message is told that it was not acknowledged. A source that holds nothing has
    /// nothing to do.
    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(ready(Ok(())))
    }
}
