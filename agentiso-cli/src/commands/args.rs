//! Arguments that several commands take, and how words become values.

use std::collections::BTreeMap;

use agentiso_core::{
    WorkspaceSpec,
    types::{DiskGib, GuestPort, HostPort, ImageName, MemoryMib, Resources, VcpuCount, WorkspaceName},
};
use clap::Args;

use crate::error::CliError;

/// The image that machines begin from when none is named.
pub(crate) const DEFAULT_IMAGE: &str = "debian";

/// The machine to create.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Base image to begin from
    #[arg(long, value_name = "IMAGE", default_value = DEFAULT_IMAGE)]
    pub(crate) image: ImageName,

    #[command(flatten)]
    pub(crate) size: SizeArgs,

    /// Let the machine reach the internet (never the host itself)
    #[arg(long)]
    pub(crate) internet: bool,

    /// Forward a TCP port of the host's loopback to one of the machine; a free host port is picked if none is given
    #[arg(short = 'p', long = "publish", value_name = "[HOST:]GUEST", value_parser = port)]
    pub(crate) publish: Vec<Port>,
}

/// How large a machine is.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct SizeArgs {
    /// Virtual CPUs, 1 to 8
    #[arg(long, value_name = "N", default_value_t = VcpuCount::default(), value_parser = vcpus)]
    pub(crate) cpus: VcpuCount,

    /// Memory in MiB, 128 to 8192
    #[arg(long, value_name = "MIB", default_value_t = MemoryMib::default(), value_parser = memory)]
    pub(crate) memory: MemoryMib,

    /// Disk in GiB, 1 to 100; takes up only what is written to it
    #[arg(long, value_name = "GIB", default_value_t = DiskGib::default(), value_parser = disk)]
    pub(crate) disk: DiskGib,
}

impl SizeArgs {
    /// What the library is asked for.
    pub(crate) fn resources(self) -> Resources {
        Resources { vcpus: self.cpus, memory_mb: self.memory, disk_gb: self.disk }
    }
}

impl MachineArgs {
    /// What the library is asked for.
    pub(crate) fn spec(&self, name: Option<WorkspaceName>) -> Result<WorkspaceSpec, CliError> {
        let mut spec = WorkspaceSpec::new(self.image.as_str())
            .resources(self.size.resources())
            .allow_internet(self.internet);
        spec.name = name;
        for port in &self.publish {
            if spec.forwards.insert(port.guest, port.host).is_some() {
                return Err(CliError::request(
                    format!("port {} of the machine is forwarded twice", port.guest),
                    "leave one of the -p out",
                ));
            }
        }
        Ok(spec)
    }
}

/// The command to run in a machine.
#[derive(Debug, Args)]
pub(crate) struct GuestCommandArgs {
    /// Keep standard input open and send it to the command
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,

    /// Kill the command with all its processes after this many seconds, and end with status 124
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_SECS))]
    pub(crate) timeout: Option<u64>,

    #[command(flatten)]
    pub(crate) surroundings: SurroundingsArgs,
}

/// Longest `--timeout`: a year.
const MAX_TIMEOUT_SECS: u64 = 366 * 86_400;

/// Where a command runs, with what in its environment.
#[derive(Debug, Args)]
pub(crate) struct SurroundingsArgs {
    /// Set an environment variable; without a value, the one it has here
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<Variable>,

    /// Folder of the machine to start in
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

impl SurroundingsArgs {
    /// The variables; of two with one name the later counts.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.env.iter().filter_map(|Variable(pair)| pair.clone()).collect()
    }
}

/// An environment variable for the guest; nothing if it should have the value it has here, and has none. `Debug`
/// shows no value: it may be a secret.
#[derive(Clone)]
pub(crate) struct Variable(Option<(String, String)>);

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Variable").field(&self.0.as_ref().map(|(name, _)| name)).finish()
    }
}

/// `NAME=VALUE`, or `NAME` for the value it has here. The library says which names are refused.
fn variable(word: &str) -> Result<Variable, String> {
    if let Some((name, value)) = word.split_once('=') {
        return match name {
            "" => Err("a name is needed before the =".to_owned()),
            name => Ok(Variable(Some((name.to_owned(), value.to_owned())))),
        };
    }
    match std::env::var(word) {
        Ok(value) => Ok(Variable(Some((word.to_owned(), value)))),
        Err(std::env::VarError::NotPresent) => Ok(Variable(None)),
        Err(std::env::VarError::NotUnicode(_)) => Err("its value here is not UTF-8".to_owned()),
    }
}

/// A forward that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The machine's port.
    pub(crate) guest: GuestPort,
    /// The host's port; a free one if none.
    pub(crate) host: Option<HostPort>,
}

