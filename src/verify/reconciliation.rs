//! Judges acknowledged entries of the stream by the database's answers: plain data, no waiting.
//!
//! The database is at work meanwhile: retention deletes, and another writer may commit an event's halves
//! apart. So the first look makes suspects, and only the second one findings.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use event_persister_actors::delivery::{Content, Entry};
use event_persister_actors::store::Cutoffs;
use event_persister_actors::store::operator::{
    Compared, EventRows, Flaw, NUM_RESOURCES, RESOURCES, UNKNOWN_RECEIVED,
};
use serde::Serialize;
use strum::{AsRefStr, VariantArray};

/// Suspects that are kept at once; some megabytes.
pub(crate) const MAX_SUSPECTS: usize = 50_000;

/// The row or letter that an acknowledged entry of the stream must have become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stream_id: String,
    pub(crate) event_id: Option<String>,
    /// When the event occurred, and its name; `None` for what is no event.
    kept_by: Option<(DateTime<Utc>, String)>,
    likeness: Likeness,
}

/// An entry that was compared with the row of its event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Likeness {
    received: Option<DateTime<Utc>>,
    /// The columns of `events` that differ; `None` where there was no row. Its resources are compared
    /// with these columns apart from that.
    columns: Option<Vec<String>>,
}

impl Likeness {
    fn of(entry: &Entry, compared: Compared) -> Self {
        let received = entry.event().map(|event| event.received);
        Self {
            received: received.filter(|received| *received != UNKNOWN_RECEIVED),
            columns: match compared {
                Compared::Differing(mut columns) => {
                    columns.retain(|column| column != RESOURCES && column != NUM_RESOURCES);
                    Some(columns)
                }
                // An event that would be refused has no columns that could differ.
                Compared::Identical | Compared::Refused { .. } => Some(Vec::new()),
                Compared::Absent | Compared::Unclear => None,
            },
        }
    }

    fn is_same(&self) -> bool {
        self.columns.as_ref().is_some_and(Vec::is_empty)
    }

    fn may_be_same(&self) -> bool {
        self.columns.as_ref().is_none_or(Vec::is_empty)
    }

    /// The columns in which this row differs. An earlier time of receipt is that of an earlier copy,
    /// which may have left the stream.
    fn differing(&self, rows: &EventRows) -> &[String] {
        let columns = self.columns.as_deref().unwrap_or_default();
        let is_earlier = rows.received < self.received && rows.received.is_some();
        match columns {
            [only] if only == "received" && is_earlier => &[],
            columns => columns,
        }
    }
}

impl Wanted {
    pub(crate) fn of(entry: &Entry, compared: Compared) -> Self {
        let (event_id, kept_by) = match &entry.content {
            Content::Event(event) => {
                let kept_by = (event.occurred, event.event.clone());
                (Some(event.id), Some(kept_by))
            }
            Content::Rejected(rejection) => (rejection.event_id, None),
        };
        Self {
            stream_id: entry.position.as_str().to_owned(),
            event_id: event_id.map(|id| id.hyphenated().to_string()),
            kept_by,
            likeness: Likeness::of(entry, compared),
        }
    }

    fn may_have_expired(&self, cutoffs: &Cutoffs) -> bool {
        self.kept_by
            .as_ref()
            .is_some_and(|(occurred, name)| cutoffs.have_passed(*occurred, name))
    }
}

/// The database's answers about some entries or events.
#[derive(Debug, Default)]
pub(crate) struct FoundRows {
    rows: HashMap<String, EventRows>,
    letters: HashSet<String>,
}

impl FoundRows {
    pub(crate) fn new(rows: Vec<EventRows>, letters: Vec<String>) -> Self {
        Self {
            rows: (rows.into_iter())
                .map(|rows| (rows.event_id.clone(), rows))
                .collect(),
            letters: letters.into_iter().collect(),
        }
    }

