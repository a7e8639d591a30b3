//! Signatures by TPM keys (TPMT_SIGNATURE; Part 2, 11.3.4).
//!
//! What the bytes say the scheme is counts for nothing by itself: [`super::public::Public::verify`] holds
//! it against the scheme fixed in the key. HMAC, null and RSAPSS signatures are refused here.

use super::alg;
use super::public::{Hash, Scheme};
use super::wire::Reader;
use crate::Reject;

/// Most bytes of an RSA signature: RSA-4096.
const RSA_MAX: usize = 512;
/// Most bytes of an ECDSA scalar: P-384.
const SCALAR_MAX: usize = 48;

/// A parsed TPMT_SIGNATURE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA; scalars as received, leading zeros possibly stripped.
    Ecdsa {
        /// Hash of the message.
        hash: Hash,
        /// First scalar.
        r: Vec<u8>,
        /// Second scalar.
        s: Vec<u8>,
    },
    /// RSASSA-PKCS1-v1_5.
    RsaSsa {
        /// Hash of the message.
        hash: Hash,
        /// The signature.
        signature: Vec<u8>,
    },
}

impl Signature {
    /// Reads a TPMT_SIGNATURE with nothing after it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let signature = match r.u16()? {
            alg::ECDSA => Self::Ecdsa {
                hash: Hash::read(&mut r)?,
                r: r.tpm2b(SCALAR_MAX)?.to_vec(),
                s: r.tpm2b(SCALAR_MAX)?.to_vec(),
            },
            alg::RSASSA => {
                Self::RsaSsa { hash: Hash::read(&mut r)?, signature: r.tpm2b(RSA_MAX)?.to_vec() }
            }
            _ => return Err(Reject::SchemeMismatch),
        };
        r.finish()?;
        Ok(signature)
    }

    /// The scheme it claims to be of.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Ecdsa { hash, .. } => Scheme::Ecdsa(*hash),
            Self::RsaSsa { hash, .. } => Scheme::RsaSsa(*hash),
        }
    }
}
