//! A shop: an actix system of its own that has the pipeline for a part.
//!
//! Events come from other programs (`POST /api/events`), from the shop itself, and from files `NUMBER.json` in a
//! folder. The shop hears of each event that is stored. Ctrl-C drains the pipeline.
//!
//! ```sh
//! cargo run -p event-persister-actors --features http,sqlite --example embedded
//! cargo test -p event-persister-actors --features http,sqlite --example embedded
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io, time::Duration};

use actix::prelude::*;
use actix_web::{App, HttpServer};
use event_persister_actors::LocalBoxFuture;
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::delivery::{Batch, Entry, Position, Receipt};
use event_persister_actors::event::{EventLimits, ReceivedEvent, Resource};
use event_persister_actors::messages::Drain;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::source::http::{EventRoutes, HttpSettings};
use event_persister_actors::source::intake::{Intake, IntakeSettings, IntakeSource};
use event_persister_actors::source::{
    Body, Chunk, EventSource, Message, More, Permit, SourceError,
};
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use event_persister_actors::store::*;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A source of its own: files with rising numbers, which are deleted once their events are durable.
struct Spool {
    folder: PathBuf,
    /// The number that was handed out last, and the highest one before the last rewind.
    last: Mutex<(u64, u64)>,
}

impl Spool {
    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }

    fn take(&self, max_messages: usize) -> io::Result<Vec<Message>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let files = fs::read_dir(&self.folder)?.filter_map(io::Result::ok);
        let number = |file: fs::DirEntry| file.path().file_stem()?.to_str()?.parse().ok();
        let mut numbers: Vec<u64> = files.filter_map(number).filter(|n| *n > last.0).collect();
        numbers.sort_unstable();
        numbers.truncate(max_messages);
        let mut messages = Vec::new();
        for number in numbers {
            let position = Position::new(number.to_string());
            let data = fs::read(self.path(number))?.into();
            messages.push(Message {
                receipt: Receipt(number),
                redelivered: number <= last.1,
                body: Body::Raw { position, data },
            });
            last.0 = number;
        }
        Ok(messages)
    }
}

impl EventSource for Spool {
    fn name(&self) -> &str {
        "spool"
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            let taken = self.take(permit.max_messages);
            let messages = taken.map_err(|error| SourceError::unavailable("no spool", error))?;
            if messages.is_empty() {
                actix::clock::sleep(Duration::from_secs(1)).await;
            }
            let more = More::Later;
            Ok(Chunk { messages, more })
        })
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        let paths = receipts.iter().map(|receipt| self.path(receipt.0));
        let deleted = paths
            .filter(|path| path.exists())
            .try_for_each(fs::remove_file);
        Box::pin(ready(deleted.map_err(|error| {
            SourceError::unavailable("a file stays", error)
        })))
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (0, last.0.max(last.1));
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
    let entry = Entry::of_event(Arc::clone(intake.name()), event);
    // `SubmitError::Full` would be back-pressure: send it again later.
    intake.submit(vec![entry])?.await?;
    Ok(())
}

fn start(
    settings: PipelineSettings,
    folder: &Path,
    open: OpenStore,
) -> Result<(Addr<PipelineActor>, Intake)> {
    let (source, intake) = IntakeSource::new("shop", IntakeSettings::default());
    let spool = Spool {
        folder: folder.to_owned(),
        last: Mutex::default(),
    };
    let parts = PipelineParts {
        sources: vec![source, Arc::new(spool)],
        open_store: Arc::new(move || Arc::new(Telling(open()))),
        event_limits: EventLimits::default(),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new()?, // `register` shows them in a registry of the shop.
    };
    let actor = PipelineActor::new(settings, parts);
    Ok((Supervisor::start(|_| actor), intake))
}

#[actix_rt::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = Arc::new(SystemClock);
    let database = SqliteSettings::new(folder.path().join("shop.db"));
    let open = SqliteStore::open_store(database, clock.clone());
    // The shop keeps its events for ever; by default they are deleted after a week.
    let settings = PipelineSettings {
        trim: None,
        retention: None,
        ..Default::default()
    };
    let (pipeline, intake) = start(settings, folder.path(), open)?;

    let (http, limits) = (HttpSettings::default(), EventLimits::default());
    let events = EventRoutes::new(intake.clone(), http, limits, clock);
    let app = move || App::new().configure(|app| events.configure(app));
    let server = HttpServer::new(app).workers(1).disable_signals();
    let server = server.bind(("127.0.0.1", 0))?;
    println!("{:?}, {}", server.addrs(), folder.path().display());
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
    use event_persister_actors::pipeline::Placement;
    use event_persister_actors::testing::{MemoryStore, event, json_of};
    use uuid::Uuid;

    use super::*;

    /// The shop over this store, with one file in its spool. Paused time skips what is waited for.
    fn shop(store: &MemoryStore) -> (Addr<PipelineActor>, Intake, tempfile::TempDir) {
        tokio::time::pause();
        let folder = tempfile::tempdir().unwrap();
        let event = json_of(&event(Uuid::new_v4()));
        fs::write(folder.path().join("1.json"), event).unwrap();
        let settings = PipelineSettings {
            placement: Placement::SameArbiter,
            ..Default::default()
        };
        let (pipeline, intake) = start(settings, folder.path(), store.open_store()).unwrap();
        (pipeline, intake, folder)
    }

    fn num_files(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path()).unwrap().count()
    }

    #[actix_rt::test]
    async fn a_file_goes_once_its_event_is_stored_and_not_before() {
        let store = MemoryStore::new();
        store.fail_next(1);
        let (pipeline, _intake, folder) = shop(&store);
        store.wait_for_write_started().await; // The one that fails.
        store.hold();
        store.wait_for_write_started().await; // The next one, which waits.
        assert_eq!((store.num_events(), num_files(&folder)), (0, 1));
        store.release();
        pipeline.send(Drain::default()).await.unwrap();
        assert_eq!((store.num_events(), num_files(&folder)), (1, 0));
    }

    #[actix_rt::test]
    async fn an_order_is_stored() {
        let store = MemoryStore::new();
        let (_pipeline, intake, _folder) = shop(&store);
        place_order(&intake, 17).await.unwrap();
        let events = store.events();
        let mut names = events.values().map(|stored| &*stored.event.event);
        assert!(names.any(|name| name == "order.placed"));
    }

    #[actix_rt::test]
    async fn a_drain_writes_what_was_read() {
        let store = MemoryStore::new();
        store.hold();
        let (pipeline, _intake, folder) = shop(&store);
        store.wait_for_write_started().await;
        store.release();
        let drained = pipeline.send(Drain::default()).await.unwrap();
        assert_eq!((drained.released, num_files(&folder)), (0, 0));
    }
}
