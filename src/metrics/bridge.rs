//! The ledger of what comes by HTTP and is published.

use event_persister_actors::metrics::{LedgerCounts, Metrics};

use super::looked_up::LookedUp;

pub(super) struct Seen {
    ledger: LedgerCounts,
    oldest: f64,
    is_ready: bool,
}

pub(super) fn of_bridge(metrics: Metrics) -> Result<LookedUp<Seen>, prometheus::Error> {
    let look = move || Seen {
        ledger: metrics.ledger(),
        oldest: metrics.oldest_unflushed().unwrap_or_default().as_secs_f64(),
        is_ready: metrics.is_ready(),
    };
    LookedUp::new(look)
        .counter(
            "event_persister_bridge_received_total",
            "Messages that came by HTTP or WebSocket to be published.",
            |seen| Some(seen.ledger.received as f64),
        )?
        .counter(
            "event_persister_bridge_redelivered_total",
            "Messages taken again, after the bridge was started over.",
            |seen| Some(seen.ledger.redelivered as f64),
        )?
        .counter(
            "event_persister_bridge_published_total",
            "Messages that the bus has confirmed.",
            |seen| Some(seen.ledger.stored as f64),
        )?
        .counter(
            "event_persister_bridge_refused_total",
            "Messages that are larger than the bus takes; their senders were told so.",
            |seen| Some(seen.ledger.dead_lettered as f64),
        )?
        .counter(
            "event_persister_bridge_released_total",
            "Messages that were not published, at the end or at a restart of the bridge.",
            |seen| Some(seen.ledger.released as f64),
        )?
        .gauge(
            "event_persister_bridge_in_flight",
            "Messages that are being published.",
            |seen| Some(seen.ledger.in_flight as f64),
        )?
        .gauge(
            "event_persister_bridge_oldest_unpublished_seconds",
            "How long the oldest message that the bus has not confirmed has been held; 0 if there is none.",
            |seen| Some(seen.oldest),
        )?
        .gauge(
            "event_persister_bridge_ready",
            "1 while what comes by HTTP is published.",
            |seen| Some(f64::from(u8::from(seen.is_ready))),
        )
}
