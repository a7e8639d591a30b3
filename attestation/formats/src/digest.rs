//! Fixed-width byte strings that carry a meaning: digests, nonces, TPM object names, instance ids.

use std::fmt;

use sha2::Digest as _;

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

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
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return None;
                }
                Self::from_slice(&hex::decode(text).ok()?)
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

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                d: &mut minicbor::Decoder<'b>,
                _: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                Self::from_slice(d.bytes()?).ok_or_else(|| {
                    minicbor::decode::Error::message(concat!("wrong length for ", stringify!($name)))
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.to_hex())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                Self::from_hex(&text).ok_or_else(|| {
                    serde::de::Error::custom(concat!(
                        "expected ",
                        stringify!($len),
                        " bytes of lower-case hex"
                    ))
                })
            }
        }
    };
}

fixed_bytes!(
    /// A SHA-256 digest.
    Digest,
    32
);
fixed_bytes!(
    /// A verifier's challenge; used once (SPEC 7.3).
    Nonce,
    32
);
fixed_bytes!(
    /// The Name of a TPM object whose nameAlg is SHA-256: `000b` followed by the digest of its public area.
    ObjectName,
    34
);
fixed_bytes!(
    /// Identifies one launch of one VM on one host; random, chosen by the monitor.
    InstanceId,
    16
);

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