    fn stored(&self, event_id: Option<&str>) -> Option<&EventRows> {
        self.rows.get(event_id?).filter(|rows| rows.num_events > 0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StreamCounts {
    /// Acknowledged entries; the sum of the next four and of those that are missing.
    pub(crate) checked: u64,
    pub(crate) stored: u64,
    pub(crate) dead_letters: u64,
    pub(crate) ignored: u64,
    /// Not there, and older than retention keeps.
    pub(crate) expired: u64,
    pub(crate) pending: u64,
    pub(crate) unread: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, AsRefStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Kind {
    /// Acknowledged, and neither stored nor a dead letter.
    Missing,
    Doubled,
    HalfWritten,
    Differing,
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) stream_id: Option<String>,
    pub(crate) event_id: Option<String>,
    pub(crate) detail: String,
}

#[derive(Debug, Default)]
pub(crate) struct Reconciliation {
    pub(crate) stream: StreamCounts,
    faults: BTreeMap<Kind, u64>,
    pub(crate) findings: Vec<Finding>,
    /// The stream's id of the first missing entry.
    pub(crate) first_missing: Option<String>,
    max_findings: usize,
    missing: Vec<Wanted>,
    /// Events whose rows look wrong, by their ids.
    flawed: BTreeMap<String, Flawed>,
    /// Events of the stream that were looked at twice; the walk through the tables meets them again.
    judged: HashSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Suspects {
    pub(crate) missing: Vec<Wanted>,
    pub(crate) flawed: Vec<Flawed>,
}

/// An event whose rows look wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flawed {
    pub(crate) event_id: String,
    stream_id: Option<String>,
    likeness: Likeness,
}

impl Flawed {
    fn of(event_id: String, wanted: &Wanted) -> Self {
        Self {
            event_id,
            stream_id: Some(wanted.stream_id.clone()),
            likeness: wanted.likeness.clone(),
        }
    }

    pub(crate) fn compared(&mut self, copies: &Copies) {
        if let Some(Some(likeness)) = copies.0.get(&self.event_id) {
            self.likeness = likeness.clone();
        }
    }
}

/// For events whose rows differ from an entry: what their other entries in the stream say. One that is
/// the same decides; of others the last is as good as any.
#[derive(Debug, Default)]
pub(crate) struct Copies(HashMap<String, Option<Likeness>>);

impl Copies {
    pub(crate) fn of(flawed: &[Flawed]) -> Self {
        let differing = flawed.iter().filter(|flawed| {
            let is_in_stream = flawed.stream_id.is_some();
            is_in_stream && !flawed.likeness.is_same()
        });
        Self(
            differing
                .map(|flawed| (flawed.event_id.clone(), None))
                .collect(),
        )
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn are_about(&self, entry: &Entry) -> bool {
        event_id(entry).is_some_and(|event_id| self.0.contains_key(&event_id))
    }

    pub(crate) fn learn(&mut self, entry: &Entry, compared: Compared) {
        if matches!(compared, Compared::Refused { .. }) {
            return;
        }
        let known = event_id(entry).and_then(|event_id| self.0.get_mut(&event_id));
        if let Some(known) = known
            && !known.as_ref().is_some_and(Likeness::is_same)
        {
            *known = Some(Likeness::of(entry, compared));
        }
    }
}

fn event_id(entry: &Entry) -> Option<String> {
    entry.event().map(|event| event.id.hyphenated().to_string())
}

impl Reconciliation {
    pub(crate) fn new(max_findings: usize) -> Self {
        Self {
            max_findings,
            ..Self::default()
        }
    }

    pub(crate) fn all_is_well(&self) -> bool {
        self.num_faults() == 0
    }

    pub(crate) fn num_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    pub(crate) fn num(&self, kind: Kind) -> u64 {
        self.faults.get(&kind).copied().unwrap_or_default()
    }

    pub(crate) fn ignore(&mut self, num: usize) {
        self.stream.checked += num as u64;
        self.stream.ignored += num as u64;
    }

    pub(crate) fn is_stored(&mut self) {
        self.stream.checked += 1;
        self.stream.stored += 1;
    }

    /// The first look. The database must have been asked after the entry was known to be acknowledged.
    pub(crate) fn judge(&mut self, wanted: Wanted, found: &FoundRows, cutoffs: &Cutoffs) {
        self.stream.checked += 1;
        if !self.is_accounted_for(&wanted, found, cutoffs) {
            self.missing.push(wanted);
        }
    }

    /// Whether the entry is stored, a dead letter or expired; counts it then.
    fn is_accounted_for(&mut self, wanted: &Wanted, found: &FoundRows, cutoffs: &Cutoffs) -> bool {
        let has_letter = found.letters.contains(&wanted.stream_id);
        let rows = found.stored(wanted.event_id.as_deref());
        // An entry that is no event, or was refused, may bear the id of one that is stored.
        let is_its_own = wanted.kept_by.is_some() && wanted.likeness.may_be_same();
        let rows = rows.filter(|_| is_its_own || !has_letter);
        if let Some(rows) = rows {
            self.stream.stored += 1;
            if rows.flaw().is_some() || !wanted.likeness.is_same() {
                let flawed = Flawed::of(rows.event_id.clone(), wanted);
                self.flawed.entry(rows.event_id.clone()).or_insert(flawed);
            }
        } else if has_letter {
            self.stream.dead_letters += 1;
        } else if wanted.may_have_expired(cutoffs) {
            self.stream.expired += 1;
        } else {
            return false;
        }
        true
    }

    pub(crate) fn suspect(&mut self, event_id: String) {
        if !self.judged.contains(&event_id) {
            let flawed = Flawed {
                event_id: event_id.clone(),
                ..Flawed::default()
            };
            self.flawed.entry(event_id).or_insert(flawed);
        }
    }

    pub(crate) fn count(&mut self, kind: Kind, num: u64) {
        *self.faults.entry(kind).or_default() += num;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.missing.len() + self.flawed.len() >= MAX_SUSPECTS
    }

    pub(crate) fn has_suspects(&self) -> bool {
        !self.missing.is_empty() || !self.flawed.is_empty()
    }

    pub(crate) fn take_suspects(&mut self) -> Suspects {
        Suspects {
            missing: std::mem::take(&mut self.missing),
            flawed: std::mem::take(&mut self.flawed).into_values().collect(),
        }
    }

    pub(crate) fn settle_missing(&mut self, wanted: Wanted, found: &FoundRows, cutoffs: &Cutoffs) {
        if self.is_accounted_for(&wanted, found, cutoffs) {
            return;
        }
        let detail = match wanted.kept_by {
            Some(_) => "acknowledged, and neither in events nor a dead letter",
            None => "acknowledged though it is no event, and not a dead letter",
        };
        self.first_missing
            .get_or_insert_with(|| wanted.stream_id.clone());
        self.find(Finding {
            kind: Kind::Missing,
            stream_id: Some(wanted.stream_id),
            event_id: wanted.event_id,
            detail: detail.to_owned(),
        });
    }

    pub(crate) fn settle_flawed(&mut self, flawed: &Flawed, found: &FoundRows) {
        let event_id = &flawed.event_id;
        if flawed.stream_id.is_some() {
            self.judged.insert(event_id.clone());
        }
        let Some(rows) = found.rows.get(event_id) else {
            return;
        };
        let differing = match rows.num_events {
            0 => &[],
            _ => flawed.likeness.differing(rows),
        };
        let kind = match rows.flaw() {
            None if differing.is_empty() => return,
            None | Some(Flaw::Differing) => Kind::Differing,
            Some(Flaw::Doubled) => Kind::Doubled,
            Some(Flaw::HalfWritten) => Kind::HalfWritten,
            Some(Flaw::Unreadable(_)) => Kind::Unreadable,
        };
        self.find(Finding {
            kind,
            stream_id: flawed.stream_id.clone(),
            event_id: Some(event_id.clone()),
            detail: describe(rows, differing),
        });
    }

    fn find(&mut self, finding: Finding) {
        self.count(finding.kind, 1);
        if self.findings.len() < self.max_findings {
            self.findings.push(finding);
        }
    }
}

/// The row, and the columns in which it differs from the stream's entry. Names, never values.
fn describe(rows: &EventRows, differing: &[String]) -> String {
    let mut parts = Vec::new();
    match rows.flaw() {
        Some(Flaw::Unreadable(why)) => parts.push(why.as_str().to_owned()),
        Some(Flaw::Doubled | Flaw::HalfWritten) => parts.push(describe_numbers(rows)),
        None | Some(Flaw::Differing) => {}
    }
    if !rows.contradicting.is_empty() && rows.num_resources == rows.num_expected {
        parts.push(format!(
            "not what its columns resource and related say: {}",
            rows.contradicting.join(", ")
        ));
    }
    if !differing.is_empty() {
        parts.push(format!(
            "not what the stream's entry says: {}",
            differing.join(", ")
        ));
    }
    parts.join("; ")
}

fn describe_numbers(rows: &EventRows) -> String {
    let EventRows {
        num_events,
        num_expected,
        num_resources,
        ..
    } = rows;
    match (num_events, num_resources) {
        (0, _) => format!("{num_resources} in event_resources and no row in events"),
        (1, 0) => format!("in events, without any of its {num_expected} resources"),
        (1, _) => format!("in events, with {num_resources} resources instead of {num_expected}"),
        (_, _) => format!("{num_events} times in events, with {num_resources} resources"),
    }
}

#[cfg(test)]
mod tests;
