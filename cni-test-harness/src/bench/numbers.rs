//! Medians and percentiles.

/// Numbers of one kind; empty until something is measured.
#[derive(Debug, Default, Clone)]
pub(super) struct Series(Vec<f64>);

impl Series {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least `percent` of the values do not exceed; 0 when empty.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub(super) fn median(&self) -> f64 {
        self.percentile(50)
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let series = Series((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (
                series.median(),
                series.percentile(99),
                series.percentile(100)
            ),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(Series(vec![7.0]).percentile(99), 7.0);
        assert_eq!(Series::default().median(), 0.0);
    }
}
