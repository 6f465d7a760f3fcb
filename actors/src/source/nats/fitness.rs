//! Whether a consumer hands out every message until it is acknowledged, and to us.

use std::time::Duration;

use super::api::{ConsumerInfo, StreamConfig, StreamInfo};
use super::failure::NatsError;
use super::settings::{NatsSettings, SHORTEST_ACK_WAIT};

/// With fewer in flight, one replica alone is held up.
const FEW_IN_FLIGHT: i64 = 4_000;

/// The first that can do all that is asked of it.
const OLDEST_VERSION: (u32, u32, u32) = (2, 9, 0);

/// From here on a server takes the acknowledgement of what it has forgotten for a reason to pass over messages.
const PASSES_OVER: (u32, u32, u32) = (2, 10, 0);
const PASSES_OVER_NO_MORE: (u32, u32, u32) = (2, 10, 26);

const INACTIVE: &str = "nats.inactive_threshold";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) id: &'static str,
    /// Events may be lost, or none can be read.
    pub(super) is_fatal: bool,
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Flaw {
    pub(super) fn what_and_remedy(self) -> String {
        format!("{}; {}", self.what, self.remedy)
    }

    /// A consumer that goes when nobody reads is read all the same.
    fn must_not_be_read(&self) -> bool {
        self.is_fatal && self.id != INACTIVE
    }

    pub(super) fn into_error(self) -> NatsError {
        let Self { what, remedy, .. } = self;
        NatsError::Unfit { what, remedy }
    }
}

/// The command after which the consumer is made anew; nothing that is unread is dropped with the old one.
pub(super) fn command_to_make_anew(kept_by: &StreamConfig, settings: &NatsSettings) -> String {
    let NatsSettings {
        stream, consumer, ..
    } = settings;
    let remove = format!("nats consumer rm {stream} {consumer} --force");
    if kept_by.keeps_for_consumers_alone() {
        return format!(
            "nats consumer add {stream} {consumer}-keep --pull --deliver all --ack explicit --defaults && {remove}"
        );
    }
    remove
}

fn how_to_make_anew(kept_by: &StreamConfig, settings: &NatsSettings) -> String {
    let command = command_to_make_anew(kept_by, settings);
    let then = "it is made anew, and all that is in the stream is read once more";
    if kept_by.keeps_for_consumers_alone() {
        return format!(
            "name another in nats.consumer, and remove this one once that is there: the stream drops what no consumer \
             waits for; or have a third keep it meanwhile: `{command}`. Then {then}; remove the third after that"
        );
    }
    format!("remove it (`{command}`): {then}; or name another in nats.consumer")
}

/// That the consumer is ahead of the stream, if it is.
pub(super) fn misplaced(
    stream: &StreamInfo,
    info: &ConsumerInfo,
    settings: &NatsSettings,
) -> Option<Flaw> {
    let (delivered, last) = (info.delivered.stream_seq, stream.state.last_seq);
    (delivered > last).then(|| Flaw {
        id: "nats.position",
        is_fatal: true,
        what: format!(
            "the consumer {} was given messages up to {delivered}, and the stream {} ends at {last}: the stream has \
             lost what was published last, in a failover or a restart, and new messages may be taken for old ones",
            settings.consumer, settings.stream
        ),
        remedy: how_to_make_anew(&stream.config, settings),
    })
}

/// That the stream has lost a message that the consumer had given, and given its number to another.
pub(super) fn replaced(sequence: u64, kept_by: &StreamConfig, settings: &NatsSettings) -> Flaw {
    let NatsSettings {
        stream, consumer, ..
    } = settings;
    Flaw {
        id: "nats.position",
        is_fatal: true,
        what: format!(
            "the stream {stream} had lost what was published last, in a failover or a restart, and message {sequence} \
             is another one by now: the consumer {consumer} has passed over new messages"
        ),
        remedy: how_to_make_anew(kept_by, settings),
    }
}

/// What is wrong with servers of this version.
pub(super) fn flaw_of_version(version: &str) -> Option<Flaw> {
    let mut numbers = version
        .split(['.', '-'])
        .map_while(|number| number.parse().ok());
    let (major, minor): (u32, u32) = numbers.next().zip(numbers.next())?;
    let known = (major, minor, numbers.next().unwrap_or_default());
    let (is_fatal, what, remedy) = if known < OLDEST_VERSION {
        let remedy = "upgrade it to 2.9 or newer";
        (false, "is older than any that was tried", remedy)
    } else if (PASSES_OVER..PASSES_OVER_NO_MORE).contains(&known) {
        let what = "may pass over messages of a replica that died, after a restart of its own";
        (true, what, "upgrade it to 2.10.26 or newer")
    } else {
        return None;
    };
    Some(Flaw {
        id: "nats.version",
        is_fatal,
        what: format!("NATS {version} {what}"),
        remedy: remedy.to_owned(),
    })
}

