//! Evidence: everything a verifier needs in one message (SPEC 4.5), in a CMW wrapper.
//!
//! Signed and hashed parts are opaque byte strings here; each is decoded by its own module after the
//! check that makes it worth decoding.

use minicbor::{Decode, Encode};

pub use coffer_formats::evidence::*;

use crate::{Digest, Nonce, Reject, cbor};

/// Media type of the evidence inside the CMW array.
pub const EVIDENCE_MEDIA_TYPE: &str = "application/vnd.coffer.evidence.v1+cbor";
/// HTTP media type of the wrapped evidence.
pub const CMW_MEDIA_TYPE: &str = "application/cmw+cbor";
/// Most bytes of wrapped evidence: two logs of 512 KiB at most, and change (research: OVMF logs are 30 KiB).
pub const EVIDENCE_MAX: usize = 1 << 20;
/// The VM's half: a quote by its own vTPM.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VmPart {
    /// TPMT_PUBLIC of the vAK.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub vak_public: Vec<u8>,
    /// VM quote.
    #[n(1)]
    pub quote: QuotePart,
}

/// The whole message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Evidence {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The challenge answered.
    #[n(1)]
    pub nonce: Nonce,
    /// Encoded [`crate::runtime::RuntimeData`].
    #[cbor(n(2), with = "minicbor::bytes")]
    pub runtime_data: Vec<u8>,
    /// The VM's half.
    #[n(3)]
    pub vm: VmPart,
    /// The host's half.
    #[n(4)]
    pub host: HostPart,
}

/// CMW record (draft-ietf-rats-msg-wrap): `[media type, bytes]`.
#[derive(Encode, Decode)]
struct Cmw<'a> {
    #[n(0)]
    media_type: &'a str,
    #[cbor(n(1), with = "minicbor::bytes")]
    value: &'a [u8],
}

impl Evidence {
    /// Encodes and wraps.
    pub fn to_cmw(&self) -> Vec<u8> {
        cbor::encode(&Cmw { media_type: EVIDENCE_MEDIA_TYPE, value: &cbor::encode(self) })
    }

    /// Unwraps and decodes strictly.
    pub fn from_cmw(bytes: &[u8]) -> Result<Self, Reject> {
        let cmw: Cmw<'_> = cbor::decode(bytes, EVIDENCE_MAX)?;
        if cmw.media_type != EVIDENCE_MEDIA_TYPE {
            return Err(Reject::UnsupportedVersion);
        }
        let evidence: Self = cbor::decode(cmw.value, EVIDENCE_MAX)?;
        if evidence.version != 1 {
            return Err(Reject::UnsupportedVersion);
        }
        let logs = [&evidence.vm.quote.event_log, &evidence.host.quote.event_log];
        if logs.iter().any(|log| log.len() > EVENT_LOG_MAX)
            || evidence.host.descriptor.len() > DESCRIPTOR_MAX
            || evidence.host.quote.pcrs.len() > 24
            || evidence.vm.quote.pcrs.len() > 24
            || evidence.host.inclusion.path.len() > 32
        {
            return Err(Reject::LimitExceeded);
        }
        Ok(evidence)
    }

    /// The digest by which a release names the evidence it answers: SHA-256 of the wrapped bytes as received.
    pub fn digest(cmw: &[u8]) -> Digest {
        Digest::of(&[cmw])
    }
}
