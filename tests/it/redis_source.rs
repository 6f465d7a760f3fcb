//! The Redis source against real servers, mostly with the test in the consumer's place.

use std::collections::BTreeSet;
use std::time::Duration;

use event_persister_actors::delivery::Receipt;
use event_persister_actors::source::redis::{RedisSettings, RedisSource};
use event_persister_actors::source::{Body, EventSource as _, Message, Permit, SourceError};
use tokio::time::{Instant, sleep, timeout};

mod entries;
mod guard;
mod keeper;
mod losses;
mod outages;
mod pipeline;
mod positions;
mod sharing;

const WIDE: Permit = Permit {
    max_messages: 1000,
    max_bytes: 8 << 20,
};

/// Nothing here takes longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

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
    timeout(PATIENCE, acknowledging)
        .await
        .expect("it comes back");
}

/// Reads once, so that the groups are there; nothing is expected.
async fn join(source: &RedisSource) {
    let chunk = source.read(WIDE).await.expect("the server is there");
    assert!(chunk.messages.is_empty());
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
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
    timeout(PATIENCE, failing).await.expect("an error comes")
}
