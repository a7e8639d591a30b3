//! Public areas of TPM keys (TPMT_PUBLIC; Part 2, 12.2.4) and the names computed from them (Part 1, 16).
//!
//! The bytes received are kept, and the Name is computed from them, never taken from a message. Refused:
//! name algorithms other than SHA-256 and SHA-384, unknown attributes, curves other than P-256 and P-384,
//! points off the curve, RSA below 2048 bits, with an exponent other than 65537 or with a modulus of the
//! form that CVE-2017-15361 factors.

use p384::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::BoxedUint;
use rsa::traits::PublicKeyParts as _;

use super::alg;
use super::ecdsa_p256;
use super::name::Name;
use super::roca;
use super::signature::{Signature, signing_hash};
pub use crate::tpm::attributes;
use crate::tpm::command::Hierarchy;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::wire::Reader;
use crate::{ObjectName, Reject};

/// Most bytes of a public area: an RSA-4096 modulus and change.
const PUBLIC_MAX: usize = 1024;
/// TPM_ECC_NIST_P256 (Part 2, 6.4).
const CURVE_P256: u16 = 0x0003;
/// TPM_ECC_NIST_P384.
const CURVE_P384: u16 = 0x0004;

/// The signing scheme fixed in a key's public area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// None: the signer chooses, so nothing is pinned; no signature is accepted under it.
    Null,
    /// ECDSA with this hash.
    Ecdsa(HashAlg),
    /// RSASSA-PKCS1-v1_5 with this hash.
    RsaSsa(HashAlg),
    /// RSASSA-PSS with this hash for message and mask.
    RsaPss(HashAlg),
}

impl Scheme {
    /// The hash, under which a TPM also digests the registers of a quote (Part 3, 18.4).
    pub fn hash(self) -> Option<HashAlg> {
        match self {
            Self::Null => None,
            Self::Ecdsa(hash) | Self::RsaSsa(hash) | Self::RsaPss(hash) => Some(hash),
        }
    }
}

/// The symmetric cipher a storage key protects its children with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symmetric {
    /// None: not a storage key.
    Null,
    /// AES in CFB mode with a key of this many bits.
    AesCfb(u16),
}

/// The public key itself, checked to be valid.
#[derive(Debug, Clone, PartialEq)]
pub enum Key {
    /// A point on P-256.
    P256(p256::PublicKey),
    /// A point on P-384.
    P384(p384::PublicKey),
    /// An RSA key of 2048, 3072 or 4096 bits with exponent 65537.
    Rsa(Box<rsa::PublicKey>),
}

impl Key {
    /// Verifies a signature over `message`. The scheme is given by whoever trusts the key; a signature that
    /// says otherwise is [`Reject::SchemeMismatch`], one that does not verify [`Reject::BadSignature`].
    pub fn verify(
        &self,
        scheme: Scheme,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), Reject> {
        let hash = scheme.hash().ok_or(Reject::SchemeMismatch)?;
        if signature.scheme() != scheme {
            return Err(Reject::SchemeMismatch);
        }
        let digest = hash.digest(&[message]);
        let verified = match (self, signature) {
            (Self::P256(key), Signature::Ecdsa { r, s, .. }) => {
                return ecdsa_p256::verify(key, digest.as_bytes(), fixed(r)?, fixed(s)?);
            }
            (Self::P384(key), Signature::Ecdsa { r, s, .. }) => {
                p384::ecdsa::Signature::from_scalars(fixed::<48>(r)?, fixed::<48>(s)?).and_then(
                    |sig| {
                        p384::ecdsa::VerifyingKey::from(key).verify_prehash(digest.as_bytes(), &sig)
                    },
                )
            }
            (Self::Rsa(key), Signature::RsaSsa { signature, .. }) => {
                rsassa(key, &digest, signature)
            }
            (Self::Rsa(key), Signature::RsaPss { signature, .. }) => {
                rsapss(key, &digest, signature)
            }
            _ => return Err(Reject::SchemeMismatch),
        };
        verified.map_err(|_| Reject::BadSignature)
    }
}

/// A TPMT_PUBLIC, as received and as understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Public {
    bytes: Vec<u8>,
    name: Name,
    attributes: u32,
    auth_policy: Vec<u8>,
    symmetric: Symmetric,
    scheme: Scheme,
    key: Key,
}

