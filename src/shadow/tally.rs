//! What became of the messages that a shadow has seen: plain data, no waiting.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;

use event_persister_actors::delivery::{Content, Entry};
use event_persister_actors::store::Cutoffs;
use event_persister_actors::store::operator::{Compared, RESOURCES};
use serde::Serialize;
use strum::{AsRefStr, VariantArray};
use uuid::Uuid;

use super::waiting::Look;

/// Ids of the events seen last that are remembered, to know a copy when it comes; some megabytes.
const MAX_SEEN: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, AsRefStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Class {
    /// Its rows are those that would be written.
    Identical,
    /// Its rows are there and hold something else.
    Differing,
    /// It is an event that would be written, was acknowledged, and is not there.
    LostByPrefect,
    /// It would become a dead letter, and is not there either.
    RefusedByBoth,
    /// It would become a dead letter, and its event is there.
    RefusedOnlyByUs,
    /// A copy of an event that came before.
    Duplicate,
    /// It, or a part of it, is not there, and older than retention keeps.
    Expired,
    /// It is not there, and may be too long for an index.
    Unclear,
    Ignored,
    /// Not compared: trimmed from the stream before it could be read.
    Trimmed,
    /// Not compared: the group at work was given it and never acknowledged it.
    Unacknowledged,
    /// Not compared: the shadow ended before its time had come.
    Unfinished,
}

impl Class {
    fn is_named(self) -> bool {
        matches!(
            self,
            Self::Differing
                | Self::LostByPrefect
                | Self::RefusedByBoth
                | Self::RefusedOnlyByUs
                | Self::Unclear
        )
    }

    fn is_fault(self) -> bool {
        matches!(self, Self::Differing | Self::RefusedOnlyByUs)
    }

    fn is_compared(self) -> bool {
        !matches!(
            self,
            Self::Ignored | Self::Trimmed | Self::Unacknowledged | Self::Unfinished
        )
    }
}

/// One message that is named: ids and columns, never what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) class: Class,
    pub(crate) stream_id: String,
    pub(crate) event_id: Option<String>,
    pub(crate) columns: Vec<String>,
    pub(crate) reason: Option<String>,
}

impl Finding {
    pub(crate) fn detail(&self) -> String {
        match (&self.reason, self.class) {
            (Some(reason), _) => format!("here: {reason}"),
            (None, Class::Differing) => format!("columns: {}", self.columns.join(", ")),
            (None, Class::LostByPrefect) => "acknowledged, and not in events".to_owned(),
            (None, Class::Unclear) => "not in events, and its ids may exceed an index".to_owned(),
            (None, _) => "the database would refuse it".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Tally {
    counts: BTreeMap<Class, u64>,
    pub(crate) columns: BTreeMap<String, u64>,
    pub(crate) findings: Vec<Finding>,
    limit: usize,
    seen: Seen,
}

impl Tally {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            counts: BTreeMap::new(),
            columns: BTreeMap::new(),
            findings: Vec::new(),
            limit,
            seen: Seen::default(),
        }
    }

    pub(crate) fn count(&self, class: Class) -> u64 {
        self.counts.get(&class).copied().unwrap_or_default()
    }

    pub(crate) fn num_compared(&self) -> u64 {
        let compared = Class::VARIANTS.iter().filter(|class| class.is_compared());
        compared.map(|class| self.count(*class)).sum()
    }

    /// Whether nothing speaks against taking Prefect's place.
    pub(crate) fn is_well(&self) -> bool {
        let mut faults = Class::VARIANTS.iter().filter(|class| class.is_fault());
        faults.all(|class| self.count(*class) == 0)
    }

    pub(crate) fn add(&mut self, class: Class, number: u64) {
        if number == 0 {
            return;
        }
        *self.counts.entry(class).or_default() += number;
    }

    /// Counts the message, and says as what; `None` if it is to be looked at once more, since somebody may still
    /// be at work on it.
    pub(crate) fn judge(
        &mut self,
        entry: &Entry,
        compared: Compared,
        cutoffs: &Cutoffs,
        look: Look,
    ) -> Option<Class> {
        let class = self.class(entry, &compared, cutoffs, look);
        if look == Look::First && !matches!(class, Class::Identical | Class::Duplicate) {
            return None;
        }
        self.add(class, 1);
        let columns = match compared {
            Compared::Differing(columns) if class == Class::Differing => columns,
            _ => Vec::new(),
        };
        for column in &columns {
            *self.columns.entry(column.clone()).or_default() += 1;
        }
        self.name(class, entry, columns);
        Some(class)
    }

    fn class(
        &mut self,
        entry: &Entry,
        compared: &Compared,
        cutoffs: &Cutoffs,
        look: Look,
    ) -> Class {
        let is_copy = match &entry.content {
            // Its own first look has made it known.
            Content::Event(event) => look == Look::First && !self.seen.insert(event.id),
            // A message that names an event which came as another message.
            Content::Rejected(rejection) => {
                let id = rejection.event_id;
                id.is_some_and(|id| self.seen.contains(id))
                    && *compared == Compared::Refused { is_there: true }
            }
        };
        if is_copy {
            return Class::Duplicate;
        }
        let has_expired = entry
            .event()
            .is_some_and(|event| cutoffs.have_passed(event.occurred, &event.event));
        match compared {
            Compared::Identical => Class::Identical,
            Compared::Absent | Compared::Unclear if has_expired => Class::Expired,
            // Prefect's vacuum deletes the resources first.
            Compared::Differing(columns) if has_expired && *columns == [RESOURCES] => {
                Class::Expired
            }
            Compared::Differing(_) => Class::Differing,
            Compared::Absent => Class::LostByPrefect,
            Compared::Unclear => Class::Unclear,
            Compared::Refused { is_there: true } => Class::RefusedOnlyByUs,
            Compared::Refused { is_there: false } => Class::RefusedByBoth,
        }
    }

    fn name(&mut self, class: Class, entry: &Entry, columns: Vec<String>) {
        let of_class = self
            .findings
            .iter()
            .filter(|finding| finding.class == class);
        if !class.is_named() || of_class.count() >= self.limit {
            return;
        }
        let (event_id, reason) = match &entry.content {
            Content::Event(event) => (Some(event.id), None),
            Content::Rejected(rejection) => (rejection.event_id, Some(rejection.reason.clone())),
        };
        self.findings.push(Finding {
            class,
            stream_id: entry.position.as_str().to_owned(),
            event_id: event_id.map(|id| id.hyphenated().to_string()),
            columns,
            reason,
        });
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compared={}", self.num_compared())?;
        for (class, count) in &self.counts {
            write!(f, " {}={count}", class.as_ref())?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Seen {
    fn insert(&mut self, id: Uuid) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        if self.order.len() >= MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back(id);
        true
    }

    fn contains(&self, id: Uuid) -> bool {
        self.ids.contains(&id)
    }
}

#[cfg(test)]
mod tests;
