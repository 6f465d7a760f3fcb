//! What a host needs, to be imported as a whole: `use event_persister_actors::prelude::*`.
//!
//! [`Message`] is the one of a source. With actix's prelude beside this one, name the one that is meant.

pub use crate::LocalBoxFuture;
pub use crate::clock::{Clock, SystemClock};
pub use crate::delivery::{Batch, Entry, Position, Receipt};
pub use crate::event::{EventLimits, ReceivedEvent, Resource};
pub use crate::messages::{Drain, Status};
pub use crate::metrics::Metrics;
pub use crate::pipeline::{PipelineActor, PipelineParts, PipelineSettings, Placement};
#[cfg(feature = "http")]
pub use crate::source::http::{EventRoutes, HttpSettings};
pub use crate::source::intake::{Intake, IntakeSettings, IntakeSource, SubmitError};
pub use crate::source::{
    Body, Chunk, EventSource, Message, More, Permit, Retain, Retained, SourceError,
};
#[cfg(feature = "postgres")]
pub use crate::store::postgres::{PostgresSettings, PostgresStore};
#[cfg(feature = "sqlite")]
pub use crate::store::sqlite::{SqliteSettings, SqliteStore};
pub use crate::store::{EventStore, OpenStore, Outcome, StoreError, StoreLayer};
