//! The trim guard, for an operator who wants to look at it or to go back to Prefect's persister.

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::cli::{Command, GuardCommand};
use crate::config::Config;
use crate::output;
use crate::wiring::{self, GuardReport};

const NO_REDIS: &str = "no Redis is configured, so there is no guard; give --redis-url or \
     EVENT_PERSISTER_REDIS_URL, or run this in the environment of the Prefect server";

pub(crate) fn validate(command: &Command, config: &Config) -> anyhow::Result<()> {
    match command {
        Command::Guard(_) if config.redis.is_none() => bail!("{NO_REDIS}"),
        _ => Ok(()),
    }
}

pub(crate) async fn run(config: &Config, command: &GuardCommand) -> anyhow::Result<()> {
    let bus = wiring::bus_operator(config)?.context(NO_REDIS)?;
    let guard = bus.guard().context(NO_REDIS)?;
    match command {
        GuardCommand::Show(output) => {
            let report = guard.show().await.context("cannot look at the guard")?;
            if output.json {
                output::json(&json!(report))
            } else {
                output::line(&describe(&report))
            }
        }
        GuardCommand::Remove(output) => {
            // Whoever may not look may remove it all the same.
            let report = guard.show().await.ok();
            let was_there = guard.remove().await.context("cannot remove the guard")?;
            if let Some(unread) = report.as_ref().and_then(unread) {
                log::warn!("{unread}");
            }
            if output.json {
                return output::json(&json!({ "removed": was_there }));
            }
            output::line(if was_there {
                "removed the guard; a service that still runs with redis.guard on makes it again"
            } else {
                "there was no guard"
            })
        }
    }
}

/// What may be trimmed now, and nobody has stored.
fn unread(report: &GuardReport) -> Option<String> {
    let group = report.group_progress.as_ref()?;
    let lag = group.lag.unwrap_or_default();
    (group.num_pending > 0 || lag > 0).then(|| {
        format!(
            "Prefect may trim what nobody has stored: see that its persister reads pending={} \
             not_delivered={lag} redis.stream={} redis.group={}",
            group.num_pending, report.stream, report.group
        )
    })
}

pub(crate) fn describe(report: &GuardReport) -> String {
    let unknown = || "unknown".to_owned();
    let Some(length) = report.stream_length else {
        return format!(
            "there is no stream {} yet; `serve` makes it with its groups",
            report.stream
        );
    };
    let up_to = report.last_id.as_ref();
    let up_to = up_to.map_or_else(String::new, |id| format!(", the last id is {id}"));
    let mut lines = vec![format!("stream {}: {length} entries{up_to}", report.stream)];
    lines.push(match &report.group_progress {
        None => format!("group {}: not there yet; `serve` makes it", report.group),
        Some(group) => format!(
            "group {}: delivered up to {}, {} pending{}, not delivered yet: {}, consumers: {}",
            report.group,
            group.last_delivered,
            group.num_pending,
            group
                .smallest_pending
                .as_ref()
                .map_or_else(String::new, |id| format!(" from {id}")),
            group.lag.map_or_else(unknown, |lag| lag.to_string()),
            group.num_consumers
        ),
    });
    lines.push(match &report.guard_position {
        None => format!("guard {}: not there", report.guard_group),
        Some(position) => format!(
            "guard {}: others trim nothing from {position} on",
            report.guard_group
        ),
    });
    lines.extend(report.misplaced.clone());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use event_persister_actors::source::operator::GroupProgress;
    use serde_json::Value;

    use super::*;

    fn report() -> GuardReport {
        GuardReport {
            stream: "events".to_owned(),
            stream_length: None,
            guard_group: "guard".to_owned(),
            guard_position: None,
            last_id: None,
            misplaced: None,
            group: "event-persister".to_owned(),
            group_progress: None,
        }
    }

    #[test]
    fn what_is_not_there_is_said_to_be_missing() {
        assert!(describe(&report()).contains("no stream events yet"));
        let report = GuardReport {
            stream_length: Some(3),
            ..report()
        };
        let text = describe(&report);
        assert!(text.contains("stream events: 3 entries"), "{text}");
        assert!(text.contains("guard guard: not there"), "{text}");
        assert_eq!(json!(report)["guard_position"], Value::Null);
    }

    #[test]
    fn whoever_removes_it_hears_of_what_nobody_has_stored() {
        let with = |num_pending, lag| GuardReport {
            group_progress: Some(GroupProgress {
                last_delivered: "5-0".to_owned(),
                smallest_pending: None,
                num_pending,
                num_consumers: 1,
                lag,
            }),
            ..report()
        };
        assert_eq!(unread(&report()), None);
        assert_eq!(unread(&with(0, Some(0))), None);
        let text = unread(&with(2, Some(3))).unwrap();
        assert!(text.contains("pending=2 not_delivered=3"), "{text}");
    }

    #[test]
    fn commands_about_the_guard_need_a_redis() {
        let config = Config::of_defaults().unwrap();
        let show = Command::Guard(GuardCommand::Show(crate::cli::Output { json: false }));
        let error = validate(&show, &config).unwrap_err().to_string();
        assert!(error.contains("--redis-url"), "{error}");
        assert!(validate(&Command::default(), &config).is_ok());
    }
}
