//! The rows of the memory store, and what a write or a trim does to them.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::operator::{DeadLetter, OpenLetter};
use crate::store::{Cutoffs, Outcome, RefusalReason, Stage, Trimmed};

/// The tables, and the events that they refuse.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) events: BTreeMap<Uuid, StoredEvent>,
    pub(super) letters: Vec<OpenLetter>,
    /// The largest id of a letter so far, removed ones included.
    last_letter: i64,
    pub(super) refused: HashMap<Uuid, String>,
    pub(super) refuses_all: bool,
}

/// A row of `events` and its rows of `event_resources`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// The event.
    pub event: ReceivedEvent,
    /// When it was written.
    pub recorded: DateTime<Utc>,
    /// The primary resource, then the related ones in order.
    pub resources: Vec<StoredResource>,
}

/// A row of `event_resources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResource {
    /// The resource's id.
    pub resource_id: String,
    /// Its role in the event; empty for the primary resource.
    pub role: String,
    /// Its labels without id and role, in order.
    pub labels: Vec<(String, String)>,
}

impl StoredResource {
    fn new(resource: &Resource, role: &str) -> Self {
        Self {
            resource_id: resource.id().to_owned(),
            role: role.to_owned(),
            labels: resource
                .other_labels()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }
}

impl Rows {
    /// The outcome that a write of this entry would have.
    pub(super) fn outcome_of(&self, entry: &Entry) -> Outcome {
        match &entry.content {
            Content::Rejected(_) => Outcome::RejectedAtParse,
            Content::Event(event) if self.events.contains_key(&event.id) => Outcome::Duplicate,
            Content::Event(event) => match self.refusal_of(event) {
                Some(_) => Outcome::RefusedByStore(RefusalReason::Raised),
                None => Outcome::Stored,
            },
        }
    }

    fn refusal_of(&self, event: &ReceivedEvent) -> Option<String> {
        let all = || "the test refuses every event".to_owned();
        let reason = self.refused.get(&event.id).cloned();
        reason.or_else(|| self.refuses_all.then(all))
    }

    pub(super) fn write(&mut self, entry: &Entry, now: DateTime<Utc>) -> Outcome {
        let outcome = self.outcome_of(entry);
        match (&entry.content, &outcome) {
            (Content::Rejected(rejection), _) => {
                let (reason, event_id) = (rejection.reason.clone(), rejection.event_id);
                self.write_letter(entry, Stage::Parse, reason, None, event_id, now);
            }
            (Content::Event(event), Outcome::Stored) => self.insert(event, now),
            (Content::Event(event), Outcome::RefusedByStore(_)) => {
                let reason = self.refusal_of(event).unwrap_or_default();
                self.keep(entry, reason, None, now);
            }
            (Content::Event(_), Outcome::Duplicate | Outcome::RejectedAtParse) => {}
        }
        outcome
    }

    /// Keeps an event that the store refuses.
    pub(super) fn keep(
        &mut self,
        entry: &Entry,
        reason: String,
        code: Option<String>,
        now: DateTime<Utc>,
    ) {
        let event_id = entry.event().map(|event| event.id);
        self.write_letter(entry, Stage::Store, reason, code, event_id, now);
    }

    fn insert(&mut self, event: &ReceivedEvent, now: DateTime<Utc>) {
        let related = event
            .related
            .iter()
            .map(|resource| StoredResource::new(resource, resource.role().unwrap_or_default()));
        let stored = StoredEvent {
            recorded: now,
            resources: std::iter::once(StoredResource::new(&event.resource, ""))
                .chain(related)
                .collect(),
            event: event.clone(),
        };
        self.events.insert(event.id, stored);
    }

    fn write_letter(
        &mut self,
        entry: &Entry,
        stage: Stage,
        reason: String,
        sqlstate: Option<String>,
        event_id: Option<Uuid>,
        now: DateTime<Utc>,
    ) {
        let known = self.letters.iter_mut().find(|(letter, raw)| {
            letter.source == *entry.source
                && letter.position == entry.position.as_str()
                && raw == entry.raw()
        });
        if let Some((letter, _)) = known {
            letter.attempts += 1;
            letter.last_seen = now;
            // What is wrong with it now, which may be something else than before.
            letter.stage = stage;
            letter.reason = reason;
            letter.sqlstate = sqlstate;
            letter.event_id = event_id;
            return;
        }
        self.last_letter += 1;
        let letter = DeadLetter {
            id: self.last_letter,
            source: entry.source.to_string(),
            position: entry.position.to_string(),
            stage,
            reason,
            sqlstate,
            event_id,
            attempts: 1,
            first_seen: now,
            last_seen: now,
            num_bytes: entry.num_bytes() as u64,
        };
        self.letters.push((letter, entry.raw().to_vec()));
    }

    /// Removes the letters that are meant; returns how many there were.
    pub(super) fn remove_letters(&mut self, is_meant: impl Fn(&DeadLetter) -> bool) -> u64 {
        let num_before = self.letters.len();
        self.letters.retain(|(letter, _)| !is_meant(letter));
        (num_before - self.letters.len()) as u64
    }

    /// The expired events, oldest first.
    pub(super) fn expired(&self, cutoffs: &Cutoffs) -> Vec<Uuid> {
        let mut expired: Vec<_> = self
            .events
            .values()
            .map(|stored| &stored.event)
            .filter(|event| {
                let cutoff = cutoffs.overrides.get(&event.event);
                event.occurred < *cutoff.unwrap_or(&cutoffs.default)
            })
            .map(|event| (event.occurred, event.id))
            .collect();
        expired.sort_unstable();
        expired.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn remove(&mut self, ids: impl IntoIterator<Item = Uuid>) -> Trimmed {
        let mut trimmed = Trimmed::default();
        for id in ids {
            if let Some(stored) = self.events.remove(&id) {
                trimmed.events += 1;
                trimmed.resources += stored.resources.len() as u64;
            }
        }
        trimmed
    }
}
