//! TPM2_MakeCredential in software (TCG TPM 2.0 Library, Part 1, 24 and annexes B.10.4, C.6.4; SPEC 7.2).
//!
//! The secret comes out of TPM2_ActivateCredential only in the TPM that holds the EK's private part and,
//! beside it, an object of exactly the name given: it ties an attestation key to an endorsement key.

use aes::cipher::KeyIvInit as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::traits::RandomizedEncryptor as _;
use zeroize::Zeroizing;

use crate::Reject;
use crate::tpm::hash::HashAlg;
use crate::tpm::name::Name;
use crate::tpm::public::{Key, Public, Symmetric};
use crate::tpm::wire::Writer;

/// What a host gets to prove that its AK and EK are in one TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPM2B_ID_OBJECT, its two bytes of size included.
    pub blob: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET, its two bytes of size included.
    pub encrypted_secret: Vec<u8>,
}

/// Makes a credential for `secret`, which is no longer than a digest of the EK's nameAlg. `entropy` is fresh
/// randomness of the caller, used for nothing else.
///
/// The EK is a storage key with AES in CFB mode, RSA, P-256 or P-384, under SHA-256 or SHA-384: the TCG
/// templates that [`crate::enroll::check_ek`] tells.
pub fn make_credential(
    ek: &Public,
    ak_name: &Name,
    secret: &[u8],
    entropy: &[u8; ENTROPY],
) -> Result<Credential, Reject> {
    let hash = ek.name_alg();
    let Symmetric::AesCfb(bits) = ek.symmetric() else { return Err(Reject::BadEkTemplate) };
    if secret.is_empty() || secret.len() > hash.size() {
        return Err(Reject::LimitExceeded);
    }
    let (seed, encrypted_secret) = match ek.key() {
        Key::Rsa(key) => rsa_seed(hash, key, entropy)?,
        Key::P256(key) => p256_seed(hash, key, entropy)?,
        Key::P384(key) => p384_seed(hash, key, entropy)?,
    };
    let name = ak_name.to_bytes();
    let storage = kdfa(hash, &seed, b"STORAGE\0", &name, u32::from(bits));
    let integrity = kdfa(hash, &seed, b"INTEGRITY\0", &[], wide(hash.size()) * 8);

    let mut identity = Zeroizing::new(Writer::new().tpm2b(secret).finish());
    encrypt(bits, &storage, &mut identity)?;
    let mac = hmac(hash, &integrity, &[&identity, &name]);

    let id_object = Writer::new().tpm2b(&mac).bytes(&identity).finish();
    Ok(Credential {
        blob: Writer::new().tpm2b(&id_object).finish(),
        encrypted_secret: Writer::new().tpm2b(&encrypted_secret).finish(),
    })
}

/// Bytes of entropy that a credential takes: a seed and OAEP's, under SHA-384.
pub const ENTROPY: usize = 96;

/// Bytes that are wiped: seeds and what is derived from them.
type Secret = Zeroizing<Vec<u8>>;

/// AES-CFB with an IV of zeros (Part 1, 24.4).
fn encrypt(bits: u16, key: &[u8], data: &mut [u8]) -> Result<(), Reject> {
    let iv = [0; 16].into();
    match bits {
        128 => {
            let key: [u8; 16] = *key.first_chunk().ok_or(Reject::BadKey)?;
            cfb_mode::Encryptor::<aes::Aes128>::new(&key.into(), &iv).encrypt(data);
        }
        256 => {
            let key: [u8; 32] = *key.first_chunk().ok_or(Reject::BadKey)?;
            cfb_mode::Encryptor::<aes::Aes256>::new(&key.into(), &iv).encrypt(data);
        }
        _ => return Err(Reject::BadEkTemplate),
    }
    Ok(())
}

/// Part 1, B.10.4: a random seed under RSAES-OAEP, hash nameAlg, label "IDENTITY" with its NUL.
fn rsa_seed(
    hash: HashAlg,
    key: &rsa::PublicKey,
    entropy: &[u8; ENTROPY],
) -> Result<(Secret, Vec<u8>), Reject> {
    use rsa::oaep::EncryptingKey;
    let (seed, masking) = entropy.split_at_checked(hash.size()).ok_or(Reject::BadKey)?;
    let (key, masking) = (key.clone(), &mut GivenBytes(masking));
    let encrypted = match hash {
        HashAlg::Sha256 => EncryptingKey::<sha2::Sha256>::new_with_label(key, IDENTITY)
            .encrypt_with_rng(masking, seed),
        HashAlg::Sha384 => EncryptingKey::<sha2::Sha384>::new_with_label(key, IDENTITY)
            .encrypt_with_rng(masking, seed),
        HashAlg::Sha1 | HashAlg::Sha512 => return Err(Reject::BadEkTemplate),
    };
    Ok((Zeroizing::new(seed.to_vec()), encrypted.map_err(|_| Reject::BadKey)?))
}

