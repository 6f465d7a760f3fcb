//! Whether a consumer hands out every message until it is acknowledged, and to us.

use std::time::Duration;

use super::api::ConsumerInfo;
use super::failure::NatsError;
use super::settings::{NatsSettings, SHORTEST_ACK_WAIT};

/// With fewer in flight, one replica alone is held up.
const FEW_IN_FLIGHT: i64 = 4_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) id: &'static str,
    /// Events may be lost, or none can be read.
    pub(super) is_fatal: bool,
    pub(super) what: String,
    pub(super) remedy: String,
}

/// What is wrong with the consumer, the worst first.
pub(super) fn flaws(info: &ConsumerInfo, settings: &NatsSettings) -> Vec<Flaw> {
    let config = &info.config;
    let NatsSettings {
        stream, consumer, ..
    } = settings;
    let edit = |change: &str| format!("`nats consumer edit {stream} {consumer} {change}`");
    let anew = format!(
        "remove it (`nats consumer rm {stream} {consumer}`): it is made anew, and all that is in the stream is read \
         once more; or name another in nats.consumer"
    );
    let mut flaws = Vec::new();
    let mut add = |id, is_fatal, what: String, remedy: String| {
        flaws.push(Flaw {
            id,
            is_fatal,
            what: format!("the consumer {consumer} of the stream {stream} {what}"),
            remedy,
        });
    };
    if config.deliver_subject.is_some() {
        let what = "pushes its messages, and cannot be shared safely";
        add("nats.consumer_kind", true, what.to_owned(), anew.clone());
    }
    if config.ack_policy != "explicit" {
        let what = format!(
            "takes messages for acknowledged that were not (ack policy {}): events would be lost",
            config.ack_policy
        );
        add("nats.ack_policy", true, what, anew.clone());
    }
    if config.headers_only {
        let what = "hands out headers alone, and no events".to_owned();
        add("nats.headers_only", true, what, anew.clone());
    }
    if config.max_deliver > 0 {
        let what = format!(
            "gives a message up after {} deliveries: an outage of the database would lose events",
            config.max_deliver
        );
        add("nats.max_deliver", true, what, edit("--max-deliver=-1"));
    }
    if info.paused {
        let what = "is paused, and hands out nothing".to_owned();
        let remedy = format!("`nats consumer resume {stream} {consumer}`");
        add("nats.paused", false, what, remedy);
    }
    let patience = config.patience();
    if patience < SHORTEST_ACK_WAIT {
        let what = format!(
            "takes a message for lost after {patience:?}: one that only waits is handed out twice"
        );
        let wait = settings.ack_wait.as_secs();
        add(
            "nats.ack_wait",
            false,
            what,
            edit(&format!("--wait={wait}s")),
        );
    }
    let filters = config.filters();
    if !filters.is_empty() {
        let what = format!(
            "is given some subjects of the stream alone: {}",
            filters.join(", ")
        );
        let remedy = "see that other consumers are given the rest, if all of it is to be stored";
        add("nats.filter", false, what, remedy.to_owned());
    }
    if (1..FEW_IN_FLIGHT).contains(&config.max_ack_pending) {
        let what = format!(
            "lets {} messages be in flight, over all replicas: they wait for one another",
            config.max_ack_pending
        );
        add(
            "nats.max_ack_pending",
            false,
            what,
            edit("--max-pending=-1"),
        );
    }
    if config.inactive_threshold > 0 {
        let what = format!(
            "is removed once nobody has read for {:?}; it is then made anew, and all that is in the stream is read \
             once more",
            Duration::from_nanos(config.inactive_threshold)
        );
        let remedy = edit("--inactive-threshold=0s");
        add("nats.inactive_threshold", false, what, remedy);
    }
    if !matches!(config.deliver_policy.as_str(), "" | "all") {
        let what = format!(
            "began with some messages of the stream alone (deliver policy {}): those before are not read",
            config.deliver_policy
        );
        add("nats.deliver_policy", false, what, anew);
    }
    flaws.sort_by_key(|flaw| !flaw.is_fatal);
    flaws
}

/// Whether it can be read without losing events; the rest is told as warnings.
pub(super) fn judge(
    info: &ConsumerInfo,
    settings: &NatsSettings,
) -> Result<Vec<String>, NatsError> {
    let flaws = flaws(info, settings);
    match flaws.iter().find(|flaw| flaw.is_fatal) {
        Some(fatal) => Err(NatsError::Unfit {
            what: fatal.what.clone(),
            remedy: fatal.remedy.clone(),
        }),
        None => Ok(flaws
            .into_iter()
            .map(|Flaw { what, remedy, .. }| format!("{what}; {remedy}"))
            .collect()),
    }
}

/// The configuration of a consumer as this service makes it.
#[cfg(test)]
pub(super) fn sound() -> super::api::ConsumerConfig {
    super::api::ConsumerConfig {
        ack_policy: "explicit".to_owned(),
        ack_wait: super::api::nanos(Duration::from_secs(20)),
        max_deliver: -1,
        max_ack_pending: -1,
        deliver_policy: "all".to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::nats::api::ConsumerConfig;

    fn found(change: fn(&mut ConsumerConfig)) -> Vec<(&'static str, bool)> {
        let mut info = ConsumerInfo {
            config: sound(),
            ..ConsumerInfo::default()
        };
        change(&mut info.config);
        let flaws = flaws(&info, &NatsSettings::default());
        let is_refused = judge(&info, &NatsSettings::default()).is_err();
        assert_eq!(is_refused, flaws.iter().any(|flaw| flaw.is_fatal));
        flaws
            .into_iter()
            .map(|flaw| (flaw.id, flaw.is_fatal))
            .collect()
    }

    #[test]
    fn a_consumer_of_our_own_is_sound() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn what_would_lose_events_is_refused_and_the_rest_told() {
        let second = 1_000_000_000;
        assert_eq!(
            found(|c| c.ack_policy = "none".into()),
            [("nats.ack_policy", true)]
        );
        assert_eq!(found(|c| c.max_deliver = 5), [("nats.max_deliver", true)]);
        assert_eq!(
            found(|c| c.headers_only = true),
            [("nats.headers_only", true)]
        );
        let push = found(|c| c.deliver_subject = Some("x".into()));
        assert_eq!(push, [("nats.consumer_kind", true)]);
        assert_eq!(
            found(|c| c.max_ack_pending = 1000),
            [("nats.max_ack_pending", false)]
        );
        assert_eq!(
            found(|c| c.deliver_policy = "new".into()),
            [("nats.deliver_policy", false)]
        );
        let filter = found(|c| c.filter_subject = Some("a".into()));
        assert_eq!(filter, [("nats.filter", false)]);
        let threshold = found(|c| c.inactive_threshold = 5);
        assert_eq!(threshold, [("nats.inactive_threshold", false)]);
        assert_eq!(found(|_| {}), []);
        let mut info = ConsumerInfo {
            config: sound(),
            paused: true,
            ..ConsumerInfo::default()
        };
        info.config.ack_wait = second;
        info.config.max_deliver = 2;
        let ids: Vec<_> = flaws(&info, &NatsSettings::default())
            .into_iter()
            .map(|flaw| flaw.id)
            .collect();
        assert_eq!(ids, ["nats.max_deliver", "nats.paused", "nats.ack_wait"]);
    }
}
