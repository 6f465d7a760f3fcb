//! Numbers that somebody else keeps, looked up at every scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Error, Gauge};

/// Metrics that are all read from one look at a `T`.
pub(super) struct LookedUp<T> {
    look: Box<dyn Fn() -> T + Send + Sync>,
    numbers: Vec<(Metric, Read<T>)>,
}

/// A number that is not known is left out of the scrape.
type Read<T> = fn(&T) -> Option<f64>;

enum Metric {
    Counter(Counter),
    Gauge(Gauge),
}

impl<T> LookedUp<T> {
    pub(super) fn new(look: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self {
            look: Box::new(look),
            numbers: Vec::new(),
        }
    }

    pub(super) fn counter(self, name: &str, help: &str, read: Read<T>) -> Result<Self, Error> {
        Ok(self.with(Metric::Counter(Counter::new(name, help)?), read))
    }

    pub(super) fn gauge(self, name: &str, help: &str, read: Read<T>) -> Result<Self, Error> {
        Ok(self.with(Metric::Gauge(Gauge::new(name, help)?), read))
    }

    fn with(mut self, metric: Metric, read: Read<T>) -> Self {
        self.numbers.push((metric, read));
        self
    }
}

impl<T> Collector for LookedUp<T> {
    fn desc(&self) -> Vec<&Desc> {
        let descriptions = self.numbers.iter().map(|(metric, _)| match metric {
            Metric::Counter(counter) => counter.desc(),
            Metric::Gauge(gauge) => gauge.desc(),
        });
        descriptions.flatten().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let seen = (self.look)();
        let families = self.numbers.iter().filter_map(|(metric, read)| {
            let value = read(&seen)?;
            Some(match metric {
                Metric::Counter(counter) => {
                    // Two scrapes at once would count twice if this only added; the numbers never fall.
                    counter.reset();
                    counter.inc_by(value);
                    counter.collect()
                }
                Metric::Gauge(gauge) => {
                    gauge.set(value);
                    gauge.collect()
                }
            })
        });
        families.flatten().collect()
    }
}
