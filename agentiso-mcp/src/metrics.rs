//! What the server counts, as Prometheus reads it.
#![cfg_attr(not(feature = "http"), allow(dead_code, reason = "nobody reads what is counted without HTTP"))]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agentiso_core::{ForkReport, WorkspaceSummary, channel::client::Exit};

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Counters of one server, since its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: BTreeMap<(&'static str, &'static str), u64>,
    durations: BTreeMap<&'static str, Histogram>,
    boots: BTreeMap<&'static str, u64>,
    forks: BTreeMap<&'static str, u64>,
    pauses: Histogram,
    execs: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, text: &mut Text, name: &str, label: &str) {
        let separator = if label.is_empty() { "" } else { "," };
        for (count, bound) in self.buckets.iter().zip(BUCKETS) {
            text.line(&format!("{name}_bucket{{{label}{separator}le=\"{bound}\"}} {count}"));
        }
        text.line(&format!("{name}_bucket{{{label}{separator}le=\"+Inf\"}} {}", self.count));
        let label = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        text.line(&format!("{name}_sum{label} {}", self.sum));
        text.line(&format!("{name}_count{label} {}", self.count));
    }
}

/// The text that Prometheus reads.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP {name} {help}"));
        self.line(&format!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing that holds it can panic half way.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of a tool ended.
    pub(crate) fn called(&self, tool: &'static str, outcome: &'static str, time: Duration) {
        let mut counts = self.lock();
        *counts.calls.entry((tool, outcome)).or_default() += 1;
        counts.durations.entry(tool).or_default().observe(time);
    }

    /// A workspace was made.
    pub(crate) fn created(&self, from_pool: bool) {
        *self.lock().boots.entry(if from_pool { "pool" } else { "create" }).or_default() += 1;
    }

    /// A stopped workspace was started.
    pub(crate) fn booted(&self) {
        *self.lock().boots.entry("start").or_default() += 1;
    }

    /// Forks were made.
    pub(crate) fn forked(&self, report: &ForkReport) {
        let mut counts = self.lock();
        *counts.forks.entry("ok").or_default() += report.success_count as u64;
        *counts.forks.entry("error").or_default() += report.failure_count as u64;
        if let Some(standstill) = report.standstill {
            counts.pauses.observe(Duration::from_micros(standstill.paused_us));
        }
    }

    /// A command ended, or could not be run.
    pub(crate) fn executed(&self, exit: Option<Exit>) {
        let outcome = match exit {
            Some(Exit::Code(0)) => "ok",
            Some(Exit::Code(_)) => "nonzero",
            Some(Exit::Signal(_)) => "signal",
            Some(Exit::TimedOut) => "timeout",
            None => "error",
        };
        *self.lock().execs.entry(outcome).or_default() += 1;
    }

    /// All of it, and how many workspaces there are.
    pub(crate) fn text(&self, workspaces: &[WorkspaceSummary]) -> String {
        let mut text = Text::default();
        let mut states: BTreeMap<String, u64> = BTreeMap::new();
        for summary in workspaces {
            *states.entry(summary.state.to_string()).or_default() += 1;
        }
        text.head("agentiso_workspaces", "gauge", "Workspaces of the state folder, by state.");
        for (state, count) in states {
            text.line(&format!("agentiso_workspaces{{state=\"{state}\"}} {count}"));
        }
        let counts = self.lock();
        for (name, help, label, values) in [
            ("agentiso_boots_total", "Machines started, by what asked for them.", "by", &counts.boots),
            ("agentiso_forks_total", "Forks, by outcome.", "outcome", &counts.forks),
            (
                "agentiso_execs_total",
                "Commands of exec and exec_parallel, by outcome.",
                "outcome",
                &counts.execs,
            ),
        ] {
            text.head(name, "counter", help);
            for (value, count) in values {
                text.line(&format!("{name}{{{label}=\"{value}\"}} {count}"));
            }
        }
        text.head("agentiso_tool_calls_total", "counter", "Tool calls, by outcome.");
        for ((tool, outcome), count) in &counts.calls {
            text.line(&format!("agentiso_tool_calls_total{{tool=\"{tool}\",outcome=\"{outcome}\"}} {count}"));
        }
        text.head("agentiso_tool_duration_seconds", "histogram", "Time of tool calls.");
        for (tool, histogram) in &counts.durations {
            histogram.write(&mut text, "agentiso_tool_duration_seconds", &format!("tool=\"{tool}\""));
        }
        text.head("agentiso_fork_pause_seconds", "histogram", "How long machines stood still for a fork.");
        counts.pauses.write(&mut text, "agentiso_fork_pause_seconds", "");
        text.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::default();
        metrics.called("exec", "ok", Duration::from_millis(20));
        metrics.called("exec", "ok", Duration::from_secs(3));
        metrics.called("exec", "invalid_params", Duration::ZERO);
        metrics.created(true);
        metrics.booted();
        metrics.executed(Some(Exit::TimedOut));
        metrics.executed(None);

        let text = metrics.text(&[]);

        for line in [
            "agentiso_tool_calls_total{tool=\"exec\",outcome=\"ok\"} 2",
            "agentiso_tool_calls_total{tool=\"exec\",outcome=\"invalid_params\"} 1",
            "agentiso_tool_duration_seconds_bucket{tool=\"exec\",le=\"0.025\"} 2",
            "agentiso_tool_duration_seconds_bucket{tool=\"exec\",le=\"2.5\"} 2",
            "agentiso_tool_duration_seconds_bucket{tool=\"exec\",le=\"10\"} 3",
            "agentiso_tool_duration_seconds_bucket{tool=\"exec\",le=\"+Inf\"} 3",
            "agentiso_tool_duration_seconds_count{tool=\"exec\"} 3",
            "agentiso_boots_total{by=\"pool\"} 1",
            "agentiso_boots_total{by=\"start\"} 1",
            "agentiso_execs_total{outcome=\"timeout\"} 1",
            "agentiso_execs_total{outcome=\"error\"} 1",
            "agentiso_fork_pause_seconds_count 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
    }
}
