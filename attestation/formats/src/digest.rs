//! Fixed-width byte strings that carry a meaning: digests, nonces, TPM object names, instance ids.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::Digest as _;

macro_rules! fixed_bytes {
    ($( $(#[$doc:meta])* $name:ident = $len:literal ),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(minicbor::Encode, minicbor::Decode, Serialize, Deserialize)]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(
            #[cbor(n(0), with = "minicbor::bytes")]
            #[serde(serialize_with = "hex::serialize", deserialize_with = "lower_hex")]
            pub [u8; $len],
        );

        impl $name {
            /// Width in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// Takes exactly the right number of bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Lower-case hexadecimal, exactly the right length.
            pub fn from_hex(text: &str) -> Option<Self> {
                from_lower_hex(text).map(Self)
            }

            /// Lower-case hexadecimal.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    )*};
}

fixed_bytes! {
    /// A SHA-256 digest.
    Digest = 32,
    /// A verifier's challenge; used once (SPEC 7.3).
    Nonce = 32,
    /// The Name of a TPM object whose nameAlg is SHA-256: `000b` followed by the digest of its public area.
    ObjectName = 34,
    /// Identifies one launch of one VM on one host; random, chosen by the monitor.
    InstanceId = 16,
}

fn from_lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    hex::decode(text).ok()?.try_into().ok()
}

fn lower_hex<'de, D: Deserializer<'de>, const N: usize>(d: D) -> Result<[u8; N], D::Error> {
    from_lower_hex(&String::deserialize(d)?)
        .ok_or_else(|| D::Error::custom(format_args!("expected {N} bytes of lower-case hex")))
}

impl Digest {
    /// SHA-256 of the concatenation of `parts`.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = sha2::Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The TPM extend operation: `SHA-256(self | value)`.
    #[must_use]
    pub fn extend(&self, value: &Digest) -> Self {
        Self::of(&[&self.0, &value.0])
    }

    /// The value of a PCR that was reset and never extended.
    pub const ZERO: Self = Self([0; 32]);
}

impl ObjectName {
    /// Name of the object with this TPMT_PUBLIC, whose nameAlg is SHA-256 (TPM 2.0 Part 1, 16.3).
    pub fn of(public: &[u8]) -> Self {
        let mut name = [0; Self::LEN];
        let (hash, digest) = name.split_at_mut(2);
        hash.copy_from_slice(&0x000b_u16.to_be_bytes());
        digest.copy_from_slice(Digest::of(&[public]).as_bytes());
        Self(name)
    }
}
