//! Settings that are allowed and hurt.

use std::time::Duration;

use event_persister_actors::read_routes::MAX_READING_BYTES;
use event_persister_actors::settings::{Period, text};

use crate::config::{Config, Effective, Origin};
use crate::http::{Listen, Publish};
use crate::wiring::Finding;

/// Kubernetes kills after so long; Docker after 10 s, systemd after 90.
const KILLED_AFTER: Duration = Duration::from_secs(30);

/// Events that are gone so soon are seen by nobody.
const SHORT_RETENTION: Duration = Duration::from_secs(3600);

/// Ten years: whoever means for ever says so with `trim.every = "off"`.
const LONG_RETENTION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A batch of large events takes as long on a healthy server.
const SHORT_STATEMENT: Duration = Duration::from_secs(2);

/// `memory_limit` is how many bytes this process may use.
pub(super) fn judge(config: &Config, memory_limit: Option<u64>) -> Vec<Finding> {
    let mut findings = vec![
        drain_timeout(config),
        retention(config),
        memory(config, memory_limit),
    ];
    findings.extend(request_timeout(config));
    findings.extend(statement_timeout(config));
    findings.extend(config.effective.iter().filter_map(seen_by_everyone));
    findings.extend(config.prefect.warnings.iter().cloned());
    findings
}

fn drain_timeout(config: &Config) -> Finding {
    const ID: &str = "config.drain_timeout";
    let timeout = config.drain_timeout;
    let what = format!("a shutdown takes at most {} s", timeout.as_secs());
    if timeout > KILLED_AFTER {
        return Finding::warning(
            ID,
            format!("{what}, and supervisors kill sooner: HTTP clients then get no answer"),
            "lower pipeline.drain_timeout, or raise terminationGracePeriodSeconds, TimeoutStopSec or \
             stop_grace_period above it",
        );
    }
    Finding::ok(ID, what)
}

fn retention(config: &Config) -> Finding {
    const ID: &str = "config.retention";
    if config.trim.every.is_none() {
        return Finding::ok(ID, "trim.every is off: events are kept for ever");
    }
    let retention = config.trim.retention;
    let what = format!("events are kept for {}", text::<Period>(&retention));
    if retention < SHORT_RETENTION {
        return Finding::warning(
            ID,
            format!("{what}: late ones are deleted as soon as they are stored"),
            "raise trim.retention",
        );
    }
    if retention > LONG_RETENTION {
        return Finding::warning(
            ID,
            format!("{what}: nothing is ever deleted"),
            "lower trim.retention, or set trim.every to off where that is meant",
        );
    }
    Finding::ok(ID, what)
}

fn memory(config: &Config, limit: Option<u64>) -> Finding {
    const ID: &str = "config.memory";
    const MIB: u64 = 1 << 20;
    let bound = memory_bound(config);
    let what = format!("the process takes at most {} MiB of memory", bound / MIB);
    match limit {
        Some(limit) if bound > limit => Finding::warning(
            ID,
            format!(
                "{what}, and there are {} MiB: an outage of the database, or a crowd of clients, may \
                 get this process killed",
                limit / MIB
            ),
            "lower http.max_waiting_bytes, http.max_buffered_bytes, http.max_connections, \
             pipeline.max_bytes_in_flight, batch.max_bytes or pipeline.writers, or give it more",
        ),
        _ => Finding::ok(ID, what),
    }
}

/// The sum that deploy/README.md states under "Sizing", beside one event that is larger than a bound.
fn memory_bound(config: &Config) -> u64 {
    /// The program, what databases and Redis keep for their connections, and what is kept for later.
    const ITSELF: usize = 64 << 20;
    /// A connection with the largest head. Most have a tenth of it.
    const CONNECTION: usize = 256 << 10;
    /// Connections beyond the limit, which are told so.
    const BEYOND: usize = 64;
    /// What is in flight, and twice as much under suspicion.
    const IN_FLIGHT_AND_ASIDE: usize = 3;
    /// A batch that is being written, as rows and as it is sent: JSON may grow there.
    const COPIES_OF_BATCH: usize = 4;

    let http = &config.http;
    let of_http = match http.listener.listen {
        Listen::Off => 0,
        Listen::At(_) => {
            let connections = http.listener.max_connections.get().saturating_add(BEYOND);
            let buffered = http.routes.max_buffered_bytes;
            let buffered = buffered.max(http.routes.max_body_bytes).get();
            CONNECTION
                .saturating_mul(connections)
                .saturating_add(buffered.saturating_mul(2))
                .saturating_add(http.intake.max_bytes.get())
                .saturating_add(if http.listener.reads() {
                    MAX_READING_BYTES
                } else {
                    0
                })
        }
    };
    let in_flight = config.pipeline.max_bytes_in_flight.get();
    let of_batches = config
        .pipeline
        .batch
        .max_bytes
        .get()
        .saturating_mul(COPIES_OF_BATCH);
    let of_pipeline = of_batches
        .saturating_mul(config.pipeline.writers.get())
        .saturating_add(in_flight.saturating_mul(IN_FLIGHT_AND_ASIDE));
    // One into the database, and one to the bus.
    let num_pipelines = match http.listener.publish {
        Publish::On => 2,
        Publish::Off | Publish::Only => 1,
    };
    let bound = of_pipeline
        .saturating_mul(num_pipelines)
        .saturating_add(of_http)
        .saturating_add(ITSELF);
    u64::try_from(bound).unwrap_or(u64::MAX)
}

