//! The parts of an event's way that use this process's own time, each alone: reading a file's lines,
//! parsing and validating, the queue of batches, and a whole write to SQLite, new and known events.
//!
//! `cargo bench --bench micro`; a part of a name as an argument chooses; `-- --quick` takes seconds.
#![allow(clippy::panic)]
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::io::Cursor;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use event_persister_actors::batch_queue::{BatchLimits, BatchQueue, Next, Preference};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::credit::Credit;
use event_persister_actors::delivery::{
    Batch, BatchId, Delivery, Entry, Position, Receipt, SourceIndex,
};
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::source::file::{DEFAULT_MAX_LINE_BYTES, FileSource};
use event_persister_actors::source::{EventSource, More, Permit};
use event_persister_actors::store::operator::StoreOperator as _;
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use event_persister_actors::store::{EventStore, Outcome};
use tokio::runtime::Runtime;
use tokio::time::Instant;

#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/generated.rs"]
mod generated;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/load.rs"]
mod load;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/settings.rs"]
mod settings;

/// A full batch, and as many as one read brings.
const BATCH: usize = 1_000;
const CHUNK: usize = 500;

fn events(num: usize) -> Vec<Bytes> {
    let events = load::events(num, SystemClock.now());
    events.into_iter().map(Bytes::from).collect()
}

fn parsed(raw: &Bytes) -> Entry {
    Entry::parse(
        "bench".into(),
        Position::new("1764000000000-0"),
        raw.clone(),
        &EventLimits::default(),
        Received::FromText {
            default: SystemClock.now(),
        },
    )
}

fn batch() -> Arc<Batch> {
    let entries = events(BATCH).into_iter().map(|raw| Arc::new(parsed(&raw)));
    let batch = Batch::new(BatchId(1), entries.collect());
    assert!(batch.entries().iter().all(|entry| entry.event().is_some()));
    Arc::new(batch)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn parse(criterion: &mut Criterion) {
    let events = events(BATCH);
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("1,000 events", |bencher| {
        bencher.iter(|| {
            events
                .iter()
                .map(parsed)
                .for_each(|entry| drop(black_box(entry)))
        });
    });
    group.bench_function("1,000 that are cut off", |bencher| {
        let cut: Vec<Bytes> = events
            .iter()
            .map(|raw| raw.slice(..raw.len() - 1))
            .collect();
        bencher.iter(|| {
            cut.iter()
                .map(parsed)
                .for_each(|entry| drop(black_box(entry)))
        });
    });
    group.finish();
}

fn file(criterion: &mut Criterion) {
    let mut lines = events(BATCH).join(&b'\n');
    lines.push(b'\n');
    let runtime = runtime();
    let mut group = criterion.benchmark_group("file");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("read and acknowledge 1,000 lines", |bencher| {
        bencher.iter_batched(
            || Box::new(Cursor::new(lines.clone())),
            |reader| runtime.block_on(read_all(reader)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

async fn read_all(reader: Box<Cursor<Vec<u8>>>) {
    let source = FileSource::new(reader, "events.jsonl", DEFAULT_MAX_LINE_BYTES).unwrap();
    let permit = Permit {
        max_messages: CHUNK,
        max_bytes: 8 << 20,
    };
    let mut num_lines = 0;
    loop {
        let chunk = source.read(permit).await.unwrap();
        let receipts: Vec<Receipt> = chunk.messages.iter().map(|line| line.receipt).collect();
        source.acknowledge(&receipts).await.unwrap();
        num_lines += receipts.len();
        if chunk.more == More::Ended {
            break;
        }
    }
    assert_eq!(num_lines, BATCH);
}

/// The batcher's state, without its actor: chunks in, batches out, and the credit for them.
fn queue(criterion: &mut Criterion) {
    let batch = batch();
    let (source, now) = (SourceIndex(0), Instant::now());
    let deliveries: Vec<Delivery> = (0..)
        .zip(batch.entries())
        .map(|(number, entry)| Delivery {
            source,
            receipt: Receipt(number),
            came: now,
            entry: Arc::clone(entry),
        })
        .collect();
    let limits = BatchLimits {
        max_events: NonZeroUsize::new(BATCH).unwrap(),
        max_bytes: NonZeroUsize::new(64 << 20).unwrap(),
        linger: Duration::from_millis(5),
        max_age: Duration::from_secs(1),
    };
    let largest = Permit {
        max_messages: CHUNK,
        max_bytes: 8 << 20,
    };
    let chunks = || deliveries.chunks(CHUNK).map(<[_]>::to_vec).collect();
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("accumulate and hand out 1,000 entries", |bencher| {
        let mut queue = BatchQueue::new(limits);
        let mut credit = Credit::new(4 * BATCH, 64 << 20, largest, 1);
        bencher.iter_batched(
            chunks,
            |chunks: Vec<Vec<Delivery>>| {
                for chunk in chunks {
                    let num_bytes = chunk.iter().map(|delivery| delivery.entry.num_bytes());
                    credit.grant(source).unwrap();
                    credit.spend(source, chunk.len(), num_bytes.sum());
                    queue.push(chunk, true, now);
                }
                let Next::Write(held, _) = queue.next(now, Preference::default()) else {
                    unreachable!("a full batch is handed out");
                };
                credit.give_back(held.batch.len(), held.batch.num_bytes());
                held
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn sqlite(criterion: &mut Criterion) {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings::new(folder.path().join("events.db"));
    let store = SqliteStore::new(settings, Arc::new(SystemClock));
    runtime.block_on(store.migrate()).unwrap();
    let write = |batch: Arc<Batch>, expected: Outcome| {
        let outcomes = runtime.block_on(store.write(batch)).unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == expected));
    };
    let mut group = criterion.benchmark_group("sqlite");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.sample_size(20);
    group.bench_function("write 1,000 new events", |bencher| {
        bencher.iter_batched(
            batch,
            |batch| write(batch, Outcome::Stored),
            BatchSize::PerIteration,
        );
    });
    // All but the rows themselves: their texts, the statements, and a look into the index.
    group.bench_function("write 1,000 events that are there", |bencher| {
        let batch = batch();
        write(Arc::clone(&batch), Outcome::Stored);
        bencher.iter(|| write(Arc::clone(&batch), Outcome::Duplicate));
    });
    group.finish();
}

criterion_group!(benches, parse, file, queue, sqlite);
criterion_main!(benches);
