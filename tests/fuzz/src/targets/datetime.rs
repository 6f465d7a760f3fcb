//! The parser of datetimes, through the event that they stand in.

use chrono::{DateTime, Datelike as _, SubsecRound as _, Utc};
use event_persister_actors::event::{EventLimits, Received, ReceivedEvent};
use event_persister_actors::testing::json_of;
use serde_json::Value;

/// A datetime that was read is the same when it is written and read again, and one that another
/// parser of RFC 3339 reads is read here, as the same moment.
pub fn datetime(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = occurred(&Value::from(text).to_string());
    if let Some(moment) = rfc_3339(text) {
        assert_eq!(read, Some(moment), "{text}");
    }
    // As a number, too, where it is one.
    if serde_json::from_str::<serde_json::Number>(text).is_ok() {
        occurred(text);
    }
}

/// As an event's, which keeps what it means when it is written and read again.
fn occurred(json: &str) -> Option<DateTime<Utc>> {
    let event = parse(format!(
        r#"{{"id":"01900000-0000-7000-8000-000000000001","event":"e","occurred":{json},"resource":{{"prefect.resource.id":"r"}}}}"#
    ))?;
    assert!(event.occurred == event.occurred.trunc_subsecs(6));
    assert!(parse(json_of(&event)).is_some_and(|again| again == event));
    Some(event.occurred)
}

fn parse(text: String) -> Option<ReceivedEvent> {
    let default = DateTime::<Utc>::UNIX_EPOCH;
    let received = Received::FromText { default };
    ReceivedEvent::parse(text.into(), &EventLimits::default(), received).ok()
}

/// Leap seconds, the year 0 and Unicode's minus are chrono's alone.
fn rfc_3339(text: &str) -> Option<DateTime<Utc>> {
    let moment = DateTime::parse_from_rfc3339(text).ok()?;
    let is_common = moment.year() > 0 && text.is_ascii() && !text.contains(":60");
    is_common.then(|| moment.with_timezone(&Utc).trunc_subsecs(6))
}
