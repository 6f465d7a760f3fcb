//! What `verify` and the shadow share: both compare messages of the stream with the rows that are there.

use std::sync::Arc;

use chrono::TimeDelta;
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::Entry;
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::messages::TrimError;
use event_persister_actors::source::Body;
use event_persister_actors::store::Cutoffs;
use event_persister_actors::store::operator::UNKNOWN_RECEIVED;
use event_persister_actors::trim;

use crate::config::Config;

/// Clocks differ: what retention is about to remove may be gone already.
const CLOCKS_DIFFER_BY: TimeDelta = TimeDelta::minutes(1);

pub(crate) fn cutoffs(config: &Config) -> Result<Cutoffs, TrimError> {
    trim::cutoffs(&config.trim, SystemClock.now() + CLOCKS_DIFFER_BY)
}

/// An empty message becomes nothing: no row, and no dead letter.
pub(crate) fn is_empty(message: &Body) -> bool {
    matches!(message, Body::Raw { data, .. } if data.is_empty())
}

/// The entry that a message of this source must have become.
pub(crate) fn entry(source: &str, message: &Body, limits: &EventLimits) -> Arc<Entry> {
    match message {
        Body::Entry(entry) => Arc::clone(entry),
        Body::Raw { position, data } => Arc::new(Entry::parse(
            Arc::from(source),
            position.clone(),
            data.clone(),
            limits,
            Received::FromText {
                default: UNKNOWN_RECEIVED,
            },
        )),
    }
}
