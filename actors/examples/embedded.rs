//! A host actix system that has the pipeline for a part.
//!
//! The host sends events through the in-process source, reads the pipeline's status, lives through
//! the death of a writer and of the pipeline itself, and drains it at the end:
//!
//! ```sh
//! cargo run -p event-persister-actors --features sqlite --example embedded
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::prelude::*;
use chrono::{DateTime, Utc};
use event_persister_actors::batch::Batch;
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::delivery::{Entry, Position};
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::messages::{Drain, Retire, Status};
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::source::intake::{Intake, IntakeSettings, IntakeSource};
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use event_persister_actors::store::{
    Contention, Cutoffs, EventCounts, EventStore, LastPass, OpenStore, Outcome, StoreError,
    TrimStep,
};
use futures_util::future::LocalBoxFuture;
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[actix_rt::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("events.db");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let open_sqlite = SqliteStore::open_store(SqliteSettings::new(&file), Arc::clone(&clock));

    // The parts: where events come from, where they go, what counts them.
    let (source, intake) = IntakeSource::new("host", IntakeSettings::default());
    let metrics = Metrics::new()?;
    let registry = prometheus::Registry::new();
    metrics.register(&registry)?;
    let actor = PipelineActor::new(
        PipelineSettings::default(),
        PipelineParts {
            sources: vec![source],
            open_store: whose_first_write_panics(open_sqlite),
            event_limits: EventLimits::default(),
            clock,
            metrics,
        },
    );

    // The host's own supervisor keeps the pipeline going; all of it is one address to the host.
    let pipeline = Supervisor::start(|_| actor);

    // The first write panics: that writer is replaced, and the batch written by another.
    send(&intake, 100).await?;
    println!("100 events are durable, though a writer died");

    // The pipeline itself is stopped, and started again by the supervisor.
    pipeline.send(Retire).await?;
    send(&intake, 100).await?;
    let status = pipeline.send(Status).await?;
    println!(
        "100 more in generation {}: ready {}, {:?}",
        status.generation, status.ready, status.ledger
    );
    if !status.ledger.balances() || status.ledger.stored != 200 {
        return Err("a message is unaccounted for".into());
    }

    // At the end: nothing more in, what is held becomes durable, and whoever waits is told.
    intake.stop_accepting();
    let timeout = Duration::from_secs(10);
    let drained = pipeline.send(Drain { timeout }).await?;
    println!("drained, {} messages left undone", drained.released);
    Ok(())
}

/// Submits events and waits until they are durable.
async fn send(intake: &Intake, count: usize) -> Result<()> {
    let entries = (0..count).map(|number| {
        let id = Uuid::new_v4();
        let text = format!(
            r#"{{
                "id": "{id}",
                "occurred": "2026-11-24T03:00:00Z",
                "event": "order.placed",
                "resource": {{"prefect.resource.id": "order.{number}"}},
                "payload": {{"items": {number}}}
            }}"#
        );
        Entry::parse(
            Arc::clone(intake.name()),
            Position::new(id.to_string()),
            text.into(),
            &EventLimits::default(),
            Received::Now(SystemClock.now()),
        )
    });
    // `Full` would be back-pressure: come again later. The commit is the acknowledgement.
    intake.submit(entries.collect())?.await?;
    Ok(())
}

/// A host's own store around another; this one breaks down once.
struct Breaking {
    inner: Arc<dyn EventStore>,
    broken: Arc<AtomicBool>,
}

fn whose_first_write_panics(open: OpenStore) -> OpenStore {
    let broken = Arc::new(AtomicBool::new(false));
    Arc::new(move || {
        Arc::new(Breaking {
            inner: open(),
            broken: Arc::clone(&broken),
        })
    })
}

impl EventStore for Breaking {
    fn write(
        &self,
        batch: Arc<Batch>,
    ) -> LocalBoxFuture<'_, std::result::Result<Vec<Outcome>, StoreError>> {
        #[allow(clippy::panic, reason = "the fault to live through")]
        if !self.broken.swap(true, Ordering::Relaxed) {
            panic!("this writer dies with {batch:?} in its hands");
        }
        self.inner.write(batch)
    }

    fn rehearse(
        &self,
        batch: Arc<Batch>,
    ) -> LocalBoxFuture<'_, std::result::Result<Vec<Outcome>, StoreError>> {
        self.inner.rehearse(batch)
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, std::result::Result<TrimStep, StoreError>> {
        self.inner.trim(cutoffs, max_events)
    }

    fn prepare(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, ()> {
        self.inner.prepare(batch)
    }

    fn contention(&self) -> Contention {
        self.inner.contention()
    }

    fn last_pass(
        &self,
        before: DateTime<Utc>,
    ) -> LocalBoxFuture<'_, std::result::Result<LastPass, StoreError>> {
        self.inner.last_pass(before)
    }

    fn note_pass(
        &self,
        at: DateTime<Utc>,
    ) -> LocalBoxFuture<'_, std::result::Result<(), StoreError>> {
        self.inner.note_pass(at)
    }

    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, std::result::Result<EventCounts, StoreError>> {
        self.inner.count_events(cutoffs, until)
    }

    fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }

    fn check(&self) -> LocalBoxFuture<'_, std::result::Result<(), StoreError>> {
        self.inner.check()
    }

    fn close(&self) -> LocalBoxFuture<'_, std::result::Result<(), StoreError>> {
        self.inner.close()
    }
}
