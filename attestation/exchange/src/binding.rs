//! Domain-separated hashes that bind what guest and verifier say to each other (SPEC sections 5 and 8).

pub use coffer_formats::binding::*;

use crate::{Digest, Nonce};

const VM_QUOTE: &[u8] = b"coffer/vm-quote/v1\0";
/// Prefix of every signed release (SPEC 8.3).
pub const RELEASE_LABEL: &[u8] = b"coffer/release/v1\0";

/// extraData of a VM quote: `SHA-256(label | nonce | SHA-256(runtime_data))` (SPEC 5.1).
pub fn vm_quote(nonce: &Nonce, report_data: &Digest) -> Digest {
    Digest::of(&[VM_QUOTE, nonce.as_bytes(), report_data.as_bytes()])
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
