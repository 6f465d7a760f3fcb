//! Ids for the rows of `event_resources`.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Of the 74 bits of an id behind its time, those below its number within the batch.
const RANDOM_BITS: u32 = 50;
/// The bits of a UUID's 128 that may be chosen; version and variant are given.
const BITS_BELOW_VARIANT: u32 = 62;
const BITS_BELOW_VERSION: u32 = 12;

/// The ids of one attempt to write a batch: UUIDs of version 7, ascending.
///
/// Prefect's are random, and nothing but their primary key reads them. In order they go to the end of
/// that index, where random ones touch a page each, more of them the more rows there are. Each attempt
/// has new ones: one that is there already tells nothing about the event.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResourceIds {
    first: u128,
}

impl ResourceIds {
    /// Ids of this moment; of those made by others in the same millisecond they differ by 50 random
    /// bits.
    pub(super) fn new(now: DateTime<Utc>) -> Self {
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or_default();
        let random = Uuid::new_v4().as_u128() & ((1 << RANDOM_BITS) - 1);
        let first = u128::from(millis) << (BITS_BELOW_VERSION + BITS_BELOW_VARIANT) | random;
        Self { first }
    }

    /// The id of the batch's `index`th resource. Numbers beyond 24 bits carry into the time.
    pub(super) fn get(&self, index: usize) -> Uuid {
        let bits = self.first + ((index as u128) << RANDOM_BITS);
        let below_variant = bits & ((1 << BITS_BELOW_VARIANT) - 1);
        let above_variant = bits >> BITS_BELOW_VARIANT;
        let below_version = above_variant & ((1 << BITS_BELOW_VERSION) - 1);
        let time = above_variant >> BITS_BELOW_VERSION;
        Uuid::from_u128(time << 80 | 7 << 76 | below_version << 64 | 2 << 62 | below_variant)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_are_of_version_7_and_of_their_time_and_ascend(
            millis in 0..253_402_300_800_000_i64,
            index in 0..200_000_usize,
        ) {
            let ids = ResourceIds::new(DateTime::from_timestamp_millis(millis).unwrap());
            let id = ids.get(index);
            prop_assert_eq!(id.get_version_num(), 7);
            prop_assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            prop_assert_eq!(id.as_u128() >> 80, millis as u128);
            prop_assert!(id < ids.get(index + 1));
        }
    }

    #[test]
    fn two_attempts_in_the_same_millisecond_share_no_id() {
        let now = DateTime::from_timestamp_millis(1_764_000_000_000).unwrap();
        let (one, other) = (ResourceIds::new(now), ResourceIds::new(now));
        assert!((0..1_000).all(|index| one.get(index) != other.get(index)));
    }

    #[test]
    fn a_time_before_1970_or_more_numbers_than_fit_are_no_error() {
        let ids = ResourceIds::new(DateTime::<Utc>::MIN_UTC);
        assert!(ids.get(1 << 24) < ids.get(usize::MAX >> 8));
    }
}
