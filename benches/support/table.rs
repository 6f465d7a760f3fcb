//! Samples that are taken in turns, and how they are spread.

use std::fmt;

/// Samples of one quantity.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which this share of the samples lies; the median's share is 0.5.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let last = sorted.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each of these samples over the one that was taken in the same round.
    pub(crate) fn over(&self, reference: &Self) -> Self {
        let pairs = self.0.iter().zip(&reference.0);
        Self(
            pairs
                .map(|(sample, reference)| sample / reference)
                .collect(),
        )
    }
}

/// The least, the median and the greatest, in columns of ten; `{:.2}` chooses the digits.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let (least, median, greatest) = (self.quantile(0.0), self.median(), self.quantile(1.0));
        write!(
            f,
            "{least:>10.digits$}{median:>10.digits$}{greatest:>10.digits$}"
        )
    }
}

/// The order in which the variants of a round are measured: there and back, round by round, so that
/// none always has the warmer machine.
pub(crate) fn turns(num_variants: usize, round: usize) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..num_variants).collect();
    if round % 2 == 1 {
        turns.reverse();
    }
    turns
}
