//! A shop: an actix system of its own that has the pipeline for a part.
//!
//! Events come from other programs (`POST /api/events`), from the shop itself, and from its outbox. The shop hears of
//! each event that is stored. Ctrl-C drains the pipeline.
//!
//! ```sh
//! cargo run -p event-persister-actors --features http,sqlite --example embedded
//! cargo test -p event-persister-actors --features http,sqlite --example embedded
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it does")]
#![allow(clippy::unwrap_used, reason = "nothing panics while it holds a lock")]

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Addr, Supervisor};
use actix_web::{App, HttpServer};
use event_persister_actors::prelude::*;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A source of its own: the texts of events, each kept until its event is durable. In a real shop this is a table, to
/// which it adds in the transaction of the order.
#[derive(Default)]
struct Outbox(Mutex<Retained<Body>>);

impl EventSource for Outbox {
    fn name(&self) -> &str {
        "outbox"
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        let next = self.0.lock().unwrap().hand_out(permit, More::Later);
        Box::pin(async move {
            if next.is_none() {
                actix::clock::sleep(Duration::from_millis(100)).await;
            }
            Ok(next.unwrap_or_default())
        })
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        self.0.lock().unwrap().acknowledge_all(receipts);
        Box::pin(ready(Ok(())))
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        self.0.lock().unwrap().rewind();
        Box::pin(ready(Ok(())))
    }
}

/// A store of its own: a layer over another one, from which the shop hears of each event that was stored.
struct Telling(Arc<dyn EventStore>);

impl StoreLayer for Telling {
    fn below(&self) -> &dyn EventStore {
        &*self.0
    }

    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move {
            let outcomes = self.0.write(Arc::clone(&batch)).await?;
            for (entry, outcome) in batch.entries().iter().zip(&outcomes) {
                if let (Some(event), Outcome::Stored) = (entry.event(), outcome) {
                    println!("stored: {} {}", event.event, event.resource.id());
                }
            }
            Ok(outcomes)
        })
    }
}

/// An event of the shop itself; it returns once the event is durable.
async fn place_order(intake: &Intake, number: u32) -> Result<()> {
    let event = ReceivedEvent::builder("order.placed", Resource::new(&format!("order.{number}")))
        .related(Resource::new("customer-7").with_role("customer"))
        .build(&EventLimits::default(), SystemClock.now())?;
    // `SubmitError::Full` would be back-pressure: send it again later.
    intake.submit_event(event)?.await?;
    Ok(())
}

fn start(
    settings: PipelineSettings,
    outbox: Arc<Outbox>,
    open: OpenStore,
) -> Result<(Addr<PipelineActor>, Intake)> {
    let (source, intake) = IntakeSource::new("shop", IntakeSettings::default());
    let open_store: OpenStore = Arc::new(move || Arc::new(Telling(open())));
    let parts = PipelineParts::new(vec![source, outbox], open_store)?;
    let pipeline = Supervisor::start(|_| PipelineActor::new(settings, parts));
    Ok((pipeline, intake))
}

#[actix_rt::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = Arc::new(SystemClock);
    let database = SqliteSettings::new(folder.path().join("shop.db"));
    let open = SqliteStore::open_store(database, clock.clone());
    // The shop keeps its events for ever; by default they are deleted after a week.
    let settings = PipelineSettings::default().without_retention();
    let (pipeline, intake) = start(settings, Arc::default(), open)?;

    let (http, limits) = (HttpSettings::default(), EventLimits::default());
    let events = EventRoutes::new(intake.clone(), http, limits, clock);
    let app = move || App::new().configure(|app| events.configure(app));
    let server = HttpServer::new(app).workers(1).disable_signals();
    let server = server.bind(("127.0.0.1", 0))?;
    println!("POST /api/events at {:?}", server.addrs());
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);

    place_order(&intake, 17).await?;
    actix_rt::signal::ctrl_c().await?;
    intake.stop_accepting();
    let drained = pipeline.send(Drain::default()).await?;
    handle.stop(true).await; // The server last: a client that waits for its commit hears of it.
    println!("drained, {} messages left undone", drained.released);
    Ok(())
}

#[cfg(test)]
mod tests {
    use event_persister_actors::testing::{MemoryStore, event, json_of};

    use super::*;

    /// The shop over this store, with an event in its outbox. Paused time skips what is waited for.
    fn shop(store: &MemoryStore) -> (Addr<PipelineActor>, Intake, Arc<Outbox>) {
        tokio::time::pause();
        let outbox = Arc::new(Outbox::default());
        let text = Body::raw("row 1", json_of(&event(uuid::Uuid::new_v4())));
        outbox.0.lock().unwrap().push(text);
        let settings = PipelineSettings::default().on_one_thread();
        let (pipeline, intake) = start(settings, outbox.clone(), store.open_store()).unwrap();
        (pipeline, intake, outbox)
    }

    /// How many events are stored, and how many texts wait.
    fn counts(store: &MemoryStore, outbox: &Outbox) -> (usize, usize) {
        (store.num_events(), outbox.0.lock().unwrap().len())
    }

    #[actix_rt::test]
    async fn a_text_leaves_the_outbox_once_its_event_is_stored_and_not_before() {
        let store = MemoryStore::new();
        store.fail_next(1);
        let (pipeline, _intake, outbox) = shop(&store);
        store.wait_for_write_started().await; // The one that fails.
        store.hold();
        store.wait_for_write_started().await; // The next one, which waits.
        assert_eq!(counts(&store, &outbox), (0, 1));
        store.release();
        pipeline.send(Drain::default()).await.unwrap();
        assert_eq!(counts(&store, &outbox), (1, 0));
    }

    #[actix_rt::test]
    async fn an_order_is_stored() {
        let store = MemoryStore::new();
        let (_pipeline, intake, _outbox) = shop(&store);
        place_order(&intake, 17).await.unwrap();
        let mut stored = store.events().into_values();
        assert!(stored.any(|stored| &*stored.event.event == "order.placed"));
    }

    #[actix_rt::test]
    async fn a_drain_writes_what_was_read() {
        let store = MemoryStore::new();
        store.hold();
        let (pipeline, _intake, outbox) = shop(&store);
        store.wait_for_write_started().await;
        store.release();
        let drained = pipeline.send(Drain::default()).await.unwrap();
        assert_eq!((drained.released, counts(&store, &outbox)), (0, (1, 0)));
    }
}
