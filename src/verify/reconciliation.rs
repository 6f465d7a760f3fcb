//! What the stream was acknowledged for, held against what the database has: plain data, no waiting.
//!
//! A first look only makes suspects, since the database is at work meanwhile: retention deletes, and
//! another writer may commit an event's halves apart. What is still wrong at the second look, some
//! time later, is a finding.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use event_persister_actors::delivery::{Content, Entry};
use event_persister_actors::store::Cutoffs;
use event_persister_actors::store::audit::{EventRows, Flaw};
use serde::Serialize;

/// Suspects that are held at once; some megabytes.
pub(crate) const MAX_SUSPECTS: usize = 50_000;

/// What an acknowledged entry of the stream must have become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where it stands, and where its dead letter came from.
    pub(crate) stream_id: String,
    /// The event's id, where that can be read.
    pub(crate) event_id: Option<String>,
    /// What retention goes by: when the event occurred, and its name. `None` for what is no event.
    kept_by: Option<(DateTime<Utc>, String)>,
}

impl Wanted {
    pub(crate) fn of(entry: &Entry) -> Self {
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
        }
    }

    /// Whether retention may have removed it.
    fn may_have_expired(&self, cutoffs: &Cutoffs) -> bool {
        self.kept_by
            .as_ref()
            .is_some_and(|(occurred, name)| cutoffs.have_passed(*occurred, name))
    }
}

/// What the database answered about some entries or events.
#[derive(Debug, Default)]
pub(crate) struct Held {
    rows: HashMap<String, EventRows>,
    letters: HashSet<String>,
}

impl Held {
    pub(crate) fn new(rows: Vec<EventRows>, letters: Vec<String>) -> Self {
        Self {
            rows: (rows.into_iter())
                .map(|rows| (rows.event_id.clone(), rows))
                .collect(),
            letters: letters.into_iter().collect(),
        }
    }

    /// The rows of an event of which there is one.
    fn stored(&self, event_id: Option<&str>) -> Option<&EventRows> {
        self.rows.get(event_id?).filter(|rows| rows.num_events > 0)
    }
}

/// What became of the acknowledged entries that were looked at, and of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StreamCounts {
    /// Acknowledged entries; the sum of the next four and of those that are missing.
    pub(crate) checked: u64,
    /// Their event is in the table.
    pub(crate) stored: u64,
    /// They are dead letters.
    pub(crate) dead_letters: u64,
    /// They are empty.
    pub(crate) ignored: u64,
    /// They are not there, and older than retention keeps.
    pub(crate) expired: u64,
    /// Given to a consumer and not acknowledged.
    pub(crate) pending: u64,
    /// Not given to the group yet.
    pub(crate) unread: u64,
}

/// What is wrong, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Acknowledged, and neither stored nor a dead letter.
    Missing,
    /// More rows than there should be.
    Doubled,
    /// Less rows than there should be.
    HalfWritten,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Doubled => "doubled",
            Self::HalfWritten => "half-written",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) stream_id: Option<String>,
    pub(crate) event_id: Option<String>,
    pub(crate) detail: String,
}

/// How much is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Faults {
    pub(crate) missing: u64,
    pub(crate) doubled: u64,
    pub(crate) half_written: u64,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Reconciliation {
    pub(crate) stream: StreamCounts,
    pub(crate) faults: Faults,
    /// The first of what is wrong.
    pub(crate) findings: Vec<Finding>,
    max_findings: usize,
    missing: Vec<Wanted>,
    /// Events whose rows look wrong, and where the stream has them, if that is known.
    flawed: BTreeMap<String, Option<String>>,
    /// Events of the stream that were looked at twice; the walk through the tables meets them again.
    judged: HashSet<String>,
}

/// What has to be looked at once more.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    pub(crate) missing: Vec<Wanted>,
    pub(crate) flawed: Vec<(String, Option<String>)>,
}

impl Reconciliation {
    pub(crate) fn new(max_findings: usize) -> Self {
        Self {
            max_findings,
            ..Self::default()
        }
    }

