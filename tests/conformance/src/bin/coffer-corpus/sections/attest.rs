//! A: TPMS_ATTEST.

use coffer_attestation::Digest;
use coffer_attestation::tpm::wire::Writer;
use coffer_conformance::case::{Beside, Surface, Sweep, SweepKind};

use super::quoted::{self, P256, refuse};
use super::{altered, resigned};
use crate::attest::Attest;
use crate::book::Book;
use crate::keys::{OWNER, qualified};

pub fn cases(book: &mut Book) {
    let key = quoted::key(P256);
    let about =
        resigned("A1", "bad-magic", "magic is not TPM_GENERATED_VALUE", "magic is ff544346")
            .source(&["CVE-2024-29038", "CVE-2024-29040"]);
    refuse(book, P256, "bad-magic", &about, |q| q.attest.magic = 0xff54_4346);
    types(book);
    let about = resigned("A7", "trailing-byte", "a byte follows the quote info", "00 appended");
    refuse(book, P256, "trailing-data", &about, |q| q.attest.tail = vec![0]);
    truncations(book);
    for (slug, size) in [("extra-data-of-65535", [0xff, 0xff]), ("extra-data-of-255", [0, 0xff])] {
        let about = resigned("A9", slug, "extraData is said to be longer than what follows", slug);
        book.refuse(Surface::Quote, P256, "malformed", &about, |files| {
            let mut message = files["quote.msg"].clone();
            let at = 4 + 2 + 2 + 34;
            message[at..at + 2].copy_from_slice(&size);
            files.insert("quote.sig".into(), key.sign(&message));
            files.insert("quote.msg".into(), message);
        });
    }
    signers(book);
    let about = resigned(
        "A12",
        "unsafe-clock",
        "safe is NO where a safe clock is asked for",
        "safe is 0, the verifier asks for YES",
    );
    refuse(book, P256, "unsafe-clock", &about, |q| {
        q.attest.safe = 0;
        q.context["safe_clock"] = true.into();
    });
    let about = resigned("A13", "safe-of-2", "safe is no TPMI_YES_NO", "safe is 2");
    refuse(book, P256, "malformed", &about, |q| q.attest.safe = 2);
    let about = resigned(
        "A14",
        "little-endian",
        "a little-endian memory dump",
        "every integer in the byte order of the host, as tpm2-tools once wrote TPMS_ATTEST",
    );
    book.refuse(Surface::Quote, P256, "bad-magic", &about, |files| {
        let message = little_endian(&Attest::parse(&files["quote.msg"]));
        files.insert("quote.sig".into(), key.sign(&message));
        files.insert("quote.msg".into(), message);
    });
    let about = resigned(
        "A15",
        "tpm2b-wrapper",
        "a TPM2B_ATTEST instead of what is in it",
        "two bytes of size before the magic",
    );
    book.refuse(Surface::Quote, P256, "bad-magic", &about, |files| {
        let message = Writer::new().tpm2b(&files["quote.msg"]).finish();
        files.insert("quote.sig".into(), key.sign(&message));
        files.insert("quote.msg".into(), message);
    });
}

