//! Looks for what would stop or hurt a source on these servers, and changes nothing.

use std::time::Duration;

use crate::clock::{Clock as _, SystemClock};
use crate::finding::{Finding, Severity};

use super::super::api::{ConsumerInfo, StreamInfo};
use super::super::connection::Link;
use super::super::failure::{NatsError, make_stream};
use super::super::fitness::{Flaw, flaw_of_version, flaws};
use super::super::member::stored_from;
use super::super::settings::NatsSettings;
use super::{Found, NatsOperator};

const REACHABLE: &str = "nats.reachable";

impl NatsOperator {
    pub(super) async fn look_for_trouble(&self, retention: Option<Duration>) -> Vec<Finding> {
        let settings = self.settings();
        let link = match self.connections.link().await {
            Ok(link) => link,
            Err(error) => return vec![unreachable(settings, "connecting", &error)],
        };
        let version = link.server_version();
        let mut findings = vec![
            Finding::ok(REACHABLE, format!("NATS at {} answers", settings.url)),
            judge_version(&version),
        ];
        match self.find(&link).await {
            Ok(found) => findings.extend(self.judge(&link, &found, retention).await),
            Err(error) => {
                findings.push(unreachable(settings, "looking at the stream", &error));
            }
        }
        findings
    }

    async fn judge(&self, link: &Link, found: &Found, retention: Option<Duration>) -> Vec<Finding> {
        let settings = self.settings();
        let Some(stream) = &found.stream else {
            let what = format!("there is no stream {}", settings.stream);
            return vec![Finding::error("nats.stream", what, make_stream(settings))];
        };
        let mut findings = judge_stream(stream, settings);
        findings.extend(retention.and_then(|kept| judge_age(stream, settings, kept)));
        let Some(consumer) = &found.consumer else {
            findings.push(judge_absence(stream, settings));
            return findings;
        };
        findings.extend(judge_consumer(consumer, stream, settings));
        findings.push(match found.misplaced(settings) {
            Some(flaw) => finding_of(flaw),
            None => Finding::ok(
                "nats.position",
                "the consumer's position is within the stream",
            ),
        });
        findings.extend(judge_backlog(stream, consumer, settings));
        if consumer.num_pending > 0 {
            findings.extend(judge_oldest(link, stream, consumer, settings).await);
        }
        findings
    }
}

fn unreachable(settings: &NatsSettings, doing: &str, error: &NatsError) -> Finding {
    Finding::error(
        REACHABLE,
        format!("NATS at {}: {doing} failed ({error})", settings.url),
        error.remedy(settings),
    )
}

fn judge_version(version: &str) -> Finding {
    match flaw_of_version(version) {
        Some(flaw) => finding_of(flaw),
        None => Finding::ok("nats.version", format!("NATS {version}")),
    }
}

fn finding_of(flaw: Flaw) -> Finding {
    let severity = match flaw.is_fatal {
        true => Severity::Error,
        false => Severity::Warning,
    };
    Finding::bad(severity, flaw.id, flaw.what, flaw.remedy)
}

fn judge_stream(stream: &StreamInfo, settings: &NatsSettings) -> Vec<Finding> {
    let config = &stream.config;
    let name = &settings.stream;
    let mut findings = vec![Finding::ok(
        "nats.stream",
        format!(
            "the stream {name} holds {} messages of the subjects {}",
            stream.state.messages,
            config.subjects.join(", ")
        ),
    )];
    if config.storage == "memory" {
        findings.push(Finding::warning(
            "nats.storage",
            format!("the stream {name} is kept in memory: a restart of its servers loses what is not stored yet"),
            "make one with --storage file",
        ));
    }
    if let Some(cluster) = &stream.cluster {
        let away: Vec<&str> = (cluster.replicas.iter())
            .filter(|peer| peer.offline || !peer.current)
            .map(|peer| peer.name.as_str())
            .collect();
        findings.push(if cluster.leader.is_empty() {
            let what = format!("the stream {name} has no leader");
            Finding::error("nats.replicas", what, "see that most of its servers run")
        } else if !away.is_empty() {
            let what = format!(
                "replicas of the stream {name} are away or behind: {}",
                away.join(", ")
            );
            Finding::warning("nats.replicas", what, "see why")
        } else if config.num_replicas < 2 && cluster.name.is_some() {
            Finding::warning(
                "nats.replicas",
                format!("the stream {name} has one replica: with its server it is away, or lost"),
                format!("`nats stream edit {name} --replicas 3`"),
            )
        } else {
            let what = format!(
                "{} replicas, all of them current",
                config.num_replicas.max(1)
            );
            Finding::ok("nats.replicas", what)
        });
    }
    findings.push(judge_limits(stream, settings));
    findings
}

