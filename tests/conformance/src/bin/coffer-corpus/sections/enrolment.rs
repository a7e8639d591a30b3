//! D1 to D11, D31 to D40: keys that want to be enrolled, and the proof that they are in one TPM.

use coffer_attestation::tpm::public::attributes;
use coffer_attestation::tpm::template::AK_ATTRIBUTES;
use coffer_attestation::{ObjectName, binding, enroll};
use coffer_conformance::case::{Files, Surface};

use super::quoted;
use super::{altered, resigned};
use crate::attest::Attest;
use crate::book::{About, Book};
use crate::keys::{Key, OWNER, name, qualified};
use crate::record::text;
use crate::scene::{self, NONCE};

const RESIGNED: &str = "enrolment-resigned";
const RECORDED: &str = "enrolment-p256-ek";
const RSA_EK: &str = "enrolment-rsa-ek";
const SESSION: &str = "00112233445566778899aabbccddeeff";
const SECRET: [u8; 32] = [0x33; 32];

pub fn originals(book: &mut Book) {
    let mut files = book.original(RECORDED);
    Draft::good(&files).write(&mut files);
    book.derive(RESIGNED, RECORDED, files);
}

/// An enrolment of a software key, before anything is signed.
struct Draft {
    key: Key,
    public: Vec<u8>,
    /// Public area of the key the credential was made for.
    challenged: Vec<u8>,
    attest: Attest,
    signer: Option<Vec<u8>>,
    secret: [u8; 32],
    session: &'static str,
}

impl Draft {
    fn good(files: &Files) -> Self {
        Self::of(files, Key::p256(1))
    }

    fn of(files: &Files, key: Key) -> Self {
        let public = key.public();
        Self {
            challenged: public.clone(),
            public,
            key,
            attest: Attest::parse(&files["quote.msg"]),
            signer: None,
            secret: SECRET,
            session: SESSION,
        }
    }

    /// The key's public area is this one.
    fn with_public(mut self, public: Vec<u8>) -> Self {
        self.challenged = public.clone();
        self.public = public;
        self
    }

    fn write(mut self, files: &mut Files) {
        let ak_name = ObjectName::from_slice(&name(&self.public)).unwrap();
        let claims = scene::host_claims(ak_name).encode();
        let extra = binding::host_quote(1, &binding::enroll_leaf(&NONCE), &claims);
        self.attest.extra = extra.0.to_vec();
        self.attest.signer =
            self.signer.unwrap_or_else(|| qualified(crate::keys::ENDORSEMENT, &name(&self.public)));
        quoted::put(files, &self.key, &self.attest);
        let proof = enroll::proof(&self.secret, self.session, &NONCE, &ak_name);
        files.insert("proof.bin".into(), proof.to_vec());
        files.insert("host-claims.cbor".into(), claims);
        files.insert("ak.pub".into(), self.public);
        let mut context: serde_json::Value =
            serde_json::from_slice(&files["context.json"]).unwrap();
        context["challenged_ak"] = hex::encode(self.challenged).into();
        files.insert("context.json".into(), text(&context));
    }
}

#[track_caller]
fn refuse(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&Files) -> Draft) {
    book.refuse(Surface::Enrolment, RESIGNED, code, about, |files| {
        let draft = change(files);
        draft.write(files);
    });
}

pub fn cases(book: &mut Book) {
    key_attributes(book);
    schemes(book);
    endorsement_keys(book);
    activation(book);
}

/// D1 to D6, C17.
fn key_attributes(book: &mut Book) {
    for (id, slug, title, change) in [
        ("D1", "not-restricted", "the key signs whatever it is given", attributes::RESTRICTED),
        ("D2", "not-fixed-tpm", "the key can be duplicated", attributes::FIXED_TPM),
        ("D3", "not-fixed-parent", "the key can be moved", attributes::FIXED_PARENT),
        ("D4", "imported", "the key was not made in the TPM", attributes::SENSITIVE_DATA_ORIGIN),
        ("D5", "decrypts", "the key also decrypts", attributes::DECRYPT),
        ("D6", "does-not-sign", "the key does not sign", attributes::SIGN),
    ] {
        let about = resigned(id, slug, title, "one attribute differs from an attestation key's");
        refuse(book, "bad-ak-attributes", &about, |files| {
            Draft::of(files, Key::p256(1).with_attributes(AK_ATTRIBUTES ^ change))
        });
    }
    let about = resigned(
        "C17",
        "unrestricted-key-signs-forgery",
        "an unrestricted key signs a TPMS_ATTEST that no TPM made",
        "the forged quote has magic, type, nonce and registers as they should be; the key is what gives it away",
    );
    refuse(book, "bad-ak-attributes", &about, |files| {
        let key = Key::p256(1).with_attributes(AK_ATTRIBUTES & !attributes::RESTRICTED);
        let mut draft = Draft::of(files, key);
        draft.attest.firmware = 0x0bad_c0de;
        draft
    });
}

