//! J, D9: encodings.

use coffer_attestation::cbor;
use coffer_attestation::evidence::Evidence;
use coffer_attestation::tpm::alg;
use coffer_conformance::case::{Files, Surface, Sweep, SweepKind};
use serde_json::json;

use super::evidence::RECORDED;
use super::linkage::wrap;
use super::quoted::{P256, refuse as refuse_quote};
use super::{altered, resigned};
use crate::book::{About, Book};
use crate::record::text;
use crate::scene;

const EVIDENCE: &str = "encoding-evidence";
const RUNTIME: &str = "encoding-runtime-data";
const VM_CLAIMS: &str = "encoding-vm-claims";
const HOST_CLAIMS: &str = "encoding-host-claims";
const RECORD: &str = "encoding-launch-record";
const DESCRIPTOR: &str = "encoding-descriptor";
const START: &str = "encoding-enroll-start";
const REFERENCE: &str = "encoding-host-reference";
pub const ALL: [&str; 8] =
    [EVIDENCE, RUNTIME, VM_CLAIMS, HOST_CLAIMS, RECORD, DESCRIPTOR, START, REFERENCE];

pub fn originals(book: &mut Book) {
    let recorded = book.original(RECORDED);
    let good = Evidence::from_cmw(&recorded["evidence.cmw"]).unwrap();
    let enrolment = book.original("enrolment-p256-ek");
    let start = json!({
        "token": "00".repeat(32),
        "host": "rack-7",
        "identity": {
            "ek_certificate": "3000",
            "ek_chain": ["3000"],
            "ek_public": hex::encode(&enrolment["ek.pub"]),
            "ak_public": hex::encode(&enrolment["ak.pub"]),
        },
    });
    for (name, kind, bytes) in [
        (EVIDENCE, "evidence", recorded["evidence.cmw"].clone()),
        (RUNTIME, "runtime-data", good.runtime_data.clone()),
        (VM_CLAIMS, "vm-claims", good.host.vm_claims.clone()),
        (HOST_CLAIMS, "host-claims", good.host.host_claims.clone()),
        (RECORD, "launch-record", good.host.launch_record.clone()),
        (DESCRIPTOR, "descriptor", good.host.descriptor.clone()),
        (START, "enroll-start", text(&start)),
        (REFERENCE, "host-reference", serde_json::to_vec_pretty(&scene::reference()).unwrap()),
    ] {
        let files: Files = [("input.bin", bytes), ("context.json", text(&json!({"kind": kind})))]
            .map(|(name, file)| (name.to_owned(), file))
            .into();
        book.derive(name, RECORDED, files);
    }
}

#[track_caller]
fn refuse(
    book: &mut Book,
    original: &str,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Vec<u8>),
) {
    book.refuse(Surface::Encoding, original, code, about, |files| {
        change(files.get_mut("input.bin").unwrap());
    });
}

pub fn cases(book: &mut Book) {
    names(book);
    cbor_cases(book);
    json_cases(book);
    texts(book);
    let about = resigned("J5", "hundred-banks", "a selection of 100 banks", "100 entries");
    refuse_quote(book, P256, "limit-exceeded", &about, |q| {
        let entry = [&alg::SHA256.to_be_bytes()[..], &[3, 0xff, 0x7b, 0]].concat();
        q.attest.selection = [&100u32.to_be_bytes()[..], &entry.repeat(100)].concat();
    });
    truncations(book);
}

/// D9: a name that somebody brings along.
fn names(book: &mut Book) {
    let about = altered(
        "D9",
        "name-supplied",
        "a name of the key is sent beside its public area",
        "`ak_name` in the identity: names are computed, so there is no such field",
    )
    .source(&["CVE-2021-3406", "GHSA-78f8-6c68-375m"]);
    refuse(book, START, "malformed", &about, |bytes| {
        replace(bytes, "\"ak_public\"", "\"ak_name\": \"000b00\",\n    \"ak_public\"");
    });
    let about =
        altered("D9", "second-ek", "two endorsement keys are sent", "`ek_tpm` beside `ek_public`")
            .source(&["CVE-2021-3406"]);
    refuse(book, START, "malformed", &about, |bytes| {
        replace(bytes, "\"ek_public\"", "\"ek_tpm\": \"00\",\n    \"ek_public\"");
    });
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from), "{from}");
    *bytes = text.replacen(from, to, 1).into_bytes();
}

