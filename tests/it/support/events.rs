//! Events, and lists of them.

use serde_json::{Value, json};
use uuid::Uuid;

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
        "occurred": "2026-11-24T03:04:05.678Z",
        "event": "test.happened",
        "resource": {"prefect.resource.id": "test.1", "name": "a resource"},
        "related": related,
        "payload": {"text": "é", "number": 2.5},
    })
}

/// An event without related resources.
pub(crate) fn event() -> Value {
    event_with(0)
}

pub(crate) fn events(num: usize) -> Vec<Value> {
    // As many related resources as there is variety needed: none, some, others.
    (0..num).map(|number| event_with(number % 4)).collect()
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
