//! Creates or upgrades the schema of the configured database.

use serde_json::json;

use crate::config::Config;
use crate::{output, wiring};

pub(crate) async fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let run = wiring::migrate(config).await?;
    if json {
        return output::json(&json!({ "migrations": run }));
    }
    if run.is_empty() {
        return output::line("the tables are up to date; nothing was changed");
    }
    for migration in &run {
        output::line(&format!("ran {migration}"))?;
    }
    Ok(())
}