impl Public {
    /// Reads a TPMT_PUBLIC (no TPM2B size before it, nothing after it).
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        if bytes.len() > PUBLIC_MAX {
            return Err(Reject::LimitExceeded);
        }
        let mut r = Reader::new(bytes);
        let kind = r.u16()?;
        let name_alg = match HashAlg::from_id(r.u16()?) {
            Some(hash @ (HashAlg::Sha256 | HashAlg::Sha384)) => hash,
            Some(HashAlg::Sha1) => return Err(Reject::WeakHash),
            _ => return Err(Reject::BadKey),
        };
        let attributes = r.u32()?;
        if attributes & !attributes::KNOWN != 0 {
            return Err(Reject::BadKey);
        }
        let auth_policy = r.tpm2b(name_alg.size())?.to_vec();
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.size() {
            return Err(Reject::Malformed);
        }
        let symmetric = symmetric(&mut r)?;
        let (scheme, key) = match kind {
            alg::ECC => ecc(&mut r)?,
            alg::RSA => rsa(&mut r)?,
            _ => return Err(Reject::BadKey),
        };
        r.finish()?;
        let name = Name::of(name_alg, bytes);
        Ok(Self { bytes: bytes.to_vec(), name, attributes, auth_policy, symmetric, scheme, key })
    }

    /// The bytes received.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name of the object: nameAlg and the digest of the public area (Part 1, 16.3).
    pub fn name(&self) -> Name {
        self.name
    }

    /// The Name as claims carry it. A key whose nameAlg is not SHA-256 has no place in them.
    pub fn object_name(&self) -> Result<ObjectName, Reject> {
        self.name.object_name().ok_or(Reject::BadKey)
    }

    /// Qualified name of this key as a primary of the endorsement hierarchy (Part 1, 16.4).
    pub fn endorsement_qualified_name(&self) -> Name {
        self.name.qualified_in(Hierarchy::Endorsement)
    }

    /// nameAlg.
    pub fn name_alg(&self) -> HashAlg {
        self.name.hash()
    }

    /// TPMA_OBJECT.
    pub fn attributes(&self) -> u32 {
        self.attributes
    }

    /// authPolicy, empty or a digest under nameAlg.
    pub fn auth_policy(&self) -> &[u8] {
        &self.auth_policy
    }

    /// Cipher of a storage key.
    pub fn symmetric(&self) -> Symmetric {
        self.symmetric
    }

    /// Signing scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// [`Key::verify`] under the scheme fixed in this public area.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), Reject> {
        self.key.verify(self.scheme, message, signature)
    }
}

/// TPMT_SYM_DEF_OBJECT: null, or AES-CFB as in the TCG templates.
fn symmetric(r: &mut Reader<'_>) -> Result<Symmetric, Reject> {
    match r.u16()? {
        alg::NULL => Ok(Symmetric::Null),
        alg::AES => match (r.u16()?, r.u16()?) {
            (bits @ (128 | 256), alg::CFB) => Ok(Symmetric::AesCfb(bits)),
            _ => Err(Reject::BadKey),
        },
        _ => Err(Reject::BadKey),
    }
}

/// TPMS_ECC_PARMS after the symmetric part, then TPMS_ECC_POINT.
fn ecc(r: &mut Reader<'_>) -> Result<(Scheme, Key), Reject> {
    let scheme = match r.u16()? {
        alg::NULL => Scheme::Null,
        alg::ECDSA => Scheme::Ecdsa(signing_hash(r)?),
        _ => return Err(Reject::SchemeMismatch),
    };
    let curve = r.u16()?;
    if r.u16()? != alg::NULL {
        return Err(Reject::BadKey);
    }
    let key = match curve {
        CURVE_P256 => {
            let point = point::<32>(r)?;
            Key::P256(p256::PublicKey::from_sec1_bytes(&point).map_err(|_| Reject::BadKey)?)
        }
        CURVE_P384 => {
            let point = point::<48>(r)?;
            Key::P384(p384::PublicKey::from_sec1_bytes(&point).map_err(|_| Reject::BadKey)?)
        }
        _ => return Err(Reject::WeakKey),
    };
    Ok((scheme, key))
}

/// A TPMS_ECC_POINT as an uncompressed SEC1 point.
fn point<const N: usize>(r: &mut Reader<'_>) -> Result<Vec<u8>, Reject> {
    let (x, y) = (fixed::<N>(r.tpm2b(N)?)?, fixed::<N>(r.tpm2b(N)?)?);
    Ok([[4].as_slice(), &x, &y].concat())
}

/// Left-pads to the width of the field: some TPMs strip leading zeros.
fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Reject> {
    let mut out = [0; N];
    let start = N.checked_sub(bytes.len()).ok_or(Reject::Malformed)?;
    out.get_mut(start..).ok_or(Reject::Malformed)?.copy_from_slice(bytes);
    Ok(out)
}

