//! The Redis source against real servers, mostly with the test in the consumer's place.

use std::collections::BTreeSet;
use std::time::Duration;

use event_persister_actors::delivery::Receipt;
use event_persister_actors::source::redis::{RedisSettings, RedisSource};
use event_persister_actors::source::{Body, EventSource as _, Message, Permit, SourceError};
use tokio::time::{sleep, timeout};

use crate::support::redis::TestStream;
use crate::support::wait::{PATIENCE, in_time, until};

mod clock;
mod entries;
mod guard;
mod keeper;
mod losses;
mod outages;
mod pipeline;
mod positions;
mod primary;
mod publishing;
mod sentinel;
mod sharing;

const WIDE: Permit = Permit {
    max_messages: 1000,
    max_bytes: 8 << 20,
};

const GROUP: &str = "event-persister";
const GUARD: &str = "event-persister-guard";

fn source(settings: RedisSettings) -> RedisSource {
    RedisSource::new(settings).expect("settings that work")
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("message {number}")).collect()
}

fn raw(message: &Message) -> String {
    let bytes = match &message.body {
        Body::Raw { data, .. } => data.to_vec(),
        Body::Entry(entry) => entry.raw().to_vec(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}

fn raws(messages: &[Message]) -> Vec<String> {
    messages.iter().map(raw).collect()
}

fn receipts(messages: &[Message]) -> Vec<Receipt> {
    messages.iter().map(|message| message.receipt).collect()
}

/// Reads, without an end to its patience with the source, until it has that many.
async fn read_num(source: &RedisSource, num: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let reading = async {
        while messages.len() < num {
            match source.read(WIDE).await {
                Ok(chunk) => messages.extend(chunk.messages),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    if timeout(PATIENCE, reading).await.is_err() {
        panic!("{} of {num} came", messages.len());
    }
    messages
}

/// Reads and acknowledges until all of these were seen; returns how many messages that took.
async fn consume_all(source: &RedisSource, wanted: &[String]) -> usize {
    let mut wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    let mut num = 0;
    let consuming = async {
        while !wanted.is_empty() {
            let Ok(chunk) = source.read(WIDE).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            for message in &chunk.messages {
                wanted.remove(raw(message).as_str());
                num += 1;
            }
            acknowledge(source, &chunk.messages).await;
        }
    };
    if timeout(PATIENCE, consuming).await.is_err() {
        panic!("{} are missing, such as {:?}", wanted.len(), wanted.first());
    }
    num
}

/// Tries until it works, as the consumer does.
async fn acknowledge(source: &RedisSource, messages: &[Message]) {
    let receipts = receipts(messages);
    let acknowledging = async {
        while source.acknowledge(&receipts).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("acknowledged", acknowledging).await;
}

/// Reads once, so that the groups are there; nothing is expected.
async fn join(source: &RedisSource) {
    let chunk = source.read(WIDE).await.expect("the server is there");
    assert!(chunk.messages.is_empty());
}

/// The guard stands at the start of a millisecond, since it does not tell apart what is within one.
fn guard_position(id: &str) -> String {
    let (millis, _) = id.split_once('-').unwrap();
    format!("{millis}-0")
}

async fn until_the_guard_is_at(stream: &TestStream, id: &str) {
    let position = Some(guard_position(id));
    until("moved: the guard", || {
        stream.last_delivered(GUARD) == position
    })
    .await;
}

/// Reads until an error comes.
async fn next_error(source: &RedisSource) -> SourceError {
    let failing = async {
        loop {
            if let Err(error) = source.read(WIDE).await {
                return error;
            }
        }
    };
    in_time("an error", failing).await
}
