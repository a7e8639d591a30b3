//! Who signed an image (SPEC 3.9): an ECDSA signature over its image ID, beside the manifest's entry in `index.json`.
//!
//! Self-authenticating: the signature is believed for what it verifies, under the key that stands beside it, and
//! says that who has this key named this image ID. Whether that key is anybody's is for a policy to say. It is no
//! part of the image ID. A signature that does not verify is refused and never taken for none: whoever stores an
//! image can take a signature away, but not make one of somebody else.

use std::collections::BTreeMap;

use coffer_formats::Digest;
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};

/// Annotation with `r | s`, hex.
pub const SIGNATURE_ANNOTATION: &str = "org.coffer.signature";
/// Annotation with the key: SEC1 uncompressed point, hex.
pub const SIGNER_ANNOTATION: &str = "org.coffer.signer";

/// What goes before the image ID, so that the signature means nothing elsewhere.
const CONTEXT: &[u8] = b"coffer/image-signature/v1\0";

/// The bytes that are signed.
pub fn signed_bytes(image_id: &Digest) -> Vec<u8> {
    [CONTEXT, &image_id.0].concat()
}

/// A key that signed the image. Made where a signature was verified, and by who holds the private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signer(Digest);

impl Signer {
    /// The one who holds the private half of `key`.
    pub fn of(key: &VerifyingKey) -> Self {
        Self(Digest::of(&[key.to_sec1_point(false).as_bytes()]))
    }

    /// SHA-256 of the SEC1 uncompressed point: what policies name.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

/// Why a signature that is there does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// One annotation without the other.
    #[error("the image's signature is incomplete: `{0}` is missing")]
    Incomplete(&'static str),
    /// The key is not written as SPEC 3.9 has it, or is no point of the curve.
    #[error("the image's `org.coffer.signer` is not an uncompressed P-256 point in hex")]
    Key,
    /// The signature is not written as SPEC 3.9 has it.
    #[error("the image's `org.coffer.signature` is not 64 bytes of P-256 signature in hex")]
    Form,
    /// It is of another image or another key, or damaged.
    #[error("the image's signature does not verify")]
    Wrong,
}

impl SignatureError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        "fetch the image again, or have it signed again with `coffer image sign`"
    }
}

/// The signer that the annotations prove for this image; `None` only if neither annotation is there.
pub fn verify(
    annotations: &BTreeMap<String, String>,
    image_id: &Digest,
) -> Result<Option<Signer>, SignatureError> {
    let (point, signature) =
        match (annotations.get(SIGNER_ANNOTATION), annotations.get(SIGNATURE_ANNOTATION)) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(SignatureError::Incomplete(SIGNER_ANNOTATION)),
            (Some(_), None) => return Err(SignatureError::Incomplete(SIGNATURE_ANNOTATION)),
            (Some(point), Some(signature)) => (point, signature),
        };
    let point: [u8; 65] = bytes(point).ok_or(SignatureError::Key)?;
    // Of 65 bytes SEC1 knows the uncompressed form only, so one key has one digest.
    let key = VerifyingKey::from_sec1_bytes(&point).map_err(|_| SignatureError::Key)?;
    let signature: [u8; 64] = bytes(signature).ok_or(SignatureError::Form)?;
    let signature = Signature::from_slice(&signature).map_err(|_| SignatureError::Form)?;
    key.verify(&signed_bytes(image_id), &signature).map_err(|_| SignatureError::Wrong)?;
    Ok(Some(Signer::of(&key)))
}

/// The annotations of a signature.
pub fn annotations(key: &VerifyingKey, signature: &Signature) -> [(&'static str, String); 2] {
    [
        (SIGNATURE_ANNOTATION, hex::encode(signature.to_bytes())),
        (SIGNER_ANNOTATION, hex::encode(key.to_sec1_point(false).as_bytes())),
    ]
}

/// Lower-case hex of exactly `N` bytes.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut out = [0; N];
    (lower && hex::decode_to_slice(text, &mut out).is_ok()).then_some(out)
}
