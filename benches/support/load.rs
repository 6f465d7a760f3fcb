//! The events of a benchmark: those of a file or generated ones, as often as it takes to have enough.

use std::io::Read as _;
use std::path::Path;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

use super::{generated, settings};

/// One message as Prefect publishes it.
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) data: String,
    pub(crate) attributes: String,
}

/// What makes an event another one: its id and its times.
#[derive(Deserialize)]
struct Identity {
    id: String,
    event: String,
    occurred: String,
    received: String,
}

/// An event to make copies of.
struct Original {
    text: String,
    identity: Identity,
    id: Uuid,
    occurred: DateTime<Utc>,
    received: DateTime<Utc>,
}

/// An endless supply of events, the same ones for every benchmark and in every run.
pub(crate) struct Load {
    originals: Vec<Original>,
    /// From one copy of all originals to the next.
    span: TimeDelta,
    /// Of the first event.
    start: DateTime<Utc>,
    next: usize,
    random: fastrand::Rng,
}

impl Load {
    /// Copies of the events of a file, one a line, or of generated ones; the first occurred at `start`.
    pub(crate) fn new(file: Option<&Path>, start: DateTime<Utc>) -> Self {
        let text = file.map_or_else(generated::lines, read);
        let lines = text.split('\n').filter(|line| !line.trim().is_empty());
        let originals: Vec<Original> = lines.map(Original::new).collect();
        let occurred = || originals.iter().map(|original| original.occurred);
        let (Some(first), Some(last)) = (occurred().min(), occurred().max()) else {
            panic!("there are no events to make copies of");
        };
        let span = (last - first) + TimeDelta::seconds(1);
        Self {
            // Whole milliseconds, as the ids have them.
            span: TimeDelta::milliseconds(span.num_milliseconds()),
            start: start.trunc_subsecs(3),
            originals,
            next: 0,
            random: fastrand::Rng::with_seed(4_280),
        }
    }

    /// The next so many events, each with an id of its own, in rising order of time as a whole.
    pub(crate) fn take(&mut self, num_events: usize) -> Vec<Message> {
        (0..num_events).map(|_| self.next_message()).collect()
    }

    /// Lets time pass before the next one.
    pub(crate) fn pause(&mut self, pause: TimeDelta) {
        self.start += pause;
    }

    fn next_message(&mut self) -> Message {
        let original = &self.originals[self.next % self.originals.len()];
        let num_spans = i32::try_from(self.next / self.originals.len()).unwrap();
        let offset = self.start - self.originals[0].occurred;
        let shift = TimeDelta::milliseconds(offset.num_milliseconds()) + self.span * num_spans;
        self.next += 1;
        original.copy(shift, self.random.u128(..))
    }
}

impl Original {
    fn new(line: &str) -> Self {
        let identity: Identity = serde_json::from_str(line).unwrap();
        let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        Self {
            text: line.to_owned(),
            id: identity.id.parse().unwrap(),
            occurred: time(&identity.occurred),
            received: time(&identity.received),
            identity,
        }
    }

    /// The same event, later by `shift` and with an id of the same kind and of its new time.
    fn copy(&self, shift: TimeDelta, random: u128) -> Message {
        let Identity {
            id,
            event,
            occurred,
            received,
        } = &self.identity;
        let new_id = self.new_id(shift, random).to_string();
        let replaced = |text: String, old: &str, new: &str| {
            text.replace(&format!("\"{old}\""), &format!("\"{new}\""))
        };
        let written = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let data = replaced(self.text.clone(), id, &new_id);
        let data = replaced(data, occurred, &written(self.occurred + shift));
        let data = replaced(data, received, &written(self.received + shift));
        Message {
            data,
            attributes: json!({"id": new_id, "event": event}).to_string(),
            id: new_id,
        }
    }

    /// The milliseconds rise as those of the originals do, the rest is random.
    fn new_id(&self, shift: TimeDelta, random: u128) -> Uuid {
        let millis = (self.id.as_u128() >> 80) as i64 + shift.num_milliseconds();
        time_ordered_id(u64::try_from(millis).unwrap(), random)
    }
}

/// The texts of so many events of `BENCH_EVENTS_FILE`, or of generated ones; the first occurred at `start`.
pub(crate) fn events(num_events: usize, start: DateTime<Utc>) -> Vec<String> {
    let mut load = Load::new(settings::events_file().as_deref(), start);
    let messages = load.take(num_events);
    messages.into_iter().map(|message| message.data).collect()
}

/// The number of related resources of all of these events.
pub(crate) fn num_related(events: &[String]) -> usize {
    let related = |event: &String| {
        let event: Value = serde_json::from_str(event).unwrap();
        event["related"].as_array().map_or(0, Vec::len)
    };
    events.iter().map(related).sum()
}

/// How many and how large, for a benchmark's first line.
pub(crate) fn describe(events: &[String]) -> String {
    let num_bytes: usize = events.iter().map(String::len).sum();
    format!(
        "{} events, {} bytes and {:.1} related resources on average",
        events.len(),
        num_bytes / events.len(),
        num_related(events) as f64 / events.len() as f64
    )
}

/// UUIDv7.
pub(crate) fn time_ordered_id(millis: u64, random: u128) -> Uuid {
    let random = random.to_be_bytes();
    let (_, random) = random.split_last_chunk().unwrap();
    Builder::from_unix_timestamp_millis(millis, random).into_uuid()
}

/// The text of a file, unpacked where it is gzipped.
fn read(path: &Path) -> String {
    let failed = |error| -> std::io::Error { panic!("{}: {error}", path.display()) };
    let bytes = std::fs::read(path).map_err(failed).unwrap();
    let mut text = String::new();
    let read = if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text)
    } else {
        bytes.as_slice().read_to_string(&mut text)
    };
    read.map_err(failed).unwrap();
    text
}
