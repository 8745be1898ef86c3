use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, from random bits.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The UUID in it.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// A workspace. Paths, datasets and network devices are named by it, never by the workspace's name.
    WorkspaceId
);
id!(
    /// A writable disk; today each workspace has exactly one.
    DiskId
);
id!(
    /// A snapshot of a disk, and of the memory where it has one.
    SnapshotId
);
id!(
    /// A base image's disk content: two images of one name built at different times have different ones.
    BaseId
);
