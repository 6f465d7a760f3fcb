//! Counts the rows that retention would remove.

use diesel::dsl::{exists, not};
use diesel::prelude::*;

use crate::store::sqlite::connection::{Connection, Failure};
use crate::store::sqlite::schema::{event_resources, events};
use crate::store::sqlite::text::timestamp_bound;
use crate::store::sqlite::trim::is_before;
use crate::store::{Cutoffs, Trimmed, as_count};

pub(super) fn count(connection: &mut Connection, cutoffs: &Cutoffs) -> Result<Trimmed, Failure> {
    let bounds = cutoffs.bounds(timestamp_bound);
    // One transaction, so that all counts are of the same moment.
    connection.execute_batch("BEGIN")?;
    let (mut events, mut resources) = (0, 0);
    for (name, cutoff) in &bounds.overrides {
        let of_name = events::event.eq(name);
        let expired = events::table.filter(of_name.and(is_before(events::occurred, cutoff)));
        events += connection.run(|connection| expired.count().get_result::<i64>(connection))?;
        let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
        let of_expired = event_resources::table.filter(of_expired);
        resources +=
            connection.run(|connection| of_expired.count().get_result::<i64>(connection))?;
    }
    let of_others = is_before(events::occurred, &bounds.default);
    let of_others = of_others.and(events::event.ne_all(bounds.names()));
    let expired = events::table.filter(&of_others);
    events += connection.run(|connection| expired.count().get_result::<i64>(connection))?;
    let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
    let of_expired = event_resources::table.filter(of_expired);
    resources += connection.run(|connection| of_expired.count().get_result::<i64>(connection))?;
    let of_event = events::table.filter(events::id.eq(event_resources::event_id));
    let orphans = event_resources::table
        .filter(is_before(event_resources::occurred, bounds.earliest()))
        .filter(not(exists(of_event)));
    resources += connection.run(|connection| orphans.count().get_result::<i64>(connection))?;
    connection.commit()?;
    Ok(Trimmed {
        events: as_count(events),
        resources: as_count(resources),
    })
}
