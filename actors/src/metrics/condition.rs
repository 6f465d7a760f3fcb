//! The numbers of how the pipeline is: up, ready, paused, started over.

use prometheus::core::Collector;
use prometheus::{IntGauge, IntGaugeVec, Opts};

pub(super) struct Condition {
    generation: IntGauge,
    ready: IntGauge,
    degraded: IntGauge,
    reading_paused: IntGauge,
    component_up: IntGaugeVec,
}

impl Condition {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            generation: IntGauge::new(
                "event_persister_generation",
                "How many times the pipeline was started whole; above 1 a part of it has died.",
            )?,
            ready: IntGauge::new(
                "event_persister_ready",
                "1 while events that are sent will be stored, else 0.",
            )?,
            degraded: IntGauge::new(
                "event_persister_degraded",
                "1 while an event has been held for more than 10 s although others are stored, else 0.",
            )?,
            reading_paused: IntGauge::new(
                "event_persister_reading_paused",
                "1 while reading pauses because the database refuses nearly everything, else 0.",
            )?,
            component_up: IntGaugeVec::new(
                Opts::new(
                    "event_persister_component_up",
                    "1 while the last attempt of a part succeeded, else 0.",
                ),
                &["component"],
            )?,
        })
    }

    pub(super) fn set_generation(&self, generation: u64) {
        let generation = i64::try_from(generation).unwrap_or(i64::MAX);
        self.generation.set(generation);
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    pub(super) fn set_degraded(&self, degraded: bool) {
        self.degraded.set(i64::from(degraded));
    }

    pub(super) fn set_reading_paused(&self, paused: bool) {
        self.reading_paused.set(i64::from(paused));
    }

    pub(super) fn set_up(&self, component: &str, up: bool) {
        let gauge = self.component_up.with_label_values(&[component]);
        gauge.set(i64::from(up));
    }

    pub(super) fn collectors(&self) -> [&dyn Collector; 5] {
        [
            &self.generation,
            &self.ready,
            &self.degraded,
            &self.reading_paused,
            &self.component_up,
        ]
    }
}
