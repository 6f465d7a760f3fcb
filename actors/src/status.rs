//! The pipeline's status: states and last errors of its parts. The parts write it, and anybody may read
//! it.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;

use crate::lock::lock;
use crate::metrics::{LedgerCounts, PassOutcome};
use crate::store::Trimmed;

/// How one part of the pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    /// It has neither succeeded nor failed yet.
    Starting,
    /// Its last attempt succeeded, or it has begun without one.
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
    /// Whether its last attempt succeeded.
    pub state: ComponentState,
    /// The last error, whole chain, even when it is over.
    pub last_error: Option<String>,
    /// The time of that error by the pipeline's clock.
    pub last_error_at: Option<DateTime<Utc>>,
    /// Failures since the last success.
    pub num_failures: u64,
}

/// The reply to [`Status`](crate::messages::Status); as JSON it is the body of `/api/ready`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStatus {
    /// Everything is started and works: events that are sent now will be stored.
    pub ready: bool,
    /// The first cause, where the pipeline is not ready.
    pub reason: Option<String>,
    /// How many times the pipeline was started whole; 1 unless a part of it died.
    pub generation: u64,
    /// Whether it is draining or has drained.
    pub draining: bool,
    /// Each source, the store, and the trimmer where there is one.
    pub components: Vec<ComponentStatus>,
    /// The event that is held up although others are stored, and why. Events that are sent now will be
    /// stored all the same.
    pub degraded: Option<String>,
    /// Problems to look at although events are stored; each begins with the part's name.
    pub warnings: Vec<String>,
    /// What became of every message so far.
    pub ledger: LedgerCounts,
    /// How long the oldest message that is not durable has been held.
    #[serde(serialize_with = "as_seconds")]
    pub oldest_unflushed: Option<Duration>,
    /// What retention does; not part of `/api/ready`.
    #[serde(skip)]
    pub retention: RetentionStatus,
}

/// The passes of retention.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionStatus {
    /// When the next pass begins by itself; `None` where none will, and while one is under way.
    pub next_pass: Option<DateTime<Utc>>,
    /// The pass that ended last.
    pub last_pass: Option<Pass>,
}

/// A retention pass that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// When it began.
    pub began: DateTime<Utc>,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: PassOutcome,
    /// The rows that it removed, also where it failed.
    pub removed: Trimmed,
}

/// The entry of retention: the trimmer writes it, and the pipeline's status reads it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passes(Arc<Mutex<RetentionStatus>>);

impl Passes {
    pub(crate) fn plan(&self, next_pass: Option<DateTime<Utc>>) {
        lock(&self.0).next_pass = next_pass;
    }

    pub(crate) fn ended(&self, pass: Pass) {
        lock(&self.0).last_pass = Some(pass);
    }

    pub(crate) fn get(&self) -> RetentionStatus {
        lock(&self.0).clone()
    }
}

fn as_seconds<S: serde::Serializer>(
    age: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    age.map(|age| age.as_secs_f64()).serialize(serializer)
}

/// The oldest event that is not stored, and why, where it has failed. The batcher writes it, and the
/// pipeline's status reads it.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeldUp(Arc<Mutex<Option<String>>>);

impl HeldUp {
    pub(crate) fn set(&self, what: Option<String>) {
        *lock(&self.0) = what;
    }

    pub(crate) fn get(&self) -> Option<String> {
        lock(&self.0).clone()
    }
}

/// How long failures must have stopped before they count as over. Shorter tells of each time that
/// something comes and goes, longer keeps the good news back.
const CALM: Duration = Duration::from_secs(10);

/// Failures that are told of once, at their beginning and at their end, however often something succeeds
/// between them.
#[derive(Debug, Default)]
struct Trouble {
    num_failures: u64,
    calm_since: Option<Instant>,
}

/// One part's own entry: it writes, others read.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct Component(Arc<Mutex<Noted>>);

#[derive(Debug)]
struct Noted {
    status: ComponentStatus,
    trouble: Option<Trouble>,
}

impl Component {
    /// A part that has not been heard of yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Mutex::new(Noted {
            status: ComponentStatus {
                name: name.into(),
                state: ComponentState::Starting,
                last_error: None,
                last_error_at: None,
                num_failures: 0,
            },
            trouble: None,
        })))
    }

    /// Notes that it has begun its work; a failure stays noted until something succeeds.
    pub fn started(&self) {
        self.with(|noted| {
            if noted.status.state == ComponentState::Starting {
                noted.status.state = ComponentState::Ok;
            }
        });
    }

    /// Notes a success. Returns how many failures are over, once there was none for a while.
    pub fn succeeded(&self) -> Option<NonZeroU64> {
        self.with(|noted| {
            noted.status.state = ComponentState::Ok;
            noted.status.num_failures = 0;
            let trouble = noted.trouble.as_mut()?;
            let calm_since = *trouble.calm_since.get_or_insert_with(Instant::now);
            if calm_since.elapsed() < CALM {
                return None;
            }
            NonZeroU64::new(noted.trouble.take()?.num_failures)
        })
    }

    /// Notes a failure; returns whether it is the first after there was none for a while.
    pub fn failed(&self, error: String, at: DateTime<Utc>) -> bool {
        self.with(|noted| {
            noted.status.last_error = Some(error);
            noted.status.last_error_at = Some(at);
            noted.status.num_failures += 1;
            noted.status.state = ComponentState::Failing;
            let is_first = noted.trouble.is_none();
            let trouble = noted.trouble.get_or_insert_default();
            trouble.num_failures += 1;
            trouble.calm_since = None;
            is_first
        })
    }

    /// Nothing more is to come: how many failures are over, if the last attempt succeeded.
    pub fn closes(&self) -> Option<NonZeroU64> {
        self.with(|noted| {
            let is_over = noted.status.state == ComponentState::Ok;
            let trouble = noted.trouble.take_if(|_| is_over)?;
            NonZeroU64::new(trouble.num_failures)
        })
    }

    pub fn ended(&self) {
        self.with(|noted| noted.status.state = ComponentState::Ended);
    }

    pub fn snapshot(&self) -> ComponentStatus {
        self.with(|noted| noted.status.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Noted) -> T) -> T {
        f(&mut lock(&self.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn trouble_that_comes_and_goes_is_told_at_its_beginning_and_at_its_end() {
        tokio::time::pause();
        let part = Component::new("store");
        let failed = || part.failed("away".to_owned(), DateTime::UNIX_EPOCH);
        let mut told = (0, 0);
        for _ in 0..30 {
            told.0 += u32::from(failed());
            tokio::time::advance(Duration::from_secs(1)).await;
            told.1 += u32::from(part.succeeded().is_some());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(told, (1, 0));
        assert_eq!(
            part.snapshot().state,
            ComponentState::Ok,
            "it shows at once"
        );
        assert_eq!(part.succeeded(), None);
        tokio::time::advance(CALM).await;
        assert_eq!(part.succeeded(), NonZeroU64::new(30));
        assert_eq!(part.succeeded(), None, "once");
        assert!(failed(), "the next trouble is another one");
        assert_eq!(part.closes(), None, "it ends in the midst of it");
        assert_eq!(part.succeeded(), None);
        assert_eq!(
            part.closes(),
            NonZeroU64::new(1),
            "the end leaves no time to wait"
        );
    }
}
