//! Looks for what would stop or hurt a source on these servers, and changes nothing.

use std::time::Duration;

use crate::clock::{Clock as _, SystemClock};
use crate::finding::{Finding, Severity};

use super::super::api::{ConsumerInfo, StreamInfo};
use super::super::connection::Link;
use super::super::failure::{NatsError, make_stream};
use super::super::fitness::flaws;
use super::super::member::stored_from;
use super::super::settings::NatsSettings;
use super::{Found, NatsOperator};

/// The first that can do all that is asked of it.
const OLDEST_VERSION: (u32, u32) = (2, 9);

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
            let what = format!(
                "the consumer {} is not there yet; `serve` makes it",
                settings.consumer
            );
            findings.push(Finding::ok("nats.consumer", what));
            return findings;
        };
        findings.extend(judge_consumer(consumer, settings));
        findings.push(match found.misplaced(settings) {
            Some(what) => Finding::error("nats.position", what, "remove the consumer"),
            None => Finding::ok(
                "nats.position",
                "the consumer's position is within the stream",
            ),
        });
        let unread = consumer.delivered.stream_seq + 1;
        if consumer.num_pending > 0
            && let Some(stored) = stored_from(link, settings, unread).await
        {
            let now = u64::try_from(SystemClock.now().timestamp_millis()).unwrap_or_default();
            let age = Duration::from_millis(now.saturating_sub(stored));
            findings.extend(judge_lag(stream, settings, consumer.num_pending, age));
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
    const ID: &str = "nats.version";
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let known = numbers.next().zip(numbers.next());
    match known {
        Some(known) if known < OLDEST_VERSION => Finding::warning(
            ID,
            format!("NATS {version} is older than any that was tried"),
            "upgrade it to 2.9 or newer",
        ),
        _ => Finding::ok(ID, format!("NATS {version}")),
    }
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

fn judge_consumer(consumer: &ConsumerInfo, settings: &NatsSettings) -> Vec<Finding> {
    let flaws = flaws(consumer, settings);
    if flaws.is_empty() {
        let what = format!(
            "the consumer {} hands out each message until it is acknowledged; pending: {}, unread: {}",
            settings.consumer, consumer.num_ack_pending, consumer.num_pending
        );
        return vec![Finding::ok("nats.consumer", what)];
    }
    let findings = flaws.into_iter().map(|flaw| {
        let severity = match flaw.is_fatal {
            true => Severity::Error,
            false => Severity::Warning,
        };
        Finding::bad(severity, flaw.id, flaw.what, flaw.remedy)
    });
    findings.collect()
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

    #[test]
    fn versions_are_numbers() {
        for (version, severity) in [
            ("2.9.10", Severity::Ok),
            ("2.15.1", Severity::Ok),
            ("2.8.4", Severity::Warning),
            ("dev", Severity::Ok),
        ] {
            assert_eq!(judge_version(version).severity, severity, "{version}");
        }
    }
}