/// J1.
fn cbor_cases(book: &mut Book) {
    let canonical = "not-canonical";
    let title = "CBOR in another than its deterministic encoding";
    let about = |slug| altered("J1", slug, title, slug);
    refuse(book, RUNTIME, canonical, &about("indefinite-map"), |bytes| {
        bytes[0] = 0xbf;
        bytes.push(0xff);
    });
    refuse(book, RUNTIME, canonical, &about("long-integer"), |bytes| {
        // Version 1 in two bytes.
        bytes.splice(2..3, [0x18, 1]);
    });
    refuse(book, RUNTIME, canonical, &about("long-length"), |bytes| {
        // 32 bytes of key with a length in two bytes.
        let at = bytes.windows(2).position(|w| w == [0x58, 0x20]).unwrap();
        bytes.splice(at..at + 2, [0x59, 0, 0x20]);
    });
    refuse(book, RUNTIME, canonical, &about("key-twice"), |bytes| {
        bytes[0] += 1;
        bytes.splice(1..1, [0, 1]);
    });
    refuse(book, RUNTIME, canonical, &about("keys-out-of-order"), |bytes| {
        let version: Vec<u8> = bytes.drain(1..3).collect();
        bytes.extend(version);
    });
    refuse(book, RUNTIME, canonical, &about("unknown-key"), |bytes| {
        bytes[0] += 1;
        bytes.extend([0x18, 99, 0]);
    });
    refuse(book, VM_CLAIMS, canonical, &about("trailing-byte"), |bytes| bytes.push(0));
    refuse(book, HOST_CLAIMS, canonical, &about("trailing-byte-after-host-claims"), |bytes| {
        bytes.push(0)
    });
    refuse(book, RECORD, canonical, &about("trailing-byte-after-launch-record"), |bytes| {
        bytes.push(0)
    });
    refuse(book, EVIDENCE, canonical, &about("trailing-byte-after-evidence"), |bytes| {
        bytes.push(0)
    });
    refuse(book, EVIDENCE, canonical, &about("trailing-byte-inside-evidence"), |bytes| {
        let good = Evidence::from_cmw(bytes).unwrap();
        *bytes = wrap(&[cbor::encode(&good), vec![0]].concat());
    });
    let title = "CBOR that is not what is asked for";
    let about = |slug| altered("J1", slug, title, slug);
    refuse(book, RUNTIME, "malformed", &about("tagged"), |bytes| {
        bytes.splice(2..3, [0xc1, 1]);
    });
    refuse(book, RUNTIME, "malformed", &about("not-a-number"), |bytes| {
        bytes.splice(2..3, [0xf9, 0x7e, 0x00]);
    });
    refuse(book, EVIDENCE, "malformed", &about("depth-10000"), |bytes| {
        *bytes = [vec![0x81; 10_000], vec![0]].concat()
    });
    refuse(book, EVIDENCE, "malformed", &about("depth-10000-inside"), |bytes| {
        *bytes = wrap(&[vec![0x81; 10_000], vec![0]].concat());
    });
    refuse(book, RUNTIME, "malformed", &about("list-of-2-to-the-64"), |bytes| {
        // The resource list claims 2^64-1 entries.
        let at = bytes.windows(2).position(|w| w == [0x03, 0x81]).unwrap();
        bytes.splice(at + 1..at + 2, [&[0x9b][..], &[0xff; 8]].concat());
    });
    refuse(book, RUNTIME, "malformed", &about("audience-not-utf8"), |bytes| {
        let at = bytes.windows(5).position(|w| w == b"https").unwrap();
        bytes[at] = 0xff;
    });
    let about = altered(
        "J1",
        "evidence-of-2-mib",
        "more bytes than any evidence has",
        "zeros after the evidence",
    );
    refuse(book, EVIDENCE, "limit-exceeded", &about, |bytes| bytes.extend(vec![0; 2 << 20]));
    let about = altered(
        "J1",
        "version-2",
        "a version this build does not speak",
        "version 2 of the VM claims",
    );
    refuse(book, VM_CLAIMS, "unsupported-version", &about, |bytes| bytes[2] = 2);
    let about =
        altered("J1", "other-media-type", "a CMW of another type", "one letter of the media type");
    refuse(book, EVIDENCE, "unsupported-version", &about, |bytes| bytes[5] ^= 0x20);
}

