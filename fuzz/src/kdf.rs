//! HMAC and KDFa (TPM 2.0 Part 1, 11.4.10.2) as SPEC 11 names them, written a second time.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// SHA-256 of all parts.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// HMAC-SHA-256 of all parts.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// KDFa to 256 bits.
pub fn kdfa(key: &[u8], label: &str, u: &[u8], v: &[u8]) -> [u8; 32] {
    hmac(key, &[&[0, 0, 0, 1], label.as_bytes(), &[0], u, v, &[0, 0, 1, 0]])
}
