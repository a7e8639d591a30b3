//! TPM2_MakeCredential in software (TCG TPM 2.0 Library, Part 1, 24 and annexes B.10.4, C.6.4; SPEC 7.2).
//!
//! The secret comes out of TPM2_ActivateCredential only in the TPM that holds the EK's private part and,
//! beside it, an object of exactly the name given: it ties an attestation key to an endorsement key.

use aes::cipher::KeyIvInit as _;
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::traits::RandomizedEncryptor as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::proof::hmac;
use crate::tpm::public::{Key, Public, Symmetric};
use crate::tpm::wire::Writer;
use crate::{Digest, ObjectName, Reject};

/// What a host gets to prove that its AK and EK are in one TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPM2B_ID_OBJECT, its two bytes of size included.
    pub blob: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET, its two bytes of size included.
    pub encrypted_secret: Vec<u8>,
}

/// Makes a credential for `secret`. `entropy` is fresh randomness of the caller, used for nothing else.
///
/// The EK must be a storage key under SHA-256 with AES-128-CFB, RSA or P-256: the TCG low-range templates.
pub fn make_credential(
    ek: &Public,
    ak_name: &ObjectName,
    secret: &[u8; 32],
    entropy: &[u8; 64],
) -> Result<Credential, Reject> {
    if ek.symmetric() != Symmetric::AesCfb(128) {
        return Err(Reject::BadEkTemplate);
    }
    let (seed, encrypted_secret) = match ek.key() {
        Key::Rsa(key) => rsa_seed(key, entropy)?,
        Key::P256(key) => p256_seed(key, entropy)?,
        Key::P384(_) => return Err(Reject::BadEkTemplate),
    };
    let storage = kdfa(&seed, b"STORAGE\0", ak_name.as_bytes(), 128);
    let integrity = kdfa(&seed, b"INTEGRITY\0", &[], 256);

    let mut identity = Zeroizing::new(Writer::new().tpm2b(secret).finish());
    let key: [u8; 16] = *storage.first_chunk().ok_or(Reject::BadKey)?;
    cfb_mode::Encryptor::<aes::Aes128>::new(&key.into(), &[0; 16].into()).encrypt(&mut identity);
    let mac = hmac(integrity.as_slice(), &[&identity, ak_name.as_bytes()]);

    let id_object = Writer::new().tpm2b(mac.as_slice()).bytes(&identity).finish();
    Ok(Credential {
        blob: Writer::new().tpm2b(&id_object).finish(),
        encrypted_secret: Writer::new().tpm2b(&encrypted_secret).finish(),
    })
}

type Seed = Zeroizing<[u8; 32]>;

/// Part 1, B.10.4: a random seed under RSAES-OAEP, hash SHA-256, label "IDENTITY" with its NUL.
fn rsa_seed(key: &rsa::PublicKey, entropy: &[u8; 64]) -> Result<(Seed, Vec<u8>), Reject> {
    let (seed, masking) = entropy.split_first_chunk::<32>().ok_or(Reject::BadKey)?;
    let oaep = rsa::oaep::EncryptingKey::<Sha256>::new_with_label(key.clone(), IDENTITY);
    let encrypted =
        oaep.encrypt_with_rng(&mut GivenBytes(masking), seed).map_err(|_| Reject::BadKey)?;
    Ok((Zeroizing::new(*seed), encrypted))
}

/// Part 1, C.6.4: ECDH with an ephemeral key, then KDFe.
fn p256_seed(key: &p256::PublicKey, entropy: &[u8; 64]) -> Result<(Seed, Vec<u8>), Reject> {
    let ephemeral = p256_ephemeral(entropy)?;
    let z = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), key.as_affine());
    let point = ephemeral.public_key().to_sec1_bytes();
    let (own_x, own_y) = coordinates(&point)?;
    let peer = key.to_sec1_bytes();
    let (peer_x, _) = coordinates(&peer)?;
    // KDFe (Part 1, 11.4.10.3); one block suffices for 256 bits.
    let seed = Digest::of(&[&[0, 0, 0, 1], z.raw_secret_bytes(), IDENTITY, own_x, peer_x]);
    let point = Writer::new().tpm2b(own_x).tpm2b(own_y).finish();
    Ok((Zeroizing::new(seed.0), point))
}

/// A scalar from the entropy. A candidate is out of range once in 2^32 times; eight never all are.
fn p256_ephemeral(entropy: &[u8; 64]) -> Result<p256::SecretKey, Reject> {
    (0u8..8)
        .find_map(|n| {
            let candidate = Zeroizing::new(Digest::of(&[EPHEMERAL, &[n], entropy]).0);
            p256::SecretKey::from_slice(candidate.as_slice()).ok()
        })
        .ok_or(Reject::BadKey)
}

/// x and y of an uncompressed SEC1 point.
fn coordinates(point: &[u8]) -> Result<(&[u8], &[u8]), Reject> {
    match point.split_first() {
        Some((4, xy)) if xy.len() == 64 => xy.split_at_checked(32).ok_or(Reject::BadKey),
        _ => Err(Reject::BadKey),
    }
}

/// KDFa (Part 1, 11.4.10.2) with SHA-256; one block suffices for up to 256 bits. `label` has its NUL.
fn kdfa(key: &Seed, label: &[u8], context: &[u8], bits: u32) -> Seed {
    hmac(key.as_slice(), &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

/// Hands out the caller's bytes as OAEP's seed; asked for more than there are, it fails.
struct GivenBytes<'a>(&'a [u8]);

#[derive(Debug, thiserror::Error)]
#[error("the entropy given is used up")]
struct UsedUp;

impl TryRng for GivenBytes<'_> {
    type Error = UsedUp;

    fn try_next_u32(&mut self) -> Result<u32, UsedUp> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, UsedUp> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), UsedUp> {
        let (head, tail) = self.0.split_at_checked(out.len()).ok_or(UsedUp)?;
        out.copy_from_slice(head);
        self.0 = tail;
        Ok(())
    }
}

impl TryCryptoRng for GivenBytes<'_> {}

/// Label of credential seeds (Part 1, 24.4).
const IDENTITY: &[u8] = b"IDENTITY\0";
const EPHEMERAL: &[u8] = b"coffer/credential-ephemeral/v1\0";