/// The machine's memory, or less in a container.
pub(super) fn memory_limit() -> Option<u64> {
    let read = |path| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let total = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
        kib.checked_mul(1024)
    });
    let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

fn request_timeout(config: &Config) -> Option<Finding> {
    let timeout = config.http.routes.request_timeout;
    (config.http.listener.listen != Listen::Off && timeout <= config.pipeline.batch.max_age).then(|| {
        Finding::warning(
            "config.request_timeout",
            "a request may get 503 before its batch is even written: http.request_timeout is not longer \
             than batch.max_age",
            "raise http.request_timeout to some seconds more than batch.max_age",
        )
    })
}

fn statement_timeout(config: &Config) -> Option<Finding> {
    (config.database.postgres.statement_timeout < SHORT_STATEMENT).then(|| {
        Finding::warning(
            "config.statement_timeout",
            "database.statement_timeout is shorter than a large batch may take on a healthy server: it \
             is cancelled and halved, again and again",
            "raise database.statement_timeout to 10s or more",
        )
    })
}

/// A password in a flag, which every user of the machine can read in the list of processes.
fn seen_by_everyone(setting: &Effective) -> Option<Finding> {
    let Origin::Flag(flag) = setting.origin else {
        return None;
    };
    // Whatever is secret in a value is shown so.
    let is_secret = setting.value.as_deref()?.contains("***");
    is_secret.then(|| {
        Finding::warning(
            "config.secret_in_flag",
            format!(
                "the password in {flag} can be read by every user of this machine, in the list of \
                 processes"
            ),
            format!(
                "set {} instead, or name a file that holds it with {}_FILE",
                setting.variable, setting.variable
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Flags;
    use crate::wiring::Severity;

    fn warned(variables: &[(&str, &str)], memory_limit: Option<u64>) -> Vec<&'static str> {
        bad(&Config::of_variables(variables).unwrap(), memory_limit)
    }

    fn bad(config: &Config, memory_limit: Option<u64>) -> Vec<&'static str> {
        judge(config, memory_limit)
            .into_iter()
            .filter(|finding| finding.severity > Severity::Ok)
            .map(|finding| finding.id)
            .collect()
    }

    #[test]
    fn the_defaults_hurt_nobody() {
        assert_eq!(warned(&[], Some(1 << 30)), [""; 0]);
        assert_eq!(warned(&[], None), [""; 0]);
    }

    /// Stated in deploy/README.md, which also leaves room for it in its limits.
    #[test]
    fn the_sum_of_the_defaults_is_the_one_that_is_stated() {
        let bound = |variables: &[_]| memory_bound(&Config::of_variables(variables).unwrap()) >> 20;
        assert_eq!(bound(&[]), 1_024);
        assert_eq!(bound(&[("EVENT_PERSISTER_HTTP_READ_API", "off")]), 976);
        assert_eq!(bound(&[("EVENT_PERSISTER_LISTEN", "off")]), 320);
        assert_eq!(bound(&[("EVENT_PERSISTER_HTTP_PUBLISH", "on")]), 1_280);
        assert_eq!(bound(&[("EVENT_PERSISTER_HTTP_PUBLISH", "only")]), 976);
    }

    #[test]
    fn each_value_that_hurts_is_found_alone() {
        for (name, value, id) in [
            ("PIPELINE_DRAIN_TIMEOUT", "31s", "config.drain_timeout"),
            ("TRIM_RETENTION", "59m", "config.retention"),
            ("TRIM_RETENTION", "4000d", "config.retention"),
            ("HTTP_REQUEST_TIMEOUT", "1s", "config.request_timeout"),
            (
                "DATABASE_STATEMENT_TIMEOUT",
                "1s",
                "config.statement_timeout",
            ),
            ("HTTP_MAX_WAITING_BYTES", "2GiB", "config.memory"),
        ] {
            let name = format!("EVENT_PERSISTER_{name}");
            assert_eq!(warned(&[(&name, value)], Some(1 << 30)), [id], "{name}");
        }
    }

    #[test]
    fn whoever_keeps_events_for_ever_has_no_retention_to_worry_about() {
        let off = ("EVENT_PERSISTER_TRIM_EVERY", "off");
        let short = ("EVENT_PERSISTER_TRIM_RETENTION", "1s");
        assert_eq!(warned(&[off, short], None), [""; 0]);
    }

    #[test]
    fn only_flags_with_a_password_are_warned_of() {
        let url = |url: &str| {
            let flags = Flags {
                database_url: Some(url.to_owned()),
                ..Flags::default()
            };
            bad(&Config::from_parts(&flags, []).unwrap(), None)
        };
        assert_eq!(url("postgresql://u:hunter2@h/d"), ["config.secret_in_flag"]);
        assert_eq!(url("postgresql://u@h/d"), [""; 0]);
        assert_eq!(url("sqlite://e.db"), [""; 0]);
    }
}
