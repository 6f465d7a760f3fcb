//! The rows of one event: their texts in Prefect's forms, and the statements that insert them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use super::result_code::{Failed, ResultCode};
use super::text::write_timestamp;
use crate::delivery::{Condemned, Content, Entry};
use crate::event::ReceivedEvent;
use crate::store::RefusalReason;
use crate::store::python_json::{rewrite, write_array, write_object, write_string};
use crate::store::resource_ids::ResourceIds;

pub(super) struct Refusal {
    pub(super) kind: RefusalReason,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

impl Refusal {
    pub(super) fn ours(kind: RefusalReason, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            sqlstate: None,
        }
    }

    pub(super) fn condemned(condemned: &Condemned) -> Self {
        Self {
            kind: RefusalReason::Other,
            reason: condemned.reason.clone(),
            sqlstate: condemned.code.clone(),
        }
    }

    pub(super) fn by_database(failed: &Failed) -> Self {
        Self {
            kind: failed.code.refusal(),
            reason: failed.error.to_string(),
            sqlstate: Some(failed.code.name()),
        }
    }
}

/// The texts of a batch's rows in Prefect's forms, one after the other in one buffer: all that can be
/// made of a batch before it is its turn to be written.
pub(super) struct RowTexts {
    buffer: String,
    now: Range<usize>,
    resource_ids: ResourceIds,
    /// One for each entry; none where there is nothing to write.
    events: Vec<Option<EventRanges>>,
}

/// Where the texts of one event stand in the buffer.
struct EventRanges {
    id: Range<usize>,
    occurred: Range<usize>,
    received: Range<usize>,
    follows: Option<Range<usize>>,
    resource: Range<usize>,
    related: Range<usize>,
    related_ids: Range<usize>,
    payload: Range<usize>,
    /// The number within the batch of its own resource; those of the related ones follow.
    first_resource: usize,
    /// The labels of its resource and then of the related ones, as `event_resources` has them.
    other_labels: Vec<Range<usize>>,
}

pub(super) struct EventTexts<'a> {
    texts: &'a RowTexts,
    ranges: &'a EventRanges,
}

impl RowTexts {
    /// Makes the texts of the events among the entries; returns also, by their index, why columns cannot
    /// hold those that are left out. Fails where `now` is no time that can be written.
    pub(super) fn new(
        entries: &[Arc<Entry>],
        now: DateTime<Utc>,
    ) -> Result<(Self, HashMap<usize, Refusal>), String> {
        // Roughly what comes out: the event, and some of it again in the rows of its resources. Growing
        // would copy it.
        let num_bytes: usize = entries.iter().map(|entry| entry.num_bytes()).sum();
        let mut buffer = String::with_capacity(num_bytes + num_bytes / 4);
        let resource_ids = ResourceIds::new(now);
        let now = written(&mut buffer, |out| write_timestamp(now, out)).ok_or_else(|| {
            format!("the clock shows {now}, which is no time that can be written: set it right")
        })?;
        let mut refused = HashMap::new();
        let mut events = Vec::with_capacity(entries.len());
        let mut num_resources = 0;
        for (index, entry) in entries.iter().enumerate() {
            let made = match &entry.content {
                Content::Event(event) => {
                    let first_resource = num_resources;
                    num_resources += 1 + event.related.len();
                    Some(EventRanges::new(event, first_resource, &mut buffer))
                }
                Content::Rejected(_) => None,
            };
            events.push(made.transpose().unwrap_or_else(|refusal| {
                refused.insert(index, refusal);
                None
            }));
        }
        let texts = Self {
            buffer,
            now,
            resource_ids,
            events,
        };
        Ok((texts, refused))
    }

    /// The moment at which all rows are recorded, created and updated.
    pub(super) fn now(&self) -> &str {
        self.text(&self.now)
    }

    /// The texts of the event at an index among the entries; none of a rejection or a refused event.
    pub(super) fn event(&self, index: usize) -> Option<EventTexts<'_>> {
        let ranges = self.events.get(index)?.as_ref()?;
        let texts = self;
        Some(EventTexts { texts, ranges })
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.buffer.get(range.clone()).unwrap_or_default()
    }
}

impl EventRanges {
    fn new(
        event: &ReceivedEvent,
        first_resource: usize,
        out: &mut String,
    ) -> Result<Self, Refusal> {
        let mut time = |name: &str, at| {
            written(out, |out| write_timestamp(at, out)).ok_or_else(|| {
                let reason = format!("{name}: the year is outside 0001 to 9999");
                Refusal::ours(RefusalReason::InvalidData, reason)
            })
        };
        let occurred = time("occurred", event.occurred)?;
        let received = time("received", event.received)?;
        let resources = std::iter::once(&event.resource).chain(&event.related);
        Ok(Self {
            id: appended(out, |out| write_uuid(event.id, out)),
            occurred,
            received,
            follows: event
                .follows
                .map(|id| appended(out, |out| write_uuid(id, out))),
            resource: appended(out, |out| write_object(event.resource.labels(), out)),
            related: appended(out, |out| {
                write_array(event.related.iter(), out, |resource, out| {
                    write_object(resource.labels(), out);
                });
            }),
            related_ids: appended(out, |out| {
                write_array(event.related_ids(), out, write_string)
            }),
            payload: appended(out, |out| rewrite(event.payload(), out)),
            first_resource,
            other_labels: resources
                .map(|resource| appended(out, |out| write_object(resource.other_labels(), out)))
                .collect(),
        })
    }
}

