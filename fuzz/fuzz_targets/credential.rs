//! Credentials for any EK that parses: of the sizes TPM2_ActivateCredential takes, for one name only, the same
//! from the same entropy.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::credential::{ENTROPY, make_credential};
use coffer_attestation::enroll::{check_ak, check_ek, check_vak};
use coffer_attestation::tpm::name::Name;
use coffer_attestation::tpm::public::{Public, Symmetric};
use libfuzzer_sys::fuzz_target;

const SECRET: [u8; 32] = [7; 32];
static NAMES: LazyLock<[Name; 2]> =
    LazyLock::new(|| [1, 2].map(|n| Name::parse(&[&[0, 0x0b][..], &[n; 32]].concat()).unwrap()));

fuzz_target!(|data: &[u8]| {
    let Ok(ek) = Public::parse(data) else { return };
    // No key is of two kinds, and each of Coffer's vTPM keys is an attestation key.
    assert!(check_ek(&ek).is_err() || check_ak(&ek).is_err());
    assert!(check_vak(&ek).is_err() || check_ak(&ek).is_ok());
    let made = make_credential(&ek, &NAMES[0], &SECRET, &[3; ENTROPY]);
    assert_eq!(made.is_ok(), ek.symmetric() != Symmetric::Null, "{made:?}");
    let Ok(made) = made else { return };
    let digest = ek.name_alg().size();
    assert_eq!(made.blob.len(), 2 + 2 + digest + 2 + SECRET.len());
    assert!(made.encrypted_secret.len() <= 2 + 512);
    if coffer_fuzz::one_in(8, data) {
        let other = make_credential(&ek, &NAMES[1], &SECRET, &[3; ENTROPY]).expect("as before");
        assert_ne!(other.blob, made.blob);
        assert_eq!(other.encrypted_secret, made.encrypted_secret);
    }
});