/// TPMS_RSA_PARMS after the symmetric part, then TPM2B_PUBLIC_KEY_RSA.
fn rsa(r: &mut Reader<'_>) -> Result<(Scheme, Key), Reject> {
    let scheme = match r.u16()? {
        alg::NULL => Scheme::Null,
        alg::RSASSA => Scheme::RsaSsa(signing_hash(r)?),
        alg::RSAPSS => Scheme::RsaPss(signing_hash(r)?),
        _ => return Err(Reject::SchemeMismatch),
    };
    let bits = r.u16()?;
    if !matches!(bits, 2048 | 3072 | 4096) {
        return Err(Reject::WeakKey);
    }
    // Zero means the default, 65537 (Part 2, 12.2.3.5).
    if !matches!(r.u32()?, 0 | 65537) {
        return Err(Reject::WeakKey);
    }
    let modulus = r.tpm2b(usize::from(bits) / 8)?;
    // The first bit set and the last bit set: of the length it claims, and odd.
    if modulus.len() != usize::from(bits) / 8
        || modulus.first().is_none_or(|b| b & 0x80 == 0)
        || modulus.last().is_none_or(|b| b & 1 == 0)
    {
        return Err(Reject::BadKey);
    }
    if roca::is_fingerprinted(modulus) {
        return Err(Reject::WeakKey);
    }
    Ok((scheme, Key::Rsa(Box::new(rsa_key(modulus)?))))
}

fn rsa_key(modulus: &[u8]) -> Result<rsa::PublicKey, Reject> {
    let n = BoxedUint::from_be_slice_vartime(modulus);
    rsa::PublicKey::new(n, BoxedUint::from(65537u64)).map_err(|_| Reject::BadKey)
}

/// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2).
fn rsassa(
    key: &rsa::PublicKey,
    digest: &Ha,
    signature: &[u8],
) -> Result<(), rsa::signature::Error> {
    use rsa::pkcs1v15::{Signature, VerifyingKey};
    let signature = Signature::try_from(signature)?;
    let (key, digest, hash) = (key.clone(), digest.as_bytes(), digest.hash());
    match hash {
        HashAlg::Sha1 => Err(rsa::signature::Error::new()),
        HashAlg::Sha256 => {
            VerifyingKey::<sha2::Sha256>::new(key).verify_prehash(digest, &signature)
        }
        HashAlg::Sha384 => {
            VerifyingKey::<sha2::Sha384>::new(key).verify_prehash(digest, &signature)
        }
        HashAlg::Sha512 => {
            VerifyingKey::<sha2::Sha512>::new(key).verify_prehash(digest, &signature)
        }
    }
}

