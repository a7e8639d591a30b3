//! Keys that certificates certify, and signatures by them (RFC 3279, RFC 5480, RFC 4055; RFC 8017 8.2).
//!
//! RSA of 2048 to 4096 bits with exponent 65537, P-256, P-384, and P-521 for authorities: Nuvoton's and
//! ST's newer roots are P-521. SHA-256, SHA-384, SHA-512; SHA-1 is refused by name. RSASSA-PSS is not spoken:
//! none of the 169 published maker certificates this was held against uses it.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::BoxedUint;
use sha2::Digest as _;
use x509_parser::prelude::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::der::{self, Der};
use crate::Reject;
use crate::tpm::public::Key;

/// A certified key.
#[derive(Debug, Clone)]
pub(super) enum PublicKey {
    /// One that a TPM could hold as well.
    Tpm(Key),
    /// P-521: authorities only.
    P521(Box<p521::PublicKey>),
}

/// rsaEncryption.
const RSA: &str = "1.2.840.113549.1.1.1";
/// id-RSAES-OAEP.
const RSAES_OAEP: &str = "1.2.840.113549.1.1.7";
/// id-ecPublicKey.
const EC: &str = "1.2.840.10045.2.1";

impl PublicKey {
    /// Reads the key of an authority or a leaf.
    pub(super) fn read(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, Reject> {
        let bytes = spki.subject_public_key.data.as_ref();
        match spki.algorithm.algorithm.to_id_string().as_str() {
            RSA => rsa_key(bytes).map(Self::Tpm),
            EC => ec_key(spki, bytes),
            _ => Err(Reject::WeakKey),
        }
    }

    /// Reads the key of a leaf; true if it is marked for RSAES-OAEP, which no signing key may be.
    pub(super) fn read_leaf(spki: &SubjectPublicKeyInfo<'_>) -> Result<(Key, bool), Reject> {
        if spki.algorithm.algorithm.to_id_string() == RSAES_OAEP {
            return Ok((rsa_key(spki.subject_public_key.data.as_ref())?, true));
        }
        match Self::read(spki)? {
            Self::Tpm(key) => Ok((key, false)),
            Self::P521(_) => Err(Reject::WeakKey),
        }
    }

    /// Kind and size for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Tpm(Key::P256(_)) => "ECC P-256".to_owned(),
            Self::Tpm(Key::P384(_)) => "ECC P-384".to_owned(),
            Self::P521(_) => "ECC P-521".to_owned(),
            Self::Tpm(Key::Rsa(key)) => {
                format!("RSA-{}", rsa::traits::PublicKeyParts::n(key.as_ref()).bit_width())
            }
        }
    }
}

fn ec_key(spki: &SubjectPublicKeyInfo<'_>, bytes: &[u8]) -> Result<PublicKey, Reject> {
    let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    match curve.map(|oid| oid.to_id_string()).as_deref() {
        Some("1.2.840.10045.3.1.7") => {
            p256::PublicKey::from_sec1_bytes(bytes).map(Key::P256).map(PublicKey::Tpm)
        }
        Some("1.3.132.0.34") => {
            p384::PublicKey::from_sec1_bytes(bytes).map(Key::P384).map(PublicKey::Tpm)
        }
        Some("1.3.132.0.35") => {
            p521::PublicKey::from_sec1_bytes(bytes).map(Box::new).map(PublicKey::P521)
        }
        _ => return Err(Reject::WeakKey),
    }
    .map_err(|_| Reject::BadKey)
}

/// RSAPublicKey (RFC 8017, A.1.1).
fn rsa_key(bytes: &[u8]) -> Result<Key, Reject> {
    let mut fields = Der::only(bytes, der::SEQUENCE).ok_or(Reject::BadKey)?;
    let modulus = fields.read(der::INTEGER).ok_or(Reject::BadKey)?;
    let exponent = fields.read(der::INTEGER).ok_or(Reject::BadKey)?;
    // Positive, and its first bit set in the first byte: no other form is of the length it claims.
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    if !fields.is_empty() || modulus.first().is_none_or(|b| b & 0x80 == 0) {
        return Err(Reject::BadKey);
    }
    if !matches!(modulus.len(), 256..=512) || exponent != [1, 0, 1] {
        return Err(Reject::WeakKey);
    }
    let n = BoxedUint::from_be_slice_vartime(modulus);
    rsa::PublicKey::new(n, BoxedUint::from(65537u64))
        .map(|key| Key::Rsa(Box::new(key)))
        .map_err(|_| Reject::BadKey)
}

