//! The shadow's counts, for `/metrics`.

use std::collections::BTreeMap;

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use strum::VariantArray as _;

use super::tally::Class;
use crate::metrics::Refusals;

#[derive(Clone)]
pub(crate) struct ShadowMetrics {
    registry: Registry,
    messages: IntCounterVec,
    columns: IntCounterVec,
    waiting: IntGauge,
    refusals: Refusals,
}

impl ShadowMetrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            messages: IntCounterVec::new(
                Opts::new(
                    "event_persister_shadow_messages_total",
                    "Messages of the stream, by what became of them.",
                ),
                &["class"],
            )?,
            columns: IntCounterVec::new(
                Opts::new(
                    "event_persister_shadow_differing_columns_total",
                    "Events that are stored in another value than would be written, by column.",
                ),
                &["column"],
            )?,
            waiting: IntGauge::new(
                "event_persister_shadow_waiting",
                "Messages that wait for their time to be compared.",
            )?,
            refusals: Refusals::new()?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.messages.clone()))?;
        registry.register(Box::new(metrics.columns.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        registry.register(Box::new(metrics.refusals.collector()))?;
        for class in Class::VARIANTS {
            // Zeros can be watched, gaps cannot.
            metrics.count(*class, 0);
        }
        Ok(metrics)
    }

    pub(crate) fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// What counts the requests that the listener refuses.
    pub(crate) fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    pub(crate) fn count(&self, class: Class, number: u64) {
        self.messages.with_label_values(&[class]).inc_by(number);
    }

    /// Takes over how often each column has differed so far.
    pub(crate) fn columns(&self, columns: &BTreeMap<String, u64>) {
        for (column, total) in columns {
            let counter = self.columns.with_label_values(&[column.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    pub(crate) fn waiting(&self, number: usize) {
        self.waiting.set(i64::try_from(number).unwrap_or(i64::MAX));
    }
}