/// `[HOST:]GUEST`.
pub(crate) fn port(word: &str) -> Result<Port, String> {
    let (host, guest) = match word.split_once(':') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, word),
    };
    Ok(Port {
        guest: bounded(guest, GuestPort::new)?,
        host: host.map(|host| bounded(host, HostPort::new)).transpose()?,
    })
}

/// A port of a guest.
pub(crate) fn guest_port(word: &str) -> Result<GuestPort, String> {
    bounded(word, GuestPort::new)
}

fn vcpus(word: &str) -> Result<VcpuCount, String> {
    bounded(word, VcpuCount::new)
}

fn memory(word: &str) -> Result<MemoryMib, String> {
    bounded(word, MemoryMib::new)
}

pub(crate) fn disk(word: &str) -> Result<DiskGib, String> {
    bounded(word, DiskGib::new)
}

fn bounded<T, E: std::fmt::Display>(word: &str, new: impl Fn(u64) -> Result<T, E>) -> Result<T, String> {
    let number: u64 = word.parse().map_err(|_| format!("{word:?} is not a number"))?;
    new(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Machine {
        #[command(flatten)]
        machine: MachineArgs,
    }

    #[derive(Debug, Parser)]
    struct Guest {
        #[command(flatten)]
        guest: GuestCommandArgs,
    }

    #[test]
    fn machine_defaults_are_the_documented_ones() {
        let args = Machine::try_parse_from(["x"]).unwrap().machine;

        let spec = args.spec(None).unwrap();

        assert_eq!(spec.image, "debian");
        assert_eq!(spec.resources, Resources::default());
        assert!(!spec.policy.allow_internet && spec.forwards.is_empty() && !spec.throwaway);
    }

    #[test]
    fn machine_options_reach_the_spec() {
        let line = [
            "x",
            "--image",
            "alpine",
            "--cpus",
            "4",
            "--memory",
            "1024",
            "--disk",
            "3",
            "--internet",
            "-p",
            "8080:80",
            "-p",
            "443",
        ];

        let spec = Machine::try_parse_from(line).unwrap().machine.spec(None).unwrap();

        assert_eq!(spec.image, "alpine");
        assert_eq!(
            (spec.resources.vcpus.get(), spec.resources.memory_mb.get(), spec.resources.disk_gb.get()),
            (4, 1024, 3)
        );
        assert!(spec.policy.allow_internet);
        assert_eq!(
            spec.forwards,
            BTreeMap::from([
                (GuestPort::new(80).unwrap(), Some(HostPort::new(8080).unwrap())),
                (GuestPort::new(443).unwrap(), None)
            ])
        );
    }

    #[test]
    fn machine_options_out_of_bounds_are_refused_with_the_bounds() {
        for (option, value, bounds) in [
            ("--memory", "0", "128 to 8192 MiB"),
            ("--memory", "9000", "128 to 8192 MiB"),
            ("--cpus", "9", "1 to 8 vCPUs"),
            ("--disk", "101", "1 to 100 GiB"),
            ("-p", "80:80", "1024 to 65535"),
            ("-p", "65536", "1 to 65535"),
            ("-p", "http", "not a number"),
            ("--image", "a/b", "is not valid"),
        ] {
            let error = Machine::try_parse_from(["x", option, value]).unwrap_err().to_string();

            assert!(error.contains(bounds), "{option} {value}: {error}");
        }
    }

    #[test]
    fn port_forwarded_twice_is_refused() {
        let args = Machine::try_parse_from(["x", "-p", "8080:80", "-p", "8081:80"]).unwrap().machine;

        assert!(args.spec(None).is_err());
    }

    #[test]
    fn last_of_two_values_of_a_variable_counts() {
        let args = Guest::try_parse_from(["x", "-e", "A=1", "-e", "B=x=y", "-e", "A="]).unwrap().guest;

        assert_eq!(
            args.surroundings.environment(),
            BTreeMap::from([("A".to_owned(), String::new()), ("B".to_owned(), "x=y".to_owned())])
        );
    }

    #[test]
    fn variable_without_a_value_is_taken_from_here_or_left_out() {
        let args =
            Guest::try_parse_from(["x", "-e", "PATH", "-e", "AGENTISO_NO_SUCH_VARIABLE"]).unwrap().guest;

        assert_eq!(
            args.surroundings.environment(),
            BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())])
        );
    }

    #[test]
    fn variable_without_a_name_is_refused() {
        assert!(Guest::try_parse_from(["x", "-e", "=1"]).is_err());
    }

    #[test]
    fn debug_output_shows_no_value_of_a_variable() {
        let args = Guest::try_parse_from(["x", "-e", "TOKEN=hush"]).unwrap();

        let text = format!("{args:?}");

        assert!(text.contains("TOKEN") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn timeout_of_zero_is_refused() {
        assert!(Guest::try_parse_from(["x", "--timeout", "0"]).is_err());
        assert_eq!(Guest::try_parse_from(["x", "--timeout", "1"]).unwrap().guest.timeout, Some(1));
    }
}
