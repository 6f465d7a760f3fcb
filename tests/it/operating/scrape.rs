//! Numbers that must come, and a note of those that were asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::server::Server;
use crate::support::wait::PATIENCE;

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
            let metrics = self.server.metrics().await;
            let found = metrics.value(name);
            if found.is_some_and(&is_right) {
                return;
            }
            let log = self.server.log();
            assert!(
                started.elapsed() < PATIENCE,
                "{name} is {found:?}\n{}\n{log}",
                metrics.text()
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
