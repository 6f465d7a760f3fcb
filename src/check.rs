//! Shows the configuration in effect, and looks for everything that would stop or hurt the service.
//!
//! Changes nothing. The adapters look at the bus and the database; here are the configuration, the listener
//! and the report.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use event_persister_actors::source::SourceError;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::operator::DatabaseInfo;

use crate::archive;
use crate::config::Config;
use crate::http::Publish;
use crate::output;
use crate::serve::{NAME_A_BUS, publishes_nowhere};
use crate::wiring::{self, BusReport, Finding, Missing, Severity};

mod configuration;
mod listener;
mod report;
mod retention;

const TIMEOUT: Duration = Duration::from_secs(30);

struct Looked {
    findings: Vec<Finding>,
    store: Result<String, String>,
    /// `None` where it could not be asked for.
    database: Option<DatabaseInfo>,
    /// `None` where there is no bus.
    bus: Option<(&'static str, Result<Stream, String>)>,
}

struct Stream {
    version: Option<String>,
    report: BusReport,
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
    let of_bus = async {
        if config.http.listener.publish == Publish::Only {
            // Nothing reads here, and who only publishes need not be allowed to look at consumers.
            return (None, vec![bridge(config).await]);
        }
        let bus = check_bus(config).await;
        let error = bus.as_ref().and_then(|(_, looked)| looked.as_ref().err());
        let id = match config.nats {
            Some(_) => "nats.reachable",
            None => "redis.reachable",
        };
        let mut findings = inspect(id, wiring::inspect_bus(config), error).await;
        if config.http.listener.publish == Publish::On {
            findings.push(bridge(config).await);
        }
        (bus, findings)
    };
    let of_store = async {
        if config.http.listener.publish == Publish::Only {
            let unused = "not used: what comes in is published (http.publish)".to_owned();
            return (Ok(unused), None, Vec::new());
        }
        let (store, database) = check_store(config).await;
        let inspection = wiring::inspect_store(config);
        let mut findings = inspect("store.reachable", inspection, store.as_ref().err()).await;
        if store.is_ok() {
            findings.extend(retention::judge(config).await);
            findings.extend(archive::judge(config).await);
        }
        (store, database, findings)
    };
    let (of_listener, (bus, of_bus), (store, database, of_store)) =
        tokio::join!(listener::judge(config), of_bus, of_store);
    let mut findings = configuration::judge(config, configuration::memory_limit());
    findings.extend(of_listener);
    findings.extend(of_bus);
    findings.extend(of_store);
    Looked {
        findings,
        store,
        database,
        bus,
    }
}

/// Whether what comes in by HTTP can be published.
async fn bridge(config: &Config) -> Finding {
    const ID: &str = "http.publish";
    if publishes_nowhere(config) {
        let what = "what comes in by HTTP is to be published, and no bus is named";
        return Finding::error(ID, what, NAME_A_BUS);
    }
    let inspected = within(async { Ok::<_, Infallible>(wiring::inspect_bridge(config).await) });
    inspected
        .await
        .unwrap_or_else(|error| Finding::error(ID, error, "look again"))
}

/// The findings of an adapter. An `error` of the look before it stands for itself only where they see no
/// fault: it came or went between the two.
async fn inspect(
    id: &'static str,
    inspection: impl Future<Output = Vec<Finding>>,
    error: Option<&String>,
) -> Vec<Finding> {
    let inspected = within(async { Ok::<_, Infallible>(inspection.await) }).await;
    let mut findings = inspected.unwrap_or_else(|error| {
        let remedy = "see whether the server is stalled, or the network drops what is sent to it";
        vec![Finding::error(id, error, remedy)]
    });
    let explained = (findings.iter()).any(|finding| finding.severity == Severity::Error);
    if let Some(error) = error
        && !explained
    {
        findings.push(Finding::error(id, error, "look again"));
    }
    findings
}

/// The first is for people: what the store is, or what is wrong with it.
async fn check_store(config: &Config) -> (Result<String, String>, Option<DatabaseInfo>) {
    if let Some(not_yet) = wiring::not_there_yet(config) {
        return (Ok(not_yet), None);
    }
    let store = wiring::open_store(config, Missing::Ignore)();
    let checked = within(store.check()).await;
    wiring::close(store.as_ref()).await;
    let operator = wiring::operator(config, Missing::Ignore);
    let described = within(operator.describe()).await;
    if let Err(error) = &described {
        // What stands in the way of this stands in the way of the check before it.
        log::debug!("cannot look for Prefect's schema error={error}");
    }
    let found = checked.map(|()| "reachable, and its tables are right".to_owned());
    (found, described.ok())
}

async fn check_bus(config: &Config) -> Option<(&'static str, Result<Stream, String>)> {
    let bus = match wiring::bus_operator(config) {
        Ok(bus) => bus?,
        Err(error) => {
            let name = match config.nats {
                Some(_) => "nats",
                None => "redis",
            };
            return Some((name, Err(format!("{error:#}"))));
        }
    };
    let look = async {
        Ok::<_, SourceError>(Stream {
            version: bus.server_version().await?,
            report: bus.report().await?,
        })
    };
    Some((bus.name(), within(look).await))
}

async fn within<T, E: Error>(work: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match actix_rt::time::timeout(TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| error_chain(&error)),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}