/// Signed bytes as received, and their signature: the part that certificates and CRLs have in common.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    message: Vec<u8>,
    algorithm: String,
    signature: Vec<u8>,
}

/// Walks `SIGNED { toBeSigned, algorithm, signature }` (RFC 5280, 4.1.1 and 5.1.1) and hands back what follows.
///
/// What stands outside the signed bytes could be changed by anybody, and x509-parser takes tags of another
/// class for the right ones: here the algorithm outside must be the one inside byte for byte
/// (4.1.1.2), the signature whole bytes, and nothing else there.
pub(super) fn envelope(bytes: &[u8]) -> Option<&[u8]> {
    let mut der = Der::new(bytes);
    let mut outer = der.enter(der::SEQUENCE)?;
    let mut signed = outer.enter(der::SEQUENCE)?;
    let (algorithm, signature) = (outer.next()?, outer.read(der::BIT_STRING)?);
    // Version and serial number come first; the algorithm is the first SEQUENCE.
    let inside = loop {
        let element = signed.next()?;
        if element.tag == der::SEQUENCE {
            break element;
        }
    };
    let same = inside.whole == algorithm.whole;
    (same && outer.is_empty() && signature.first() == Some(&0)).then_some(der.rest())
}

impl Signed {
    pub(super) fn new(
        message: &[u8],
        algorithm: &AlgorithmIdentifier<'_>,
        signature: &[u8],
    ) -> Self {
        Self {
            message: message.to_vec(),
            algorithm: algorithm.algorithm.to_id_string(),
            signature: signature.to_vec(),
        }
    }

    /// Verifies the signature by this key: [`Reject::BadSignature`], or [`Reject::WeakHash`] for SHA-1.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<(), Reject> {
        let (message, signature) = (self.message.as_slice(), self.signature.as_slice());
        let verified = match (self.algorithm.as_str(), key) {
            ("1.2.840.113549.1.1.5" | "1.2.840.10045.4.1", _) => return Err(Reject::WeakHash),
            ("1.2.840.113549.1.1.11", PublicKey::Tpm(Key::Rsa(key))) => {
                rsa::<sha2::Sha256>(key, message, signature)
            }
            ("1.2.840.113549.1.1.12", PublicKey::Tpm(Key::Rsa(key))) => {
                rsa::<sha2::Sha384>(key, message, signature)
            }
            ("1.2.840.113549.1.1.13", PublicKey::Tpm(Key::Rsa(key))) => {
                rsa::<sha2::Sha512>(key, message, signature)
            }
            ("1.2.840.10045.4.3.2", key) => ecdsa(key, &sha2::Sha256::digest(message), signature),
            ("1.2.840.10045.4.3.3", key) => ecdsa(key, &sha2::Sha384::digest(message), signature),
            ("1.2.840.10045.4.3.4", key) => ecdsa(key, &sha2::Sha512::digest(message), signature),
            _ => false,
        };
        if verified { Ok(()) } else { Err(Reject::BadSignature) }
    }

    /// The algorithm's name for people, its OID if it has none here.
    pub(super) fn algorithm(&self) -> &str {
        match self.algorithm.as_str() {
            "1.2.840.113549.1.1.5" => "sha1WithRSAEncryption",
            "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
            "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
            "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
            "1.2.840.10045.4.1" => "ecdsa-with-SHA1",
            "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
            "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
            "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
            other => other,
        }
    }
}

/// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2).
fn rsa<D>(key: &rsa::PublicKey, message: &[u8], signature: &[u8]) -> bool
where
    D: sha2::Digest + rsa::pkcs8::AssociatedOid,
{
    rsa::pkcs1v15::Signature::try_from(signature).is_ok_and(|signature| {
        rsa::pkcs1v15::VerifyingKey::<D>::new(key.clone())
            .verify_prehash(&D::digest(message), &signature)
            .is_ok()
    })
}

