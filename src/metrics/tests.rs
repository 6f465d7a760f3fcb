//! The document, the alerts and the dashboard against what is registered.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::proto::MetricType;

use super::*;
use crate::wiring;

const DOCUMENT: &str = include_str!("../../deploy/METRICS.md");
const ALERTS: &str = include_str!("../../deploy/alerts.yml");
const ALERT_TESTS: &str = include_str!("../../deploy/alerts.test.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana-dashboard.json");

/// What is told of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    /// Not known of one that has no value yet.
    kind: Option<&'static str>,
    labels: Vec<String>,
}

fn registered() -> BTreeMap<String, Told> {
    let mut all = registered_with("EVENT_PERSISTER_REDIS_URL", "redis://localhost");
    if cfg!(feature = "nats") {
        all.extend(registered_with(
            "EVENT_PERSISTER_NATS_URL",
            "nats://localhost",
        ));
    }
    all
}

fn registered_with(variable: &str, url: &str) -> BTreeMap<String, Told> {
    let config = Config::of_variables(&[(variable, url)]).unwrap();
    let pipelines = OfPipelines {
        storing: Some(Metrics::new().unwrap()),
        publishing: Some(Metrics::new().unwrap()),
    };
    let (refusals, intake) = (Refusals::new().unwrap(), wiring::intake(&config));
    let bus = wiring::bus(&config).unwrap();
    let archive = Some(ArchiveStats::default());
    let all = collectors(
        &config,
        &pipelines,
        &refusals,
        &intake,
        bus.as_ref(),
        archive,
    )
    .unwrap();
    let kinds: BTreeMap<_, _> = all
        .iter()
        .flat_map(|collector| collector.collect())
        .map(|family| (family.name().to_owned(), kind(family.get_field_type())))
        .collect();
    let descriptions = all.iter().flat_map(|collector| collector.desc());
    descriptions
        .map(|desc| {
            let constant = desc.const_label_pairs.iter().map(|pair| pair.name());
            let variable = desc.variable_labels.iter().map(String::as_str);
            let told = Told {
                kind: kinds.get(&desc.fq_name).copied(),
                labels: constant.chain(variable).map(str::to_owned).collect(),
            };
            (desc.fq_name.clone(), told)
        })
        .collect()
}

fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        other => panic!("{other:?}"),
    }
}

/// The cells of the document's table.
fn rows() -> Vec<Vec<&'static str>> {
    let lines = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| line.trim_matches('|').split(" |").map(str::trim).collect())
        .collect()
}

fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// The metrics that a text names.
fn names(text: &str) -> BTreeSet<String> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_of_a_name(c));
    words
        .filter(|word| word.starts_with("event_persister_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_document_tells_of_every_metric_and_of_no_other() {
    let registered = registered();
    let documented: BTreeMap<_, _> = rows()
        .into_iter()
        .map(|cells| {
            let [name, kind, labels, meaning, alert] = cells[..] else {
                panic!("{cells:?}");
            };
            assert!(meaning.ends_with('.'), "{name}");
            assert!(alert.is_empty() || alert.starts_with('`'), "{name}");
            let labels: Vec<_> = labels.split(", ").filter(|l| !l.is_empty()).collect();
            (code(name).to_owned(), (kind, labels))
        })
        .collect();
    assert_eq!(rows().len(), documented.len(), "told of twice");
    assert_eq!(
        registered.keys().collect::<Vec<_>>(),
        documented.keys().collect::<Vec<_>>()
    );
    for (name, (kind, labels)) in documented {
        let told = &registered[&name];
        assert!(
            told.kind.is_none_or(|told| told == kind),
            "{name}: {told:?}"
        );
        let labels: Vec<_> = labels.into_iter().map(code).collect();
        assert_eq!(told.labels, labels, "{name}");
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let registered = registered();
    for (what, text) in [
        ("alerts.yml", ALERTS),
        ("alerts.test.yml", ALERT_TESTS),
        ("grafana-dashboard.json", DASHBOARD),
    ] {
        let names = names(text);
        assert!(!names.is_empty(), "{what}");
        for name in names {
            let of_a_histogram = ["_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|part| name.strip_suffix(part))
                .and_then(|name| registered.get(name))
                .is_some_and(|told| told.kind == Some("histogram"));
            let exists = of_a_histogram || registered.contains_key(&name);
            assert!(exists, "{what} asks for {name}");
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let asked = targets.map(|target| names(target["expr"].as_str().unwrap()));
    let asked: BTreeSet<_> = asked.flatten().collect();
    let missing: Vec<_> = registered()
        .into_keys()
        .filter(|name| !asked.contains(name) && !asked.contains(&format!("{name}_bucket")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_alert_stands_beside_the_metric_that_it_is_about() {
    let mut about = BTreeMap::new();
    let mut alert = "";
    for line in ALERTS.lines() {
        if let Some((_, name)) = line.split_once("- alert: ") {
            alert = name;
        } else {
            about
                .entry(alert)
                .or_insert_with(BTreeSet::new)
                .extend(names(line));
        }
    }
    about.remove("");
    let mut documented = BTreeSet::new();
    for cells in rows().into_iter().filter(|cells| !cells[4].is_empty()) {
        let (name, alert) = (code(cells[0]), code(cells[4]));
        let asks = about.get(alert).is_some_and(|names| names.contains(name));
        assert!(asks, "{alert} does not ask for {name}");
        documented.insert(alert);
    }
    assert_eq!(documented, about.keys().copied().collect());
}
