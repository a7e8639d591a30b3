//! A signed release, as a guest judges and opens it (SPEC 8.2, 8.3).

use coffer_attestation::release::{SealedSecret, SignedRelease};
use coffer_attestation::{Digest, Nonce, binding};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeR};
use serde::Deserialize;

use super::{Hex, Judged, Refused, context, file};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// The challenge the guest had.
    nonce: Nonce,
    /// SHA-256 of the evidence it sent.
    evidence: Digest,
    /// Release key pinned in the image, SEC1.
    release_key: Hex,
    /// The guest's HPKE key, private half; a test key.
    hpke_private: Hex,
    /// Ids the image asks for.
    wanted: Vec<String>,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&context.release_key.0)
        .map_err(|_| Refused::BadCase("the release key is no key".into()))?;
    let release =
        SignedRelease::open(file(files, "release.bin"), &key, &context.nonce, &context.evidence)?;
    if release.secrets.iter().any(|secret| !context.wanted.contains(&secret.id)) {
        return Err(Refused::Code("secret-unexpected"));
    }
    for id in &context.wanted {
        let sealed = release.secrets.iter().find(|secret| secret.id == *id);
        let sealed = sealed.ok_or(Refused::Code("secret-missing"))?;
        open(sealed, &context).ok_or(Refused::Code("secret-unsealable"))?;
    }
    Ok(())
}

fn open(sealed: &SealedSecret, context: &Context) -> Option<Vec<u8>> {
    type Suite = X25519HkdfSha256;
    let private = <Suite as Kem>::PrivateKey::from_bytes(&context.hpke_private.0).ok()?;
    let encapsulated = <Suite as Kem>::EncappedKey::from_bytes(&sealed.encapsulated).ok()?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, Suite>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        &binding::release_info(&context.evidence, &context.nonce),
        &sealed.ciphertext,
        &binding::release_aad(&sealed.id, sealed.version),
    )
    .ok()
}
