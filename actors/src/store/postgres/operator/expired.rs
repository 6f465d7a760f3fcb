//! Counts the rows that retention would remove.

use chrono::{DateTime, Utc};
use diesel::dsl::{exists, not};
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::partitions::is_partitioned;
use crate::store::postgres::schema::{event_resources, events};
use crate::store::postgres::trim::{ahead, bounds};
use crate::store::{Bounds, Cutoffs, Trimmed, as_count};

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
    if is_partitioned(connection).await? {
        return count_by_moment(connection, &bounds).await;
    }
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

/// Partitions are read one by one, and each event is looked for in one of them.
const COUNT_BY_MOMENT: &str = "WITH expired AS MATERIALIZED (SELECT id, occurred FROM events \
    LEFT JOIN unnest($1, $2) AS override (name, cutoff) ON override.name = events.event \
    WHERE occurred < $4 AND occurred < coalesce(override.cutoff, $3)) \
    SELECT (SELECT count(*) FROM expired) AS events, (SELECT count(*) FROM event_resources \
    WHERE occurred < $4 AND ((event_id, occurred) IN (SELECT id, occurred FROM expired) \
    OR occurred < $5 AND NOT EXISTS (SELECT FROM events WHERE events.id = event_resources.event_id \
    AND events.occurred = event_resources.occurred))) AS resources";

#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = BigInt)]
    events: i64,
    #[diesel(sql_type = BigInt)]
    resources: i64,
}

/// The same where the moment is part of what identifies an event.
async fn count_by_moment(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
) -> Result<Trimmed, Failure> {
    let names: Vec<&String> = bounds.names().collect();
    let cutoffs: Vec<PgTimestamp> = bounds.overrides.iter().map(|(_, cutoff)| *cutoff).collect();
    let counted: Counted = sql_query(COUNT_BY_MOMENT)
        .bind::<Array<Text>, _>(names)
        .bind::<Array<Timestamptz>, _>(cutoffs)
        .bind::<Timestamptz, _>(bounds.default)
        .bind::<Timestamptz, _>(bounds.latest())
        .bind::<Timestamptz, _>(bounds.earliest())
        .get_result(&mut connection.pg)
        .await?;
    Ok(Trimmed {
        events: as_count(counted.events),
        resources: as_count(counted.resources),
    })
}
