//! What the pipeline says about itself: states and last errors of its parts, kept by the parts and
//! read by whoever wants to know.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::metrics::LedgerCounts;

/// How one part of the pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not heard of yet.
    Starting,
    /// Its last attempt succeeded.
    Ok,
    /// Its last attempt failed; it keeps trying.
    Failing,
    /// It has come to its end or was drained.
    Ended,
}

/// One part: a source, the store, the trimmer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentStatus {
    /// Its name, such as `source.http` or `store`.
    pub name: String,
    /// How it is doing.
    pub state: State,
    /// The last error, whole chain, even when it is over.
    pub last_error: Option<String>,
    /// When that error happened.
    pub last_error_at: Option<DateTime<Utc>>,
    /// Failures since the last success.
    pub num_failures: u64,
}

/// The whole pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStatus {
    /// Everything is started and works: events that are sent now will be stored.
    pub ready: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// How many times the pipeline was started whole; 1 unless a part of it died.
    pub generation: u64,
    /// Whether it is draining or has drained.
    pub draining: bool,
    /// Sources, store, trimmer.
    pub components: Vec<ComponentStatus>,
    /// What somebody should look at although events are stored; each begins with the part's name.
    pub warnings: Vec<String>,
    /// Every message, accounted for.
    pub ledger: LedgerCounts,
    /// How long the oldest message that is not durable has been held.
    #[serde(serialize_with = "as_seconds")]
    pub oldest_unflushed: Option<Duration>,
}

fn as_seconds<S: serde::Serializer>(
    age: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs_f64()).serialize(serializer)
}

/// One part's own entry: it writes, others read.
#[derive(Debug, Clone)]
pub struct Component(Arc<Mutex<ComponentStatus>>);

impl Component {
    /// A part that has not been heard of yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Mutex::new(ComponentStatus {
            name: name.into(),
            state: State::Starting,
            last_error: None,
            last_error_at: None,
            num_failures: 0,
        })))
    }

    /// Notes that it has begun its work; a failure stays noted until something succeeds.
    pub fn started(&self) {
        self.with(|status| {
            if status.state == State::Starting {
                status.state = State::Ok;
            }
        });
    }

    /// Notes a success; returns how many failures in a row it ends, if any.
    pub fn succeeded(&self) -> Option<NonZeroU64> {
        self.with(|status| {
            status.state = State::Ok;
            NonZeroU64::new(std::mem::take(&mut status.num_failures))
        })
    }

    /// Notes a failure; returns whether it is the first after a success.
    pub fn failed(&self, error: String, at: DateTime<Utc>) -> bool {
        self.with(|status| {
            status.last_error = Some(error);
            status.last_error_at = Some(at);
            status.num_failures += 1;
            std::mem::replace(&mut status.state, State::Failing) != State::Failing
        })
    }

    /// Notes the end.
    pub fn ended(&self) {
        self.with(|status| status.state = State::Ended);
    }

    /// As it is now.
    pub fn snapshot(&self) -> ComponentStatus {
        self.with(|status| status.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut ComponentStatus) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An error and all that lies beneath it, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
