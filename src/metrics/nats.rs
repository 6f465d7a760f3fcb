//! What is known about the stream in NATS, for `/metrics`.

use std::sync::Arc;

use event_persister_actors::clock::Clock;

use super::looked_up::LookedUp;
use crate::wiring::{NatsStats, NatsStatus};

pub(super) struct Seen {
    status: NatsStatus,
    /// By our clock, which may be a little behind that of the servers.
    now_millis: i64,
}

pub(super) fn of_nats(
    stats: NatsStats,
    clock: Arc<dyn Clock>,
) -> Result<LookedUp<Seen>, prometheus::Error> {
    let look = move || Seen {
        status: stats.status(),
        now_millis: clock.now().timestamp_millis(),
    };
    LookedUp::new(look)
        .counter(
            "event_persister_nats_lost_total",
            "Messages that the stream's limits, or a purge, removed before they were read, as far as \
             that was seen.",
            |seen| Some(seen.status.num_lost as f64),
        )?
        .counter(
            "event_persister_nats_redelivered_total",
            "Messages that came although they had been given to this replica or another before.",
            |seen| Some(seen.status.num_redelivered as f64),
        )?
        .counter(
            "event_persister_nats_rejoined_total",
            "How often the stream or the consumer had vanished and was there again.",
            |seen| Some(seen.status.num_rejoined as f64),
        )?
        .gauge(
            "event_persister_nats_own_pending",
            "Messages that this process was given and has not acknowledged.",
            |seen| Some(seen.status.own_pending as f64),
        )?
        .gauge(
            "event_persister_nats_consumer_pending",
            "Messages that all who share the consumer were given and have not acknowledged.",
            |seen| Some(seen.status.consumer_pending as f64),
        )?
        .gauge(
            "event_persister_nats_stream_messages",
            "Messages in the stream.",
            |seen| Some(seen.status.stream_messages as f64),
        )?
        .gauge(
            "event_persister_nats_stream_bytes",
            "The size of the stream.",
            |seen| Some(seen.status.stream_bytes as f64),
        )?
        .gauge(
            "event_persister_nats_lag",
            "Messages that the consumer was not given yet.",
            |seen| Some(seen.status.lag as f64),
        )?
        .gauge(
            "event_persister_nats_lag_seconds",
            "How long ago the oldest message was stored that is not acknowledged; 0 if there is none.",
            |seen| {
                if seen.status.is_oldest_unknown {
                    return None;
                }
                let oldest = seen.status.oldest_millis;
                let oldest = oldest.and_then(|oldest| i64::try_from(oldest).ok());
                let since = oldest.map_or(0, |oldest| seen.now_millis.saturating_sub(oldest));
                Some(since.max(0) as f64 / 1000.0)
            },
        )
}
