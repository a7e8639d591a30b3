//! B16, H1 to H3, H18, I1: what else is refused of a whole evidence.

use coffer_attestation::cbor;
use coffer_attestation::evidence::Evidence;
use coffer_conformance::case::Surface;
use serde_json::json;

use super::evidence::{RECORDED, position, refuse, refuse_altered, refuse_known};
use super::linkage::splice;
use super::{altered, resigned};
use crate::book::Book;
use coffer_conformance::case::{Sweep, SweepKind};

pub fn cases(book: &mut Book) {
    let title = "two quotes are sent where one is";
    let about = altered(
        "B16",
        "second-quote-in-host-part",
        title,
        "the host part has the key of its quote twice, the second a forgery",
    )
    .source(&["GHSA-r2h5-3hgw-8j34"]);
    book.refuse(Surface::Evidence, RECORDED, "not-canonical", &about, |files| {
        let good = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
        let quote = cbor::encode(&good.host.quote);
        let mut forged = good.host.quote.clone();
        forged.pcrs[0].digest.0[0] ^= 1;
        let forged = cbor::encode(&forged);
        // Key 2 and its value, then the same key again.
        let twice = [&quote[..], &[0x02], &forged].concat();
        let host = cbor::encode(&good.host);
        splice(files, &quote, &twice);
        // One entry more in the host part's head.
        let evidence = files.get_mut("evidence.cmw").unwrap();
        let at = evidence.windows(4).position(|w| w == &host[..4]).unwrap();
        evidence[at] += 1;
    });
    for (slug, path) in [("bit-of-host-register", true), ("bit-of-vm-register", false)] {
        let files = book.original(RECORDED);
        let good = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
        let quote = if path { good.host.quote } else { good.vm.quote };
        let value = quote.pcrs.iter().find(|v| v.index == 9).unwrap().digest;
        let from = position(&files, value.as_bytes());
        let about = altered(
            "C1",
            slug,
            "one bit of a register's value is flipped",
            "bit `offset mod 8` of each byte of PCR 9 in turn",
        );
        let sweep = Sweep {
            file: "evidence.cmw".into(),
            kind: SweepKind::FlipBit,
            from,
            to: from + 32,
            beside: None,
        };
        book.sweep(Surface::Evidence, RECORDED, "pcr-digest-mismatch", &about, sweep, vec![]);
    }
    keys(book);
    let about = altered(
        "H18",
        "host-removed-since",
        "the host was removed after it was enrolled",
        "the verifier has no such host any more",
    );
    refuse_known(book, "not-enrolled", &about, |c| c["hosts"] = json!([]));
    let about = altered(
        "I1",
        "no-reference-value",
        "there is no reference value for the host",
        "the verifier knows no host build",
    );
    refuse_known(book, "host-not-recognised", &about, |c| c["references"] = json!([]));
    for register in ["0", "7"] {
        let slug = format!("no-reference-value-for-pcr{register}");
        let about =
            altered("I1", &slug, "a reference value says nothing of a register it must", &slug);
        refuse_known(book, "host-not-recognised", &about, |c| {
            let firmware = c["references"][0]["firmware"].as_object_mut().unwrap();
            firmware.remove(register);
        });
    }
    let about = altered(
        "I1",
        "reference-of-another-build",
        "the reference value is of another build",
        "another initrd",
    );
    refuse_known(book, "host-not-recognised", &about, |c| {
        c["references"][0]["initrd"] = "ee".repeat(32).into();
    });
}

/// H1 to H3: the key a secret would be sealed to.
fn keys(book: &mut Book) {
    let about = altered(
        "H1",
        "hpke-key-not-covered",
        "the key to seal to is not the one that was quoted",
        "another key in the runtime data",
    )
    .source(&["GHSA-r2h5-3hgw-8j34"]);
    refuse_altered(book, RECORDED, "report-data-mismatch", &about, |e| {
        let at = e.runtime_data.windows(32).position(|w| w == [9; 32]).unwrap();
        e.runtime_data[at..at + 32].copy_from_slice(&[8; 32]);
    });
    let about = resigned(
        "H1",
        "hpke-key-vm-quote-alone",
        "the key to seal to is covered by the VM quote and not by the host's claims",
        "runtime data with another key; the VM quotes it, the claims answer for the old one",
    );
    refuse(book, "report-data-mismatch", &about, |d| d.runtime.hpke_key = [8; 32]);
    let about = altered(
        "H2",
        "hpke-key-changed-with-claims",
        "the key to seal to was changed after the quotes, and the claims with it",
        "another key in the runtime data, its digest in the VM claims",
    );
    refuse_altered(book, RECORDED, "host-binding-mismatch", &about, |e| {
        let before = coffer_attestation::Digest::of(&[&e.runtime_data]);
        let at = e.runtime_data.windows(32).position(|w| w == [9; 32]).unwrap();
        e.runtime_data[at..at + 32].copy_from_slice(&[8; 32]);
        let after = coffer_attestation::Digest::of(&[&e.runtime_data]);
        let claims = &mut e.host.vm_claims;
        let at = claims.windows(32).position(|w| w == before.as_bytes()).unwrap();
        claims[at..at + 32].copy_from_slice(after.as_bytes());
    });
    let mut one = [0; 32];
    one[0] = 1;
    // A point of order 8 (RFC 7748, section 7; cr.yp.to/ecdh.html).
    let eight =
        hex::decode("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800").unwrap();
    for (slug, key) in
        [("all-zero", [0; 32]), ("order-1", one), ("order-8", eight.try_into().unwrap())]
    {
        let about = resigned("H3", slug, "the key to seal to is a point of small order", slug);
        refuse(book, "bad-key", &about, |d| {
            d.runtime.hpke_key = key;
            d.bind_runtime();
        });
    }
    let about = resigned(
        "E3",
        "other-audience",
        "the evidence is meant for another verifier",
        "another URL in the runtime data",
    );
    refuse(book, "audience-mismatch", &about, |d| {
        d.runtime.audience = "https://192.0.2.8:8443".into();
        d.bind_runtime();
    });
}
