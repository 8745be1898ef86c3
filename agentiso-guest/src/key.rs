//! Who may speak to an agent over a channel that anybody can connect to.
//!
//! AF_VSOCK has no permissions. So a machine that is reached by it gets a [`MachineKey`] from the host that starts it,
//! through a device that only the guest's kernel and root can read, and each side proves in the first exchange of every
//! connection that it knows that key. The key itself is never sent: a proof is an HMAC-SHA-256 of the connection's nonce,
//! and one for each direction, so that neither side's can be given back to it as the other's.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::hello::Nonce;
use crate::hex;

/// Bytes in a [`MachineKey`].
pub const KEY_BYTES: usize = 32;

/// Where QEMU's firmware configuration device offers the key.
pub const KEY_FILE: &str = "opt/org.agentiso/key";

/// 256 random bits that a machine and its host share, others for each start of a machine.
#[derive(Clone, PartialEq, Eq)]
pub struct MachineKey([u8; KEY_BYTES]);

/// Which side proves that it knows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The host, in its hello.
    Host,
    /// The agent, in its welcome.
    Agent,
}

impl Side {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Host => b"agentiso hello",
            Self::Agent => b"agentiso welcome",
        }
    }
}

impl MachineKey {
    /// A key of the given bytes, which the caller took from a cryptographic random source.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What shows that `side` knows this key, on the connection with this nonce.
    pub fn proof(&self, side: Side, nonce: Nonce) -> Proof {
        Proof(self.mac(side, nonce).finalize().into_bytes().into())
    }

    /// Whether a proof is that of `side` on the connection with this nonce. Takes the same time whatever is wrong with it.
    pub fn is_proven(&self, side: Side, nonce: Nonce, proof: &Proof) -> bool {
        self.mac(side, nonce).verify_slice(&proof.0).is_ok()
    }

    fn mac(&self, side: Side, nonce: Nonce) -> Hmac<Sha256> {
        // A key of one block, padded by zeros, is what HMAC makes of a shorter one; and it can be given without an error.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..KEY_BYTES].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block);
        mac.update(side.label());
        mac.update(nonce.as_bytes());
        mac
    }
}

impl std::fmt::Debug for MachineKey {
    // Whoever knows it commands the machine.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineKey(..)")
    }
}

/// What shows that a side knows a key: see [`MachineKey::proof`]. Written as 64 lower-case hexadecimal digits.
///
/// Not to be compared: [`MachineKey::is_proven`] does that in constant time.
#[derive(Clone, Copy)]
pub struct Proof([u8; KEY_BYTES]);

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        // For messages in tests; still no faster for a nearly right one.
        self.0.iter().zip(other.0).fold(0, |differing, (one, other)| differing | (one ^ other)) == 0
    }
}

impl Eq for Proof {}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl Serialize for Proof {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Proof {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        hex::decode(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("expected 64 lower-case hexadecimal digits"))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Proof {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Proof".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::NONCE_BYTES;

    const NONCE: Nonce = Nonce::from_bytes([7; NONCE_BYTES]);

    #[test]
    fn proof_is_hmac_sha_256_of_label_and_nonce() {
        let key = MachineKey::from_bytes([1; KEY_BYTES]);

        let proof = serde_json::to_string(&key.proof(Side::Host, NONCE)).unwrap();

        // printf 'agentiso hello\7\7...' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101...
        assert_eq!(proof, "\"bae71997825c16f18ad6327b90fcdb5c71905b41a1d49efbebf78b2562e1c4c4\"");
    }

    #[test]
    fn proof_holds_for_its_key_side_and_nonce_alone() {
        let key = MachineKey::from_bytes([1; KEY_BYTES]);
        let proof = key.proof(Side::Host, NONCE);

        assert!(key.is_proven(Side::Host, NONCE, &proof));
        assert!(!key.is_proven(Side::Agent, NONCE, &proof));
        assert!(!key.is_proven(Side::Host, Nonce::from_bytes([8; NONCE_BYTES]), &proof));
        let mut other = [1; KEY_BYTES];
        other[KEY_BYTES - 1] = 2;
        assert!(!MachineKey::from_bytes(other).is_proven(Side::Host, NONCE, &proof));
    }

    #[test]
    fn key_and_proof_are_not_shown() {
        let key = MachineKey::from_bytes([0xab; KEY_BYTES]);

        assert_eq!(format!("{key:?} {:?}", key.proof(Side::Agent, NONCE)), "MachineKey(..) Proof(..)");
    }
}
