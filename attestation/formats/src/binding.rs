//! Domain-separated hashes that bind one statement to another (SPEC section 5).
//!
//! Every hash starts with a label that ends in NUL, so that no statement of one kind can be read as
//! another: a host quote never answers for a VM quote, an enrolment leaf never for a VM leaf.

use crate::{Digest, Nonce};

const VM_QUOTE: &[u8] = b"coffer/vm-quote/v1\0";
const VM_LEAF: &[u8] = b"coffer/vm-leaf/v1\0";
const ENROLL_LEAF: &[u8] = b"coffer/enroll-leaf/v1\0";
const HOST_QUOTE: &[u8] = b"coffer/host-quote/v1\0";
/// Prefix of every signed release (SPEC 8.3).
pub const RELEASE_LABEL: &[u8] = b"coffer/release/v1\0";
/// Prefix of the enrolment proof (SPEC 7.2).
pub const ENROLL_LABEL: &[u8] = b"coffer/enroll/v1\0";

/// extraData of a VM quote: `SHA-256(label | nonce | SHA-256(runtime_data))` (SPEC 5.1).
pub fn vm_quote(nonce: &Nonce, report_data: &Digest) -> Digest {
    Digest::of(&[VM_QUOTE, nonce.as_bytes(), report_data.as_bytes()])
}

/// Leaf for one VM in the batch: `SHA-256(0x00 | label | nonce | SHA-256(vm_claims))` (SPEC 5.2).
pub fn vm_leaf(nonce: &Nonce, vm_claims: &[u8]) -> Digest {
    let claims = Digest::of(&[vm_claims]);
    Digest::of(&[&[0], VM_LEAF, nonce.as_bytes(), claims.as_bytes()])
}

/// Leaf of the first host quote, made during enrolment (SPEC 5.4).
pub fn enroll_leaf(nonce: &Nonce) -> Digest {
    Digest::of(&[&[0], ENROLL_LEAF, nonce.as_bytes()])
}

/// extraData of a host quote: `SHA-256(label | u64 tree size, big-endian | root | SHA-256(host_claims))` (SPEC 5.3).
pub fn host_quote(tree_size: u64, root: &Digest, host_claims: &[u8]) -> Digest {
    let claims = Digest::of(&[host_claims]);
    Digest::of(&[HOST_QUOTE, &tree_size.to_be_bytes(), root.as_bytes(), claims.as_bytes()])
}

/// HPKE `info` of a released secret: label, evidence digest, nonce (SPEC 8.2).
pub fn release_info(evidence: &Digest, nonce: &Nonce) -> Vec<u8> {
    [RELEASE_LABEL, evidence.as_bytes(), nonce.as_bytes()].concat()
}

/// HPKE `aad` of a released secret: resource id, NUL, version big-endian (SPEC 8.2).
pub fn release_aad(resource: &str, version: u64) -> Vec<u8> {
    [resource.as_bytes(), &[0], &version.to_be_bytes()].concat()
}

/// Qualifying data of TPM2_Certify of the hAK by an IAK (SPEC 7.2.2). The nonce's width is fixed, so where the
/// host's name ends is told by the whole.
pub fn iak_certify(host: &str, nonce: &Nonce) -> Digest {
    Digest::of(&[b"coffer/iak-certify/v1\0", host.as_bytes(), nonce.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_bound_to_evidence_nonce_resource_and_version() {
        let info = release_info(&Digest([1; 32]), &Nonce([2; 32]));
        assert_eq!(info, [&b"coffer/release/v1\0"[..], &[1; 32], &[2; 32]].concat());
        assert_eq!(release_aad("a/b", 0x0102), b"a/b\0\0\0\0\0\0\0\x01\x02");
    }
}