/// RSASSA-PSS (RFC 8017, 8.1.2). The salt is as long as the digest, or as long as fits: TPMs of before
/// revision 1.38 make it so (Part 1, B.7). Other lengths no TPM makes.
fn rsapss(
    key: &rsa::PublicKey,
    digest: &Ha,
    signature: &[u8],
) -> Result<(), rsa::signature::Error> {
    use rsa::pss::{Signature, VerifyingKey};
    let signature = Signature::try_from(signature)?;
    let (hash, digest) = (digest.hash().size(), digest.as_bytes());
    let longest = key.size().saturating_sub(hash + 2);
    let verify = |salt: usize| match hash {
        32 => VerifyingKey::<sha2::Sha256>::new_with_salt_len(key.clone(), salt)
            .verify_prehash(digest, &signature),
        48 => VerifyingKey::<sha2::Sha384>::new_with_salt_len(key.clone(), salt)
            .verify_prehash(digest, &signature),
        64 => VerifyingKey::<sha2::Sha512>::new_with_salt_len(key.clone(), salt)
            .verify_prehash(digest, &signature),
        _ => Err(rsa::signature::Error::new()),
    };
    verify(hash).or_else(|_| verify(longest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Digest;
    use crate::tpm::template;
    use crate::tpm::testing::{SoftAk, with_point};

    fn ak() -> Vec<u8> {
        SoftAk::new(1).public.as_bytes().to_vec()
    }

    fn rsa_ek() -> Vec<u8> {
        let mut public = template::ek_rsa2048();
        let modulus = public.len() - 256;
        public[modulus..].fill(0xff);
        public
    }

    fn patched(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    }

    #[test]
    fn accepts_what_the_near_misses_are_made_of() {
        let ak = Public::parse(&ak()).unwrap();
        assert_eq!(ak.scheme(), Scheme::Ecdsa(HashAlg::Sha256));
        assert_eq!(ak.attributes(), template::AK_ATTRIBUTES);
        assert_eq!(&ak.name().to_bytes()[..2], [0, 0x0b]);
        let ek = Public::parse(&rsa_ek()).unwrap();
        assert_eq!(ek.symmetric(), Symmetric::AesCfb(128));
        assert_eq!(ek.auth_policy(), template::EK_POLICY);
    }

    #[test]
    fn names_as_part_1_says() {
        let ak = SoftAk::new(1).public;
        let digest = Digest::of(&[ak.as_bytes()]);
        assert_eq!(ak.object_name().unwrap().0[2..], digest.0);
        let wide = patched(self::ak(), 2, &[0, 0x0c]);
        let wide = Public::parse(&wide).unwrap();
        assert_eq!(wide.name().to_bytes().len(), 50);
        assert_eq!(wide.object_name(), Err(Reject::BadKey));
    }

    #[test]
    fn strips_no_zeros_it_has_to_keep_and_pads_those_a_tpm_stripped() {
        // A key whose x begins with a zero byte.
        let (seed, x, y) = (1u16..)
            .find_map(|n| {
                let mut scalar = [0; 32];
                scalar[30..].copy_from_slice(&n.to_be_bytes());
                let key = p256::SecretKey::from_slice(&scalar).ok()?;
                let point = key.public_key().to_sec1_bytes();
                (point[1] == 0).then(|| (n, point[1..33].to_vec(), point[33..].to_vec()))
            })
            .unwrap();
        let whole = Public::parse(&with_point(&template::host_ak(), &x, &y)).unwrap();
        let stripped = Public::parse(&with_point(&template::host_ak(), &x[1..], &y)).unwrap();
        assert_eq!(whole.key(), stripped.key(), "scalar {seed}");
        assert_ne!(whole.name(), stripped.name());
    }

    #[test]
    fn refuses_every_near_miss() {
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("keyed hash", patched(ak(), 0, &[0, 8]), Reject::BadKey),
            ("name under SHA-1", patched(ak(), 2, &[0, 4]), Reject::WeakHash),
            ("name under SHA-512", patched(ak(), 2, &[0, 0x0d]), Reject::BadKey),
            ("reserved attribute", patched(ak(), 4, &[0x80]), Reject::BadKey),
            ("reserved attribute 0", patched(ak(), 7, &[0x73]), Reject::BadKey),
            (
                "policy of one byte",
                [&ak()[..8], &[0, 1, 9], &ak()[10..]].concat(),
                Reject::Malformed,
            ),
            ("triple DES", patched(ak(), 10, &[0, 3]), Reject::BadKey),
            ("ECDAA", patched(ak(), 12, &[0, 0x1a]), Reject::SchemeMismatch),
            ("ECDSA with SHA-1", patched(ak(), 14, &[0, 4]), Reject::WeakHash),
            ("P-224", patched(ak(), 16, &[0, 2]), Reject::WeakKey),
            ("P-521", patched(ak(), 16, &[0, 5]), Reject::WeakKey),
            ("with a KDF", patched(ak(), 18, &[0, 7]), Reject::BadKey),
            ("off the curve", patched(ak(), 30, &[1]), Reject::BadKey),
            ("infinity", with_point(&template::host_ak(), &[], &[]), Reject::BadKey),
            (
                "x of 33 bytes",
                with_point(&template::host_ak(), &[1; 33], &[1; 32]),
                Reject::Malformed,
            ),
            ("trailing byte", [ak(), vec![0]].concat(), Reject::TrailingData),
            ("TPM2B around it", [vec![0, 88], ak()].concat(), Reject::BadKey),
            ("RSA-1024", patched(rsa_ek(), 50, &[4, 0]), Reject::WeakKey),
            ("exponent 3", patched(rsa_ek(), 52, &[0, 0, 0, 3]), Reject::WeakKey),
            ("modulus even", patched(rsa_ek(), 313, &[0xfe]), Reject::BadKey),
            ("modulus short", patched(rsa_ek(), 58, &[0x7f]), Reject::BadKey),
            ("AES-192", patched(rsa_ek(), 44, &[0, 192]), Reject::BadKey),
            ("CBC", patched(rsa_ek(), 46, &[0, 0x42]), Reject::BadKey),
            ("RSAPSS", patched(rsa_ek(), 48, &[0, 0x16]), Reject::SchemeMismatch),
            ("too long", vec![0; 1025], Reject::LimitExceeded),
        ];
        for (name, bytes, reject) in cases {
            assert_eq!(Public::parse(bytes).map(drop), Err(*reject), "{name}");
        }
        for whole in [ak(), rsa_ek()] {
            for len in 0..whole.len() {
                assert!(Public::parse(&whole[..len]).is_err(), "{len} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics(at in 0usize..100, value: u8, cut in 0usize..100) {
            for mut bytes in [ak(), rsa_ek()] {
                bytes[at.min(87)] = value;
                bytes.truncate(bytes.len() - cut.min(87));
                if let Ok(public) = Public::parse(&bytes) {
                    prop_assert_eq!(public.as_bytes(), &bytes);
                }
            }
        }

        #[test]
        fn noise_is_no_signature(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Public::parse(&bytes);
            if let Ok(signature) = Signature::parse(&bytes) {
                prop_assert!(SoftAk::new(1).public.verify(b"message", &signature).is_err());
            }
        }
    }
}
