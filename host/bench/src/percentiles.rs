//! Many durations, sorted when asked: exact percentiles in microseconds.

use std::time::Duration;

#[derive(Default)]
pub(crate) struct Percentiles {
    micros: Vec<f64>,
    sorted: bool,
}

impl Percentiles {
    pub(crate) fn add(&mut self, one: Duration) {
        self.micros.push(one.as_secs_f64() * 1e6);
        self.sorted = false;
    }

    /// The value below which the share `quantile` of all lies, by nearest rank; 0 without any.
    pub(crate) fn at(&mut self, quantile: f64) -> f64 {
        if !self.sorted {
            self.micros.sort_unstable_by(f64::total_cmp);
            self.sorted = true;
        }
        let last = self.micros.len().saturating_sub(1);
        self.micros.get((quantile * last as f64).round() as usize).copied().unwrap_or(0.0)
    }
}
