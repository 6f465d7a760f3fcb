//! The files of `deploy/` set what there is, and wait for as long as a shutdown may take.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use crate::cli::{self, Command};
use crate::config::Config;
use crate::config::environment::CONFIG_VARIABLE;
use crate::config::keys::{self, PREFIX};

const FILES: [(&str, &str); 10] = [
    ("Dockerfile", include_str!("../../../deploy/Dockerfile")),
    ("compose.yaml", include_str!("../../../deploy/compose.yaml")),
    (
        "compose.prefect.yaml",
        include_str!("../../../deploy/compose.prefect.yaml"),
    ),
    (
        "event-persister.service",
        include_str!("../../../deploy/event-persister.service"),
    ),
    (
        "kubernetes.yaml",
        include_str!("../../../deploy/kubernetes.yaml"),
    ),
    ("README.md", include_str!("../../../deploy/README.md")),
    (
        "debian/environment",
        include_str!("../../../deploy/debian/environment"),
    ),
    (
        "chart/Chart.yaml",
        include_str!("../../../deploy/chart/Chart.yaml"),
    ),
    (
        "chart/templates/deployment.yaml",
        include_str!("../../../deploy/chart/templates/deployment.yaml"),
    ),
    (
        "python/README.md",
        include_str!("../../../deploy/python/README.md"),
    ),
];

/// What waits before it kills, and in which file.
const PATIENCE: [(&str, &str); 5] = [
    ("event-persister.service", "TimeoutStopSec="),
    ("kubernetes.yaml", "terminationGracePeriodSeconds: "),
    (
        "chart/templates/deployment.yaml",
        "terminationGracePeriodSeconds: ",
    ),
    ("compose.yaml", "stop_grace_period: "),
    ("compose.prefect.yaml", "stop_grace_period: "),
];

/// Of those who wait for an answer when everything has been written.
const ANSWERS: Duration = Duration::from_secs(5);

fn text(file: &str) -> &'static str {
    FILES.iter().find(|(name, _)| *name == file).unwrap().1
}

fn variables(text: &str) -> impl Iterator<Item = &str> {
    let is_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.split(move |c: char| !is_of_name(c))
        // The bare prefix stands in the rule for names.
        .filter(|word| word.starts_with(PREFIX) && *word != PREFIX)
}

#[test]
fn every_variable_sets_something() {
    let known: BTreeSet<String> = keys::all()
        .iter()
        .flat_map(keys::Setting::variables)
        .chain([CONFIG_VARIABLE.to_owned()])
        .collect();
    let mut num_seen = 0;
    for (file, text) in FILES {
        for name in variables(text) {
            // A secret may be named by the file that holds it.
            let setting = name.strip_suffix("_FILE").filter(|_| !known.contains(name));
            assert!(known.contains(setting.unwrap_or(name)), "{file}: {name}");
            num_seen += 1;
        }
    }
    assert!(num_seen > 10, "{num_seen}");
}

#[test]
fn health_is_asked_by_a_command_that_there_is() {
    for (file, start) in [
        ("Dockerfile", "CMD ["),
        ("compose.yaml", "test: [\"CMD\", "),
        ("compose.prefect.yaml", "test: [\"CMD\", "),
    ] {
        let lists = text(file).split(start).skip(1);
        let mut ours = lists
            .filter_map(|rest| rest.split(']').next())
            .filter(|list| list.starts_with("\"event-persister\""));
        let words: Vec<String> =
            serde_json::from_str(&format!("[{}]", ours.next().unwrap())).unwrap();
        let (_, command) = cli::parse(words.into_iter().map(OsString::from)).unwrap();
        assert!(
            matches!(command, Command::Health { ready: false, .. }),
            "{file}"
        );
        assert_eq!(ours.next(), None, "{file}");
    }
}

#[test]
fn versions_are_the_programs() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, before, num_expected) in [
        ("chart/Chart.yaml", "\nversion: ", 1),
        ("chart/Chart.yaml", "\nappVersion: ", 1),
        (
            "kubernetes.yaml",
            "image: registry.example/event-persister:",
            2,
        ),
    ] {
        let found: Vec<&str> = text(file)
            .split(before)
            .skip(1)
            .filter_map(|rest| rest.lines().next())
            .collect();
        assert_eq!(found, vec![version; num_expected], "{file}: {before}");
    }
}

#[test]
fn a_shutdown_may_take_as_long_as_it_does() {
    let needed = Config::of_defaults().unwrap().drain_timeout + ANSWERS;
    for (file, key) in PATIENCE {
        let (_, rest) = text(file).split_once(key).unwrap();
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        let patience = Duration::from_secs(digits.parse().unwrap());
        assert!(patience > needed, "{file}: {key}{digits}");
    }
}
