//! The sessions in the way when a lock is not given in time.

use diesel::dsl::sql;
use diesel::sql_types::{Integer, Nullable, Text};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};

use super::connection::Connection;
use super::failure::Failure;

/// Locks that keep rows from being inserted.
const HOLDERS: &str = "SELECT DISTINCT pid, nullif(application_name, '') AS application_name \
    FROM pg_catalog.pg_locks LEFT JOIN pg_catalog.pg_stat_activity USING (pid) \
    WHERE granted AND pid <> pg_backend_pid() AND relation IN (SELECT to_regclass(name) \
    FROM unnest(ARRAY['events', 'event_resources', 'event_persister_dead_letters']) AS ours (name) \
    UNION ALL SELECT relid FROM pg_partition_tree(to_regclass('events')) \
    UNION ALL SELECT relid FROM pg_partition_tree(to_regclass('event_resources'))) \
    AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
    ORDER BY pid LIMIT 3";

/// The sessions that hold a lock on our tables, as the end of a sentence. Asked on the connection that
/// failed; where that cannot tell, nobody is named.
pub(super) async fn describe(connection: &mut Connection, failure: &Failure) -> Option<String> {
    if !failure.is_lock_timeout() {
        return None;
    }
    connection.pg.batch_execute("ROLLBACK").await.ok()?;
    connection.begin().await.ok()?;
    let holders = sql::<(Integer, Nullable<Text>)>(HOLDERS);
    let holders: Vec<(i32, Option<String>)> = holders.load(&mut connection.pg).await.ok()?;
    let holders: Vec<_> = holders
        .into_iter()
        .map(|(pid, application_name)| match application_name {
            Some(name) => format!("{pid} ({name})"),
            None => pid.to_string(),
        })
        .collect();
    (!holders.is_empty()).then(|| {
        let pids = holders.join(", ");
        format!("; held by the server process {pids}: look for it in pg_stat_activity")
    })
}
