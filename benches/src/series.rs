use std::time::Duration;

use serde_json::{Value, json};

/// What samples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Mebibytes,
    MebibytesPerSecond,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
        }
    }
}

/// Samples of one measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    /// In the order in which they were taken.
    samples: Vec<f64>,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, samples: Vec::new() }
    }

    /// The same samples under another name.
    pub(crate) fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// A series of times.
    pub(crate) fn times(name: impl Into<String>) -> Self {
        Self::new(name, Unit::Milliseconds)
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.samples.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn add_value(&mut self, value: f64) {
        self.samples.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// The smallest value that at least `per_mille` thousandths of the samples do not exceed (nearest rank); none of no
    /// samples.
    pub(crate) fn percentile(&self, per_mille: usize) -> Option<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied()
    }

    pub(crate) fn median(&self) -> Option<f64> {
        self.percentile(500)
    }

    /// All of it, for programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit.name(),
            "median": self.median(),
            "p99": self.percentile(990),
            "samples": self.samples,
        })
    }

    /// Its name as part of a file's.
    pub(crate) fn slug(&self) -> String {
        let mut slug = String::new();
        for c in self.name.chars() {
            match c {
                'a'..='z' | '0'..='9' => slug.push(c),
                'A'..='Z' => slug.push(c.to_ascii_lowercase()),
                _ if slug.ends_with('-') => {}
                _ => slug.push('-'),
            }
        }
        slug.trim_matches('-').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(milliseconds: impl IntoIterator<Item = u32>) -> Series {
        let mut series = Series::times("Test: 1 vCPU, (raw)");
        milliseconds.into_iter().for_each(|sample| series.add_value(sample.into()));
        series
    }

    #[test]
    fn percentiles_are_nearest_ranks_whatever_the_order() {
        let hundred = series((1..=100).rev());
        assert_eq!([500, 990, 1000].map(|rank| hundred.percentile(rank)), [50.0, 99.0, 100.0].map(Some));
        let few = series([30, 10, 20]);
        assert_eq!((few.median(), few.percentile(990)), (Some(20.0), Some(30.0)));
        assert_eq!((series([7]).percentile(0), series([]).median()), (Some(7.0), None));
    }

    #[test]
    fn slug_is_a_plain_file_name() {
        assert_eq!(series([]).slug(), "test-1-vcpu-raw");
    }
}
