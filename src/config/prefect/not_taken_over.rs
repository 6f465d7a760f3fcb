//! Settings that were chosen for Prefect's own persister, vacuum, consumer and drivers.

use super::{FLUSH_INTERVAL, Reader};

struct Group {
    reason: &'static str,
    variables: &'static [&'static str],
}

const KNOWN: [Group; 15] = [
    Group {
        reason: "chosen for Prefect's persister; ours is batch.max_events",
        variables: &[
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE",
            "PREFECT_API_SERVICES_EVENT_PERSISTER_BATCH_SIZE",
        ],
    },
    Group {
        reason: "a read takes as much as there is room for",
        variables: &[
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE",
            "PREFECT_API_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE",
        ],
    },
    Group {
        reason: "chosen for Prefect's persister; ours are batch.linger and batch.max_age",
        variables: &FLUSH_INTERVAL,
    },
    Group {
        reason: "nothing is read that there is no room for (pipeline.max_bytes_in_flight), and \
                 nothing is dropped",
        variables: &["PREFECT_SERVER_SERVICES_EVENT_PERSISTER_QUEUE_MAX_SIZE"],
    },
    Group {
        reason: "a batch is tried again until it is written; nothing is dropped",
        variables: &["PREFECT_SERVER_SERVICES_EVENT_PERSISTER_MAX_FLUSH_RETRIES"],
    },
    Group {
        reason: "chosen for Prefect's vacuum; ours is trim.batch_size",
        variables: &["PREFECT_SERVER_SERVICES_DB_VACUUM_BATCH_SIZE"],
    },
    Group {
        reason: "chosen for Prefect's consumer, which is done with an event before it is stored; \
                 ours is redis.claim_idle",
        variables: &["PREFECT_REDIS_MESSAGING_CONSUMER_MIN_IDLE_TIME"],
    },
    Group {
        reason: "the group goes on where it stands, and a new one begins with the oldest entry",
        variables: &["PREFECT_REDIS_MESSAGING_CONSUMER_STARTING_MESSAGE_ID"],
    },
    Group {
        reason: "what cannot be stored becomes a dead letter, and everything else is tried again \
                 until it is",
        variables: &["PREFECT_REDIS_MESSAGING_CONSUMER_MAX_RETRIES"],
    },
    Group {
        reason: "what Prefect's consumers trim is not ours to choose; redis.guard keeps what is \
                 not committed",
        variables: &[
            "PREFECT_REDIS_MESSAGING_CONSUMER_TRIM_EVERY",
            "PREFECT_REDIS_MESSAGING_CONSUMER_TRIM_IDLE_THRESHOLD",
        ],
    },
    Group {
        reason: "chosen for Prefect's consumer; entries are taken over and acknowledged in any case",
        variables: &[
            "PREFECT_REDIS_MESSAGING_CONSUMER_BLOCK",
            "PREFECT_REDIS_MESSAGING_CONSUMER_SHOULD_PROCESS_PENDING_MESSAGES",
            "PREFECT_REDIS_MESSAGING_CONSUMER_AUTOMATICALLY_ACKNOWLEDGE",
        ],
    },
    Group {
        reason: "chosen for Prefect's client of Redis",
        variables: &[
            "PREFECT_REDIS_MESSAGING_HEALTH_CHECK_INTERVAL",
            "PREFECT_REDIS_MESSAGING_SOCKET_TIMEOUT",
            "PREFECT_REDIS_MESSAGING_SOCKET_CONNECT_TIMEOUT",
            "PREFECT_REDIS_MESSAGING_PROTOCOL",
        ],
    },
    Group {
        reason: "chosen for Prefect's queries; ours are database.statement_timeout and \
                 database.connect_timeout",
        variables: &[
            "PREFECT_SERVER_DATABASE_TIMEOUT",
            "PREFECT_API_DATABASE_TIMEOUT",
            "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT",
            "PREFECT_API_DATABASE_CONNECTION_TIMEOUT",
        ],
    },
    Group {
        reason: "chosen for Prefect's pool; each of pipeline.writers has one connection",
        variables: &[
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE",
            "PREFECT_SQLALCHEMY_POOL_SIZE",
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW",
            "PREFECT_SQLALCHEMY_MAX_OVERFLOW",
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_RECYCLE",
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_TIMEOUT",
        ],
    },
    Group {
        reason: "it names Prefect's connections; ours are to be told from them \
                 (database.application_name)",
        variables: &["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_APPLICATION_NAME"],
    },
];

pub(super) fn report(reader: &mut Reader<'_>) {
    for group in KNOWN {
        reader.see_all(group.variables, group.reason);
    }
}

#[cfg(test)]
pub(super) fn variables() -> impl Iterator<Item = &'static str> {
    KNOWN
        .into_iter()
        .flat_map(|group| group.variables.iter().copied())
}
