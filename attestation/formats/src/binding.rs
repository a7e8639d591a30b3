//! Domain-separated hashes that bind one statement to another (SPEC section 5).
//!
//! Every hash starts with a label that ends in NUL, so that no statement of one kind can be read as
//! another: a host quote never answers for a VM quote, an enrolment leaf never for a VM leaf.

use crate::{Digest, Nonce};

const VM_LEAF: &[u8] = b"coffer/vm-leaf/v1\0";
const ENROLL_LEAF: &[u8] = b"coffer/enroll-leaf/v1\0";
const ENDORSE_CA: &[u8] = b"coffer/endorse-ca/v1\0";
const HOST_QUOTE: &[u8] = b"coffer/host-quote/v1\0";
/// Prefix of the enrolment proof (SPEC 7.2).
pub const ENROLL_LABEL: &[u8] = b"coffer/enroll/v1\0";

/// Leaf for one VM in the batch: `SHA-256(0x00 | label | nonce | SHA-256(vm_claims))` (SPEC 5.2).
pub fn vm_leaf(nonce: &Nonce, vm_claims: &[u8]) -> Digest {
    let claims = Digest::of(&[vm_claims]);
    Digest::of(&[&[0], VM_LEAF, nonce.as_bytes(), claims.as_bytes()])
}

/// Leaf of the first host quote, made during enrolment (SPEC 5.4).
pub fn enroll_leaf(nonce: &Nonce) -> Digest {
    Digest::of(&[&[0], ENROLL_LEAF, nonce.as_bytes()])
}

/// Leaf of the monitor's endorsement key, by its SubjectPublicKeyInfo (SPEC 5.5).
pub fn endorse_leaf(spki: &[u8]) -> Digest {
    Digest::of(&[&[0], ENDORSE_CA, spki])
}

/// extraData of a host quote: `SHA-256(label | u64 tree size, big-endian | root | SHA-256(host_claims))` (SPEC 5.3).
pub fn host_quote(tree_size: u64, root: &Digest, host_claims: &[u8]) -> Digest {
    host_quote_of(tree_size, root, &Digest::of(&[host_claims]))
}

/// The same by the digest of the claims.
pub fn host_quote_of(tree_size: u64, root: &Digest, claims: &Digest) -> Digest {
    Digest::of(&[HOST_QUOTE, &tree_size.to_be_bytes(), root.as_bytes(), claims.as_bytes()])
}
