//! Runtime data: what the guest binds into its quote (SPEC 4.2). Claimed by the guest, nothing more.

use minicbor::{Decode, Encode};

use crate::{Digest, Reject, cbor};

/// Most bytes of encoded runtime data: keys, an audience and a handful of resource names (SPEC 4.2).
pub const RUNTIME_DATA_MAX: usize = 4096;

/// What the guest says about this one attestation.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RuntimeData {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// X25519 public key for HPKE (RFC 9180, DHKEM(X25519, HKDF-SHA256)); fresh for each attestation.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hpke_key: [u8; 32],
    /// The verifier URL this evidence is meant for.
    #[n(2)]
    pub audience: String,
    /// Secrets asked for.
    #[n(3)]
    pub resources: Vec<String>,
    /// Free bytes of the workload, at most 1 KiB.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub user_data: Option<Vec<u8>>,
}

impl RuntimeData {
    /// Decodes strictly.
    pub fn decode(bytes: &[u8]) -> Result<Self, Reject> {
        let data: Self = cbor::decode(bytes, RUNTIME_DATA_MAX)?;
        if data.version != 1 {
            return Err(Reject::UnsupportedVersion);
        }
        if data.resources.len() > 32 || data.user_data.as_ref().is_some_and(|u| u.len() > 1024) {
            return Err(Reject::LimitExceeded);
        }
        Ok(data)
    }

    /// Report data: the digest by which claims and quotes refer to encoded runtime data.
    pub fn report_data(encoded: &[u8]) -> Digest {
        Digest::of(&[encoded])
    }
}
