//! JSON messages of the verifier's HTTPS interface and of the enrolment courier (SPEC section 7).
//!
//! Binary fields are lower-case hexadecimal. Unknown fields are refused.

use serde::{Deserialize, Serialize};

use crate::{Digest, Nonce};

/// Bytes as lower-case hexadecimal in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(transparent)]
pub struct HexBytes(#[serde(with = "hex::serde")] pub Vec<u8>);

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        // One spelling only: what is compared or logged as text must not differ from what is decoded.
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(serde::de::Error::custom("expected lower-case hex"));
        }
        hex::decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What a host shows of its TPM: `GET /v1/host/identity` of the monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostIdentity {
    /// EK certificate, DER, as read from TPM NV.
    pub ek_certificate: HexBytes,
    /// Intermediate certificates found beside it, DER, leaf's issuer first.
    pub ek_chain: Vec<HexBytes>,
    /// TPMT_PUBLIC of the EK.
    pub ek_public: HexBytes,
    /// TPMT_PUBLIC of the hAK.
    pub ak_public: HexBytes,
}

/// Answer to `POST /v1/enroll/start`, and body of `POST /v1/host/activate` to the monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollChallenge {
    /// Session to complete.
    pub session: String,
    /// Nonce for the first host quote.
    pub nonce: Nonce,
    /// TPM2B_ID_OBJECT.
    pub credential_blob: HexBytes,
    /// TPM2B_ENCRYPTED_SECRET.
    pub encrypted_secret: HexBytes,
}

/// Answer of the monitor to [`EnrollChallenge`], and body of `POST /v1/enroll/complete` to the verifier.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollComplete {
    /// Session from the challenge.
    pub session: String,
    /// `HMAC-SHA256(secret, "coffer/enroll/v1\0" | session | nonce | ak name)`.
    pub proof: HexBytes,
    /// Encoded host claims covered by the quote.
    pub host_claims: HexBytes,
    /// TPMS_ATTEST.
    pub attest: HexBytes,
    /// TPMT_SIGNATURE.
    pub signature: HexBytes,
    /// PCR values of the quote.
    pub pcrs: Vec<PcrJson>,
    /// The host's event log.
    pub event_log: HexBytes,
}

/// A PCR value in JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcrJson {
    /// PCR index.
    pub index: u8,
    /// SHA-256 bank value.
    pub digest: Digest,
}

/// Every error of every HTTP interface: verifier and monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// Reject code, or a service code such as `not-found`, `busy`, `bad-request`.
    pub code: String,
    /// One clause.
    pub message: String,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Finds the full message in the service's log.
    pub request_id: String,
}
