//! The parser of events.

use chrono::{DateTime, Utc};
use event_persister_actors::event::{
    EventLimits, Received, ReceivedEvent, holds_unreadable_number,
};
use event_persister_actors::testing::json_of;
use serde_json::Value;

/// Stands in texts that are to be refused; no reason may show it.
const SECRET: &str = "\u{2603}";

/// Any bytes are an event or are refused with a reason that holds nothing of their values; and
/// what an event became says the same when it is written and read again, and holds no number that nobody
/// could read.
pub fn event(data: &[u8]) {
    match parse(data.to_vec()) {
        Ok(event) => {
            assert!(!holds_unreadable_number(event.payload()));
            let again = parse(json_of(&event).into_bytes());
            assert!(again.is_ok_and(|again| again == event));
        }
        Err(reason) => assert!(!reason.is_empty() && reason.is_ascii(), "{reason}"),
    }
    // The same with a secret in every text.
    if let Ok(mut value) = serde_json::from_slice::<Value>(data) {
        mark(&mut value);
        if let Err(reason) = parse(value.to_string().into_bytes()) {
            assert!(!reason.contains(SECRET), "{reason}");
        }
    }
}

fn parse(bytes: Vec<u8>) -> Result<ReceivedEvent, String> {
    let limits = EventLimits {
        max_labels_per_resource: 6,
        max_related_resources: 4,
        max_event_name_length: 40,
    };
    let default = DateTime::<Utc>::UNIX_EPOCH;
    let received = Received::FromText { default };
    ReceivedEvent::parse_bytes(bytes.into(), &limits, received).map_err(|error| error.reason)
}

fn mark(value: &mut Value) {
    match value {
        Value::String(text) => text.push_str(SECRET),
        Value::Array(values) => values.iter_mut().for_each(mark),
        Value::Object(members) => members.values_mut().for_each(mark),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
