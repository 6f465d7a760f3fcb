//! Events of our own that are written and rolled back, to see whether the store takes any.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::delivery::{Batch, BatchId, Content, Entry, Position};
use crate::event::{EventLimits, ReceivedEvent, Resource};
use crate::messages::Flushed;
use crate::store::FaultKind;

/// A control that looks for room is as many events, which go to different pages of the indexes: all
/// of them pass only where there is room in general.
const NUM_WHERE_ROOM_IS_SHORT: usize = 16;
/// Bytes of such a control at most, unless a single event is larger.
const MAX_BYTES: usize = 8 << 20;
/// An event that is larger is no sample: controls are to be cheap.
const MAX_SAMPLE_BYTES: usize = 64 << 10;

#[derive(Default)]
pub(crate) struct Samples {
    /// One that was stored: a pattern for controls.
    pub(crate) stored: Option<Arc<Entry>>,
    /// The one that the store refused last, for rehearsals.
    pub(crate) refused: Option<Arc<Entry>>,
}

impl Samples {
    pub(crate) fn keep(&mut self, batch: &Batch, flushed: &Flushed) {
        let is_small = |entry: &&Arc<Entry>| entry.num_bytes() <= MAX_SAMPLE_BYTES;
        let entries = batch.entries();
        if flushed.inserted == entries.len() as u64
            && let Some(stored) = entries.first().filter(is_small)
        {
            self.stored = Some(Arc::clone(stored));
        }
        let letters = flushed.letters.iter().rev();
        let mut refused = letters.filter_map(|place| entries.get(*place));
        if let Some(refused) = refused.find(|entry| entry.event().is_some() && is_small(entry)) {
            self.refused = Some(Arc::clone(refused));
        }
    }
}

/// Controls beside an entry that failed so; as large as it where the store is short of room.
pub(crate) fn beside(entry: &Entry, fault: FaultKind, now: DateTime<Utc>) -> Option<Arc<Batch>> {
    let (num_events, num_bytes) = size(entry.num_bytes(), fault);
    let entries: Option<Vec<_>> = (0..num_events).map(|_| made(num_bytes, now)).collect();
    Some(Arc::new(Batch::new(BatchId(0), entries?)))
}

/// How many controls, of how many bytes each.
fn size(num_bytes: usize, fault: FaultKind) -> (usize, usize) {
    match fault {
        FaultKind::Resources => {
            let that_fit = (MAX_BYTES / num_bytes.max(1)).clamp(1, NUM_WHERE_ROOM_IS_SHORT);
            (that_fit, num_bytes)
        }
        // A network may let small packets through and no large ones.
        FaultKind::Transient => (1, num_bytes.min(MAX_SAMPLE_BYTES)),
        FaultKind::Contention | FaultKind::Lasting => (1, 0),
    }
}

/// A control like an event that was stored, which kept whatever rules there are.
pub(crate) fn like(template: &Entry) -> Option<Arc<Batch>> {
    let Content::Event(event) = &template.content else {
        return None;
    };
    let mut event = event.clone();
    event.id = Uuid::new_v4();
    Some(Arc::new(Batch::new(BatchId(0), vec![entry(event)])))
}

fn entry(event: ReceivedEvent) -> Arc<Entry> {
    Arc::new(Entry {
        source: Arc::from("control"),
        position: Position::new("control"),
        content: Content::Event(event),
    })
}

/// An event with a payload of this length, of text that does not shrink when it is compressed.
fn made(num_bytes: usize, now: DateTime<Utc>) -> Option<Arc<Entry>> {
    let id = Uuid::new_v4();
    let resource = Resource::new(&format!("event-persister.control.{id}"));
    let related = Resource::new(&format!("event-persister.control.related.{id}"));
    let filler: String = (0..num_bytes).map(|_| fastrand::alphanumeric()).collect();
    ReceivedEvent::builder("event-persister.control", resource)
        .id(id)
        .related(related.with_role("control"))
        .payload(json!({ "filler": filler }))
        .build(&EventLimits::default(), now)
        .ok()
        .map(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{event, event_entry};

    #[test]
    fn a_control_is_an_event_and_as_large_as_asked_where_room_is_short() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let entry = event_entry(event(Uuid::new_v4()));
        let small = beside(&entry, FaultKind::Lasting, now).unwrap();
        assert_eq!(small.len(), 1);
        let event = small.entries()[0].event().expect("an event");
        assert_eq!(event.occurred, now);
        let many = beside(&entry, FaultKind::Resources, now).unwrap();
        assert_eq!(many.len(), NUM_WHERE_ROOM_IS_SHORT);
        for control in many.entries() {
            assert!(control.num_bytes() >= entry.num_bytes());
        }
        let ids: std::collections::HashSet<_> = many
            .entries()
            .iter()
            .map(|c| c.event().unwrap().id)
            .collect();
        assert_eq!(ids.len(), many.len());
    }

    #[test]
    fn controls_are_as_large_as_what_failed_where_that_may_matter() {
        let resources = |num_bytes| size(num_bytes, FaultKind::Resources);
        assert_eq!(resources(0), (16, 0));
        assert_eq!(resources(512 << 10), (16, 512 << 10));
        assert_eq!(resources(3 << 20), (2, 3 << 20));
        assert_eq!(resources(5 << 20), (1, 5 << 20));
        assert_eq!(resources(60 << 20), (1, 60 << 20));
        let transient = |num_bytes| size(num_bytes, FaultKind::Transient);
        assert_eq!(transient(1_000), (1, 1_000));
        assert_eq!(transient(60 << 20), (1, 64 << 10));
        assert_eq!(size(60 << 20, FaultKind::Lasting), (1, 0));
    }

    #[test]
    fn samples_are_small_events_that_were_stored_or_refused() {
        let entries: Vec<_> = (0..3)
            .map(|id| event_entry(event(Uuid::from_u128(id))))
            .collect();
        let batch = Batch::new(BatchId(1), entries.clone());
        let mut samples = Samples::default();
        let in_part = Flushed {
            inserted: 1,
            duplicates: 1,
            letters: vec![1],
            ..Flushed::default()
        };
        samples.keep(&batch, &in_part);
        assert!(
            samples.stored.is_none(),
            "which of them was stored is not known"
        );
        assert!(Arc::ptr_eq(samples.refused.as_ref().unwrap(), &entries[1]));
        let whole = Flushed {
            inserted: 3,
            ..Flushed::default()
        };
        samples.keep(&batch, &whole);
        assert!(Arc::ptr_eq(samples.stored.as_ref().unwrap(), &entries[0]));
        let rejected = crate::testing::rejected_entry("here", b"garbage", "not JSON");
        let letter = Flushed {
            letters: vec![0],
            ..Flushed::default()
        };
        samples.keep(&Batch::new(BatchId(9), vec![rejected]), &letter);
        assert!(Arc::ptr_eq(samples.refused.as_ref().unwrap(), &entries[1]));
    }

    #[test]
    fn a_control_like_another_event_differs_in_its_id_alone() {
        let template = event_entry(event(Uuid::new_v4()));
        let control = like(&template).unwrap();
        let (of, like) = (
            template.event().unwrap(),
            control.entries()[0].event().unwrap(),
        );
        assert_ne!(of.id, like.id);
        assert_eq!((&of.event, of.occurred), (&like.event, like.occurred));
    }
}