    /// Nothing is missing, doubled or half-written.
    pub(crate) fn all_is_well(&self) -> bool {
        self.faults == Faults::default()
    }

    /// An acknowledged entry that is empty: nothing is wanted of it.
    pub(crate) fn ignore(&mut self) {
        self.stream.checked += 1;
        self.stream.ignored += 1;
    }

    /// The first look at an acknowledged entry. What the database answered must be younger than the
    /// knowledge that the entry is acknowledged.
    pub(crate) fn judge(&mut self, wanted: Wanted, held: &Held, cutoffs: &Cutoffs) {
        self.stream.checked += 1;
        if !self.is_accounted_for(&wanted, held, cutoffs) {
            self.missing.push(wanted);
        }
    }

    /// Whether the entry is somewhere, or may be gone; counts it then.
    fn is_accounted_for(&mut self, wanted: &Wanted, held: &Held, cutoffs: &Cutoffs) -> bool {
        let has_letter = held.letters.contains(&wanted.stream_id);
        let rows = held.stored(wanted.event_id.as_deref());
        // What is no event may bear the id of one that is stored.
        let rows = rows.filter(|_| wanted.kept_by.is_some() || !has_letter);
        if let Some(rows) = rows {
            self.stream.stored += 1;
            if rows.flaw().is_some() && self.flawed.len() < MAX_SUSPECTS {
                self.flawed
                    .insert(rows.event_id.clone(), Some(wanted.stream_id.clone()));
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

    /// An event whose rows look wrong, wherever it came from.
    pub(crate) fn suspect(&mut self, event_id: String) {
        if !self.judged.contains(&event_id) {
            self.flawed.entry(event_id).or_default();
        }
    }

    /// Counts what is wrong, named or not.
    pub(crate) fn count(&mut self, kind: Kind, num: u64) {
        *match kind {
            Kind::Missing => &mut self.faults.missing,
            Kind::Doubled => &mut self.faults.doubled,
            Kind::HalfWritten => &mut self.faults.half_written,
        } += num;
    }

    /// Whether a second look is due before more suspects are made.
    pub(crate) fn is_full(&self) -> bool {
        self.missing.len() + self.flawed.len() >= MAX_SUSPECTS
    }

    /// Takes out what has to be looked at once more.
    pub(crate) fn take_suspects(&mut self) -> Suspects {
        Suspects {
            missing: std::mem::take(&mut self.missing),
            flawed: std::mem::take(&mut self.flawed).into_iter().collect(),
        }
    }

    /// The second look at an entry that was missing.
    pub(crate) fn settle_missing(&mut self, wanted: Wanted, held: &Held, cutoffs: &Cutoffs) {
        if self.is_accounted_for(&wanted, held, cutoffs) {
            return;
        }
        let detail = match wanted.kept_by {
            Some(_) => "acknowledged, and neither in events nor a dead letter",
            None => "acknowledged though it is no event, and not a dead letter",
        };
        self.find(Finding {
            kind: Kind::Missing,
            stream_id: Some(wanted.stream_id),
            event_id: wanted.event_id,
            detail: detail.to_owned(),
        });
    }

    /// The second look at an event whose rows looked wrong.
    pub(crate) fn settle_flawed(
        &mut self,
        (event_id, stream_id): (String, Option<String>),
        held: &Held,
    ) {
        if stream_id.is_some() {
            self.judged.insert(event_id.clone());
        }
        let Some(rows) = held.rows.get(&event_id) else {
            return;
        };
        let kind = match rows.flaw() {
            None => return,
            Some(Flaw::Doubled) => Kind::Doubled,
            Some(Flaw::HalfWritten) => Kind::HalfWritten,
        };
        self.find(Finding {
            kind,
            stream_id,
            event_id: Some(event_id),
            detail: describe(rows),
        });
    }

    fn find(&mut self, finding: Finding) {
        self.count(finding.kind, 1);
        if self.findings.len() < self.max_findings {
            self.findings.push(finding);
        }
    }
}

fn describe(rows: &EventRows) -> String {
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
