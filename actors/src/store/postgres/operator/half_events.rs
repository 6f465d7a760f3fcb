//! Halves of events. This store makes none when it writes.

use diesel::dsl::sql;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};

use crate::store::as_count;
use crate::store::operator::HalfEvents;
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;

/// One join tells both, so that each table is read once.
const COUNT: &str = "SELECT \
    count(*) FILTER (WHERE resource.event_id IS NULL AND events.id IS NOT NULL), \
    count(*) FILTER (WHERE events.id IS NULL) \
    FROM events FULL JOIN event_resources AS resource ON resource.event_id = events.id";

const REMOVE_EVENTS: &str = "DELETE FROM events WHERE NOT EXISTS \
    (SELECT FROM event_resources WHERE event_resources.event_id = events.id)";

const REMOVE_RESOURCES: &str = "DELETE FROM event_resources WHERE NOT EXISTS \
    (SELECT FROM events WHERE events.id = event_resources.event_id)";

/// Counts the halves, all of the same moment. Reads both tables as a whole.
pub(super) async fn count(connection: &mut Connection) -> Result<HalfEvents, Failure> {
    let counts = sql::<(BigInt, BigInt)>(COUNT);
    let (events, resources) = counts.get_result(&mut connection.pg).await?;
    Ok(HalfEvents {
        events: as_count(events),
        resources: as_count(resources),
    })
}

/// Removes the halves. Each statement sees whole transactions only, so that an event that is being
/// written meanwhile is in both tables for it or in neither.
pub(super) async fn remove(connection: &mut Connection) -> Result<HalfEvents, Failure> {
    connection.begin().await?;
    connection
        .pg
        .batch_execute("SET LOCAL statement_timeout = 0")
        .await?;
    let events = sql_query(REMOVE_EVENTS).execute(&mut connection.pg).await?;
    let resources = sql_query(REMOVE_RESOURCES)
        .execute(&mut connection.pg)
        .await?;
    connection.commit().await?;
    Ok(HalfEvents {
        events: events as u64,
        resources: resources as u64,
    })
}
