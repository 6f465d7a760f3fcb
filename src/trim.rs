//! One retention pass, now.

use anyhow::{Context as _, bail};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::retention::HeldBack;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::operator::{HalfEvents, StoreOperator};
use event_persister_actors::store::{EventStore, Trimmed};
use event_persister_actors::trim::{cutoffs, note_pass, run_pass};
use serde_json::json;

use crate::archive;
use crate::cli::TrimFlags;
use crate::config::Config;
use crate::output;
use crate::wiring::{self, Missing};

/// Deletes what retention no longer keeps, or only counts it.
pub(crate) async fn run(config: &Config, flags: TrimFlags) -> anyhow::Result<()> {
    let missing = if flags.dry_run {
        Missing::Ignore
    } else {
        Missing::Refuse
    };
    let store = wiring::open_store(config, missing)();
    let operator = wiring::operator(config, Missing::Ignore);
    let done = pass(config, store.as_ref(), operator.as_ref(), flags).await;
    wiring::close(store.as_ref()).await;
    let (trimmed, held_back) = done?;
    // To count them reads all that there is, whatever little is deleted.
    let halves = if flags.dry_run {
        count_half_events(operator.as_ref()).await
    } else if flags.remove_half_events {
        let removed = operator.remove_half_events().await;
        removed.context("cannot remove the half events")?
    } else {
        None
    };
    print(trimmed, halves, held_back, flags)
}

/// One pass, unless a person has to allow it. A dry run returns what it would remove, and what it would wait
/// for.
async fn pass(
    config: &Config,
    store: &dyn EventStore,
    operator: &dyn StoreOperator,
    flags: TrimFlags,
) -> anyhow::Result<(Trimmed, Option<HeldBack>)> {
    let what = if flags.dry_run {
        "cannot count what would be deleted"
    } else {
        "cannot delete what retention no longer keeps"
    };
    let cutoffs = cutoffs(&config.trim, SystemClock.now())?;
    let looked = wiring::caution(config).look(store, &cutoffs).await;
    let looked = looked.context(what)?;
    if flags.dry_run {
        let trimmed = operator.count_expired(&cutoffs).await.context(what)?;
        return Ok((trimmed, looked.err()));
    }
    archive::tell_if_unset(config).await;
    let now = match looked {
        Ok(last) => last.now,
        Err(held_back) if flags.yes => held_back.now,
        Err(held_back) => bail!("{held_back}"),
    };
    let trimmed = run_pass(store, &cutoffs, config.trim.batch_size, |_| {}).await;
    let trimmed = trimmed.context(what)?;
    note_pass(store, now).await;
    Ok((trimmed, None))
}

/// That they cannot be counted is no failure of what was asked for.
async fn count_half_events(operator: &dyn StoreOperator) -> Option<HalfEvents> {
    operator.half_events().await.unwrap_or_else(|error| {
        log::warn!("cannot count half events error={}", error_chain(&error));
        None
    })
}

fn print(
    trimmed: Trimmed,
    halves: Option<HalfEvents>,
    held_back: Option<HeldBack>,
    flags: TrimFlags,
) -> anyhow::Result<()> {
    let removed = flags.remove_half_events && !flags.dry_run;
    if flags.output.json {
        return output::json(&json!({
            "dry_run": flags.dry_run,
            "events": trimmed.events,
            "resources": trimmed.resources,
            "half_events": halves,
            "half_events_removed": removed,
            "waits_for_yes": held_back.is_some(),
        }));
    }
    let what = if flags.dry_run {
        "would delete"
    } else {
        "deleted"
    };
    output::line(&format!(
        "{what} {} events and {} resources",
        trimmed.events, trimmed.resources
    ))?;
    if let Some(held_back) = held_back {
        output::line(&held_back.to_string())?;
    }
    match halves {
        Some(halves) if halves != HalfEvents::default() || removed => {
            output::line(&describe(halves, removed))
        }
        _ => Ok(()),
    }
}

fn describe(halves: HalfEvents, removed: bool) -> String {
    let counts = format!(
        "{} events without resources and {} resources without an event",
        halves.events, halves.resources
    );
    if removed {
        format!("removed {counts}")
    } else {
        format!(
            "found {counts}, which another writer's crash left behind; \
             `event-persister trim --remove-half-events` removes them"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_events_come_with_the_way_to_be_rid_of_them() {
        let halves = HalfEvents {
            events: 2,
            resources: 1,
        };
        let found = describe(halves, false);
        assert!(
            found.contains("2 events without resources and 1 resources"),
            "{found}"
        );
        assert!(found.contains("--remove-half-events"), "{found}");
        assert!(describe(halves, true).starts_with("removed 2 events"));
    }
}
