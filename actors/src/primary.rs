//! The PostgreSQL server that takes the events: one for a process, and for all replicas of a stream.
//!
//! A standby that takes over begins a new timeline. So of two servers of one system that both take writes, the
//! one on the earlier timeline was left behind: what is written there is lost to the other. A server of another
//! system holds other events altogether.
//!
//! A store compares each server that it connects to with this, and a source that replicas share has them
//! agree on it.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// A server that takes writes, as PostgreSQL tells one from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Primary {
    /// `system_identifier`: a cluster has one for its life, and its standbys have the same.
    pub system: u64,
    /// The timeline that it writes.
    pub timeline: u32,
}

impl Primary {
    /// Whether this one has taken over from the other.
    pub fn succeeds(self, other: Self) -> bool {
        self.system == other.system && self.timeline > other.timeline
    }
}

impl fmt::Display for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {} of system {}", self.timeline, self.system)
    }
}

/// The primary that events are written to, as far as it is known; clones share it.
#[derive(Debug, Clone, Default)]
pub struct KnownPrimary(Arc<Mutex<Option<Primary>>>);

impl KnownPrimary {
    /// The one that events are written to.
    pub fn get(&self) -> Option<Primary> {
        *lock(&self.0)
    }

    /// Takes note of a server that was found, if events may be written to it.
    ///
    /// # Errors
    ///
    /// They may not: the one that they are written to is later, or of another system.
    pub fn meet(&self, found: Primary) -> Result<(), Primary> {
        let known = &mut *lock(&self.0);
        match *known {
            Some(known) if found != known && !found.succeeds(known) => Err(known),
            _ => {
                *known = Some(found);
                Ok(())
            }
        }
    }

    /// Takes over what all replicas have agreed on, unless this process knows of a later one.
    pub fn agree(&self, common: Primary) {
        let known = &mut *lock(&self.0);
        if !known.is_some_and(|known| known.succeeds(common)) {
            *known = Some(common);
        }
    }
}

/// It is no setting: what was found since makes two that were set alike no different.
impl PartialEq for KnownPrimary {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for KnownPrimary {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_primary() -> impl Strategy<Value = Primary> {
        (1..3_u64, 1..6_u32).prop_map(|(system, timeline)| Primary { system, timeline })
    }

    proptest! {
        #[test]
        fn whatever_is_found_the_way_leads_forward_on_one_system(
            found in prop::collection::vec(any_primary(), 1..20),
        ) {
            let known = KnownPrimary::default();
            for primary in found.iter().copied() {
                let before = known.get();
                let met = known.meet(primary);
                let after = known.get().unwrap();
                prop_assert_eq!(after.system, found[0].system);
                prop_assert!(before.is_none_or(|before| after.timeline >= before.timeline));
                match met {
                    Ok(()) => prop_assert_eq!(after, primary),
                    Err(refused_for) => {
                        prop_assert_eq!(Some(refused_for), before);
                        prop_assert_eq!(after, refused_for);
                    }
                }
            }
        }

        #[test]
        fn those_who_agree_end_with_the_same(
            ours in any_primary(),
            theirs in any_primary(),
        ) {
            let known = KnownPrimary::default();
            known.meet(ours).unwrap();
            known.agree(theirs);
            let expected = if ours.succeeds(theirs) { ours } else { theirs };
            prop_assert_eq!(known.get(), Some(expected));
        }
    }
}
