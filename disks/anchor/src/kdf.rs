//! What keys of a session are made with (TPM 2.0 Part 1, 11.4.10 and 21.2): all of it with SHA-256.

use aes::cipher::KeyIvInit as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// 32 bytes that are wiped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// HMAC-SHA-256 under a session's key and an auth value, not finished.
pub(crate) fn hmac(key: &[&[u8]], parts: &[&[u8]]) -> Hmac<Sha256> {
    let whole = Zeroizing::new(key.concat());
    let mut mac = Hmac::new_from_slice(&whole).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// KDFa to 256 bits, which is one block (11.4.10.2). The label's NUL is its own.
pub(crate) fn kdfa(key: &[&[u8]], label: &[u8], u: &[u8], v: &[u8]) -> Key {
    let mac = hmac(key, &[&1u32.to_be_bytes(), label, &[0], u, v, &256u32.to_be_bytes()]);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// KDFe to 256 bits, which is one block (11.4.10.3).
pub(crate) fn kdfe(z: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> Key {
    let mut hash = Sha256::new();
    [&1u32.to_be_bytes(), z, label, &[0], u, v].iter().for_each(|part| hash.update(part));
    Zeroizing::new(hash.finalize().into())
}

/// Which way a first parameter goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToTpm,
    FromTpm,
}

/// AES-128-CFB over a first parameter: key and IV from the session and both nonces, the newer one first (21.3).
pub(crate) fn cfb(way: Way, key: &[&[u8]], newer: &[u8], older: &[u8], data: &mut [u8]) {
    let both = kdfa(key, b"CFB", newer, older);
    let mut halves = (Zeroizing::new([0; 16]), [0; 16]);
    let (key, iv) = both.split_at(16);
    halves.0.copy_from_slice(key);
    halves.1.copy_from_slice(iv);
    // By reference: a copy would not be wiped.
    let (key, iv) = ((&*halves.0).into(), (&halves.1).into());
    match way {
        Way::ToTpm => cfb_mode::Encryptor::<aes::Aes128>::new(key, iv).encrypt(data),
        Way::FromTpm => cfb_mode::Decryptor::<aes::Aes128>::new(key, iv).decrypt(data),
    }
}
