//! Shows the configuration in effect and tries what it names.

use std::time::Duration;

use event_persister_actors::source::SourceError;
use event_persister_actors::status::error_chain;
use serde_json::{Value, json};

use crate::config::{Config, Origin};
use crate::wiring::{self, GuardReport, Missing, Prefects};
use crate::{guard, output};

/// Nobody waits longer than this for an answer to whether something answers.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What was found.
struct Findings {
    store: Result<String, String>,
    /// `None` where it could not be asked for.
    prefects: Option<Prefects>,
    /// `None` where Redis is no source.
    redis: Option<Result<Stream, String>>,
}

/// What was found in Redis.
struct Stream {
    /// The server's version, if it says.
    version: Option<String>,
    report: GuardReport,
}

impl Findings {
    fn all_is_well(&self) -> bool {
        self.store.is_ok() && !matches!(self.redis, Some(Err(_)))
    }
}

/// Checks; whether all is well.
pub(crate) async fn run(config: &Config, json: bool) -> anyhow::Result<bool> {
    let findings = Findings {
        store: check_store(config).await,
        prefects: look_for_prefect(config).await,
        redis: check_redis(config).await,
    };
    if json {
        output::json(&document(config, &findings))?;
    } else {
        print(config, &findings)?;
    }
    Ok(findings.all_is_well())
}

/// Looks at the store; what was found, or what is wrong.
async fn check_store(config: &Config) -> Result<String, String> {
    if let Some(not_yet) = wiring::not_there_yet(config) {
        return Ok(not_yet);
    }
    let open = wiring::open_store(config, Missing::Ignore).map_err(|error| format!("{error:#}"))?;
    let store = open();
    let checked = within(async { store.check().await.map_err(|error| error_chain(&error)) }).await;
    wiring::close(store.as_ref()).await;
    checked.map(|()| "reachable, and its tables are right".to_owned())
}

async fn look_for_prefect(config: &Config) -> Option<Prefects> {
    if wiring::not_there_yet(config).is_some() {
        return None;
    }
    let found = within(async {
        wiring::prefects_schema(config)
            .await
            .map_err(|error| format!("{error:#}"))
    });
    match found.await {
        Ok(found) => Some(found),
        Err(error) => {
            // What stands in the way of this stands in the way of the check before it.
            log::debug!("cannot look for Prefect's schema error={error}");
            None
        }
    }
}

async fn check_redis(config: &Config) -> Option<Result<Stream, String>> {
    let guard = match wiring::guard(config) {
        Ok(guard) => guard?,
        Err(error) => return Some(Err(format!("{error:#}"))),
    };
    let look = async {
        Ok(Stream {
            version: guard.server_version().await?,
            report: guard.show().await?,
        })
    };
    Some(within(async { look.await.map_err(|error: SourceError| error_chain(&error)) }).await)
}

async fn within<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    actix_rt::time::timeout(TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}

fn print(config: &Config, findings: &Findings) -> anyhow::Result<()> {
    print_settings(config)?;
    let seen: Vec<Vec<String>> = config
        .prefect
        .not_taken_over
        .iter()
        .map(|seen| vec![seen.variable.clone(), seen.reason.clone()])
        .collect();
    if !seen.is_empty() {
        output::line("")?;
        output::table(&["SEEN, NOT TAKEN OVER", "WHY"], &seen)?;
    }
    output::line("")?;
    for warning in &config.prefect.warnings {
        output::line(&format!("warning: {warning}"))?;
    }
    let (Ok(store) | Err(store)) = &findings.store;
    output::line(&format!("store: {store}"))?;
    if let Some(prefects) = &findings.prefects {
        output::line(&format!("prefect's schema: {}", describe(prefects)))?;
    }
    match &findings.redis {
        None => output::line("redis: not a source"),
        Some(Err(error)) => output::line(&format!("redis: {error}")),
        Some(Ok(Stream { version, report })) => {
            let version = version.as_deref().unwrap_or("unknown");
            output::line(&format!(
                "redis: reachable, version {version}\n{}",
                guard::describe(report)
            ))
        }
    }
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

fn describe(prefects: &Prefects) -> String {
    let tested_with = prefects.tested_with.join(", ");
    let found = match prefects.revision.as_deref() {
        None => "Prefect has not been in this database".to_owned(),
        Some(revision) if prefects.tested_with.contains(&revision) => {
            format!("revision {revision}, which this version was tested with")
        }
        Some(revision) => format!(
            "revision {revision}; this version was tested with {tested_with}, and what counts are the \
             columns that it writes, which are looked at above"
        ),
    };
    match &prefects.server {
        None => found,
        Some(server) => format!("{found} ({server})"),
    }
}

fn document(config: &Config, findings: &Findings) -> Value {
    let settings: Vec<Value> = config
        .effective
        .iter()
        .map(|setting| {
            json!({
                "name": setting.name,
                "value": setting.value,
                "from": setting.origin.to_string(),
                "from_prefect": matches!(setting.origin, Origin::Prefect(_)),
                "variable": setting.variable,
                "help": setting.help,
            })
        })
        .collect();
    let seen: Vec<Value> = config
        .prefect
        .not_taken_over
        .iter()
        .map(|seen| json!({ "variable": seen.variable, "reason": seen.reason }))
        .collect();
    let store = &findings.store;
    json!({
        "ok": findings.all_is_well(),
        "settings": settings,
        "not_taken_over": seen,
        "warnings": config.prefect.warnings,
        "store": { "ok": store.is_ok(), "found": store.as_ref().ok(), "error": store.as_ref().err() },
        "prefect_schema": findings.prefects.as_ref().map(|prefects| json!({
            "revision": prefects.revision,
            "tested_with": prefects.tested_with,
            "server": prefects.server,
        })),
        "redis": findings.redis.as_ref().map(|redis| json!({
            "ok": redis.is_ok(),
            "version": redis.as_ref().ok().and_then(|stream| stream.version.as_ref()),
            "found": redis.as_ref().ok().map(|stream| guard::document(&stream.report)),
            "error": redis.as_ref().err(),
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_compared_with_the_one_of_the_tests() {
        let prefects = |revision: Option<&str>| {
            describe(&Prefects {
                server: None,
                revision: revision.map(str::to_owned),
                tested_with: &["abc", "xyz"],
            })
        };
        assert!(prefects(None).contains("has not been"));
        assert!(prefects(Some("abc")).contains("which this version was tested with"));
        let other = prefects(Some("def"));
        assert!(
            other.contains("revision def; this version was tested with abc, xyz"),
            "{other}"
        );
    }
}