/// Part 1, C.6.4: ECDH with an ephemeral key, then KDFe.
fn p256_seed(
    hash: HashAlg,
    key: &p256::PublicKey,
    entropy: &[u8; ENTROPY],
) -> Result<(Secret, Vec<u8>), Reject> {
    let candidate = |n: &[u8]| HashAlg::Sha256.digest(&[EPHEMERAL, n, entropy]);
    let ephemeral = CANDIDATES
        .iter()
        .find_map(|n| p256::SecretKey::from_slice(candidate(&[*n]).as_bytes()).ok())
        .ok_or(Reject::BadKey)?;
    let z = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), key.as_affine());
    let (own, peer) = (ephemeral.public_key().to_sec1_bytes(), key.to_sec1_bytes());
    kdfe(hash, z.raw_secret_bytes(), &own, &peer)
}

/// As [`p256_seed`], on P-384.
fn p384_seed(
    hash: HashAlg,
    key: &p384::PublicKey,
    entropy: &[u8; ENTROPY],
) -> Result<(Secret, Vec<u8>), Reject> {
    let candidate = |n: &[u8]| HashAlg::Sha384.digest(&[EPHEMERAL, n, entropy]);
    let ephemeral = CANDIDATES
        .iter()
        .find_map(|n| p384::SecretKey::from_slice(candidate(&[*n]).as_bytes()).ok())
        .ok_or(Reject::BadKey)?;
    let z = p384::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), key.as_affine());
    let (own, peer) = (ephemeral.public_key().to_sec1_bytes(), key.to_sec1_bytes());
    kdfe(hash, z.raw_secret_bytes(), &own, &peer)
}

/// KDFe (Part 1, 11.4.10.3) to a seed of nameAlg's width, which one block gives; beside it the ephemeral
/// point as TPMS_ECC_POINT.
fn kdfe(hash: HashAlg, z: &[u8], own: &[u8], peer: &[u8]) -> Result<(Secret, Vec<u8>), Reject> {
    let ((own_x, own_y), (peer_x, _)) = (coordinates(own)?, coordinates(peer)?);
    let seed = hash.digest(&[&[0, 0, 0, 1], z, IDENTITY, own_x, peer_x]);
    let point = Writer::new().tpm2b(own_x).tpm2b(own_y).finish();
    Ok((Zeroizing::new(seed.as_bytes().to_vec()), point))
}

/// x and y of an uncompressed SEC1 point.
fn coordinates(point: &[u8]) -> Result<(&[u8], &[u8]), Reject> {
    match point.split_first() {
        Some((4, xy)) => xy.split_at_checked(xy.len() / 2).ok_or(Reject::BadKey),
        _ => Err(Reject::BadKey),
    }
}

/// KDFa (Part 1, 11.4.10.2); one block suffices for up to as many bits as the hash has. `label` has its NUL.
fn kdfa(hash: HashAlg, key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Secret {
    hmac(hash, key, &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
}

fn hmac(hash: HashAlg, key: &[u8], parts: &[&[u8]]) -> Secret {
    /// A key of any length is one (RFC 2104).
    macro_rules! with {
        ($hash:ty) => {{
            let mut mac = Hmac::<$hash>::new_from_slice(key).expect("any length is a key");
            parts.iter().for_each(|part| mac.update(part));
            Zeroizing::new(mac.finalize().into_bytes().to_vec())
        }};
    }
    match hash {
        HashAlg::Sha384 => with!(sha2::Sha384),
        _ => with!(sha2::Sha256),
    }
}

fn wide(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
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

/// A candidate scalar is out of range once in 2^32 times; eight never all are.
const CANDIDATES: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// Label of credential seeds (Part 1, 24.4).
const IDENTITY: &[u8] = b"IDENTITY\0";
const EPHEMERAL: &[u8] = b"coffer/credential-ephemeral/v1\0";
