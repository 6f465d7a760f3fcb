//! What JetStream's API answers, as far as it is looked at; plain data.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::settings::NatsSettings;

/// An answer that is a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (code {err_code})")]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

impl Refusal {
    const CONSUMER_NOT_FOUND: u32 = 10_014;
    const MESSAGE_TOO_LARGE: u32 = 10_054;
    const NO_MESSAGE_FOUND: u32 = 10_037;
    const STREAM_NOT_FOUND: u32 = 10_059;

    pub(super) fn is_missing_stream(&self) -> bool {
        self.err_code == Self::STREAM_NOT_FOUND
    }

    pub(super) fn is_missing_consumer(&self) -> bool {
        self.err_code == Self::CONSUMER_NOT_FOUND
    }

    /// Another message may be taken.
    pub(super) fn is_about_the_message(&self) -> bool {
        self.err_code == Self::MESSAGE_TOO_LARGE
    }

    pub(super) fn is_missing_message(&self) -> bool {
        self.err_code == Self::NO_MESSAGE_FOUND
    }
}

#[derive(Deserialize)]
struct Head {
    error: Option<Refusal>,
}

/// Reads an answer: what was asked for, or the refusal.
pub(super) fn read<T: DeserializeOwned>(
    answer: &[u8],
) -> Result<Result<T, Refusal>, serde_json::Error> {
    let head: Head = serde_json::from_slice(answer)?;
    match head.error {
        Some(refusal) => Ok(Err(refusal)),
        None => serde_json::from_slice(answer).map(Ok),
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    /// Tells a stream from another that had its name before.
    pub(super) created: DateTime<Utc>,
    pub(super) state: StreamState,
    /// The time of the server that answers; none says so before 2.10.
    #[serde(default)]
    pub(super) ts: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(super) cluster: Option<Cluster>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct StreamConfig {
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    pub(super) discard: String,
    pub(super) storage: String,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: i64,
    pub(super) max_msgs_per_subject: i64,
    /// In nanoseconds; 0 is for ever.
    pub(super) max_age: i64,
    pub(super) num_replicas: u32,
    pub(super) duplicate_window: i64,
    /// Whoever publishes is not told whether a message was taken.
    pub(super) no_ack: bool,
    /// What is copied or renamed may have a subject that is not among its own.
    pub(super) sources: Vec<Value>,
    pub(super) subject_transform: Option<Value>,
}

impl StreamConfig {
    fn has_its_own_subjects_alone(&self) -> bool {
        !self.subjects.is_empty() && self.sources.is_empty() && self.subject_transform.is_none()
    }

    /// Whether messages of this subject are kept in it.
    pub(super) fn takes(&self, subject: &str) -> bool {
        self.subjects.iter().any(|pattern| covers(pattern, subject))
    }

    /// Whether it drops what no consumer waits for, hence all that is unread together with the last consumer.
    pub(super) fn keeps_for_consumers_alone(&self) -> bool {
        self.retention == "interest"
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// Between the first and the last.
    pub(super) num_deleted: u64,
    pub(super) consumer_count: u64,
    pub(super) first_ts: DateTime<Utc>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    /// A single server names none.
    pub(super) name: Option<String>,
    pub(super) leader: String,
    pub(super) replicas: Vec<Peer>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) current: bool,
    pub(super) offline: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) created: DateTime<Utc>,
    pub(super) config: ConsumerConfig,
    #[serde(default)]
    pub(super) delivered: SequencePair,
    #[serde(default)]
    pub(super) ack_floor: SequencePair,
    #[serde(default)]
    pub(super) num_ack_pending: u64,
    #[serde(default)]
    pub(super) num_waiting: u64,
    /// Messages that were never delivered.
    #[serde(default)]
    pub(super) num_pending: u64,
    #[serde(default)]
    pub(super) paused: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct SequencePair {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerConfig {
    pub(super) ack_policy: String,
    /// In nanoseconds.
    pub(super) ack_wait: u64,
    pub(super) backoff: Vec<u64>,
    pub(super) max_deliver: i64,
    pub(super) max_ack_pending: i64,
    pub(super) deliver_policy: String,
    /// Of the policies that name where to begin.
    pub(super) opt_start_seq: u64,
    pub(super) opt_start_time: Option<DateTime<Utc>>,
    pub(super) deliver_subject: Option<String>,
    pub(super) filter_subject: Option<String>,
    pub(super) filter_subjects: Vec<String>,
    pub(super) headers_only: bool,
    pub(super) inactive_threshold: u64,
    /// Of one pull request; 0 is without a limit.
    pub(super) max_batch: i64,
    pub(super) max_bytes: i64,
    pub(super) max_expires: u64,
}

impl ConsumerConfig {
    /// How long a message may be held without a word about it.
    pub(super) fn patience(&self) -> Duration {
        let shortest = self.backoff.iter().copied().min();
        Duration::from_nanos(shortest.unwrap_or(self.ack_wait))
    }

    /// The subjects to which it is limited; empty without a limit.
    pub(super) fn filters(&self) -> Vec<&str> {
        let one = self.filter_subject.as_deref().into_iter();
        let several = self.filter_subjects.iter().map(String::as_str);
        one.chain(several)
            .filter(|subject| !subject.is_empty())
            .collect()
    }

    /// Whether it is given all that this stream takes.
    pub(super) fn takes_all_of(&self, stream: &StreamConfig) -> bool {
        self.takes(">")
            || stream.has_its_own_subjects_alone()
                && stream.subjects.iter().all(|subject| self.takes(subject))
    }

    /// Whether it is given messages of this subject, or all of this pattern.
    pub(super) fn takes(&self, subject: &str) -> bool {
        let filters = self.filters();
        filters.is_empty() || filters.iter().any(|filter| covers(filter, subject))
    }
}

/// Whether a subject, or all of another pattern, is of a pattern.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for part in pattern.split('.') {
        match (part, words.next()) {
            (">", Some(_)) => return true,
            ("*", Some(word)) if word != ">" => {}
            (part, Some(word)) if part == word => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

/// One message, asked for by its number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct StoredMessage {
    pub(super) message: StoredHead,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct StoredHead {
    pub(super) seq: u64,
    pub(super) time: DateTime<Utc>,
    #[serde(default)]
    pub(super) subject: String,
    /// In base64, as is the content.
    pub(super) hdrs: Option<String>,
    pub(super) data: Option<String>,
}

impl StoredHead {
    /// In nanoseconds since 1970.
    pub(super) fn stored_at(&self) -> Option<u64> {
        u64::try_from(self.time.timestamp_nanos_opt()?).ok()
    }
}

/// That a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct PublishAck {
    /// It was not: one of its id came within the window.
    #[serde(default)]
    pub(super) duplicate: bool,
}

/// One request for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Pull {
    pub(super) batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<usize>,
    /// Of nanoseconds.
    pub(super) expires: u64,
    /// With `expires`: wait for one, and end once there are no more.
    pub(super) no_wait: bool,
}

/// How a consumer is made that loses nothing.
pub(super) fn durable(settings: &NatsSettings) -> Value {
    json!({
        "stream_name": settings.stream,
        "config": {
            "durable_name": settings.consumer,
            "description": "read by event-persister",
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": nanos(settings.ack_wait),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "replay_policy": "instant",
        },
    })
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_was_asked_for_or_a_refusal() {
        let refused = br#"{"type":"t","error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        let refused = read::<StreamInfo>(refused).unwrap().unwrap_err();
        assert!(refused.is_missing_stream() && !refused.is_missing_consumer());
        assert_eq!(refused.to_string(), "stream not found (code 10059)");
        let info = br#"{"config":{"name":"events","subjects":["e.>"],"max_age":7,"new":1},
            "created":"2026-11-29T04:37:23.618176576Z","state":{"messages":3,"first_seq":5}}"#;
        let info = read::<StreamInfo>(info).unwrap().unwrap();
        assert_eq!((info.state.messages, info.state.first_seq), (3, 5));
        assert_eq!(info.config.subjects, ["e.>"]);
        assert!(read::<StreamInfo>(b"nonsense").is_err());
    }

    #[test]
    fn the_shortest_time_counts() {
        let mut config = ConsumerConfig {
            ack_wait: 5_000_000_000,
            ..ConsumerConfig::default()
        };
        assert_eq!(config.patience(), Duration::from_secs(5));
        config.backoff = vec![2_000_000_000, 9_000_000_000];
        assert_eq!(config.patience(), Duration::from_secs(2));
        config.filter_subject = Some("a.>".to_owned());
        assert_eq!(config.filters(), ["a.>"]);
        assert!(config.takes("a.b") && !config.takes("b"));
    }

    #[test]
    fn patterns_cover_subjects_word_by_word() {
        for (pattern, subject, covered) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a", "a.b", false),
            (">", "a", true),
            ("a.*", "a.*", true),
            ("a.>", "a.*", true),
            ("a.>", "a.>", true),
            ("a.*", "a.>", false),
            ("a.b", "a.*", false),
            ("a.>", ">", false),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }
}