/// J2.
fn json_cases(book: &mut Book) {
    let about = |slug| altered("J2", slug, "JSON that says two things, or too much", slug);
    refuse(book, START, "malformed", &about("key-twice"), |bytes| {
        replace(bytes, "\"host\": \"rack-7\"", "\"host\": \"rack-7\", \"host\": \"rack-8\"");
    });
    refuse(book, DESCRIPTOR, "bad-descriptor", &about("key-twice-in-descriptor"), |bytes| {
        replace(bytes, "\"svn\":4", "\"svn\":4,\"svn\":5");
    });
    refuse(book, REFERENCE, "malformed", &about("key-twice-in-reference"), |bytes| {
        replace(bytes, "\"svn\": 3", "\"svn\": 3, \"svn\": 4");
    });
    refuse(book, START, "malformed", &about("unknown-key"), |bytes| {
        replace(bytes, "\"host\":", "\"admin\": true, \"host\":");
    });
    refuse(book, DESCRIPTOR, "bad-descriptor", &about("number-of-1e400"), |bytes| {
        replace(bytes, "\"svn\":4", "\"svn\":1e400");
    });
    refuse(book, REFERENCE, "malformed", &about("number-of-1e400-in-reference"), |bytes| {
        replace(bytes, "\"svn\": 3", "\"svn\": 1e400");
    });
    refuse(book, START, "malformed", &about("depth-100000"), |bytes| *bytes = vec![b'['; 100_000]);
    refuse(book, DESCRIPTOR, "bad-descriptor", &about("depth-60000-in-descriptor"), |bytes| {
        *bytes = vec![b'['; 60_000]
    });
    refuse(book, START, "malformed", &about("trailing-text"), |bytes| bytes.extend(b"{}"));
    refuse(book, DESCRIPTOR, "bad-descriptor", &about("byte-order-mark"), |bytes| {
        bytes.splice(0..0, [0xef, 0xbb, 0xbf]);
    });
}

/// J3, J4.
fn texts(book: &mut Book) {
    let about = altered(
        "J3",
        "gzip",
        "compressed evidence",
        "a gzip stream of 10 MiB of zeros: nothing is ever unpacked",
    );
    refuse(book, EVIDENCE, "malformed", &about, |bytes| {
        // gzip header, then deflate blocks that say nothing but zeros.
        let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        bomb.extend([
            0xec, 0xc1, 0x01, 0x0d, 0, 0, 0, 0xc2, 0xa0, 0xf7, 0x4f, 0x6d, 0x0f, 0x07, 0x14,
        ]);
        bomb.extend(vec![0; 10_000]);
        *bytes = bomb;
    });
    let about = altered("J3", "zlib", "compressed evidence", "a zlib header before the evidence");
    refuse(book, EVIDENCE, "malformed", &about, |bytes| {
        bytes.splice(0..0, [0x78, 0x9c]);
    });
    let title = "binary as text in another spelling";
    for (slug, to) in [
        ("upper-case-hex", "\"000B\""),
        ("hex-with-space", "\"00 0b\""),
        ("hex-with-newline", "\"000b\\n\""),
        ("odd-hex", "\"000\""),
        ("base64", "\"AAs=\""),
        ("base64url", "\"AAs_-\""),
        ("hex-with-prefix", "\"0x000b\""),
    ] {
        let about = altered("J4", slug, title, slug);
        refuse(book, START, "malformed", &about, |bytes| replace(bytes, "\"3000\"", to));
    }
}

/// J9: every structure cut at every byte.
fn truncations(book: &mut Book) {
    for original in [RUNTIME, VM_CLAIMS, HOST_CLAIMS, RECORD, EVIDENCE, START, DESCRIPTOR] {
        let kind = original.trim_start_matches("encoding-");
        let code = if original == DESCRIPTOR { "bad-descriptor" } else { "malformed" };
        // The text ends in a newline, which may go.
        let end = usize::from(original == START);
        let to = book.original(original)["input.bin"].len() - end;
        let slug = format!("truncated-{kind}");
        let about =
            altered("J9", &slug, "cut at each byte", "only the bytes before the offset stay");
        let sweep = Sweep {
            file: "input.bin".into(),
            kind: SweepKind::Truncate,
            from: 0,
            to,
            beside: None,
        };
        book.sweep(Surface::Encoding, original, code, &about, sweep, vec![]);
    }
}