/// What is wrong with the consumer, the worst first.
pub(super) fn flaws(
    info: &ConsumerInfo,
    kept_by: &StreamConfig,
    settings: &NatsSettings,
) -> Vec<Flaw> {
    let config = &info.config;
    let NatsSettings {
        stream, consumer, ..
    } = settings;
    let edit = |change: &str| format!("`nats consumer edit {stream} {consumer} {change}`");
    let anew = how_to_make_anew(kept_by, settings);
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
        // A server takes no such change where there is a backoff.
        let remedy = match config.backoff.is_empty() {
            true => edit("--max-deliver=-1"),
            false => anew.clone(),
        };
        add("nats.max_deliver", true, what, remedy);
    }
    if info.paused {
        let what = "is paused, and hands out nothing".to_owned();
        let remedy = format!("`nats consumer resume {stream} {consumer}`");
        add("nats.paused", false, what, remedy);
    }
    let patience = config.patience();
    if config.ack_policy == "explicit" && patience < SHORTEST_ACK_WAIT {
        let what = format!(
            "takes a message for lost after {patience:?}: one that only waits is handed out twice"
        );
        let wait = settings.ack_wait.as_secs();
        let remedy = match config.backoff.is_empty() {
            true => edit(&format!("--wait={wait}s")),
            false => anew.clone(),
        };
        add("nats.ack_wait", false, what, remedy);
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
        let is_fatal = kept_by.keeps_for_consumers_alone();
        let what = format!(
            "is removed once nobody has read for {:?}; {}",
            Duration::from_nanos(config.inactive_threshold),
            match is_fatal {
                true => "the stream then drops all that is unread",
                false => "it is then made anew, and all that is in the stream is read once more",
            }
        );
        let remedy = edit("--inactive-threshold=0s");
        add(INACTIVE, is_fatal, what, remedy);
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
    kept_by: &StreamConfig,
    settings: &NatsSettings,
) -> Result<Vec<String>, NatsError> {
    let flaws = flaws(info, kept_by, settings);
    match flaws.iter().find(|flaw| flaw.must_not_be_read()) {
        Some(fatal) => Err(fatal.clone().into_error()),
        None => Ok(flaws.into_iter().map(Flaw::what_and_remedy).collect()),
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
        found_in("limits", change)
    }

    fn found_in(retention: &str, change: fn(&mut ConsumerConfig)) -> Vec<(&'static str, bool)> {
        let stream = StreamConfig {
            retention: retention.to_owned(),
            ..StreamConfig::default()
        };
        let mut info = ConsumerInfo {
            config: sound(),
            ..ConsumerInfo::default()
        };
        change(&mut info.config);
        let flaws = flaws(&info, &stream, &NatsSettings::default());
        let is_refused = judge(&info, &stream, &NatsSettings::default()).is_err();
        let must_be_refused = |flaw: &Flaw| flaw.is_fatal && flaw.id != "nats.inactive_threshold";
        assert_eq!(is_refused, flaws.iter().any(must_be_refused));
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
    fn a_consumer_with_a_backoff_is_to_be_made_anew() {
        let stream = StreamConfig::default();
        for (backoff, remedy) in [
            (vec![], "nats consumer edit"),
            (vec![1, 2], "nats consumer rm"),
        ] {
            let mut info = ConsumerInfo {
                config: sound(),
                ..ConsumerInfo::default()
            };
            info.config.ack_wait = 1;
            info.config.max_deliver = 4;
            info.config.backoff = backoff;
            let flaws = flaws(&info, &stream, &NatsSettings::default());
            let ids: Vec<_> = flaws.iter().map(|flaw| flaw.id).collect();
            assert_eq!(ids, ["nats.max_deliver", "nats.ack_wait"]);
            assert!(
                flaws.iter().all(|flaw| flaw.remedy.contains(remedy)),
                "{flaws:?}"
            );
        }
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
        let ids: Vec<_> = flaws(&info, &StreamConfig::default(), &NatsSettings::default())
            .into_iter()
            .map(|flaw| flaw.id)
            .collect();
        assert_eq!(ids, ["nats.max_deliver", "nats.paused", "nats.ack_wait"]);
    }

    #[test]
    fn where_the_backlog_goes_with_the_consumer_it_is_kept_by_another() {
        let threshold = found_in("interest", |c| c.inactive_threshold = 5);
        assert_eq!(threshold, [("nats.inactive_threshold", true)]);
        let command = |retention: &str| {
            let stream = StreamConfig {
                retention: retention.to_owned(),
                ..StreamConfig::default()
            };
            command_to_make_anew(&stream, &NatsSettings::default())
        };
        let remove = "nats consumer rm events event-persister --force";
        assert_eq!(command("limits"), remove);
        let kept = command("interest");
        assert!(kept.starts_with("nats consumer add events event-persister-keep"));
        assert!(kept.ends_with(&format!("&& {remove}")), "{kept}");
    }

    #[test]
    fn versions_are_numbers() {
        for (version, is_fatal) in [
            ("2.9.10", None),
            ("2.10.26", None),
            ("2.15.1", None),
            ("dev", None),
            ("2.8.4", Some(false)),
            ("2.10.0-beta.1", Some(true)),
            ("2.10.25", Some(true)),
        ] {
            let flaw = flaw_of_version(version);
            assert_eq!(flaw.map(|flaw| flaw.is_fatal), is_fatal, "{version}");
        }
    }

    #[test]
    fn a_consumer_ahead_of_its_stream_is_told() {
        let mut stream = StreamInfo::default();
        stream.state.last_seq = 95;
        let mut info = ConsumerInfo::default();
        info.delivered.stream_seq = 95;
        let misplaced = |info: &_| misplaced(&stream, info, &NatsSettings::default());
        assert_eq!(misplaced(&info), None);
        info.delivered.stream_seq = 100;
        let told = misplaced(&info).unwrap().what_and_remedy();
        assert!(
            told.contains("up to 100, and the stream events ends at 95"),
            "{told}"
        );
        assert!(
            told.contains("nats consumer rm events event-persister"),
            "{told}"
        );
    }
}
