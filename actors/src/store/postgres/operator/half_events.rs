//! Halves of events. This store makes none when it writes.

use diesel::dsl::sql;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};

use crate::store::as_count;
use crate::store::operator::HalfEvents;
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::partitions::{is_partitioned, of_one_event};

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
    let count = of_one_event(COUNT, 1, is_partitioned(connection).await?)?;
    let counts = sql::<(BigInt, BigInt)>(&count);
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
    let is_partitioned = is_partitioned(connection).await?;
    let mut remove = async |statement| {
        let remove = sql_query(of_one_event(statement, 1, is_partitioned)?);
        Ok::<_, Failure>(remove.execute(&mut connection.pg).await? as u64)
    };
    let events = remove(REMOVE_EVENTS).await?;
    let resources = remove(REMOVE_RESOURCES).await?;
    connection.commit().await?;
    Ok(HalfEvents { events, resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_have_the_words_that_partitions_change() {
        for statement in [COUNT, REMOVE_EVENTS, REMOVE_RESOURCES] {
            let changed = of_one_event(statement, 1, true).unwrap();
            assert!(changed.contains(".occurred = "), "{changed}");
            assert!(of_one_event(&statement.replace("event_id", "id"), 1, true).is_err());
        }
    }
}
