//! An event that this process makes itself.

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::{EventLimits, ParseError, Received, ReceivedEvent, Resource};

/// The parts of an event, none of them checked yet; made by [`ReceivedEvent::builder`].
#[derive(Clone)]
pub struct EventBuilder {
    id: Uuid,
    event: String,
    occurred: Option<DateTime<Utc>>,
    resource: Resource,
    related: Vec<Resource>,
    follows: Option<Uuid>,
    payload: Value,
}

impl EventBuilder {
    pub(super) fn new(event: String, resource: Resource) -> Self {
        Self {
            id: Uuid::new_v4(),
            event,
            occurred: None,
            resource,
            related: Vec::new(),
            follows: None,
            payload: Value::Object(serde_json::Map::new()),
        }
    }

    /// An id of the caller's, instead of a random one. An event whose id is stored already changes nothing.
    pub fn id(self, id: Uuid) -> Self {
        Self { id, ..self }
    }

    /// When it happened, instead of when it was received.
    pub fn occurred(self, at: DateTime<Utc>) -> Self {
        Self {
            occurred: Some(at),
            ..self
        }
    }

    /// Adds a related resource, which must have a role.
    pub fn related(mut self, resource: Resource) -> Self {
        self.related.push(resource);
        self
    }

    /// The event that is known to have come before this one.
    pub fn follows(self, event_id: Uuid) -> Self {
        Self {
            follows: Some(event_id),
            ..self
        }
    }

    /// Sets the payload, which must be a JSON object.
    pub fn payload(self, payload: Value) -> Self {
        Self { payload, ..self }
    }

    /// The event, by the rules that hold for every event.
    ///
    /// # Errors
    ///
    /// It is not an event within `limits`: every part that is wrong is named.
    pub fn build(
        self,
        limits: &EventLimits,
        received: DateTime<Utc>,
    ) -> Result<ReceivedEvent, ParseError> {
        // The rules stand in the parser alone; and a dead letter holds a text.
        let text = serde_json::to_string(&Text {
            event: &self,
            occurred: self.occurred.unwrap_or(received),
        });
        let text = text.map_err(|error| ParseError {
            reason: format!("not JSON: {error}"),
            event_id: Some(self.id),
        })?;
        ReceivedEvent::parse(ByteString::from(text), limits, Received::Now(received))
    }
}

/// The id only; see [`ReceivedEvent`]'s.
impl std::fmt::Debug for EventBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBuilder")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

struct Text<'a> {
    event: &'a EventBuilder,
    occurred: DateTime<Utc>,
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EventBuilder {
            id,
            event,
            occurred: _,
            resource,
            related,
            follows,
            payload,
        } = self.event;
        let related: Vec<_> = related.iter().map(Labels).collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", id)?;
        map.serialize_entry("occurred", &self.occurred)?;
        map.serialize_entry("event", event)?;
        map.serialize_entry("resource", &Labels(resource))?;
        map.serialize_entry("related", &related)?;
        map.serialize_entry("follows", follows)?;
        map.serialize_entry("payload", payload)?;
        map.end()
    }
}

struct Labels<'a>(&'a Resource);

impl Serialize for Labels<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.labels())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap()
    }

    #[test]
    fn an_event_holds_what_it_was_built_of() {
        let (id, before) = (Uuid::new_v4(), Uuid::new_v4());
        let order = Resource::new("order-1").with_label("a \"label\"", "höher");
        let customer = Resource::new("customer-7").with_role("customer");
        let occurred = now() - TimeDelta::seconds(5);
        let event = ReceivedEvent::builder("order.paid", order.clone())
            .id(id)
            .occurred(occurred)
            .related(customer.clone())
            .follows(before)
            .payload(json!({ "total": 12.5 }))
            .build(&EventLimits::default(), now())
            .unwrap();
        assert_eq!((event.id, event.follows), (id, Some(before)));
        assert_eq!((event.occurred, event.received), (occurred, now()));
        assert_eq!(event.event, "order.paid");
        assert_eq!(
            (event.resource.clone(), event.related.clone()),
            (order, vec![customer])
        );
        assert_eq!(event.payload(), r#"{"total":12.5}"#);
        let again = ReceivedEvent::parse(
            event.text().into(),
            &EventLimits::default(),
            Received::Now(now()),
        );
        assert_eq!(again.unwrap(), event);
    }

    #[test]
    fn the_rest_has_a_default() {
        let event = ReceivedEvent::builder("e", Resource::new("r"));
        let event = event.build(&EventLimits::default(), now()).unwrap();
        assert_eq!((event.occurred, event.received), (now(), now()));
        assert_eq!((event.payload(), event.follows), ("{}", None));
        assert!(event.related.is_empty());
    }

    #[test]
    fn what_is_no_event_is_refused_with_every_reason() {
        let limits = EventLimits::default();
        let id = Uuid::new_v4();
        let wrong = ReceivedEvent::builder("e".repeat(1_025), Resource::new(""))
            .id(id)
            .related(Resource::new("has no role"))
            .payload(json!([1]));
        let error = wrong.build(&limits, now()).unwrap_err();
        for field in ["event", "resource", "related", "payload"] {
            assert!(error.reason.contains(field), "{field}: {}", error.reason);
        }
        assert_eq!(error.event_id, Some(id));
    }

    #[test]
    fn a_label_that_is_set_again_keeps_its_place() {
        let resource = Resource::new("r").with_label("a", "1").with_label("b", "2");
        let resource = resource.with_label("a", "3").with_role("x");
        let labels: Vec<_> = resource.labels().skip(1).collect();
        assert_eq!(
            labels,
            [("a", "3"), ("b", "2"), ("prefect.resource.role", "x")]
        );
    }
}
