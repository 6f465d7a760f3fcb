//! Finds the event that is at fault when a batch cannot be written, as pure bookkeeping.
//!
//! A database can refuse an event for any reason, and no list of codes names all. So a batch that
//! fails while the database takes others is split until the events that fail stand alone. Each is a
//! *suspect*, tried again by itself between *controls*: events of our own that are written and
//! rolled back. A suspect that fails again while the controls pass is a *culprit* and becomes a
//! dead letter. Where the controls fail too it is an outage: everything is kept and tried for ever.
//! The code of a failure is a hint for how much has to be seen ([`FaultKind`]), never a verdict.
//!
//! Controls also come before a trial: an outage that alternates with success would make a culprit
//! of whatever is tried at the wrong moment. A control that fails starts the count again, and
//! raises the number of failures that are needed; so does a suspect that is stored after all
//! ([`Unrest`]).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Fault, FaultKind};

/// The result of the controls beside a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// None was tried: nothing is known of the store beyond the failure itself.
    NotTried,
    Passed,
    /// The store takes none: it is an outage.
    Failed,
    /// The same, found out before the attempt, which was not made.
    FailedBefore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Culprit,
}

/// Failures of an event alone, each beside a control that passed, that make it a culprit.
const NEEDED: u32 = 2;
/// The same where the failure is of a kind that comes and goes by itself.
const NEEDED_IF_TRANSIENT: u32 = 3;
/// A store that is up and down all the time raises the number of failures that are needed up to this.
/// More would keep a culprit for longer, fewer trust an unstable store more.
const MAX_NEEDED: u32 = 12;

/// An event that failed alone while the store took others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Suspect {
    /// Failures in a row beside controls that passed.
    seen: u32,
    disturbances: u32,
}

impl Suspect {
    /// Takes a failure into account: what the store said, and what the controls showed. `unrest` is how often
    /// the store was up and down in the last minute.
    pub(crate) fn failed(
        &mut self,
        fault: Option<&Fault>,
        control: Control,
        unrest: u32,
    ) -> Verdict {
        match control {
            Control::NotTried => return Verdict::Keep,
            Control::Failed | Control::FailedBefore => {
                self.seen = 0;
                self.disturbances = self.disturbances.saturating_add(1);
                return Verdict::Keep;
            }
            Control::Passed => {}
        }
        let needed = match fault.map(|fault| fault.kind) {
            // The store was not reached, or somebody else is in the way: no fault of the event.
            None | Some(FaultKind::Contention) => {
                self.seen = 0;
                return Verdict::Keep;
            }
            Some(FaultKind::Lasting) => NEEDED,
            Some(FaultKind::Transient | FaultKind::Resources) => NEEDED_IF_TRANSIENT,
        };
        self.seen = self.seen.saturating_add(1);
        let unrest = self.disturbances.max(unrest);
        if self.seen >= needed.saturating_add(unrest).min(MAX_NEEDED) {
            Verdict::Culprit
        } else {
            Verdict::Keep
        }
    }
}

/// How long a store that was up and down is trusted less. Longer keeps culprits for longer after an outage,
/// shorter forgets what comes and goes slowly.
const RESTLESS_FOR: Duration = Duration::from_secs(60);

/// The recent signs that the store itself fails now and then: controls that failed, and suspects that were
/// stored after all.
#[derive(Debug, Default)]
pub(crate) struct Unrest(VecDeque<Instant>);

impl Unrest {
    pub(crate) fn note(&mut self, now: Instant) {
        if self.0.len() >= MAX_NEEDED as usize {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    pub(crate) fn recent(&mut self, now: Instant) -> u32 {
        self.0.retain(|at| now.duration_since(*at) < RESTLESS_FOR);
        u32::try_from(self.0.len()).unwrap_or(MAX_NEEDED)
    }
}

/// Room for suspects beside what is in flight, so that one that is large, or several, stop no reading.
///
/// A suspect that finds no room here goes on counting as in flight.
#[derive(Debug)]
pub(crate) struct Allowance {
    max_events: usize,
    max_bytes: usize,
    num_events: usize,
    num_bytes: usize,
}

impl Allowance {
    /// Room for so many suspects and bytes; the last one that finds any may be larger than that.
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events,
            max_bytes,
            num_events: 0,
            num_bytes: 0,
        }
    }

    pub(crate) fn take(&mut self, num_bytes: usize) -> bool {
        let has_room = self.num_events < self.max_events && self.num_bytes < self.max_bytes;
        if has_room {
            self.num_events += 1;
            self.num_bytes += num_bytes;
        }
        has_room
    }

    /// Bytes of the suspects.
    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    pub(crate) fn give_back(&mut self, num_bytes: usize) {
        self.num_events = self.num_events.saturating_sub(1);
        self.num_bytes = self.num_bytes.saturating_sub(num_bytes);
    }
}

#[cfg(test)]
mod tests;
