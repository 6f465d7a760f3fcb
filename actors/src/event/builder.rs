//! An event that this process makes itself.

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::{EventLimits, ParseError, Received, ReceivedEvent, Resource};

/// The parts of an event, none of them checked yet; made by [`ReceivedEvent::builder`].
#[derive(Clone)]
pub struct EventBuilder(Parts);

/// Written as the text of the event.
#[derive(Clone, Serialize)]
struct Parts {
    id: Uuid,
    occurred: Option<DateTime<Utc>>,
    event: String,
    resource: Resource,
    related: Vec<Resource>,
    follows: Option<Uuid>,
    payload: Value,
}

impl EventBuilder {
    pub(super) fn new(event: String, resource: Resource) -> Self {
        Self(Parts {
            id: Uuid::new_v4(),
            occurred: None,
            event,
            resource,
            related: Vec::new(),
            follows: None,
            payload: Value::Object(serde_json::Map::new()),
        })
    }

    /// An id of the caller's, instead of a random one. An event whose id is stored already changes nothing.
    pub fn id(mut self, id: Uuid) -> Self {
        self.0.id = id;
        self
    }

    /// When it happened, instead of when it was received.
    pub fn occurred(mut self, at: DateTime<Utc>) -> Self {
        self.0.occurred = Some(at);
        self
    }

    /// Adds a related resource, which must have a role.
    pub fn related(mut self, resource: Resource) -> Self {
        self.0.related.push(resource);
        self
    }

    /// The event that is known to have come before this one.
    pub fn follows(mut self, event_id: Uuid) -> Self {
        self.0.follows = Some(event_id);
        self
    }

    /// Sets the payload, which must be a JSON object.
    pub fn payload(mut self, payload: Value) -> Self {
        self.0.payload = payload;
        self
    }

    /// The event, by the rules that hold for every event.
    ///
    /// # Errors
    ///
    /// It is not an event within `limits`: every part that is wrong is named.
    pub fn build(
        mut self,
        limits: &EventLimits,
        received: DateTime<Utc>,
    ) -> Result<ReceivedEvent, ParseError> {
        self.0.occurred.get_or_insert(received);
        // The rules stand in the parser alone; and a dead letter holds a text.
        let text = serde_json::to_string(&self.0).map_err(|error| ParseError {
            reason: format!("not JSON: {error}"),
            event_id: Some(self.0.id),
        })?;
        ReceivedEvent::parse(ByteString::from(text), limits, Received::Now(received))
    }
}

/// The id only; see [`ReceivedEvent`]'s.
impl std::fmt::Debug for EventBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBuilder")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.labels())
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
