//! The last step before a secret leaves: sealing asks for the proofs by value (SPEC 8.1, 8.2).

use coffer_attestation::Reject;
use coffer_attestation::binding::{release_aad, release_info};
use coffer_attestation::ledger::Current;
use coffer_attestation::release::SealedSecret;
use coffer_policies::{Permit, ResourceId};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeS, Serializable as _};
use zeroize::Zeroizing;

use crate::fault::{Fault, FaultKind};

/// A secret in clear, on its way from the store to a guest. No `Debug`, no `Clone`; wiped when dropped.
pub(crate) struct Plain {
    pub(crate) id: ResourceId,
    pub(crate) version: u64,
    pub(crate) value: Zeroizing<Vec<u8>>,
}

/// Seals one secret to the key of a VM that was appraised and holds its identity alone. The permit and the secret are used up.
pub(crate) fn seal(
    current: &Current,
    permit: Permit,
    secret: Plain,
) -> Result<SealedSecret, Fault> {
    let facts = current.facts();
    if permit.image() != facts.image_id() || permit.resource() != &secret.id {
        return Err(Fault::new(
            FaultKind::Internal,
            "a permit was presented for another image or secret",
        ));
    }
    // A key that is not a point, or of small order, is the guest's mistake.
    let bad_key =
        |_| Fault::reject(Reject::BadKey, "runtime data: the HPKE key is not a usable X25519 key");
    let key =
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(facts.hpke_key()).map_err(bad_key)?;
    let info = release_info(&facts.evidence, &facts.nonce);
    let aad = release_aad(secret.id.as_str(), secret.version);
    let (encapsulated, ciphertext) = hpke::single_shot_seal::<
        AesGcm256,
        HkdfSha256,
        X25519HkdfSha256,
    >(&OpModeS::Base, &key, &info, &secret.value, &aad)
    .map_err(bad_key)?;
    Ok(SealedSecret {
        id: secret.id.into(),
        version: secret.version,
        encapsulated: encapsulated.to_bytes().to_vec(),
        ciphertext,
    })
}
