//! The host that a run measures, named in what it prints.

use std::fs;

use agentiso_core::Host;
use serde_json::{Value, json};

/// What it is.
pub(crate) fn describe(host: &Host) -> Value {
    let isolation = host.isolation();
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "level": isolation.level,
        "hypervisor": isolation.hypervisor,
        "channel": isolation.channel,
        "storage": isolation.storage,
        "load": load(),
        "agentiso": env!("CARGO_PKG_VERSION"),
    })
}

/// The same in one line, for people.
pub(crate) fn line(description: &Value) -> String {
    let text = |key: &str| match &description[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!(
        "{} CPUs ({}), {} of memory, Linux {}, {}, {}; load at the beginning {}",
        text("cpus"),
        text("cpu"),
        text("memory"),
        text("kernel"),
        text("hypervisor"),
        text("level"),
        text("load")
    )
}

/// The load of the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// The first value of a key in a file of `key : value` lines.
fn field(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'));
    line.map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
}

/// What a process takes up, from `/proc/PID/smaps_rollup`, in MiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Footprint {
    /// Its share of all it maps.
    pub(crate) pss: f64,
    /// Of that, what is in no file.
    pub(crate) anonymous: f64,
    /// What nobody else maps.
    pub(crate) unique: f64,
}

impl Footprint {
    pub(crate) fn of(pid: u32) -> std::io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
            kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
        };
        Self {
            pss: mib("Pss"),
            anonymous: mib("Pss_Anon"),
            unique: mib("Private_Clean") + mib("Private_Dirty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footprint_is_read_in_mib() {
        let text = "0-1 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:    2048 kB\nPss_Anon:  1024 kB\n\
                    Private_Clean:  512 kB\nPrivate_Dirty:  512 kB\n";

        let footprint = Footprint::parse(text);

        assert_eq!(footprint, Footprint { pss: 2.0, anonymous: 1.0, unique: 1.0 });
    }
}
