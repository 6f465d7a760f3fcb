//! Numbers to rows.

use std::fmt;

/// Samples of one quantity, in the order in which they were taken.
#[derive(Debug, Clone, Default)]
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

    pub(crate) fn min(&self) -> Option<f64> {
        self.sorted().first().copied()
    }

    pub(crate) fn max(&self) -> Option<f64> {
        self.sorted().last().copied()
    }

    pub(crate) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let is_even = sorted.len().is_multiple_of(2);
        Some(if is_even {
            (sorted[middle - 1] + upper) / 2.0
        } else {
            upper
        })
    }

    /// The value below which this share of all values is; the nearest one that was measured.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.sorted().get(rank.saturating_sub(1)).copied()
    }

    /// Each of these samples over the one that was taken in the same round.
    pub(crate) fn over(&self, reference: &Self) -> Self {
        let rounds = self.0.iter().zip(&reference.0);
        rounds.map(|(ours, theirs)| ours / theirs).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// The least, the median and the greatest, in columns of ten; `{:.2}` chooses the digits.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        for value in [self.min(), self.median(), self.max()] {
            write!(f, "{:>10}", shown(value, digits))?;
        }
        Ok(())
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

/// A number with so many digits behind the point, or a dash where there is none.
pub(crate) fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Rows in aligned columns: the first to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(titles: &[&str]) -> Self {
        Self {
            rows: vec![titles.iter().map(|&title| title.to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for row in &self.rows {
            let cells: Vec<String> = (row.iter().zip(&widths).enumerate())
                .map(|(column, (cell, &width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            println!("{}", cells.join("  ").trim_end());
        }
    }
}