/// Limits that remove unread messages are fine as long as they are wide.
fn judge_limits(stream: &StreamInfo, settings: &NatsSettings) -> Finding {
    const ID: &str = "nats.limits";
    let config = &stream.config;
    let state = &stream.state;
    let name = &settings.stream;
    if config.max_msgs_per_subject > 0 {
        return Finding::error(
            ID,
            format!(
                "the stream {name} keeps {} messages a subject and removes older ones, whether they were read or not",
                config.max_msgs_per_subject
            ),
            format!("`nats stream edit {name} --max-msgs-per-subject=-1`"),
        );
    }
    let share = |used: u64, limit: i64| match u64::try_from(limit) {
        Ok(limit) if limit > 0 => used as f64 / limit as f64,
        _ => 0.0,
    };
    let messages = share(state.messages, config.max_msgs);
    let full = messages.max(share(state.bytes, config.max_bytes));
    let percent = (full * 100.0).round();
    if full >= 0.8 && config.discard == "new" {
        return Finding::warning(
            ID,
            format!(
                "the stream {name} is {percent} % full; once it is full it refuses what is published"
            ),
            "raise its limits, or have it keep less",
        );
    }
    if full >= 0.8 && config.retention != "limits" {
        return Finding::error(
            ID,
            format!(
                "the stream {name} is {percent} % full of what is not acknowledged; once it is full it removes the \
                 oldest, read or not"
            ),
            format!(
                "raise its limits, or have it refuse instead: `nats stream edit {name} --discard new`"
            ),
        );
    }
    let limits = [
        (config.max_msgs > 0).then(|| format!("{} messages", config.max_msgs)),
        (config.max_bytes > 0).then(|| format!("{} bytes", config.max_bytes)),
        (config.max_age > 0).then(|| format!("{:?}", age(stream))),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    Finding::ok(
        ID,
        match limits.is_empty() {
            true => format!("the stream {name} has no limits"),
            false => format!("the stream {name} keeps up to {}", limits.join(", ")),
        },
    )
}

fn age(stream: &StreamInfo) -> Duration {
    Duration::from_nanos(u64::try_from(stream.config.max_age).unwrap_or_default())
}

/// What is read again after retention has deleted it is stored again, until the next pass.
fn judge_age(stream: &StreamInfo, settings: &NatsSettings, kept: Duration) -> Option<Finding> {
    let age = age(stream);
    let forever = age.is_zero() && stream.config.retention == "limits";
    let keeps_longer = forever || age > kept;
    keeps_longer.then(|| {
        Finding::ok(
            "nats.age",
            format!(
                "the stream {} keeps messages longer than retention keeps events ({kept:?}); were the consumer made \
                 anew, old ones would be stored until the next pass",
                settings.stream
            ),
        )
    })
}

/// Nothing is lost before the consumer is made, unless the stream keeps what a consumer waits for alone.
fn judge_absence(stream: &StreamInfo, settings: &NatsSettings) -> Finding {
    const ID: &str = "nats.consumer";
    let consumer = &settings.consumer;
    if stream.config.keeps_for_consumers_alone() {
        return Finding::error(
            ID,
            format!(
                "the consumer {consumer} is not there, and the stream {} keeps nothing for it until it is",
                settings.stream
            ),
            "start `serve`, which makes it, before anything is published",
        );
    }
    let what = format!("the consumer {consumer} is not there yet; `serve` makes it");
    Finding::ok(ID, what)
}

fn judge_consumer(
    consumer: &ConsumerInfo,
    stream: &StreamInfo,
    settings: &NatsSettings,
) -> Vec<Finding> {
    let flaws = flaws(consumer, &stream.config, settings);
    if flaws.is_empty() {
        let what = format!(
            "the consumer {} hands out each message until it is acknowledged; pending: {}, unread: {}",
            settings.consumer, consumer.num_ack_pending, consumer.num_pending
        );
        return vec![Finding::ok("nats.consumer", what)];
    }
    flaws.into_iter().map(finding_of).collect()
}

async fn judge_oldest(
    link: &Link,
    stream: &StreamInfo,
    consumer: &ConsumerInfo,
    settings: &NatsSettings,
) -> Option<Finding> {
    let unread = consumer.delivered.stream_seq + 1;
    match stored_from(link, settings, &consumer.config, unread).await {
        Ok(stored) => {
            let now = u64::try_from(SystemClock.now().timestamp_millis()).unwrap_or_default();
            let age = Duration::from_millis(now.saturating_sub(stored?));
            judge_lag(stream, settings, consumer.num_pending, age)
        }
        Err(error) => Some(Finding::warning(
            "nats.lag",
            format!("how old the oldest unread message is is not known ({error})"),
            error.remedy(settings),
        )),
    }
}

/// What is not stored yet, where the stream soon removes the oldest to make room.
fn judge_backlog(
    stream: &StreamInfo,
    consumer: &ConsumerInfo,
    settings: &NatsSettings,
) -> Option<Finding> {
    let (config, state) = (&stream.config, &stream.state);
    let waiting = (consumer.num_pending + consumer.num_ack_pending) as f64;
    let bytes = waiting * state.bytes as f64 / state.messages.max(1) as f64;
    let is_over_half = |used: f64, limit: i64| limit > 0 && used > limit as f64 / 2.0;
    let is_late = is_over_half(waiting, config.max_msgs) || is_over_half(bytes, config.max_bytes);
    (is_late && config.discard != "new").then(|| {
        Finding::error(
            "nats.lag",
            format!(
                "{waiting} messages are not stored yet, more than half of what the stream {} keeps: once it is full \
                 it removes the oldest, read or not",
                settings.stream
            ),
            format!(
                "see why they are not stored; meanwhile raise its limits (`nats stream edit {}`)",
                settings.stream
            ),
        )
    })
}

/// Unread messages that the stream will soon remove.
fn judge_lag(
    stream: &StreamInfo,
    settings: &NatsSettings,
    num_unread: u64,
    oldest: Duration,
) -> Option<Finding> {
    let kept = age(stream);
    let is_late = !kept.is_zero() && oldest > kept / 2;
    is_late.then(|| {
        Finding::error(
            "nats.lag",
            format!(
                "{num_unread} messages are unread, the oldest for {} s, and the stream {} removes them after {} s",
                oldest.as_secs(),
                settings.stream,
                kept.as_secs()
            ),
            format!(
                "see why they are not stored; meanwhile `nats stream edit {} --max-age=0s` keeps them",
                settings.stream
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(change: fn(&mut StreamInfo)) -> Vec<(&'static str, Severity)> {
        let mut stream = StreamInfo::default();
        stream.config.retention = "limits".to_owned();
        stream.config.num_replicas = 1;
        change(&mut stream);
        let findings = judge_stream(&stream, &NatsSettings::default()).into_iter();
        findings
            .map(|finding| (finding.id, finding.severity))
            .filter(|(_, severity)| *severity > Severity::Ok)
            .collect()
    }

    #[test]
    fn streams_that_lose_what_is_unread_are_found() {
        assert_eq!(judged(|_| {}), []);
        assert_eq!(judged(|s| s.config.max_age = 1), []);
        let memory = judged(|s| s.config.storage = "memory".into());
        assert_eq!(memory, [("nats.storage", Severity::Warning)]);
        let latest = judged(|s| s.config.max_msgs_per_subject = 1);
        assert_eq!(latest, [("nats.limits", Severity::Error)]);
        let full = judged(|s| {
            s.config.retention = "workqueue".into();
            s.config.max_msgs = 100;
            s.state.messages = 90;
        });
        assert_eq!(full, [("nats.limits", Severity::Error)]);
        let refuses = judged(|s| {
            s.config.discard = "new".into();
            s.config.max_bytes = 100;
            s.state.bytes = 90;
        });
        assert_eq!(refuses, [("nats.limits", Severity::Warning)]);
    }

    #[test]
    fn a_missing_consumer_is_an_error_where_nothing_is_kept_without_it() {
        let absent = |retention: &str| {
            let mut stream = StreamInfo::default();
            stream.config.retention = retention.to_owned();
            judge_absence(&stream, &NatsSettings::default()).severity
        };
        assert_eq!(absent("limits"), Severity::Ok);
        assert_eq!(absent("workqueue"), Severity::Ok);
        assert_eq!(absent("interest"), Severity::Error);
    }

    #[test]
    fn servers_that_are_away_are_named() {
        let away = judged(|s| {
            s.config.num_replicas = 3;
            s.cluster = serde_json::from_str(
                r#"{"leader":"a","replicas":[{"name":"b","current":true},{"name":"c","offline":true}]}"#,
            )
            .unwrap();
        });
        assert_eq!(away, [("nats.replicas", Severity::Warning)]);
        let leaderless = judged(|s| s.cluster = Some(Default::default()));
        assert_eq!(leaderless, [("nats.replicas", Severity::Error)]);
    }

    #[test]
    fn a_backlog_that_fills_the_stream_is_told_in_time() {
        let mut stream = StreamInfo::default();
        stream.config.max_msgs = 100;
        (stream.state.messages, stream.state.bytes) = (100, 1_000);
        let told = |stream: &StreamInfo, num_pending, num_ack_pending| {
            let consumer = ConsumerInfo {
                num_pending,
                num_ack_pending,
                ..ConsumerInfo::default()
            };
            judge_backlog(stream, &consumer, &NatsSettings::default()).is_some()
        };
        assert!(!told(&stream, 40, 10) && told(&stream, 40, 11));
        (stream.config.max_msgs, stream.config.max_bytes) = (-1, 1_000);
        assert!(!told(&stream, 40, 10) && told(&stream, 51, 0));
        stream.config.discard = "new".to_owned();
        assert!(!told(&stream, 90, 0), "it refuses instead");
    }

    #[test]
    fn what_will_be_removed_unread_is_told_in_time() {
        let mut stream = StreamInfo::default();
        stream.config.max_age = 100_000_000_000;
        let settings = NatsSettings::default();
        let lag = |oldest| judge_lag(&stream, &settings, 3, Duration::from_secs(oldest));
        assert_eq!(lag(40), None);
        assert_eq!(
            lag(60).map(|finding| finding.severity),
            Some(Severity::Error)
        );
    }
}
