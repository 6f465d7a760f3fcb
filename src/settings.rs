//! The command `config`, and the list of all settings in effect, which `check` shows as well.

use serde_json::{Value, json};

use crate::config::{Config, Origin};
use crate::output;

pub(crate) fn show(config: &Config, json: bool) -> anyhow::Result<()> {
    if json {
        output::json(&documents(config))
    } else {
        table(config)
    }
}

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