/// A2 to A6: structures a TPM signs with the same key and that are no quotes.
fn types(book: &mut Book) {
    let name = quoted::key(P256).name();
    let certify = Writer::new().tpm2b(&name).tpm2b(&qualified(OWNER, &name)).finish();
    let nv = Writer::new().tpm2b(&name).u16(0).tpm2b(&[0; 32]).finish();
    let time = Writer::new().bytes(&[0; 8]).bytes(&[0; 17]).bytes(&[0; 8]).finish();
    let creation = Writer::new().tpm2b(&name).tpm2b(&[0; 32]).finish();
    let audit = Writer::new().u8(0).tpm2b(&[0; 32]).finish();
    let command_audit = Writer::new().bytes(&[0; 8]).u16(0x000b).tpm2b(&[0; 32]).tpm2b(&[0; 32]);
    let gwfg: &[&str] = &["GHSA-gwfg-w3jr-xh66"];
    for (id, slug, kind, body) in [
        ("A2", "certify", 0x8017, Some(certify)),
        ("A2", "certify-shaped-as-quote", 0x8017, None),
        ("A3", "nv-shaped-as-quote", 0x8014, None),
        ("A3", "nv", 0x8014, Some(nv)),
        ("A4", "time", 0x8019, Some(time)),
        ("A5", "creation", 0x801a, Some(creation)),
        ("A6", "session-audit", 0x8016, Some(audit)),
        ("A6", "command-audit-shaped-as-quote", 0x8015, None),
        ("A6", "command-audit", 0x8015, Some(command_audit.finish())),
    ] {
        let mutation = match body {
            Some(_) => format!("type is {kind:04x}, and what follows is of that type"),
            None => format!("type is {kind:04x}, what follows is still quote info"),
        };
        let about = resigned(id, slug, "another attestation than a quote", &mutation).source(gwfg);
        refuse(book, P256, "wrong-attest-type", &about, |q| {
            q.attest.kind = kind;
            q.attest.body = body;
        });
    }
}

/// A8: truncation at every offset, under the old signature and under new ones.
fn truncations(book: &mut Book) {
    let key = quoted::key(P256);
    let message = book.original(P256)["quote.msg"].clone();
    let sweep = |beside| Sweep {
        file: "quote.msg".into(),
        kind: SweepKind::Truncate,
        from: 0,
        to: message.len(),
        beside,
    };
    let about = altered(
        "A8",
        "truncated",
        "truncated at each byte",
        "only the bytes before the offset stay",
    );
    book.sweep(Surface::Quote, P256, "bad-signature", &about, sweep(None), vec![]);
    let signatures: Vec<u8> =
        (0..message.len()).flat_map(|len| key.sign(&message[..len])).collect();
    let size = signatures.len() / message.len();
    let beside = Beside { file: "quote.sig".into(), records: "signatures.bin".into(), size };
    let about = resigned(
        "A8",
        "truncated-resigned",
        "truncated at each byte",
        "only the bytes before the offset stay, and they are what is signed",
    );
    book.sweep(Surface::Quote, P256, "malformed", &about, sweep(Some(beside)), signatures);
}

/// A10 and A11: who is said to have signed.
fn signers(book: &mut Book) {
    let key = quoted::key(P256);
    let name = key.name();
    let title = "qualifiedSigner is not the qualified name of the key";
    for (slug, signer) in [
        ("owner-hierarchy", qualified(OWNER, &name)),
        ("name-not-qualified", name),
        ("other-key", crate::keys::Key::p256(2).qualified_name()),
    ] {
        let about = resigned("A10", slug, title, slug);
        refuse(book, P256, "signer-name-mismatch", &about, |q| q.attest.signer = signer);
    }
    let title = "qualifiedSigner is no name of an object";
    for (slug, code, signer) in [
        ("signer-empty", "malformed", vec![]),
        ("signer-handle", "malformed", vec![0x80, 0, 0, 1]),
        ("signer-sha1", "weak-hash", [&[0, 4], &Digest::ZERO.0[..20]].concat()),
    ] {
        let about = resigned("A11", slug, title, slug);
        refuse(book, P256, code, &about, |q| q.attest.signer = signer);
    }
}

/// TPMS_ATTEST as a C struct of a little-endian machine, sizes as they are.
fn little_endian(a: &Attest) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes(), bytes].concat();
    [
        a.magic.to_le_bytes().to_vec(),
        a.kind.to_le_bytes().to_vec(),
        sized(&a.signer),
        sized(&a.extra),
        a.clock.to_le_bytes().to_vec(),
        a.resets.to_le_bytes().to_vec(),
        a.restarts.to_le_bytes().to_vec(),
        vec![a.safe],
        a.firmware.to_le_bytes().to_vec(),
        1u32.to_le_bytes().to_vec(),
        0x000bu16.to_le_bytes().to_vec(),
        a.selection[6..].to_vec(),
        sized(&a.digest),
    ]
    .concat()
}
