//! A shop: an actix system of its own that has the pipeline for a part.
//!
//! Events come from other programs (`POST /api/events`), from the shop itself, and from files that are moved
//! into a folder, one event each. The shop hears of each event that is stored. Ctrl-C drains the pipeline.
//!
//! ```sh
//! cargo run -p event-persister-actors --features http,sqlite --example embedded
//! cargo test -p event-persister-actors --features http,sqlite --example embedded
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::future::ready;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use actix::prelude::*;
use actix_web::{App, HttpServer};
use chrono::{DateTime, Utc};
use event_persister_actors::LocalBoxFuture;
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::delivery::{Batch, Entry, Position, Receipt};
use event_persister_actors::event::{EventLimits, ParseError, ReceivedEvent, Resource};
use event_persister_actors::health::HealthRoutes;
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

/// A source of its own: small files `NUMBER.json` with rising numbers, deleted once their events are durable.
struct Spool {
    folder: PathBuf,
    /// The number that was handed out last, and the highest one before the last rewind.
    last: Mutex<(u64, u64)>,
}

impl Spool {
    fn take(&self, max_messages: usize) -> io::Result<Vec<Message>> {
        let files = fs::read_dir(&self.folder)?.collect::<io::Result<Vec<_>>>()?;
        let names = files
            .iter()
            .filter_map(|file| file.file_name().into_string().ok());
        let numbers = names.filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers: Vec<u64> = numbers.filter(|number| *number > last.0).collect();
        numbers.sort_unstable();
        let of_number = |&number: &u64| {
            let body = Body::Raw {
                position: Position::new(number.to_string()),
                data: fs::read(self.path(number))?.into(),
            };
            Ok(Message {
                receipt: Receipt(number),
                redelivered: number <= last.1,
                body,
            })
        };
        let messages = numbers.iter().take(max_messages).map(of_number);
        let messages = messages.collect::<io::Result<Vec<_>>>()?;
        last.0 = messages.last().map_or(last.0, |message| message.receipt.0);
        Ok(messages)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }
}

impl EventSource for Spool {
    fn name(&self) -> &str {
        "spool"
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            loop {
                let taken = self.take(permit.max_messages);
                let messages =
                    taken.map_err(|error| SourceError::unavailable("no spool", error))?;
                let is_cut = messages.len() == permit.max_messages;
                let more = if is_cut { More::Ready } else { More::Later };
                if !messages.is_empty() {
                    return Ok(Chunk { messages, more });
                }
                actix::clock::sleep(Duration::from_secs(1)).await;
            }
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

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(ready(Ok(())))
    }
}

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;
type Tell = Arc<dyn Fn(&ReceivedEvent) + Send + Sync>;

/// A store of its own: another one, and the shop hears of each event that it stored.
struct Telling(Arc<dyn EventStore>, Tell);

impl EventStore for Telling {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move {
            let outcomes = self.0.write(Arc::clone(&batch)).await?;
            let stored = batch.entries().iter().zip(&outcomes);
            let stored = stored.filter(|(_, outcome)| **outcome == Outcome::Stored);
            stored
                .filter_map(|(entry, _)| entry.event())
                .for_each(|event| (self.1)(event));
            Ok(outcomes)
        })
    }

    // All the rest is passed on, the methods with a default too.

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        self.0.rehearse(batch)
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        self.0.trim(cutoffs, max)
    }

    fn contention(&self) -> Contention {
        self.0.contention()
    }

    fn last_pass(&self, before: DateTime<Utc>) -> LocalBoxFuture<'_, Result<LastPass, StoreError>> {
        self.0.last_pass(before)
    }

    fn note_pass(&self, at: DateTime<Utc>) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.0.note_pass(at)
    }

    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, Result<EventCounts, StoreError>> {
        self.0.count_events(cutoffs, until)
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.0.check()
    }

    fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    fn place(&self) -> Option<String> {
        self.0.place()
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.0.close()
    }
}

/// An event of the shop itself.
fn order_placed(number: u32, customer: &str) -> Result<ReceivedEvent, ParseError> {
    ReceivedEvent::builder("order.placed", Resource::new(&format!("order.{number}")))
        .related(Resource::new(customer).with_role("customer"))
        .build(&EventLimits::default(), SystemClock.now())
}

async fn send(intake: &Intake, event: ReceivedEvent) -> Result<()> {
    let entry = Entry::of_event(Arc::clone(intake.name()), event);
    // `SubmitError::Full` would be back-pressure: send it again later.
    intake.submit(vec![entry])?.await?;
    Ok(()) // It is durable.
}

type Pipeline = Addr<PipelineActor>;

