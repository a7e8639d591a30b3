//! The verifier's own keys: release signing, encryption at rest, the admin token's hash.
//!
//! None of these types has `Debug`, all wipe what they hold.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce as GcmNonce};
use coffer_attestation::Digest;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// A key could not be read, made or used; never says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Randomness,
    /// The stored bytes are no such key.
    #[error("the stored key is damaged")]
    Damaged,
    /// Encryption failed.
    #[error("the secret cannot be encrypted")]
    Seal,
    /// The ciphertext is not this row's, or was altered.
    #[error("the stored secret is damaged or belongs to another row")]
    Open,
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| KeyError::Randomness)?;
    Ok(bytes)
}

/// Signs releases; its public half is pinned in images.
pub(crate) struct ReleaseKey(SigningKey);

impl ReleaseKey {
    pub(crate) fn generate() -> Result<Self, KeyError> {
        loop {
            // A random scalar is out of range once in 2^32 tries.
            if let Ok(key) = SigningKey::from_slice(random::<32>()?.as_slice()) {
                return Ok(Self(key));
            }
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        SigningKey::from_slice(bytes).map(Self).map_err(|_| KeyError::Damaged)
    }

    pub(crate) fn secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.to_bytes().to_vec())
    }

    /// SEC1 uncompressed point, hex.
    pub(crate) fn public_hex(&self) -> String {
        hex::encode(self.0.verifying_key().to_sec1_point(false).as_bytes())
    }

    /// `r | s` over the bytes (RFC 6979, so it needs no randomness).
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(bytes);
        signature.to_bytes().to_vec()
    }
}

/// Encrypts secrets at rest. The joint for a key-management service: another implementation asks it to
/// wrap and unwrap.
pub(crate) trait AtRest: Send + Sync {
    /// Encrypts for one row.
    fn seal(&self, row: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// Decrypts; refuses a ciphertext of another row.
    fn open(&self, row: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError>;
}

/// AES-256-GCM with a key from a file; the row is the associated data, the nonce random and in front.
pub(crate) struct FileKey(Aes256Gcm);

/// Bytes of a GCM nonce.
const GCM_NONCE: usize = 12;

impl FileKey {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        Aes256Gcm::new_from_slice(bytes).map(Self).map_err(|_| KeyError::Damaged)
    }
}

impl AtRest for FileKey {
    fn seal(&self, row: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        // Random 96-bit nonces are safe for 2^32 secrets under one key (NIST SP 800-38D 8.3).
        let nonce = random::<GCM_NONCE>()?;
        let payload = Payload { msg: plain, aad: row };
        let sealed =
            self.0.encrypt(&GcmNonce::from(*nonce), payload).map_err(|_| KeyError::Seal)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn open(&self, row: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (nonce, sealed) = sealed.split_first_chunk::<GCM_NONCE>().ok_or(KeyError::Open)?;
        let payload = Payload { msg: sealed, aad: row };
        self.0
            .decrypt(&GcmNonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| KeyError::Open)
    }
}

/// Hash under which a bearer or enrolment token is kept. A plain hash is enough: tokens are 32 random
/// bytes, so there is nothing to guess.
pub(crate) fn hash_token(token: &str) -> Digest {
    Digest::of(&[b"coffer/token/v1\0", token.as_bytes()])
}

/// Compares two digests in constant time.
pub(crate) fn same(a: &Digest, b: &Digest) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_100000_challenges_no_two_are_alike_and_no_bit_is_constant() {
        let mut seen = std::collections::HashSet::new();
        let (mut or, mut and) = ([0; 32], [0xff; 32]);
        for _ in 0..100_000 {
            let bytes = *random::<32>().unwrap();
            for (at, byte) in bytes.iter().enumerate() {
                or[at] |= byte;
                and[at] &= byte;
            }
            assert!(seen.insert(bytes), "(E10)");
        }
        assert_eq!((or, and), ([0xff; 32], [0; 32]));
    }

    #[test]
    fn a_sealed_secret_opens_for_its_own_row_only() {
        let key = FileKey::from_bytes(&[7; 32]).unwrap();
        let sealed = key.seal(b"web/key|1", b"value").unwrap();
        assert_eq!(key.open(b"web/key|1", &sealed).unwrap().as_slice(), b"value");
        assert_eq!(key.open(b"web/key|2", &sealed).err(), Some(KeyError::Open));
        let other = FileKey::from_bytes(&[8; 32]).unwrap();
        assert_eq!(other.open(b"web/key|1", &sealed).err(), Some(KeyError::Open));
    }

    #[test]
    fn an_altered_or_short_ciphertext_is_refused() {
        let key = FileKey::from_bytes(&[7; 32]).unwrap();
        let sealed = key.seal(b"row", b"value").unwrap();
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert_eq!(key.open(b"row", &bad).err(), Some(KeyError::Open), "byte {i}");
            assert_eq!(key.open(b"row", &sealed[..i]).err(), Some(KeyError::Open), "length {i}");
        }
    }

    #[test]
    fn sealing_twice_gives_different_bytes() {
        let key = FileKey::from_bytes(&[7; 32]).unwrap();
        assert_ne!(key.seal(b"row", b"value").unwrap(), key.seal(b"row", b"value").unwrap());
    }
}
