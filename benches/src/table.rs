//! The one table that a run prints.

use std::{fs, io, path::Path};

use serde_json::{Value, json};

use crate::series::Series;

/// What a median is compared with.
#[derive(Clone, Debug)]
pub(crate) struct Against {
    /// Its name, for people.
    pub(crate) name: String,
    pub(crate) value: f64,
}

impl Against {
    /// The median of a series; nothing to compare with if it has none.
    pub(crate) fn median(series: &Series) -> Option<Self> {
        Some(Self { name: series.name.trim().to_owned(), value: series.median()? })
    }

    pub(crate) fn value(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value }
    }
}

/// What must be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The median is at most so many times what it is compared with.
    AtMostTimes(f64),
    /// The median is at most so many times what it is compared with, and so much more.
    AtMostTimesPlus(f64, f64),
    /// What it is compared with is at least so many times the median.
    Faster(f64),
    /// The median is at least so many times what it is compared with.
    AtLeastTimes(f64),
    /// The median is at most this.
    AtMost(f64),
}

impl Target {
    fn text(self, unit: &str) -> String {
        match self {
            Self::AtMostTimes(times) => format!("<= {times} x"),
            Self::AtMostTimesPlus(times, more) => format!("<= {times} x + {more} {unit}"),
            Self::Faster(times) => format!(">= {times} x faster"),
            Self::AtLeastTimes(times) => format!(">= {times} x"),
            Self::AtMost(limit) => format!("<= {limit} {unit}"),
        }
    }

    /// Whether it is reached; unknown without what it is compared with.
    fn is_met(self, median: f64, against: Option<f64>) -> Option<bool> {
        Some(match self {
            Self::AtMostTimes(times) => median <= times * against?,
            Self::AtMostTimesPlus(times, more) => median <= times * against? + more,
            Self::Faster(times) => against? >= times * median,
            Self::AtLeastTimes(times) => median >= times * against?,
            Self::AtMost(limit) => median <= limit,
        })
    }
}

/// One line.
#[derive(Debug)]
enum Row {
    Measured { series: Series, against: Option<Against>, target: Option<Target> },
    NotMeasured { name: String, reason: String },
}

