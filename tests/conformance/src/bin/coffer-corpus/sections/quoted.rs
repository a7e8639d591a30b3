//! Quotes under software keys: what swtpm quoted, signed again, and from there changed before signing.

use coffer_attestation::Digest;
use coffer_attestation::tpm::alg;
use coffer_conformance::case::{Files, Surface};
use serde_json::Value;

use crate::attest::Attest;
use crate::book::{About, Book};
use crate::keys::{Key, sha384};
use crate::record::{pcrs_json, text};

pub const P256: &str = "quote-p256-sha256-resigned";
pub const P256_SHA384: &str = "quote-p256-sha384-resigned";
pub const P384: &str = "quote-p384-sha384-resigned";
pub const RSA: &str = "quote-rsa2048-sha256-resigned";

/// The key that a resigned original trusts.
pub fn key(original: &str) -> Key {
    match original {
        P384 => Key::p384(1),
        RSA => Key::rsa("rsa2048"),
        _ => Key::p256(1),
    }
}

pub fn originals(book: &mut Book) {
    for (name, from) in [
        (P256, "quote-p256-sha256"),
        (P256_SHA384, "quote-p256-sha384"),
        (P384, "quote-p384-sha384"),
        (RSA, "quote-rsa2048-sha256"),
    ] {
        let key = key(name);
        let mut files = book.original(from);
        let mut attest = Attest::parse(&files["quote.msg"]);
        attest.signer = key.qualified_name();
        put(&mut files, &key, &attest);
        files.insert("ak.pub".into(), key.public());
        book.derive(name, from, files);
    }
}

/// Puts an attest and its signature in place.
pub fn put(files: &mut Files, key: &Key, attest: &Attest) {
    let message = attest.encode();
    files.insert("quote.sig".into(), key.sign(&message));
    files.insert("quote.msg".into(), message);
}

/// A register value as sent: bank, register, value.
pub type Value3 = (String, u8, Vec<u8>);

/// Everything a case may change before the key signs.
pub struct Quote {
    pub attest: Attest,
    pub values: Vec<Value3>,
    pub context: Value,
}

impl Quote {
    pub fn read(files: &Files) -> Self {
        Self {
            attest: Attest::parse(&files["quote.msg"]),
            values: values(&files["pcrs.json"]),
            context: serde_json::from_slice(&files["context.json"]).unwrap(),
        }
    }

    /// Lets the signed digest cover the values as they are, under SHA-256.
    pub fn digest_values(&mut self) {
        let values: Vec<&[u8]> = self.values.iter().map(|(.., value)| value.as_slice()).collect();
        self.attest.digest = Digest::of(&values).as_bytes().to_vec();
    }

    /// The same under SHA-384.
    pub fn digest_values_sha384(&mut self) {
        let values: Vec<&[u8]> = self.values.iter().map(|(.., value)| value.as_slice()).collect();
        self.attest.digest = sha384(&values);
    }
}

pub fn values(json: &[u8]) -> Vec<Value3> {
    let values: Vec<Value> = serde_json::from_slice(json).unwrap();
    let value = |v: &Value| {
        (
            v["bank"].as_str().unwrap().to_owned(),
            u8::try_from(v["pcr"].as_u64().unwrap()).unwrap(),
            hex::decode(v["value"].as_str().unwrap()).unwrap(),
        )
    };
    values.iter().map(value).collect()
}

pub fn write_values(values: &[Value3]) -> Vec<u8> {
    pcrs_json(values.iter().map(|(bank, pcr, value)| (bank.as_str(), *pcr, value.as_slice())))
}

/// A refused case: the quote is changed, then signed.
#[track_caller]
pub fn refuse(
    book: &mut Book,
    original: &str,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Quote),
) {
    let key = key(original);
    book.refuse(Surface::Quote, original, code, about, |files| {
        let mut quote = Quote::read(files);
        change(&mut quote);
        put(files, &key, &quote.attest);
        files.insert("pcrs.json".into(), write_values(&quote.values));
        files.insert("context.json".into(), text(&quote.context));
    });
}

/// TPM_ALG_ID of a bank.
pub const SHA256: u16 = alg::SHA256;
