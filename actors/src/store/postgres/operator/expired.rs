//! Counts the rows that retention would remove.

use chrono::{DateTime, Utc};
use diesel::dsl::{exists, not};
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::schema::{event_resources, events};
use crate::store::postgres::trim::{ahead, bounds};
use crate::store::{Cutoffs, Trimmed, as_count};

diesel::define_sql_function! {
    /// The server's time, now and not when the transaction began.
    fn clock_timestamp() -> Timestamptz;
}

pub(super) async fn count(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    now: DateTime<Utc>,
) -> Result<Trimmed, Failure> {
    let server_now: PgTimestamp = diesel::select(clock_timestamp())
        .get_result(&mut connection.pg)
        .await?;
    let bounds = bounds(cutoffs, ahead(now, server_now));
    let (mut num_events, mut num_resources) = (0, 0);
    for (name, cutoff) in &bounds.overrides {
        let of_name = events::event.eq(name).and(events::occurred.lt(cutoff));
        let expired = events::table.filter(of_name);
        num_events += expired
            .count()
            .get_result::<i64>(&mut connection.pg)
            .await?;
        let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
        let of_expired = event_resources::table.filter(of_expired).count();
        num_resources += of_expired.get_result::<i64>(&mut connection.pg).await?;
    }
    let of_others = events::occurred
        .lt(bounds.default)
        .and(events::event.ne_all(bounds.names()));
    let expired = events::table.filter(of_others);
    num_events += (expired.clone().count())
        .get_result::<i64>(&mut connection.pg)
        .await?;
    let of_expired = event_resources::event_id.eq_any(expired.select(events::id));
    let of_expired = event_resources::table.filter(of_expired).count();
    num_resources += of_expired.get_result::<i64>(&mut connection.pg).await?;
    let of_event = events::table.filter(events::id.eq(event_resources::event_id));
    let orphans = event_resources::table
        .filter(event_resources::occurred.lt(bounds.earliest()))
        .filter(not(exists(of_event)))
        .count();
    num_resources += orphans.get_result::<i64>(&mut connection.pg).await?;
    Ok(Trimmed {
        events: as_count(num_events),
        resources: as_count(num_resources),
    })
}