fn start(
    settings: PipelineSettings,
    folder: &Path,
    open: OpenStore,
    tell: Tell,
) -> Result<(Pipeline, Intake)> {
    let (source, intake) = IntakeSource::new("shop", IntakeSettings::default());
    let spool = Spool {
        folder: folder.to_owned(),
        last: Mutex::default(),
    };
    let parts = PipelineParts {
        sources: vec![source, Arc::new(spool)],
        open_store: Arc::new(move || Arc::new(Telling(open(), Arc::clone(&tell)))),
        event_limits: EventLimits::default(),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new()?, // `register` shows them in a registry of the shop.
    };
    let actor = PipelineActor::new(settings, parts);
    Ok((Supervisor::start(|_| actor), intake))
}

async fn drain(pipeline: &Pipeline, intake: &Intake) -> Result<u64> {
    intake.stop_accepting();
    let timeout = Duration::from_secs(30);
    Ok(pipeline.send(Drain { timeout }).await?.released)
}

#[actix_rt::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = Arc::new(SystemClock);
    let file = SqliteSettings::new(folder.path().join("shop.db"));
    let open = SqliteStore::open_store(file, clock.clone());
    let tell: Tell = Arc::new(|event| println!("stored: {} {}", event.event, event.resource.id()));
    // The shop keeps its events for ever; by default they are deleted after a week.
    let settings = PipelineSettings {
        trim: None,
        retention: None,
        ..Default::default()
    };
    let (pipeline, intake) = start(settings, folder.path(), open, tell)?;

    let events = EventRoutes::new(
        intake.clone(),
        HttpSettings::default(),
        EventLimits::default(),
        clock,
    );
    let health = HealthRoutes::new(pipeline.clone());
    let app = move || {
        App::new()
            .configure(|app| events.configure(app))
            .configure(|app| health.configure(app))
    };
    let server = HttpServer::new(app).workers(1).disable_signals();
    let server = server.bind(("127.0.0.1", 0))?;
    println!("{:?}, {}", server.addrs(), folder.path().display());
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);

    send(&intake, order_placed(17, "customer-7")?).await?;
    actix_rt::signal::ctrl_c().await?;
    // The server last: a client that waits for its commit hears of it.
    let released = drain(&pipeline, &intake).await?;
    handle.stop(true).await;
    println!("drained, {released} messages left undone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use event_persister_actors::pipeline::Placement;
    use event_persister_actors::testing::{MemoryStore, event, json_of};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;

    /// The shop with a store in memory, and a file in its spool. Paused time skips what is waited for.
    fn shop(store: &MemoryStore) -> (Pipeline, Intake, TempDir) {
        tokio::time::pause();
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("1.json"),
            json_of(&event(Uuid::new_v4())),
        )
        .unwrap();
        let settings = PipelineSettings {
            placement: Placement::SameArbiter,
            ..Default::default()
        };
        let tell: Tell = Arc::new(|_| ());
        let (pipeline, intake) = start(settings, folder.path(), store.open_store(), tell).unwrap();
        (pipeline, intake, folder)
    }

    fn num_files(folder: &TempDir) -> usize {
        fs::read_dir(folder.path()).unwrap().count()
    }

    #[actix_rt::test]
    async fn a_failed_write_is_tried_again_and_nothing_is_acknowledged_before() {
        let store = MemoryStore::new();
        store.fail_next(1);
        let (pipeline, intake, folder) = shop(&store);
        store.wait_for_write_started().await; // The one that fails.
        store.hold();
        store.wait_for_write_started().await; // The next one, which waits.
        assert_eq!((store.num_events(), num_files(&folder)), (0, 1));

        store.release();
        drain(&pipeline, &intake).await.unwrap();
        assert_eq!((store.num_events(), num_files(&folder)), (1, 0));
    }

    #[actix_rt::test]
    async fn an_order_arrives() {
        let store = MemoryStore::new();
        let (_pipeline, intake, _folder) = shop(&store);
        let order = order_placed(17, "customer-7").unwrap();
        send(&intake, order.clone()).await.unwrap();
        assert_eq!(store.event(order.id).unwrap().event, order);
    }

    #[actix_rt::test]
    async fn a_drain_acknowledges_everything() {
        let store = MemoryStore::new();
        store.hold();
        let (pipeline, intake, folder) = shop(&store);
        store.wait_for_write_started().await; // The file is in it.
        let sent = send(&intake, order_placed(17, "customer-7").unwrap());
        let drained = async {
            store.release();
            let released = drain(&pipeline, &intake).await.unwrap();
            (released, store.num_events(), num_files(&folder))
        };
        let (sent, drained) = tokio::join!(sent, drained);
        sent.unwrap();
        assert_eq!(drained, (0, 2, 0));
    }
}
