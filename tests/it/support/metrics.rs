//! `/metrics`, read as Prometheus reads it.

/// What one scrape gave.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// One series, or the sum of all with that name; without the prefix that all of ours have.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let name = format!("event_persister_{name}");
        let values = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(&name)?;
            let is_of_it = rest.is_empty() || rest.starts_with('{');
            is_of_it.then(|| value.parse::<f64>().unwrap())
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// A count, which must be there.
    #[track_caller]
    pub(crate) fn count(&self, name: &str) -> u64 {
        let value = self.value(name);
        value.unwrap_or_else(|| panic!("no {name} in\n{}", self.0)) as u64
    }
}
