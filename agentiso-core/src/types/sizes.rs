use serde::{Deserialize, Serialize};

/// A number was out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given} is out of bounds: {min} to {max} {unit}")]
pub struct InvalidSize {
    what: &'static str,
    given: u64,
    min: u64,
    max: u64,
    unit: &'static str,
}

macro_rules! bounded {
    ($(#[$doc:meta])* $type:ident($int:ty), $what:literal, $min:literal..=$max:literal $unit:literal $(, default $default:literal)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $type($int);

        impl $type {
            /// The smallest.
            pub const MIN: Self = Self($min);
            /// The largest.
            pub const MAX: Self = Self($max);

            /// Takes a number within the bounds.
            ///
            /// # Errors
            /// A number out of bounds; the error names them.
            pub fn new(value: u64) -> Result<Self, InvalidSize> {
                <$int>::try_from(value).ok().filter(|small| ($min..=$max).contains(small)).map(Self).ok_or(InvalidSize {
                    what: $what,
                    given: value,
                    min: $min,
                    max: $max,
                    unit: $unit,
                })
            }

            /// The number.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        $(impl Default for $type {
            fn default() -> Self {
                Self($default)
            }
        })?

        impl TryFrom<u64> for $type {
            type Error = InvalidSize;

            fn try_from(value: u64) -> Result<Self, InvalidSize> {
                Self::new(value)
            }
        }

        impl From<$type> for u64 {
            fn from(value: $type) -> Self {
                Self::from(value.0)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded!(
    /// Virtual CPUs of a machine; 2 unless asked otherwise.
    VcpuCount(u8), "vCPU count", 1..=8 "vCPUs", default 2
);
bounded!(
    /// Memory of a machine in MiB; 512 unless asked otherwise. Below 128 MiB the kernel and the agent do not fit.
    MemoryMib(u32), "memory", 128..=8192 "MiB", default 512
);
bounded!(
    /// Disk of a machine in GiB; 10 unless asked otherwise.
    DiskGib(u32), "disk", 1..=100 "GiB", default 10
);
bounded!(
    /// A TCP port of the host that a forward listens on. The privileged ones are refused.
    HostPort(u16), "host port", 1024..=65535 ""
);
bounded!(
    /// A TCP port inside a guest.
    GuestPort(u16), "guest port", 1..=65535 ""
);

impl MemoryMib {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * 1024 * 1024
    }
}

impl DiskGib {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * 1024 * 1024 * 1024
    }
}

/// What a machine is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory_mb: MemoryMib,
    /// Disk.
    pub disk_gb: DiskGib,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_refuse_what_is_out_of_bounds() {
        for bad in [0, 127, 8193, u64::MAX] {
            assert!(MemoryMib::new(bad).is_err(), "{bad}");
        }
        assert!(MemoryMib::new(128).is_ok() && MemoryMib::new(8192).is_ok());
        assert!(VcpuCount::new(0).is_err() && VcpuCount::new(8).is_ok() && VcpuCount::new(9).is_err());
        assert!(DiskGib::new(0).is_err() && DiskGib::new(100).is_ok() && DiskGib::new(101).is_err());
        assert!(HostPort::new(1023).is_err() && HostPort::new(1024).is_ok() && HostPort::new(65536).is_err());
    }

    #[test]
    fn invalid_size_names_the_bounds() {
        assert_eq!(
            MemoryMib::new(9000).unwrap_err().to_string(),
            "memory 9000 is out of bounds: 128 to 8192 MiB"
        );
    }
}
