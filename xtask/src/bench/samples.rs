//! Times of one kind, and what is told of them. It measures nothing.

use std::time::Duration;

use serde_json::{Value, json};

/// Times that were measured one after the other, or at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The median, in milliseconds; 0 of nothing.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).map_or(0.0, |time| milliseconds(*time))
    }

    /// In milliseconds; 0 of nothing.
    pub(super) fn shortest(&self) -> f64 {
        self.0.iter().min().map_or(0.0, |time| milliseconds(*time))
    }

    /// The median and the longest, in milliseconds, and how many there are.
    pub(super) fn told(&self) -> Value {
        let longest = self.0.iter().max().map_or(0.0, |time| milliseconds(*time));
        json!({ "median": self.median(), "longest": longest, "count": self.0.len() })
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

/// With one digit after the point.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_longest() {
        let samples: Samples = [30, 10, 20].map(Duration::from_millis).into_iter().collect();
        assert!((samples.shortest() - 10.0).abs() < 0.01);
        assert_eq!(samples.told(), json!({ "median": 20.0, "longest": 30.0, "count": 3 }));
        assert_eq!(json!(milliseconds(Duration::from_micros(1_250))), json!(1.3));
    }
}
