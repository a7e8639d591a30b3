//! Which annotations prove a signer, and the near misses.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use coffer_formats::Digest;
use coffer_image::signature::{
    SIGNATURE_ANNOTATION, SIGNER_ANNOTATION, SignatureError, Signer, annotations, signed_bytes,
    verify,
};
use p256::ecdsa::{Signature, SigningKey, signature::Signer as _};

const IMAGE: Digest = Digest([7; 32]);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn sign(key: &SigningKey, bytes: &[u8]) -> BTreeMap<String, String> {
    let signature: Signature = key.sign(bytes);
    let pairs = annotations(key.verifying_key(), &signature);
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn good() -> BTreeMap<String, String> {
    sign(&key(1), &signed_bytes(&IMAGE))
}

#[track_caller]
fn refused(change: impl FnOnce(&mut BTreeMap<String, String>), expected: SignatureError) {
    let mut annotations = good();
    change(&mut annotations);
    assert_eq!(verify(&annotations, &IMAGE), Err(expected));
}

#[test]
fn a_signature_proves_its_signer() {
    let mut annotations = good();
    annotations.insert("org.opencontainers.image.title".into(), "site".into());
    let signer = verify(&annotations, &IMAGE).unwrap().unwrap();
    assert_eq!(signer, Signer::of(key(1).verifying_key()));
    let point = hex::decode(annotations.get(SIGNER_ANNOTATION).unwrap()).unwrap();
    assert_eq!((point.len(), signer.digest()), (65, Digest::of(&[&point])));
    assert_ne!(signer, Signer::of(key(2).verifying_key()));
}

#[test]
fn what_is_signed_is_as_specified() {
    let bytes = signed_bytes(&IMAGE);
    assert_eq!(bytes, [&b"coffer/image-signature/v1\0"[..], &[7; 32]].concat());
}

#[test]
fn only_no_annotation_at_all_is_no_signer() {
    assert_eq!(verify(&BTreeMap::new(), &IMAGE), Ok(None));
    let missing = SignatureError::Incomplete;
    refused(|a| drop(a.remove(SIGNER_ANNOTATION)), missing(SIGNER_ANNOTATION));
    refused(|a| drop(a.remove(SIGNATURE_ANNOTATION)), missing(SIGNATURE_ANNOTATION));
}

#[test]
fn a_signature_is_for_one_image_one_key_and_one_purpose() {
    assert_eq!(verify(&good(), &Digest([8; 32])), Err(SignatureError::Wrong));
    let other = sign(&key(2), &signed_bytes(&IMAGE));
    for name in [SIGNER_ANNOTATION, SIGNATURE_ANNOTATION] {
        let value = other.get(name).unwrap().clone();
        refused(|a| drop(a.insert(name.into(), value)), SignatureError::Wrong);
    }
    assert_eq!(verify(&sign(&key(1), &IMAGE.0), &IMAGE), Err(SignatureError::Wrong));
}

#[test]
fn every_flipped_bit_of_a_signature_is_refused() {
    let signature = hex::decode(good().get(SIGNATURE_ANNOTATION).unwrap()).unwrap();
    for bit in 0..signature.len() * 8 {
        let mut flipped = signature.clone();
        *flipped.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
        let mut annotations = good();
        annotations.insert(SIGNATURE_ANNOTATION.into(), hex::encode(flipped));
        assert!(verify(&annotations, &IMAGE).is_err(), "bit {bit}");
    }
}

#[test]
fn one_spelling_only() {
    let of = |name: &str| good().get(name).unwrap().clone();
    let (point, signature) = (of(SIGNER_ANNOTATION), of(SIGNATURE_ANNOTATION));
    let compressed = hex::encode(key(1).verifying_key().to_sec1_point(true).as_bytes());
    // The x of another point with this y, and a point of the hybrid form.
    let off_curve = format!("04{}{}", "11".repeat(32), point.get(66..).unwrap());
    let hybrid = format!("06{}", point.get(2..).unwrap());
    for text in [
        "".into(),
        point.to_uppercase(),
        format!(" {point}"),
        format!("{point}00"),
        "00".into(),
        compressed,
        off_curve,
        hybrid,
    ] {
        refused(|a| drop(a.insert(SIGNER_ANNOTATION.into(), text)), SignatureError::Key);
    }
    let zero = "00".repeat(64);
    for text in ["".into(), signature.to_uppercase(), format!("{signature}00"), zero] {
        refused(|a| drop(a.insert(SIGNATURE_ANNOTATION.into(), text)), SignatureError::Form);
    }
}