/// ECDSA with a DER signature (RFC 5480, appendix A).
fn ecdsa(key: &PublicKey, prehash: &[u8], signature: &[u8]) -> bool {
    match key {
        PublicKey::Tpm(Key::P256(key)) => {
            p256::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
                p256::ecdsa::VerifyingKey::from(key).verify_prehash(prehash, &signature).is_ok()
            })
        }
        PublicKey::Tpm(Key::P384(key)) => {
            p384::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
                p384::ecdsa::VerifyingKey::from(key).verify_prehash(prehash, &signature).is_ok()
            })
        }
        PublicKey::P521(key) => {
            p521::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
                p521::ecdsa::VerifyingKey::from(key.as_ref())
                    .verify_prehash(prehash, &signature)
                    .is_ok()
            })
        }
        PublicKey::Tpm(Key::Rsa(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RSAPublicKey of these two numbers, and what follows them.
    fn rsa_public_key(modulus: &[u8], exponent: &[u8], more: &[u8]) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| {
            let length = (content.len() as u16).to_be_bytes();
            let length = match content.len() {
                0..=0x7f => vec![length[1]],
                0x80..=0xff => vec![0x81, length[1]],
                _ => vec![0x82, length[0], length[1]],
            };
            [&[tag], length.as_slice(), content].concat()
        };
        let numbers = [element(der::INTEGER, modulus), element(der::INTEGER, exponent)].concat();
        element(der::SEQUENCE, &[&numbers, more].concat())
    }

    #[test]
    fn an_rsa_key_has_2048_to_4096_bits_and_the_usual_exponent() {
        const F4: &[u8] = &[1, 0, 1];
        let modulus = |bytes: usize| [&[0][..], &vec![0xc5; bytes]].concat();
        let read = |modulus: &[u8], exponent: &[u8], more: &[u8]| {
            let key = rsa_key(&rsa_public_key(modulus, exponent, more));
            key.map(|key| PublicKey::Tpm(key).describe())
        };
        assert_eq!(read(&modulus(256), F4, &[]).as_deref(), Ok("RSA-2048"));
        assert_eq!(read(&modulus(384), F4, &[]).as_deref(), Ok("RSA-3072"));
        assert_eq!(read(&modulus(512), F4, &[]).as_deref(), Ok("RSA-4096"));
        let weak = Err(Reject::WeakKey);
        assert_eq!(read(&modulus(255), F4, &[]), weak);
        assert_eq!(read(&modulus(513), F4, &[]), weak);
        assert_eq!(read(&modulus(256), &[3], &[]), weak, "another exponent");
        let bad = Err(Reject::BadKey);
        assert_eq!(read(&modulus(256), F4, &[5, 0]), bad, "a third field");
        let short = [&[0, 0x45][..], &[0xc5; 255]].concat();
        assert_eq!(read(&short, F4, &[]), bad, "2047 bits in 256 bytes");
        assert_eq!(read(&[], F4, &[]), bad, "no number");
        assert_eq!(rsa_key(&[5, 0]).err(), Some(Reject::BadKey));
    }

    /// By `openssl dgst -sign`; the private key was thrown away.
    const RSA_KEY: &[u8] = include_bytes!("../../tests/vectors/rsa/key.der");
    const MESSAGE: &[u8] = b"signed by OpenSSL";
    const SIGNATURES: [(&str, &[u8]); 3] = [
        ("1.2.840.113549.1.1.11", include_bytes!("../../tests/vectors/rsa/sha256.sig")),
        ("1.2.840.113549.1.1.12", include_bytes!("../../tests/vectors/rsa/sha384.sig")),
        ("1.2.840.113549.1.1.13", include_bytes!("../../tests/vectors/rsa/sha512.sig")),
    ];

    #[test]
    fn an_rsa_signature_is_by_its_hash_over_its_message() {
        let key = PublicKey::Tpm(rsa_key(RSA_KEY).unwrap());
        let verify = |algorithm: &str, message: &[u8], signature: &[u8]| {
            let (message, signature) = (message.to_vec(), signature.to_vec());
            Signed { message, algorithm: algorithm.to_owned(), signature }.verify(&key)
        };
        let bad = Err(Reject::BadSignature);
        for (named, _) in SIGNATURES {
            for (algorithm, signature) in SIGNATURES {
                let expected = if named == algorithm { Ok(()) } else { bad };
                assert_eq!(verify(named, MESSAGE, signature), expected, "{algorithm} as {named}");
                assert_eq!(verify(named, b"another", signature), bad);
                assert_eq!(verify("1.2.840.10045.4.3.2", MESSAGE, signature), bad, "as ECDSA");
            }
        }
        let sha1 = verify("1.2.840.113549.1.1.5", MESSAGE, SIGNATURES[0].1);
        assert_eq!(sha1, Err(Reject::WeakHash), "by its name");
    }
}
