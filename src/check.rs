//! Shows the configuration in effect and tries what it names.

use event_persister_actors::status::error_chain;
use serde_json::{Value, json};

use crate::config::Config;
use crate::output;
use crate::wiring::{self, Missing};

/// Checks; whether all is well.
pub(crate) async fn run(config: &Config, json: bool) -> anyhow::Result<bool> {
    let store = check_store(config).await;
    if json {
        output::json(&document(config, &store))?;
    } else {
        print_settings(config)?;
        let (Ok(found) | Err(found)) = &store;
        output::line(&format!("\nstore: {found}"))?;
    }
    Ok(store.is_ok())
}

/// Looks at the store and makes nothing in it; what was found, or what is wrong.
async fn check_store(config: &Config) -> Result<String, String> {
    if let Some(not_yet) = wiring::not_there_yet(config) {
        return Ok(not_yet);
    }
    let store = wiring::open_store(config, Missing::Ignore)();
    let checked = store.check().await;
    wiring::close(store.as_ref()).await;
    checked
        .map(|()| "reachable, and its tables are right".to_owned())
        .map_err(|error| error_chain(&error))
}

fn print_settings(config: &Config) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = config
        .effective
        .iter()
        .map(|setting| {
            vec![
                setting.name.clone(),
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

fn document(config: &Config, store: &Result<String, String>) -> Value {
    let settings: Vec<Value> = config
        .effective
        .iter()
        .map(|setting| {
            json!({
                "name": setting.name,
                "value": setting.value,
                "from": setting.origin.to_string(),
                "variable": setting.variable,
                "help": setting.help,
            })
        })
        .collect();
    json!({
        "ok": store.is_ok(),
        "settings": settings,
        "store": { "ok": store.is_ok(), "found": store.as_ref().ok(), "error": store.as_ref().err() },
    })
}
