//! What was found, for people and for machines.

use event_persister_actors::store::operator::DatabaseInfo;
use serde_json::{Value, json};

use super::{Looked, Stream};
use crate::config::Config;
use crate::wiring::{BusReport, ConsumerReport, Finding, Severity};
use crate::{guard, output, settings};

pub(super) fn print(config: &Config, looked: &Looked) -> anyhow::Result<()> {
    settings::table(config)?;
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
    let (Ok(store) | Err(store)) = &looked.store;
    output::line(&format!("store: {}", output::one_line(store)))?;
    let database = looked.database.as_ref();
    // A file of our own has nothing to do with Prefect.
    let database = database.filter(|database| {
        database.server.is_some()
            || database.prefect_revision.is_some()
            || config.database.is_prefects
    });
    if let Some(database) = database {
        output::line(&format!("prefect's schema: {}", describe(database)))?;
    }
    match &looked.bus {
        None => output::line("redis: not a source")?,
        Some((name, Err(error))) => output::line(&format!("{name}: {}", output::one_line(error)))?,
        Some((name, Ok(Stream { version, report }))) => {
            let version = version.as_deref().unwrap_or("unknown");
            let report = match report {
                BusReport::Groups(report) => guard::describe(report),
                BusReport::Consumer(report) => describe_consumer(report),
            };
            output::line(&format!("{name}: reachable, version {version}\n{report}"))?;
        }
    }
    output::line("")?;
    output::table(&["RESULT", "CHECK", "FOUND"], &rows(&looked.findings))?;
    output::line("")?;
    output::line(&summary(&looked.findings))
}

/// The remedy stands on a line of its own beneath what it is for.
fn rows(findings: &[Finding]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for finding in findings {
        rows.push(vec![
            finding.severity.as_ref().to_owned(),
            finding.id.to_owned(),
            output::one_line(&finding.what),
        ]);
        if let Some(remedy) = &finding.remedy {
            let remedy = format!("-> {}", output::one_line(remedy));
            rows.push(vec![String::new(), String::new(), remedy]);
        }
    }
    rows
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity| {
        let of_severity = findings
            .iter()
            .filter(|finding| finding.severity == severity);
        of_severity.count()
    };
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
    }
}

fn describe(database: &DatabaseInfo) -> String {
    let tested_with = database.tested_revisions.join(", ");
    let found = match database.prefect_revision.as_deref() {
        None => "Prefect has not been in this database".to_owned(),
        Some(revision) if database.tested_revisions.contains(&revision) => {
            format!("revision {revision}, which this version was tested with")
        }
        Some(revision) => format!(
            "revision {revision}; this version was tested with {tested_with}. Only the columns that it \
             writes count, and they are checked above"
        ),
    };
    match &database.server {
        None => found,
        Some(server) => format!("{found} ({server})"),
    }
}

pub(super) fn document(config: &Config, looked: &Looked) -> Value {
    let seen: Vec<Value> = config
        .prefect
        .not_taken_over
        .iter()
        .map(|seen| json!({ "variable": seen.variable, "reason": seen.reason }))
        .collect();
    let store = &looked.store;
    json!({
        "ok": looked.all_is_well(),
        "findings": looked.findings,
        "settings": settings::documents(config),
        "not_taken_over": seen,
        "warnings": config.prefect.warning_lines().collect::<Vec<String>>(),
        "store": { "ok": store.is_ok(), "found": store.as_ref().ok(), "error": store.as_ref().err() },
        "prefect_schema": looked.database.as_ref().map(|database| json!({
            "revision": database.prefect_revision,
            "tested_with": database.tested_revisions,
            "server": database.server,
        })),
        "redis": bus_document(looked, "redis"),
        "nats": bus_document(looked, "nats"),
    })
}

/// `null` for a bus that is no source.
fn bus_document(looked: &Looked, wanted: &str) -> Value {
    let bus = looked.bus.as_ref().filter(|(name, _)| *name == wanted);
    let document = bus.map(|(_, looked)| {
        json!({
            "ok": looked.is_ok(),
            "version": looked.as_ref().ok().and_then(|stream| stream.version.as_ref()),
            "found": looked.as_ref().ok().map(|stream| &stream.report),
            "error": looked.as_ref().err(),
        })
    });
    json!(document)
}

fn describe_consumer(report: &ConsumerReport) -> String {
    let ConsumerReport {
        stream, consumer, ..
    } = report;
    let Some(messages) = report.messages else {
        return format!("there is no stream {stream}");
    };
    let place = report.first.zip(report.last);
    let place = place.map_or_else(String::new, |(first, last)| {
        format!(", numbers {first} to {last}")
    });
    let bytes = report.bytes.unwrap_or_default();
    let mut lines = vec![format!(
        "stream {stream}: {messages} messages, {bytes} bytes{place}"
    )];
    lines.push(match &report.consumer_state {
        None => format!("consumer {consumer}: not there yet; `serve` makes it"),
        Some(state) => format!(
            "consumer {consumer}: delivered up to {}, all acknowledged up to {}, {} pending, not delivered yet: {}",
            state.delivered, state.acknowledged, state.pending, state.lag
        ),
    });
    lines.extend(report.misplaced.clone());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_compared_with_the_one_of_the_tests() {
        let prefects = |revision: Option<&str>| {
            describe(&DatabaseInfo {
                prefect_revision: revision.map(str::to_owned),
                tested_revisions: &["abc", "xyz"],
                ..DatabaseInfo::default()
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

    #[test]
    fn a_remedy_stands_beneath_what_it_is_for() {
        let findings = [
            Finding::ok("a", "good"),
            Finding::error("b", "bad", "do it"),
        ];
        let table = output::format_table(&["R", "C", "F"], &rows(&findings));
        assert_eq!(
            table,
            "R      C  F\nok     a  good\nerror  b  bad\n          -> do it"
        );
        assert_eq!(summary(&findings), "errors: 1, warnings: 0");
        assert_eq!(summary(&findings[..1]), "all is well");
    }
}
