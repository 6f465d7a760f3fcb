//! The command `config`, and the list of all settings in effect, which `check` shows as well.

use serde_json::{Value, json};

use crate::cli::ConfigCommand;
use crate::config::{self, Config, Origin};
use crate::output;

/// Prints what needs no configuration, if that is asked for; whether it was.
pub(crate) fn print_general(command: &ConfigCommand) -> Option<anyhow::Result<()>> {
    match command {
        ConfigCommand::Example => Some(output::bytes(config::example().as_bytes())),
        ConfigCommand::Schema => Some(output::json(&config::schema())),
        ConfigCommand::Show { .. } => None,
    }
}

/// Prints what is in effect, and where each value came from.
pub(crate) fn show(config: &Config, json: bool) -> anyhow::Result<()> {
    if json {
        output::json(&documents(config))
    } else {
        table(config)
    }
}

/// The settings in effect, for people.
pub(crate) fn table(config: &Config) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = config
        .effective
        .iter()
        .map(|setting| {
            vec![
                setting.name.to_owned(),
                setting
                    .value
                    .as_deref()
                    .map_or_else(|| "(not set)".to_owned(), output::one_line),
                setting.origin.to_string(),
            ]
        })
        .collect();
    output::table(&["SETTING", "VALUE", "FROM"], &rows)
}

/// The same for machines.
pub(crate) fn documents(config: &Config) -> Vec<Value> {
    let settings = config.effective.iter().map(|setting| {
        json!({
            "name": setting.name,
            "value": setting.value,
            "from": setting.origin.to_string(),
            "from_prefect": matches!(setting.origin, Origin::Prefect(_)),
            "variable": setting.variable,
            "help": setting.help,
        })
    });
    settings.collect()
}