impl EventTexts<'_> {
    pub(super) fn too_long(&self, event: &ReceivedEvent, max_length: usize) -> Option<Refusal> {
        let ranges = self.ranges;
        let lengths = [
            ("event", event.event.len()),
            ("resource_id", event.resource.id().len()),
            ("resource", ranges.resource.len()),
            ("related", ranges.related.len()),
            ("related_resource_ids", ranges.related_ids.len()),
            ("payload", ranges.payload.len()),
        ];
        let (column, length) = lengths
            .into_iter()
            .find(|(_, length)| *length > max_length)?;
        Some(Refusal {
            kind: RefusalReason::TooLarge,
            reason: format!(
                "{column}: {length} bytes are more than the {max_length} that SQLite takes"
            ),
            sqlstate: Some(ResultCode::TOO_BIG.name()),
        })
    }

    pub(super) fn id(&self) -> &str {
        self.texts.text(&self.ranges.id)
    }

    pub(super) fn occurred(&self) -> &str {
        self.texts.text(&self.ranges.occurred)
    }

    /// The columns of `events` besides the id whose texts had to be made.
    pub(super) fn columns(&self) -> [(&'static str, Option<&str>); 7] {
        let text = |range| Some(self.texts.text(range));
        [
            ("occurred", text(&self.ranges.occurred)),
            ("received", text(&self.ranges.received)),
            ("resource", text(&self.ranges.resource)),
            ("related", text(&self.ranges.related)),
            ("related_resource_ids", text(&self.ranges.related_ids)),
            ("payload", text(&self.ranges.payload)),
            ("follows", self.ranges.follows.as_ref().and_then(text)),
        ]
    }

    /// The id of the row of the event's resource, or of one of the related ones from 1.
    pub(super) fn row_id(&self, number: usize) -> Uuid {
        let index = self.ranges.first_resource + number;
        self.texts.resource_ids.get(index)
    }

    /// The labels of the event's resource, or of one of the related ones from 1.
    pub(super) fn other_labels(&self, number: usize) -> &str {
        let range = self.ranges.other_labels.get(number);
        range.map_or("", |range| self.texts.text(range))
    }
}

/// Where in `out` that stands which `write` appended; nothing is left of what could not be written.
fn written(
    out: &mut String,
    write: impl FnOnce(&mut String) -> Option<()>,
) -> Option<Range<usize>> {
    let start = out.len();
    let done = write(out);
    if done.is_none() {
        out.truncate(start);
    }
    done.map(|()| start..out.len())
}

fn appended(out: &mut String, write: impl FnOnce(&mut String)) -> Range<usize> {
    let start = out.len();
    write(out);
    start..out.len()
}

fn write_uuid(id: Uuid, out: &mut String) {
    out.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
}

pub(super) struct InsertEvent<'a> {
    pub(super) event: &'a ReceivedEvent,
    pub(super) texts: &'a EventTexts<'a>,
}

prepared_once!(InsertEvent);

impl QueryFragment<Sqlite> for InsertEvent<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let EventTexts { texts, ranges } = self.texts;
        let text = |range| texts.text(range);
        out.push_sql(
            "INSERT INTO events (id, occurred, received, event, resource_id, resource, related, \
             related_resource_ids, payload, follows, recorded, created, updated) VALUES (",
        );
        for text in [
            text(&ranges.id),
            text(&ranges.occurred),
            text(&ranges.received),
            &self.event.event,
            self.event.resource.id(),
            text(&ranges.resource),
            text(&ranges.related),
            text(&ranges.related_ids),
            text(&ranges.payload),
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        match &ranges.follows {
            Some(follows) => out.push_bind_param::<Nullable<Text>, str>(text(follows))?,
            None => out.push_bind_param::<Nullable<Text>, Option<String>>(&None)?,
        }
        for _ in 0..3 {
            out.push_sql(", ");
            out.push_bind_param::<Text, str>(texts.now())?;
        }
        out.push_sql(") ON CONFLICT (id) DO NOTHING");
        Ok(())
    }
}

pub(super) struct InsertResource<'a> {
    /// The row's own. A new one at every attempt: one that is taken, if that can be, is not met again.
    pub(super) row_id: &'a str,
    pub(super) resource_id: &'a str,
    pub(super) role: &'a str,
    pub(super) texts: &'a EventTexts<'a>,
    pub(super) number: usize,
}

prepared_once!(InsertResource);

impl QueryFragment<Sqlite> for InsertResource<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let EventTexts { texts, ranges } = self.texts;
        out.push_sql(
            "INSERT INTO event_resources (id, event_id, occurred, resource_id, resource_role, \
             resource, created, updated) VALUES (",
        );
        for text in [
            self.row_id,
            self.texts.id(),
            texts.text(&ranges.occurred),
            self.resource_id,
            self.role,
            self.texts.other_labels(self.number),
            texts.now(),
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        out.push_bind_param::<Text, str>(texts.now())?;
        out.push_sql(")");
        Ok(())
    }
}
