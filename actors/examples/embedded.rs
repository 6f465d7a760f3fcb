//! A host actix system that has the pipeline for a part.
//!
//! The host mounts the event and health routes in its own actix-web app, stores events in an SQLite
//! file, sends events of its own, and drains the pipeline at the end:
//!
//! ```sh
//! cargo run -p event-persister-actors --features http,sqlite --example embedded
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_web::{App, HttpServer};
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::delivery::Entry;
use event_persister_actors::event::{EventLimits, ReceivedEvent, Resource};
use event_persister_actors::health::HealthRoutes;
use event_persister_actors::messages::{Drain, Status};
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::source::http::{EventRoutes, HttpSettings};
use event_persister_actors::source::intake::{Intake, IntakeSettings, IntakeSource};
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[actix_rt::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("events.db");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let limits = EventLimits::default();

    // The parts: where events come from, where they go, and the numbers of the pipeline.
    let (source, intake) = IntakeSource::new("host", IntakeSettings::default());
    let metrics = Metrics::new()?;
    let registry = prometheus::Registry::new();
    metrics.register(&registry)?;
    let parts = PipelineParts {
        sources: vec![source],
        open_store: SqliteStore::open_store(SqliteSettings::new(&file), Arc::clone(&clock)),
        event_limits: limits.clone(),
        clock: Arc::clone(&clock),
        metrics,
    };

    // The host's supervisor keeps the pipeline going; all of it is one address to the host.
    let actor = PipelineActor::new(PipelineSettings::default(), parts);
    let pipeline = Supervisor::start(|_| actor);

    // POST /api/events, WS /api/events/in, GET /api/health and GET /api/ready.
    let events = EventRoutes::new(intake.clone(), HttpSettings::default(), limits, clock);
    let health = HealthRoutes::new(pipeline.clone());
    let server = HttpServer::new(move || {
        App::new()
            .configure(|app| events.configure(app))
            .configure(|app| health.configure(app))
    });
    let server = server.workers(1).bind(("127.0.0.1", 0))?;
    println!("listening on {:?}", server.addrs());
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);

    // The host's own events take the same way.
    send_orders(&intake, 100).await?;
    let status = pipeline.send(Status).await?;
    println!("100 events are durable: {}", status.ledger);
    if !status.ledger.balances() || status.ledger.stored != 100 {
        return Err("a message is unaccounted for".into());
    }

    // At the end nothing more comes in, and what is held becomes durable.
    intake.stop_accepting();
    let timeout = Duration::from_secs(10);
    let drained = pipeline.send(Drain { timeout }).await?;
    handle.stop(true).await;
    println!("drained, {} messages left undone", drained.released);
    Ok(())
}

/// Sends events, and waits until they are durable.
async fn send_orders(intake: &Intake, num_orders: usize) -> Result<()> {
    let mut entries = Vec::new();
    for number in 0..num_orders {
        let event = ReceivedEvent::builder(
            "order.paid",
            Resource::new(&format!("order-{number}")).with_label("shop", "berlin"),
        )
        .related(Resource::new("customer-7").with_role("customer"))
        .payload(json!({ "items": number }))
        .build(&EventLimits::default(), SystemClock.now())?;
        entries.push(Entry::of_event(Arc::clone(intake.name()), event));
    }
    // `SubmitError::Full` would be back-pressure: send them again later. The commit is the
    // acknowledgement.
    intake.submit(entries)?.await?;
    Ok(())
}
