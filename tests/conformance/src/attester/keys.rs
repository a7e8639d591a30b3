//! Test keys in software, the same in every run, with the public areas of attestation keys.
//!
//! They sign what no TPM would. A case's context trusts them, so the check in question has to refuse.

use coffer_attestation::Digest;
use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::template::AK_ATTRIBUTES;
use coffer_attestation::tpm::wire::Writer;
use p256::ecdsa::signature::Signer as _;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::signature::SignatureEncoding as _;
use rsa::traits::PublicKeyParts as _;
use sha2::{Sha256, Sha384};

/// TPM_ECC_NIST_P256 and P384 (Part 2, 6.4).
pub const P256: u16 = 3;
pub const P384: u16 = 4;

#[derive(Clone)]
pub enum Private {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Rsa(Box<rsa::PrivateKey>),
}

#[derive(Clone)]
pub struct Key {
    pub private: Private,
    pub attributes: u32,
}

impl Key {
    /// P-256; ECDSA is deterministic (RFC 6979).
    pub fn p256(seed: u8) -> Self {
        let key = p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap();
        Self { private: Private::P256(key), attributes: AK_ATTRIBUTES }
    }

    pub fn p384(seed: u8) -> Self {
        let key = p384::ecdsa::SigningKey::from_slice(&[seed; 48]).unwrap();
        Self { private: Private::P384(key), attributes: AK_ATTRIBUTES }
    }

    /// A key of `keys/`; RSASSA-PKCS1-v1_5 is deterministic.
    pub fn rsa(name: &str) -> Self {
        let pem = match name {
            "rsa1024" => include_str!("../../keys/rsa1024.pem"),
            "rsa2048" => include_str!("../../keys/rsa2048.pem"),
            "rsa2048-other" => include_str!("../../keys/rsa2048-other.pem"),
            "rsa2048-e3" => include_str!("../../keys/rsa2048-e3.pem"),
            "rsa2048-roca" => include_str!("../../keys/rsa2048-roca.pem"),
            _ => unreachable!("no key `{name}`"),
        };
        let key = rsa::PrivateKey::from_pkcs8_pem(pem).unwrap();
        Self { private: Private::Rsa(Box::new(key)), attributes: AK_ATTRIBUTES }
    }

    pub fn with_attributes(mut self, attributes: u32) -> Self {
        self.attributes = attributes;
        self
    }

    /// SEC1 point without its first byte, or modulus.
    pub fn unique(&self) -> Vec<u8> {
        match &self.private {
            Private::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes()[1..].to_vec(),
            Private::P384(key) => key.verifying_key().to_sec1_point(false).as_bytes()[1..].to_vec(),
            Private::Rsa(key) => key.n_bytes().to_vec(),
        }
    }

    /// TPMT_PUBLIC with the scheme the key signs in.
    pub fn public(&self) -> Vec<u8> {
        let head = |kind| {
            Writer::new().u16(kind).u16(alg::SHA256).u32(self.attributes).tpm2b(&[]).u16(alg::NULL)
        };
        let unique = self.unique();
        match &self.private {
            Private::Rsa(key) => {
                let e = key.e_bytes();
                let e = e.iter().fold(0u32, |e, b| e << 8 | u32::from(*b));
                head(alg::RSA)
                    .u16(alg::RSASSA)
                    .u16(alg::SHA256)
                    .u16(u16::try_from(unique.len() * 8).unwrap())
                    .u32(if e == 65537 { 0 } else { e })
                    .tpm2b(&unique)
                    .finish()
            }
            ecc => {
                let (hash, curve) = match ecc {
                    Private::P384(_) => (alg::SHA384, P384),
                    _ => (alg::SHA256, P256),
                };
                let (x, y) = unique.split_at(unique.len() / 2);
                head(alg::ECC)
                    .u16(alg::ECDSA)
                    .u16(hash)
                    .u16(curve)
                    .u16(alg::NULL)
                    .tpm2b(x)
                    .tpm2b(y)
                    .finish()
            }
        }
    }

    /// Name: nameAlg and digest of the public area.
    pub fn name(&self) -> Vec<u8> {
        name(&self.public())
    }

    /// Qualified name as a primary of the endorsement hierarchy.
    pub fn qualified_name(&self) -> Vec<u8> {
        qualified(ENDORSEMENT, &self.name())
    }

    /// TPMT_SIGNATURE over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.private {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                ecdsa(alg::SHA256, &signature.to_bytes())
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                ecdsa(alg::SHA384, &signature.to_bytes())
            }
            Private::Rsa(key) => {
                let key = rsa::pkcs1v15::SigningKey::<Sha256>::new(key.as_ref().clone());
                rsassa(&key.sign(message).to_vec())
            }
        }
    }

    /// The signature algorithms of certificates: DER ECDSA, or RSASSA with SHA-256.
    pub fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        match &self.private {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Private::Rsa(key) => {
                let key = rsa::pkcs1v15::SigningKey::<Sha256>::new(key.as_ref().clone());
                key.sign(message).to_vec()
            }
        }
    }
}

/// TPM_RH_ENDORSEMENT and TPM_RH_OWNER.
pub const ENDORSEMENT: u32 = 0x4000_000b;
pub const OWNER: u32 = 0x4000_0001;

pub fn name(public: &[u8]) -> Vec<u8> {
    [&alg::SHA256.to_be_bytes()[..], Digest::of(&[public]).as_bytes()].concat()
}

pub fn qualified(hierarchy: u32, name: &[u8]) -> Vec<u8> {
    let digest = Digest::of(&[&hierarchy.to_be_bytes(), name]);
    [&alg::SHA256.to_be_bytes()[..], digest.as_bytes()].concat()
}

pub fn ecdsa(hash: u16, scalars: &[u8]) -> Vec<u8> {
    let (r, s) = scalars.split_at(scalars.len() / 2);
    Writer::new().u16(alg::ECDSA).u16(hash).tpm2b(r).tpm2b(s).finish()
}

pub fn rsassa(signature: &[u8]) -> Vec<u8> {
    Writer::new().u16(alg::RSASSA).u16(alg::SHA256).tpm2b(signature).finish()
}

/// SHA-384 of a message, for banks.
pub fn sha384(parts: &[&[u8]]) -> Vec<u8> {
    use sha2::Digest as _;
    let mut hash = Sha384::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().to_vec()
}
