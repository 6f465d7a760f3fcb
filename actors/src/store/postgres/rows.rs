//! The rows of a batch, in the order in which they are written.

use uuid::Uuid;

use super::columns::Moment;
use super::text_length::is_too_long;
use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::RefusalReason;
use crate::store::python_json::{write_array, write_object, write_string};

/// Why the database does not take an event.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Which entry of the batch.
    pub(super) index: usize,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

impl Refusal {
    /// By the class of the SQLSTATE. What has none was left out by a trigger.
    pub(super) fn kind(&self) -> RefusalReason {
        match self.sqlstate.as_deref() {
            None => RefusalReason::Swallowed,
            Some("P0001") => RefusalReason::Raised,
            Some(code) => match code.get(..2) {
                Some("22") => RefusalReason::InvalidData,
                Some("23") => RefusalReason::Constraint,
                Some("54") => RefusalReason::TooLarge,
                _ => RefusalReason::Other,
            },
        }
    }
}

pub(super) struct EventRow<'a> {
    /// Which entry of the batch.
    pub(super) index: usize,
    pub(super) event: &'a ReceivedEvent,
    pub(super) occurred: Moment,
    pub(super) received: Moment,
}

pub(super) struct ResourceRow<'a> {
    /// Which event row, from 1.
    pub(super) event_number: i32,
    pub(super) event_id: Uuid,
    pub(super) occurred: Moment,
    pub(super) role: &'a str,
    pub(super) resource: &'a Resource,
}

/// All rows of a batch.
pub(super) struct Rows<'a> {
    pub(super) events: Vec<EventRow<'a>>,
    pub(super) resources: Vec<ResourceRow<'a>>,
    /// Whether an id stands in the batch more than once.
    pub(super) repeats_ids: bool,
    /// Events that are refused without being sent.
    pub(super) refused: Vec<Refusal>,
}

impl<'a> Rows<'a> {
    /// Sorted by id, so that writers that meet the same ids do not deadlock.
    pub(super) fn new(entries: &'a [std::sync::Arc<Entry>]) -> Self {
        let mut refused = Vec::new();
        let mut events = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if let Content::Event(event) = &entry.content {
                match EventRow::new(index, event) {
                    Ok(row) => events.push(row),
                    Err(refusal) => refused.push(refusal),
                }
            }
        }
        events.sort_by_key(|row| row.event.id);
        let repeats_ids = events
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.event.id == b.event.id));
        let num_resources = events.iter().map(|row| 1 + row.event.related.len()).sum();
        let mut resources = Vec::with_capacity(num_resources);
        for (row, event_number) in events.iter().zip(1..) {
            let event = row.event;
            let related = event.related.iter();
            let related = related.map(|resource| (resource.role().unwrap_or_default(), resource));
            for (role, resource) in std::iter::once(("", &event.resource)).chain(related) {
                resources.push(ResourceRow {
                    event_number,
                    event_id: event.id,
                    occurred: row.occurred,
                    role,
                    resource,
                });
            }
        }
        Self {
            events,
            resources,
            repeats_ids,
            refused,
        }
    }
}

impl<'a> EventRow<'a> {
    /// Says why not where the value would not even reach the table, but fail the whole batch on its
    /// way there.
    fn new(index: usize, event: &'a ReceivedEvent) -> Result<Self, Refusal> {
        let refusal = |reason, sqlstate: &str| Refusal {
            index,
            reason,
            sqlstate: Some(sqlstate.to_owned()),
        };
        let moment = |name: &str, at| {
            Moment::as_prefect_stores(at).ok_or_else(|| {
                let reason = format!("{name}: the year is outside 0001 to 9999");
                refusal(reason, "22008")
            })
        };
        let text = |name: &str, text: &str| {
            if text.contains('\0') {
                let reason = format!("{name}: PostgreSQL's texts cannot hold a NUL");
                return Err(refusal(reason, "22021"));
            }
            Ok(())
        };
        let occurred = moment("occurred", event.occurred)?;
        let received = moment("received", event.received)?;
        text("event", &event.event)?;
        text("resource", event.resource.id())?;
        for related in &event.related {
            text("related", related.id())?;
            text("related", related.role().unwrap_or_default())?;
        }
        if is_too_long(event) {
            let reason =
                "as text, without exponents, more than 256 MiB, which could not be read back";
            return Err(refusal(reason.to_owned(), "54000"));
        }
        Ok(Self {
            index,
            event,
            occurred,
            received,
        })
    }

    pub(super) fn resource<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_object(self.event.resource.labels(), text);
        text
    }

    pub(super) fn related<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_array(self.event.related.iter(), text, |resource, out| {
            write_object(resource.labels(), out);
        });
        text
    }

    pub(super) fn related_ids<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_array(self.event.related_ids(), text, write_string);
        text
    }
}

impl ResourceRow<'_> {
    pub(super) fn other_labels<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_object(self.resource.other_labels(), text);
        text
    }
}
