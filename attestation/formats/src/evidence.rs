//! The host's half of evidence (SPEC 4.5): what a monitor hands to a guest for one challenge.
//!
//! Signed and hashed parts are opaque byte strings here; each is decoded by its own module after the
//! check that makes it worth decoding.

use minicbor::{Decode, Encode};

use crate::{Digest, ObjectName};

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

/// The host's half.
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
