//! Creates or upgrades the schema of the configured database.

use serde_json::json;

use crate::cli::MigrateFlags;
use crate::config::Config;
use crate::{output, wiring};

pub(crate) async fn run(config: &Config, flags: MigrateFlags) -> anyhow::Result<()> {
    let json = flags.output.json;
    let Some(period) = flags.partition_by else {
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
        return Ok(());
    };
    let steps = wiring::partition(config, period).await?;
    if json {
        return output::json(&json!({ "partition_by": period.as_str(), "steps": steps }));
    }
    for step in &steps {
        output::line(step)?;
    }
    output::line(&format!(
        "the tables are partitioned by {}",
        period.as_str()
    ))
}
