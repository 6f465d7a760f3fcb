//! One retention pass, now.

use anyhow::Context as _;
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::store::Trimmed;
use event_persister_actors::trim::{cutoffs, run_pass};
use serde_json::json;

use crate::config::Config;
use crate::output;
use crate::wiring::{self, Missing};

/// Deletes what retention no longer keeps, or only counts it.
pub(crate) async fn run(config: &Config, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let settings = wiring::trim_settings(config);
    let cutoffs = cutoffs(&settings, SystemClock.now())?;
    let missing = if dry_run {
        Missing::Ignore
    } else {
        Missing::Refuse
    };
    let store = wiring::open_store(config, missing)();
    let trimmed = if dry_run {
        store
            .count_expired(&cutoffs)
            .await
            .context("cannot count what would be deleted")
    } else {
        run_pass(store.as_ref(), &cutoffs, settings.batch_size)
            .await
            .context("cannot delete what retention no longer keeps")
    };
    wiring::close(store.as_ref()).await;
    print(trimmed?, dry_run, json)
}

fn print(trimmed: Trimmed, dry_run: bool, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&json!({
            "dry_run": dry_run,
            "events": trimmed.events,
            "resources": trimmed.resources,
        }));
    }
    let what = if dry_run { "would delete" } else { "deleted" };
    output::line(&format!(
        "{what} {} events and {} resources",
        trimmed.events, trimmed.resources
    ))
}