/// D7 and D8.
fn schemes(book: &mut Book) {
    let about = resigned(
        "D7",
        "no-scheme",
        "the key leaves the scheme to whoever uses it",
        "scheme is TPM_ALG_NULL",
    );
    refuse(book, "bad-ak-attributes", &about, |files| {
        let public = Key::p256(1).public();
        let null = [&public[..12], &[0, 0x10], &public[16..]].concat();
        Draft::good(files).with_public(null)
    });
    let about =
        resigned("D8", "name-under-sha1", "the key's name is a SHA-1 digest", "nameAlg is SHA-1");
    refuse(book, "weak-hash", &about, |files| {
        let mut public = Key::p256(1).public();
        public[3] = 4;
        Draft::good(files).with_public(public)
    });
    let about = resigned(
        "D8",
        "scheme-hash-sha1",
        "the key signs SHA-1 digests",
        "hash of the scheme is SHA-1",
    );
    refuse(book, "weak-hash", &about, |files| {
        let mut public = Key::p256(1).public();
        public[15] = 4;
        Draft::good(files).with_public(public)
    });
}

/// D11.
fn endorsement_keys(book: &mut Book) {
    let title = "the EK is not made from a TCG template";
    for (slug, original, at, bytes) in [
        ("not-restricted", RECORDED, 4, &[0, 2, 0, 0xb2][..]),
        ("usable-with-password", RECORDED, 4, &[0, 3, 0, 0xf2]),
        ("signs", RECORDED, 4, &[0, 5, 0, 0xb2]),
        ("other-policy", RECORDED, 12, &[0]),
        ("other-policy-rsa", RSA_EK, 12, &[0]),
        ("not-restricted-rsa", RSA_EK, 4, &[0, 2, 0, 0xb2]),
    ] {
        let about = altered("D11", slug, title, slug);
        book.refuse(Surface::Enrolment, original, "bad-ek-template", &about, |files| {
            files.get_mut("ek.pub").unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        });
    }
    let about = altered("D11", "attestation-key-as-ek", title, "the AK is sent as the EK");
    book.refuse(Surface::Enrolment, RECORDED, "bad-ek-template", &about, |files| {
        let ak = files["ak.pub"].clone();
        files.insert("ek.pub".into(), ak);
    });
}

/// D31, D33, D34, D39, D40.
fn activation(book: &mut Book) {
    let cve: &[&str] = &["CVE-2023-38201"];
    let about = altered(
        "D31",
        "other-secret",
        "the answer is not made with the secret",
        "a proof under another secret",
    )
    .source(cve);
    refuse(book, "activation-failed", &about, |files| Draft {
        secret: [0; 32],
        ..Draft::good(files)
    });
    for (slug, proof) in [("empty", vec![]), ("zeros", vec![0; 32]), ("half", vec![0x33; 16])] {
        let about =
            altered("D31", slug, "the answer is not made with the secret", slug).source(cve);
        book.refuse(Surface::Enrolment, RECORDED, "activation-failed", &about, |files| {
            files.insert("proof.bin".into(), proof);
        });
    }
    let about = altered(
        "D31",
        "secret-itself",
        "the secret is sent instead of the proof",
        "the bytes the credential held",
    );
    book.refuse(Surface::Enrolment, RECORDED, "activation-failed", &about, |files| {
        files.insert("proof.bin".into(), SECRET.to_vec());
    });
    let about = altered(
        "D33",
        "other-session",
        "the answer is for another session",
        "the proof names another session",
    );
    refuse(book, "activation-failed", &about, |files| Draft {
        session: "ffeeddccbbaa99887766554433221100",
        ..Draft::good(files)
    });
    let about = altered(
        "D34",
        "other-tpm",
        "another TPM answers",
        "TPM2_ActivateCredential fails there, so the secret is a guess",
    );
    refuse(book, "activation-failed", &about, |files| Draft {
        secret: [0x34; 32],
        ..Draft::good(files)
    });
    let about = resigned(
        "D39",
        "ak-swapped",
        "the key is swapped between challenge and answer",
        "proof and quote are of another key than the credential was made for",
    )
    .source(&["CVE-2022-1053"]);
    refuse(book, "activation-failed", &about, |files| {
        let challenged = Key::p256(1).public();
        Draft { challenged, ..Draft::of(files, Key::p256(3)) }
    });
    let about = altered(
        "D39",
        "quote-of-another-key",
        "the first quote is of another key than the one enrolled",
        "the proof is good, the quote is signed by another key",
    );
    book.refuse(Surface::Enrolment, RESIGNED, "bad-signature", &about, |files| {
        let signature = Key::p256(3).sign(&files["quote.msg"]);
        files.insert("quote.sig".into(), signature);
    });
    let about = resigned(
        "D40",
        "ak-in-owner-hierarchy",
        "the key hangs in the owner hierarchy",
        "qualifiedSigner is that of a primary under TPM_RH_OWNER",
    );
    refuse(book, "signer-name-mismatch", &about, |files| {
        let mut draft = Draft::good(files);
        draft.signer = Some(qualified(OWNER, &name(&draft.public)));
        draft
    });
}
