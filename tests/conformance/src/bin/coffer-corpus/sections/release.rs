//! H14 to H16: what a verifier, or whoever sits between, hands to a guest.

use coffer_attestation::cbor;
use coffer_attestation::release::{Release, SignedRelease};
use coffer_conformance::case::Surface;

use super::{altered, resigned};
use crate::book::{About, Book};
use crate::record::sign_release;

const ORIGINAL: &str = "release-two-secrets";

#[track_caller]
fn refuse(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Release)) {
    book.refuse(Surface::Release, ORIGINAL, code, about, |files| {
        let signed: SignedRelease = cbor::decode(&files["release.bin"], 1 << 20).unwrap();
        let mut release: Release = cbor::decode(&signed.payload, 1 << 20).unwrap();
        change(&mut release);
        files.insert("release.bin".into(), sign_release(cbor::encode(&release)));
    });
}

pub fn cases(book: &mut Book) {
    let aws: &[&str] = &["zxs.ch 2024-12: unauthenticated KMS responses"];
    let about = resigned(
        "H14",
        "ciphertexts-swapped",
        "the ciphertext of one secret is served as another",
        "the two secrets carry each other's ciphertext",
    )
    .source(&["Trail of Bits 2026-08"]);
    refuse(book, "secret-unsealable", &about, |r| {
        let (a, b) = r.secrets.split_at_mut(1);
        std::mem::swap(&mut a[0].ciphertext, &mut b[0].ciphertext);
        std::mem::swap(&mut a[0].encapsulated, &mut b[0].encapsulated);
    });
    let about = resigned(
        "H14",
        "ids-swapped",
        "the ciphertext of one secret is served as another",
        "the two secrets carry each other's id",
    );
    refuse(book, "secret-unsealable", &about, |r| {
        let (a, b) = r.secrets.split_at_mut(1);
        std::mem::swap(&mut a[0].id, &mut b[0].id);
    });
    let about = resigned(
        "H15",
        "version-relabelled",
        "an old version of a secret is served as the new one",
        "version 2 carries the number 3",
    );
    refuse(book, "secret-unsealable", &about, |r| r.secrets[0].version = 3);
    let about = resigned(
        "H15",
        "release-of-an-older-challenge",
        "a release for an older challenge is served again",
        "another nonce, properly signed",
    );
    refuse(book, "release-mismatch", &about, |r| r.nonce.0[0] ^= 1);
    let about = resigned(
        "H15",
        "release-for-other-evidence",
        "a release for other evidence is served",
        "another evidence digest, properly signed",
    );
    refuse(book, "release-mismatch", &about, |r| r.evidence.0[0] ^= 1);
    let about = altered(
        "H16",
        "signed-by-another-key",
        "the release is signed by another key than the pinned one",
        "a key that is as good by itself",
    )
    .source(aws);
    book.refuse(Surface::Release, ORIGINAL, "release-signature", &about, |files| {
        use p256::ecdsa::signature::Signer as _;
        let signed: SignedRelease = cbor::decode(&files["release.bin"], 1 << 20).unwrap();
        let key = p256::ecdsa::SigningKey::from_slice(&[0x56; 32]).unwrap();
        let signature: p256::ecdsa::Signature =
            key.sign(&SignedRelease::signed_bytes(&signed.payload));
        let signature = signature.to_bytes().to_vec();
        files.insert("release.bin".into(), cbor::encode(&SignedRelease { signature, ..signed }));
    });
    let about = altered(
        "H16",
        "signature-without-label",
        "the release is signed without its label",
        "the pinned key signs the bare payload",
    );
    book.refuse(Surface::Release, ORIGINAL, "release-signature", &about, |files| {
        use p256::ecdsa::signature::Signer as _;
        let signed: SignedRelease = cbor::decode(&files["release.bin"], 1 << 20).unwrap();
        let signature: p256::ecdsa::Signature = crate::record::release_key().sign(&signed.payload);
        let signature = signature.to_bytes().to_vec();
        files.insert("release.bin".into(), cbor::encode(&SignedRelease { signature, ..signed }));
    });
    let about = resigned(
        "H16",
        "secret-left-out",
        "a release lacks a secret that was asked for",
        "the second secret is gone, properly signed",
    );
    refuse(book, "secret-missing", &about, |r| drop(r.secrets.pop()));
    let about = resigned(
        "H16",
        "secret-not-asked-for",
        "a release brings a secret nobody asked for",
        "a third one, properly signed",
    );
    refuse(book, "secret-unexpected", &about, |r| {
        let mut third = r.secrets[0].clone();
        third.id = "site/other".into();
        r.secrets.push(third);
    });
}
