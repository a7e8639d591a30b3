//! Who a guest is, as its monitor says (GET-ID) and certifies (ENDORSE), and how the certifying key hangs on the host
//! (SPEC 6.9).

use minicbor::{Decode, Encode};

use crate::launch::BoxKind;
use crate::{Digest, InstanceId, ObjectName};

/// Contents of the OID of the extension that holds a [`GuestId`]: 2.25.140279692808774068230853071402264137555.1.
pub const GUEST_ID_OID: &[u8] =
    b"\x69\x81\xd3\x88\xf1\xb5\xe8\x88\xc2\xa3\xf5\xa6\xe4\xeb\xcd\xf3\xc2\xde\x9e\x53\x01";
/// The same with 2 at the end: the extension that holds a [`HostLink`].
pub const HOST_LINK_OID: &[u8] =
    b"\x69\x81\xd3\x88\xf1\xb5\xe8\x88\xc2\xa3\xf5\xa6\xe4\xeb\xcd\xf3\xc2\xde\x9e\x53\x02";
/// SubjectPublicKeyInfo of a P-256 key (RFC 5480), up to its uncompressed point.
pub const P256_SPKI: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

/// A guest, by its launch. The monitor's word; the guest has no say in it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GuestId {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// Open or closed, as launched.
    #[n(1)]
    pub box_kind: BoxKind,
    /// SHA-256 of the descriptor bytes.
    #[n(2)]
    pub image_id: Digest,
    /// SHA-256 of the SEC 1 point of the key that signed the image, if one did.
    #[n(3)]
    pub signer: Option<Digest>,
    /// Security version of the image.
    #[n(4)]
    pub svn: u32,
    /// SHA-256 of the launch record.
    #[n(5)]
    pub launch_digest: Digest,
    /// This launch.
    #[n(6)]
    pub instance_id: InstanceId,
    /// Incarnation of the VM.
    #[n(7)]
    pub incarnation: u64,
    /// Name of the host attestation key; absent if the host has no TPM.
    #[n(8)]
    pub hak_name: Option<ObjectName>,
}

/// The host's TPM says that a CA key is its monitor's: a host quote over a tree of one leaf
/// ([`crate::binding::endorse_leaf`]).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HostLink {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// TPMT_PUBLIC of the hAK; whoever trusts its name trusts it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hak_public: Vec<u8>,
    /// TPMS_ATTEST as signed.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// SHA-256 of the host claims that the quote covers.
    #[n(4)]
    pub host_claims: Digest,
}
