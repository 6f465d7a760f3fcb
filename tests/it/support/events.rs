//! Events, and lists of them.

use std::sync::OnceLock;

use event_persister_actors::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};
use uuid::Uuid;

/// A time that is recent on whatever day the tests run, so that no retention is over.
fn recently() -> String {
    let yesterday = SystemClock.now() - chrono::TimeDelta::days(1);
    yesterday.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// An event with this many related resources.
pub(crate) fn event_with(num_related: usize) -> Value {
    let related: Vec<Value> = (0..num_related)
        .map(|number| {
            json!({
                "prefect.resource.id": format!("related.{number}"),
                "prefect.resource.role": "flow",
                "name": "a related resource",
            })
        })
        .collect();
    json!({
        "id": Uuid::new_v4(),
        "occurred": recently(),
        "event": "test.happened",
        "resource": {"prefect.resource.id": "test.1", "name": "a resource"},
        "related": related,
        "payload": {"text": "é", "number": 2.5},
    })
}

/// Text that does not shrink when it is compressed, another each time.
pub(crate) fn incompressible(length: usize) -> String {
    static POOL: OnceLock<String> = OnceLock::new();
    // Drawn once: letter by letter it takes a debug build long.
    let pool = POOL.get_or_init(|| {
        let letters = (0..2_000_000).map(|_| fastrand::alphanumeric());
        letters.collect()
    });
    let start = fastrand::usize(..=pool.len() - length);
    pool[start..start + length].to_owned()
}

/// An event without related resources.
pub(crate) fn event() -> Value {
    event_with(0)
}

pub(crate) fn events(num: usize) -> Vec<Value> {
    // As many related resources as there is variety needed: none, some, others.
    (0..num).map(|number| event_with(number % 4)).collect()
}

/// Each as it goes over a bus or stands in a file.
pub(crate) fn texts<'a>(events: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    events.into_iter().map(Value::to_string).collect()
}

/// The body of a request.
pub(crate) fn list(events: &[Value]) -> String {
    Value::from(events).to_string()
}

/// The lines of a file.
pub(crate) fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

pub(crate) fn id(event: &Value) -> String {
    event["id"].as_str().expect("an id").to_owned()
}

pub(crate) fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(id).collect()
}
