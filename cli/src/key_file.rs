//! A public key in a file: a TPM's public area, or PEM.
//!
//! Whatever the form, the key is held to one set of rules, those of [`Public::parse`]: a PEM key is put into
//! a public area of its own to be judged, which says nothing of attributes.

use std::path::Path;

use coffer_attestation::Reject;
use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::hash::HashAlg;
use coffer_attestation::tpm::public::{Key, Public, Scheme};
use coffer_attestation::tpm::wire::Writer;
use p256::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

use crate::error::Error;
use crate::{files, tpm2_files};

/// Most bytes of a key file; a public area has at most 1 KiB.
const KEY_MAX: u64 = 16 << 10;

/// A key, and its public area if the file had one.
pub enum KeyFile {
    /// TPM2B_PUBLIC or TPMT_PUBLIC.
    Area(Public),
    /// SubjectPublicKeyInfo: key only; the area is ours.
    Bare(Public),
}

impl KeyFile {
    /// The key.
    pub fn key(&self) -> &Key {
        match self {
            Self::Area(public) | Self::Bare(public) => public.key(),
        }
    }

    /// The public area, if the file had one.
    pub fn public(&self) -> Option<&Public> {
        match self {
            Self::Area(public) => Some(public),
            Self::Bare(_) => None,
        }
    }

    /// The scheme to pin: the area's, else the one asked for, else what tools use by default. A scheme asked
    /// for that is not the area's is refused.
    pub fn scheme(&self, asked: Option<&str>) -> Result<Scheme, Error> {
        let asked = asked.map(parse_scheme).transpose()?;
        let pinned = self.public().map(Public::scheme);
        match (pinned, asked) {
            (Some(pinned), Some(asked)) if pinned != asked => Err(Error::Rejected {
                what: "the key",
                reject: Reject::SchemeMismatch,
                detail: format!("its public area pins {}", scheme_text(pinned)),
            }),
            (Some(pinned), _) => Ok(pinned),
            (None, Some(asked)) => Ok(asked),
            (None, None) => Ok(match self.key() {
                Key::P256(_) => Scheme::Ecdsa(HashAlg::Sha256),
                Key::P384(_) => Scheme::Ecdsa(HashAlg::Sha384),
                Key::Rsa(_) => Scheme::RsaSsa(HashAlg::Sha256),
            }),
        }
    }
}

/// Reads a key in any form.
pub fn read(path: &Path) -> Result<KeyFile, Error> {
    let bytes = files::read(path, KEY_MAX, "a public key")?;
    let bad = |detail: String| Error::BadFile {
        path: path.to_owned(),
        expected: "a public key",
        detail,
        hint: "give TPM2B_PUBLIC (`tpm2_readpublic -o`), TPMT_PUBLIC, or PEM (`-f pem -o`)".into(),
    };
    if bytes.starts_with(b"-----BEGIN") {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        return bare(&der).map(KeyFile::Bare).map_err(|reject| bad(reject.to_string()));
    }
    Public::parse(tpm2_files::public_area(&bytes))
        .map(KeyFile::Area)
        .map_err(|reject| bad(reject.to_string()))
}

/// Reads a key that has to come with its public area.
pub fn public(path: &Path) -> Result<Public, Error> {
    match read(path)? {
        KeyFile::Area(public) => Ok(public),
        KeyFile::Bare(_) => Err(Error::BadFile {
            path: path.to_owned(),
            expected: "a public area",
            detail: "a PEM key has no name and no attributes".into(),
            hint: "write it with `tpm2_readpublic -o FILE`, without `-f pem`".into(),
        }),
    }
}

/// A public area around a key, so that it is held to the same rules.
fn bare(der: &[u8]) -> Result<Public, Reject> {
    let head =
        |kind: u16| Writer::new().u16(kind).u16(alg::SHA256).u32(0).tpm2b(&[]).u16(alg::NULL);
    let ecc = |curve: u16, point: &[u8]| {
        let (x, y) = point.get(1..).map(|xy| xy.split_at(xy.len() / 2)).unwrap_or_default();
        head(alg::ECC).u16(alg::NULL).u16(curve).u16(alg::NULL).tpm2b(x).tpm2b(y).finish()
    };
    let area = if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
        ecc(0x0003, &key.to_sec1_bytes())
    } else if let Ok(key) = p384::PublicKey::from_public_key_der(der) {
        ecc(0x0004, &key.to_sec1_bytes())
    } else {
        let key = rsa::PublicKey::from_public_key_der(der).map_err(|_| Reject::BadKey)?;
        let modulus = key.n_bytes();
        let bits = u16::try_from(modulus.len() * 8).map_err(|_| Reject::WeakKey)?;
        let exponent: [u8; 4] = left_padded(&key.e_bytes()).ok_or(Reject::WeakKey)?;
        let exponent = u32::from_be_bytes(exponent);
        head(alg::RSA).u16(alg::NULL).u16(bits).u32(exponent).tpm2b(&modulus).finish()
    };
    Public::parse(&area)
}

fn left_padded(bytes: &[u8]) -> Option<[u8; 4]> {
    let mut out = [0; 4];
    out.get_mut(4usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(out)
}

fn parse_scheme(text: &str) -> Result<Scheme, Error> {
    let unknown = || {
        let hint =
            "one of ecdsa, rsassa, rsapss with sha256, sha384 or sha512, as in `ecdsa-sha256`";
        Error::usage(format!("`{text}` is no signature scheme"), hint)
    };
    let (scheme, hash) = text.split_once('-').ok_or_else(unknown)?;
    let hash = HashAlg::from_name(hash).filter(|h| *h != HashAlg::Sha1).ok_or_else(unknown)?;
    match scheme {
        "ecdsa" => Ok(Scheme::Ecdsa(hash)),
        "rsassa" => Ok(Scheme::RsaSsa(hash)),
        "rsapss" => Ok(Scheme::RsaPss(hash)),
        _ => Err(unknown()),
    }
}

fn scheme_text(scheme: Scheme) -> String {
    match scheme {
        Scheme::Null => "no scheme".into(),
        Scheme::Ecdsa(hash) => format!("ecdsa-{hash}"),
        Scheme::RsaSsa(hash) => format!("rsassa-{hash}"),
        Scheme::RsaPss(hash) => format!("rsapss-{hash}"),
    }
}
