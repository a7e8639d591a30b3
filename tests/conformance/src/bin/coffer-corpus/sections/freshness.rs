//! E: what was asked for. Cases that need a verifier with a memory are of the `protocol` surface.

use super::evidence::refuse_known;
use super::quoted::{P256, refuse};
use super::{altered, resigned};
use crate::book::Book;
use crate::record::EXTRA;

pub fn cases(book: &mut Book) {
    let title = "the quote answers another challenge";
    let about = resigned("E3", "other-nonce", title, "extraData is another session's");
    refuse(book, P256, "nonce-mismatch", &about, |q| q.attest.extra = vec![0x23; 32]);
    let about = altered(
        "E3",
        "other-challenge-consumed",
        title,
        "good evidence for a challenge other than the one consumed",
    );
    refuse_known(book, "nonce-mismatch", &about, |c| c["nonce"] = "12".repeat(32).into());
    let about = altered(
        "E1",
        "challenge-used-up",
        "the challenge was used up before",
        "the verifier finds no such challenge",
    );
    refuse_known(book, "nonce-consumed", &about, |c| c["nonce"] = serde_json::Value::Null);
    let base64 = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(EXTRA)
    };
    for (id, slug, extra) in [
        ("E5", "empty", vec![]),
        ("E6", "prefix", EXTRA[..31].to_vec()),
        ("E6", "first-half", EXTRA[..16].to_vec()),
        ("E7", "byte-appended", [&EXTRA[..], &[0]].concat()),
        ("E7", "filled-to-64", [&EXTRA[..], &[0; 32]].concat()),
        ("E8", "as-hex", hex::encode(EXTRA).into_bytes()),
        ("E8", "as-base64", base64.into_bytes()),
    ] {
        let about = resigned(id, slug, "extraData is nearly the challenge", slug);
        refuse(book, P256, "nonce-mismatch", &about, |q| q.attest.extra = extra);
    }
}
