//! Shows the configuration in effect, and looks for everything that would stop or hurt the service.
//!
//! Nothing is changed, and a service may run beside it. What needs SQL or Redis is looked for by the
//! adapters; here are the configuration, the listener, and the report.

use std::time::Duration;

use event_persister_actors::source::SourceError;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::operator::DatabaseInfo;

use crate::config::Config;
use crate::output;
use crate::wiring::{self, Finding, GuardReport, Missing, Severity};

mod configuration;
mod listener;
mod report;
mod retention;

/// Nobody waits longer than this for an answer to whether something answers.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Looked {
    /// What was looked at, in the order in which people read it.
    findings: Vec<Finding>,
    /// What the store is, or what is wrong with it.
    store: Result<String, String>,
    /// `None` where it could not be asked for.
    database: Option<DatabaseInfo>,
    /// `None` where Redis is no source.
    redis: Option<Result<Stream, String>>,
}

/// What was found in Redis.
struct Stream {
    /// The server's version, if it says.
    version: Option<String>,
    report: GuardReport,
}

impl Looked {
    fn all_is_well(&self) -> bool {
        (self.findings.iter()).all(|finding| finding.severity < Severity::Error)
    }
}

/// Checks; whether all is well, warnings aside.
pub(crate) async fn run(config: &Config, json: bool) -> anyhow::Result<bool> {
    let looked = look(config).await;
    if json {
        output::json(&report::document(config, &looked))?;
    } else {
        report::print(config, &looked)?;
    }
    Ok(looked.all_is_well())
}

async fn look(config: &Config) -> Looked {
    let of_redis = async {
        let redis = check_redis(config).await;
        let mut findings = inspect("redis.reachable", wiring::inspect_bus(config)).await;
        let wrong = redis.as_ref().and_then(|redis| redis.as_ref().err());
        note_unexplained(&mut findings, "redis.reachable", wrong);
        (redis, findings)
    };
    let of_store = async {
        let store = check_store(config).await;
        let database = describe_database(config).await;
        let mut findings = inspect("store.reachable", wiring::inspect_store(config)).await;
        note_unexplained(&mut findings, "store.reachable", store.as_ref().err());
        if store.is_ok() {
            findings.extend(retention::judge(config).await);
        }
        (store, database, findings)
    };
    let (of_listener, (redis, of_redis), (store, database, of_store)) =
        tokio::join!(listener::judge(config), of_redis, of_store);
    let mut findings = configuration::judge(config, configuration::memory_limit());
    findings.extend(of_listener);
    findings.extend(of_redis);
    findings.extend(of_store);
    Looked {
        findings,
        store,
        database,
        redis,
    }
}

async fn inspect(id: &'static str, inspection: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let inspected = within(async { Ok(inspection.await) }).await;
    inspected.unwrap_or_else(|error| {
        let remedy = "see whether the server is stalled, or the network drops what is sent to it";
        vec![Finding::error(id, error, remedy)]
    })
}

/// What failed where the inspection saw no fault, since it came or went between the two.
fn note_unexplained(findings: &mut Vec<Finding>, id: &'static str, error: Option<&String>) {
    let explained = (findings.iter()).any(|finding| finding.severity == Severity::Error);
    if let Some(error) = error
        && !explained
    {
        findings.push(Finding::error(id, error, "look again"));
    }
}

/// Looks at the store; what was found, or what is wrong.
async fn check_store(config: &Config) -> Result<String, String> {
    if let Some(not_yet) = wiring::not_there_yet(config) {
        return Ok(not_yet);
    }
    let store = wiring::open_store(config, Missing::Ignore)();
    let checked = within(async { store.check().await.map_err(|error| error_chain(&error)) }).await;
    wiring::close(store.as_ref()).await;
    checked.map(|()| "reachable, and its tables are right".to_owned())
}

async fn describe_database(config: &Config) -> Option<DatabaseInfo> {
    if wiring::not_there_yet(config).is_some() {
        return None;
    }
    let described = within(async {
        let operator = wiring::operator(config, Missing::Ignore);
        let described = operator.describe().await;
        described.map_err(|error| error_chain(&error))
    });
    match described.await {
        Ok(found) => Some(found),
        Err(error) => {
            // What stands in the way of this stands in the way of the check before it.
            log::debug!("cannot look for Prefect's schema error={error}");
            None
        }
    }
}

async fn check_redis(config: &Config) -> Option<Result<Stream, String>> {
    let bus = match wiring::bus_operator(config) {
        Ok(bus) => bus?,
        Err(error) => return Some(Err(format!("{error:#}"))),
    };
    let look = async {
        Ok(Stream {
            version: bus.server_version().await?,
            report: bus.show_guard().await?,
        })
    };
    Some(within(async { look.await.map_err(|error: SourceError| error_chain(&error)) }).await)
}

async fn within<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    actix_rt::time::timeout(TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
}
