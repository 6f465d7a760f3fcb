//! `/metrics`, read as Prometheus reads it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::server::Server;

/// Nothing here takes longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The numbers of a service, and which of them anybody has asked for.
pub(super) struct Numbers<'a> {
    pub(super) server: &'a Server,
    pub(super) asked: &'a RefCell<BTreeSet<String>>,
}

impl Numbers<'_> {
    /// Scrapes until a number is as it should be. One that counts several things is named without
    /// its labels, and is then the sum of them.
    pub(super) async fn until(&self, name: &str, is_right: impl Fn(f64) -> bool) {
        let bare = name.split('{').next().unwrap();
        let of_a_histogram = ["_sum", "_count"].iter();
        let metric = of_a_histogram
            .fold(bare, |name, part| name.strip_suffix(part).unwrap_or(name))
            .to_owned();
        self.asked.borrow_mut().insert(metric);
        let started = Instant::now();
        loop {
            let text = self.server.get("/metrics").await.text().await.unwrap();
            let found = value(&text, name);
            if found.is_some_and(&is_right) {
                return;
            }
            let log = self.server.log();
            assert!(
                started.elapsed() < PATIENCE,
                "{name} is {found:?}\n{text}\n{log}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn are(&self, expected: &[(&str, f64)]) {
        for (name, expected) in expected {
            self.until(name, |value| value == *expected).await;
        }
    }

    pub(super) async fn are_above_zero(&self, names: &[&str]) {
        for name in names {
            self.until(name, |value| value > 0.0).await;
        }
    }
}

/// One series, or the sum of all with that name.
pub(super) fn value(text: &str, name: &str) -> Option<f64> {
    let name = format!("event_persister_{name}");
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_of_it = series
            .strip_prefix(&name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        is_of_it.then(|| value.parse::<f64>().unwrap())
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}
