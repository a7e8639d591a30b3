//! JSON messages of the verifier's HTTPS interface that pass no host (SPEC section 7).

use serde::{Deserialize, Serialize};

pub use coffer_formats::protocol::*;

use crate::{Nonce, ObjectName};

/// `POST /v1/enroll/start` to the verifier.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollStart {
    /// One-time token given out by the verifier's operator.
    pub token: String,
    /// Name the host shall have.
    pub host: String,
    /// The host's TPM.
    pub identity: HostIdentity,
}

/// Answer to [`EnrollComplete`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// Name of the host.
    pub host: String,
    /// Name of its attestation key.
    pub ak_name: ObjectName,
    /// TPM manufacturer from the EK certificate.
    pub tpm_manufacturer: String,
    /// True if the EK chain ended in a root loaded as a dangerous software root.
    pub software_tpm: bool,
}

/// Answer to `POST /v1/challenge`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// To be bound into the evidence.
    pub nonce: Nonce,
    /// Seconds until it expires.
    pub expires_in_s: u32,
}
