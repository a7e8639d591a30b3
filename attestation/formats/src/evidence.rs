//! Evidence: everything a verifier needs in one message (SPEC 4.5), in a CMW wrapper.
//!
//! Signed and hashed parts are opaque byte strings here; each is decoded by its own module after the
//! check that makes it worth decoding.

use minicbor::{Decode, Encode};

use crate::{Digest, Nonce, ObjectName, Reject, cbor};

/// Media type of the evidence inside the CMW array.
pub const EVIDENCE_MEDIA_TYPE: &str = "application/vnd.coffer.evidence.v1+cbor";
/// HTTP media type of the wrapped evidence.
pub const CMW_MEDIA_TYPE: &str = "application/cmw+cbor";
/// Most bytes of wrapped evidence: two logs of 512 KiB at most, and change (research: OVMF logs are 30 KiB).
pub const EVIDENCE_MAX: usize = 1 << 20;
/// Most bytes of one event log.
pub const EVENT_LOG_MAX: usize = 512 << 10;
/// Most bytes of a descriptor.
pub const DESCRIPTOR_MAX: usize = 64 << 10;

/// One PCR value as claimed; believed only when the signed digest covers it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PcrValue {
    /// PCR index, 0 to 23.
    #[n(0)]
    pub index: u8,
    /// SHA-256 bank value.
    #[n(1)]
    pub digest: Digest,
}

/// A TPM quote with what is needed to check it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct QuotePart {
    /// TPMS_ATTEST as signed, without the TPM2B size.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// PCR values in ascending order of index.
    #[n(2)]
    pub pcrs: Vec<PcrValue>,
    /// TCG PC Client crypto-agile event log.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub event_log: Vec<u8>,
}

/// Proof that a leaf is in the batch tree (RFC 6962 section 2.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Inclusion {
    /// Index of the leaf.
    #[n(0)]
    pub index: u64,
    /// Number of leaves.
    #[n(1)]
    pub size: u64,
    /// Sibling hashes from the leaf up.
    #[n(2)]
    pub path: Vec<Digest>,
}

/// The host's half of the evidence: what the monitor hands to the guest for one challenge.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HostPart {
    /// Name of the host attestation key; the verifier looks up the enrolled host by it.
    #[n(0)]
    pub hak_name: ObjectName,
    /// Encoded [`crate::claims::HostClaims`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub host_claims: Vec<u8>,
    /// Host quote; its extraData covers tree size, tree root and host claims.
    #[n(2)]
    pub quote: QuotePart,
    /// Encoded [`crate::claims::VmClaims`].
    #[cbor(n(3), with = "minicbor::bytes")]
    pub vm_claims: Vec<u8>,
    /// Proof that the VM's leaf is in the quoted tree.
    #[n(4)]
    pub inclusion: Inclusion,
    /// Encoded [`crate::launch::LaunchRecord`].
    #[cbor(n(5), with = "minicbor::bytes")]
    pub launch_record: Vec<u8>,
    /// Descriptor bytes; their SHA-256 is the image ID.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub descriptor: Vec<u8>,
}

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
