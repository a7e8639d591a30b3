//! The signed release: what a verifier hands out (SPEC section 8).
//!
//! `[payload, signature]`: ECDSA P-256 with SHA-256, 64 bytes `r | s`, over `"coffer/release/v1\0" | payload`,
//! by the release key pinned in the measured image. A host that forges ciphertexts to the guest's public
//! key fails here.

use minicbor::{Decode, Encode};

use crate::binding::RELEASE_LABEL;
use crate::{Digest, InstanceId, Nonce, Reject, cbor};

/// HTTP media type of a signed release.
pub const RELEASE_MEDIA_TYPE: &str = "application/vnd.coffer.release.v1+cbor";
/// Most bytes of a signed release.
pub const RELEASE_MAX: usize = 1 << 20;

/// One secret, HPKE-sealed to the guest's key (mode base, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SealedSecret {
    /// Resource id.
    #[n(0)]
    pub id: String,
    /// Version of the secret, from 1.
    #[n(1)]
    pub version: u64,
    /// HPKE encapsulated key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub encapsulated: Vec<u8>,
    /// HPKE ciphertext with tag; info and aad as in [`crate::binding`].
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ciphertext: Vec<u8>,
}

/// What the verifier signs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Release {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The challenge answered.
    #[n(1)]
    pub nonce: Nonce,
    /// SHA-256 of the wrapped evidence as received.
    #[n(2)]
    pub evidence: Digest,
    /// The VM it is for.
    #[n(3)]
    pub instance_id: InstanceId,
    /// The secrets, in the order asked.
    #[n(4)]
    pub secrets: Vec<SealedSecret>,
}

/// Payload and signature as they travel.
#[derive(Encode, Decode)]
pub struct SignedRelease {
    /// Encoded [`Release`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// `r | s`, 32 bytes each.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

impl SignedRelease {
    /// The bytes that are signed for a payload.
    pub fn signed_bytes(payload: &[u8]) -> Vec<u8> {
        [RELEASE_LABEL, payload].concat()
    }

    /// Verifies the signature over the received bytes and checks that the release answers this
    /// challenge and this evidence.
    pub fn open(
        bytes: &[u8],
        key: &p256::ecdsa::VerifyingKey,
        nonce: &Nonce,
        evidence: &Digest,
    ) -> Result<Release, Reject> {
        use p256::ecdsa::signature::Verifier as _;
        let signed: Self = cbor::decode(bytes, RELEASE_MAX)?;
        let signature = p256::ecdsa::Signature::from_slice(&signed.signature)
            .map_err(|_| Reject::ReleaseSignature)?;
        key.verify(&Self::signed_bytes(&signed.payload), &signature)
            .map_err(|_| Reject::ReleaseSignature)?;
        let release: Release = cbor::decode(&signed.payload, RELEASE_MAX)?;
        if release.version != 1 {
            return Err(Reject::UnsupportedVersion);
        }
        if release.nonce != *nonce || release.evidence != *evidence {
            return Err(Reject::ReleaseMismatch);
        }
        Ok(release)
    }
}
