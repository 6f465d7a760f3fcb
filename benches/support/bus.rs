//! The bus of a benchmark: a Redis, or a NATS server with its streams in files.

#[cfg(feature = "nats")]
use std::path::Path;
#[cfg(feature = "nats")]
use std::time::Duration;

#[cfg(feature = "nats")]
use serde_json::Value;
#[cfg(feature = "nats")]
use tokio::time::Instant;

use super::load::Message;
#[cfg(feature = "nats")]
use super::nats::{self, NatsServer};
use super::redis::RedisServer;
use super::watch::Watch;

/// Nothing takes that long without any progress.
#[cfg(feature = "nats")]
const PATIENCE: Duration = Duration::from_secs(60);
/// How exactly the end is seen.
#[cfg(feature = "nats")]
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Publishes, and returns once all of it is confirmed.
pub(crate) type Publisher = Box<dyn FnMut(&[Message])>;

/// A server that has the stream `events`.
pub(crate) trait Bus {
    fn name(&self) -> &'static str;

    fn url(&self) -> String;

    fn process_id(&self) -> u32;

    /// A stream with these events in it, and nothing else on the bus.
    fn fill(&self, messages: &[Message]);

    /// What it keeps now, in bytes: Redis in memory, NATS in its files.
    fn num_bytes(&self) -> f64;

    /// Begins to look for the end.
    fn watch(&self) -> Box<dyn Watched>;

    /// A connection that publishes.
    fn publisher(&self) -> Publisher;
}

/// The consumer of the product, as it is seen from outside.
pub(crate) trait Watched {
    /// Waits until all that is in the stream has been acknowledged.
    fn until_settled(&mut self, log: &dyn Fn() -> String);

    /// How many commands the others have sent, where the bus counts them.
    fn commands_of_others(&mut self) -> Option<f64>;
}

impl Bus for RedisServer {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn url(&self) -> String {
        Self::url(self)
    }

    fn process_id(&self) -> u32 {
        Self::process_id(self)
    }

    fn fill(&self, messages: &[Message]) {
        let stream = self.stream();
        let _: String = stream.command("FLUSHALL");
        self.publisher()(messages);
    }

    fn num_bytes(&self) -> f64 {
        let info: String = self.stream().command("INFO memory");
        let mut lines = info.lines();
        let used = lines.find_map(|line| line.strip_prefix("used_memory:"));
        used.unwrap().trim().parse().unwrap()
    }

    fn watch(&self) -> Box<dyn Watched> {
        Box::new(Watch::start(self, "event-persister"))
    }

    fn publisher(&self) -> Publisher {
        let mut connection = self.stream().connect();
        Box::new(move |messages| {
            for messages in messages.chunks(1_000) {
                let mut pipeline = redis::pipe();
                for message in messages {
                    let command = pipeline.cmd("XADD").arg("events").arg("*");
                    let command = command.arg("data").arg(&message.data);
                    command.arg("attributes").arg(&message.attributes).ignore();
                }
                pipeline.query::<()>(&mut connection).unwrap();
            }
        })
    }
}

impl Watched for Watch {
    fn until_settled(&mut self, log: &dyn Fn() -> String) {
        Self::until_settled(self, log);
    }

    fn commands_of_others(&mut self) -> Option<f64> {
        Some(Self::commands_of_others(self))
    }
}

#[cfg(feature = "nats")]
impl Bus for NatsServer {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn url(&self) -> String {
        Self::url(self)
    }

    fn process_id(&self) -> u32 {
        Self::process_id(self)
    }

    /// The consumer goes with the stream that was there.
    fn fill(&self, messages: &[Message]) {
        let stream = self.stream();
        stream.delete();
        stream.create(&serde_json::json!({}));
        self.publisher()(messages);
    }

    fn num_bytes(&self) -> f64 {
        in_folder(&self.store()) as f64
    }

    fn watch(&self) -> Box<dyn Watched> {
        Box::new(NatsWatch(self.stream().connect().unwrap()))
    }

    fn publisher(&self) -> Publisher {
        let mut client = self.stream().connect().unwrap();
        Box::new(move |messages| {
            // Answers that nobody reads would stop the server.
            for messages in messages.chunks(500) {
                for message in messages {
                    client.send("events", "", message.data.as_bytes()).unwrap();
                }
                for _ in messages {
                    let answer: Value = serde_json::from_slice(&client.answer().unwrap()).unwrap();
                    assert!(answer["seq"].is_number(), "{answer}");
                }
            }
        })
    }
}

#[cfg(feature = "nats")]
struct NatsWatch(nats::Client);

#[cfg(feature = "nats")]
impl Watched for NatsWatch {
    fn until_settled(&mut self, log: &dyn Fn() -> String) {
        let what = format!("$JS.API.CONSUMER.INFO.{}.{}", nats::STREAM, nats::CONSUMER);
        let mut progress = (Instant::now(), Value::Null);
        loop {
            let answer = self.0.request(&what, b"").unwrap();
            let mut consumer: Value = serde_json::from_slice(&answer).unwrap();
            if consumer["num_pending"] == 0 && consumer["num_ack_pending"] == 0 {
                return;
            }
            let state = consumer["ack_floor"].take();
            if progress.1 != state {
                progress = (Instant::now(), state);
            }
            assert!(progress.0.elapsed() < PATIENCE, "no progress: {}", log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn commands_of_others(&mut self) -> Option<f64> {
        None
    }
}

/// The files beneath it.
#[cfg(feature = "nats")]
fn in_folder(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.filter_map(Result::ok).map(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match is_folder {
            true => in_folder(&entry.path()),
            // A file may go while it is looked at.
            false => entry.metadata().map_or(0, |file| file.len()),
        }
    });
    sizes.sum()
}

/// The bus that `BENCH_BUS` names: `redis`, which is the default, or `nats`.
pub(crate) fn named(name: &str) -> Box<dyn Bus> {
    match name {
        "redis" => Box::new(RedisServer::start()),
        #[cfg(feature = "nats")]
        "nats" => Box::new(NatsServer::start()),
        other => panic!("there is no bus {other}: name redis or nats"),
    }
}