/// What was measured so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// A row without anything to compare it with.
    pub(crate) fn add(&mut self, series: Series) {
        self.push(Row::Measured { series, against: None, target: None });
    }

    /// A row beside its baseline.
    pub(crate) fn compare(&mut self, series: Series, against: Option<Against>, target: Option<Target>) {
        self.push(Row::Measured { series, against, target });
    }

    /// A row that is empty, with the reason.
    pub(crate) fn not_measured(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.push(Row::NotMeasured { name: name.into(), reason: reason.into() });
    }

    /// Shown as it comes, so that a run that takes minutes shows how far it is.
    fn push(&mut self, row: Row) {
        eprintln!("  {}", row.cells().join("  ").trim_end());
        self.rows.push(row);
    }

    /// For people, as a table in Markdown.
    pub(crate) fn text(&self) -> String {
        let head = ["what", "N", "median", "p99", "compared with its baseline", "target", "met"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let width =
            |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str("| ");
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 1));
            }
            text.push_str("|\n");
            if number == 0 {
                for width in &widths {
                    text.push('|');
                    text.extend(std::iter::repeat_n('-', width + 2));
                }
                text.push_str("|\n");
            }
        }
        text
    }

    /// How many targets were met, and how many there were.
    pub(crate) fn met(&self) -> (usize, usize) {
        let verdicts: Vec<bool> = self.rows.iter().filter_map(Row::is_met).collect();
        (verdicts.iter().filter(|met| **met).count(), verdicts.len())
    }

    /// Writes each row's samples to a file of its own, and all rows to `summary.json`.
    pub(crate) fn save(&self, folder: &Path, machine: &Value) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for row in &self.rows {
            if let Row::Measured { series, .. } = row {
                let path = folder.join(format!("{}.json", series.slug()));
                fs::write(path, format!("{:#}\n", series.json()))?;
            }
        }
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let summary = json!({ "machine": machine, "rows": rows });
        fs::write(folder.join("summary.json"), format!("{summary:#}\n"))
    }
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        match self {
            Self::Measured { series, against, target: Some(target) } => {
                target.is_met(series.median()?, against.as_ref().map(|against| against.value))
            }
            _ => None,
        }
    }

    fn cells(&self) -> [String; 7] {
        match self {
            Self::NotMeasured { name, reason } => {
                [name.clone(), String::new(), format!("not measured: {reason}")]
                    .into_iter()
                    .chain(std::iter::repeat_n(String::new(), 4))
                    .collect::<Vec<_>>()
                    .try_into()
                    .unwrap_or_default()
            }
            Self::Measured { series, against, target } => {
                let unit = series.unit.name();
                let shown =
                    |value: Option<f64>| value.map_or_else(String::new, |value| with_unit(value, unit));
                let median = series.median();
                let compared = match (median, against) {
                    (Some(median), Some(against)) if against.value > 0.0 => {
                        let (ratio, value) = (median / against.value, with_unit(against.value, unit));
                        format!("{ratio:.2} x {} ({value})", against.name)
                    }
                    _ => String::new(),
                };
                let met = match self.is_met() {
                    Some(true) => "yes",
                    Some(false) => "NO",
                    None => "",
                };
                [
                    series.name.clone(),
                    series.len().to_string(),
                    shown(median),
                    shown(series.percentile(990)),
                    compared,
                    target.map_or_else(String::new, |target| target.text(unit)),
                    met.to_owned(),
                ]
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::NotMeasured { name, reason } => json!({ "name": name, "not_measured": reason }),
            Self::Measured { series, against, target } => json!({
                "name": series.name,
                "count": series.len(),
                "unit": series.unit.name(),
                "median": series.median(),
                "p99": series.percentile(990),
                "baseline": against.as_ref().map(|against| json!({ "name": against.name, "value": against.value })),
                "target": target.map(|target| target.text(series.unit.name())),
                "met": self.is_met(),
            }),
        }
    }
}

/// A value with as many digits as are worth reading.
fn with_unit(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(median: f64) -> Series {
        let mut series = Series::times("row");
        series.add_value(median);
        series
    }

    #[test]
    fn targets_are_met_at_their_limit_and_not_beyond() {
        let verdicts = [
            (Target::AtMostTimes(1.5), 15.0, 15.1),
            (Target::AtMostTimesPlus(1.0, 8.0), 18.0, 18.1),
            (Target::Faster(2.0), 5.0, 5.1),
            (Target::AtLeastTimes(1.0), 10.0, 9.9),
            (Target::AtMost(32.0), 32.0, 32.1),
        ]
        .map(|(target, good, bad)| (target.is_met(good, Some(10.0)), target.is_met(bad, Some(10.0))));

        assert_eq!(verdicts, [(Some(true), Some(false)); 5]);
    }

    #[test]
    fn comparison_without_a_baseline_is_no_verdict() {
        let mut table = Table::default();
        table.compare(of(1.0), None, Some(Target::AtMostTimes(1.0)));
        table.not_measured("other", "there is none");

        assert_eq!(table.met(), (0, 0));
        assert!(table.text().contains("not measured: there is none"));
    }

    #[test]
    fn line_names_ratio_baseline_target_and_verdict() {
        let mut table = Table::default();
        table.compare(of(13.0), Some(Against::value("floor", 10.0)), Some(Target::AtMostTimes(1.3)));

        let text = table.text();
        let line = text.lines().last().unwrap();
        assert_eq!(
            line.split('|').map(str::trim).collect::<Vec<_>>(),
            ["", "row", "1", "13.0 ms", "13.0 ms", "1.30 x floor (10.0 ms)", "<= 1.3 x", "yes", ""]
        );
    }
}
