//! B: which registers are quoted, and their values.

use coffer_attestation::Digest;
use coffer_attestation::tpm::alg;
use coffer_conformance::case::Surface;
use serde_json::json;

use super::quoted::{self, P256, P256_SHA384, Quote, SHA256, refuse, write_values};
use super::{altered, resigned};
use crate::attest::selection;
use crate::book::{About, Book};
use crate::record::HOST;

pub fn cases(book: &mut Book) {
    selected(book);
    banks(book);
    bitmaps(book);
    digests(book);
    values(book);
}

fn bank_of(pcrs: &[u8]) -> Vec<u8> {
    selection(&[(SHA256, pcrs)])
}

/// Quotes exactly these registers, with values for them, and lets the verifier ask for them.
fn quote_only(q: &mut Quote, pcrs: &[u8], value: [u8; 32]) {
    q.values = pcrs.iter().map(|pcr| ("sha256".into(), *pcr, value.to_vec())).collect();
    q.attest.selection = bank_of(pcrs);
    q.digest_values();
    q.context["pcrs"] = json!(pcrs);
}

/// B1 to B5, B17, B18.
fn selected(book: &mut Book) {
    let ghsa: &[&str] = &["CVE-2022-0317", "GHSA-99cg-575x-774p"];
    let about = resigned(
        "B1",
        "no-bank",
        "nothing is selected",
        "an empty list; pcrDigest is the digest of nothing",
    )
    .source(ghsa);
    refuse(book, P256, "selection-mismatch", &about, |q| {
        q.attest.selection = selection(&[]);
        q.attest.digest = Digest::of(&[]).0.to_vec();
    });
    let about = resigned(
        "B1",
        "no-register",
        "nothing is selected",
        "one bank, no bit set; pcrDigest is the digest of nothing",
    )
    .source(ghsa);
    refuse(book, P256, "pcr-not-quoted", &about, |q| {
        q.attest.selection = bank_of(&[]);
        q.attest.digest = Digest::of(&[]).0.to_vec();
    });
    let about = resigned(
        "B2",
        "subset",
        "a part of the required registers is quoted, values are sent for all",
        "only PCR 0 to 3 are selected and digested",
    )
    .source(ghsa);
    refuse(book, P256, "pcr-not-quoted", &about, |q| {
        let all = q.values.clone();
        q.values.truncate(4);
        q.digest_values();
        q.attest.selection = bank_of(&[0, 1, 2, 3]);
        q.values = all;
    });
    let issue: &[&str] = &["confidential-dot-ai/attestation-rs#69"];
    let about = altered(
        "B3",
        "value-for-unquoted",
        "a value is sent for a register that is not quoted",
        "PCR 15 appended to the values",
    )
    .source(issue);
    refuse_altered(book, "selection-mismatch", &about, |q| {
        q.values.push(("sha256".into(), 15, vec![0xee; 32]));
    });
    let about = altered(
        "B3",
        "unquoted-relied-on",
        "the verifier relies on a register that is not quoted",
        "PCR 15 appended to the values and to what is required",
    )
    .source(issue);
    refuse_altered(book, "pcr-not-quoted", &about, |q| {
        q.values.push(("sha256".into(), 15, vec![0xee; 32]));
        let required: Vec<u8> = HOST.iter().copied().chain([15]).collect();
        q.context["pcrs"] = json!(required);
    });
    let about = resigned(
        "B4",
        "resettable-labelled-as-10",
        "the value of PCR 16 is sent as that of PCR 10",
        "PCR 7 and 16 are quoted; the values are labelled 7 and 10",
    )
    .source(&["CVE-2024-29039"]);
    refuse(book, P256, "pcr-not-quoted", &about, |q| {
        quote_only(q, &[7, 10], [0x5a; 32]);
        q.attest.selection = bank_of(&[7, 16]);
    });
    let about = altered(
        "B5",
        "values-swapped",
        "the values of two registers are swapped",
        "PCR 1 and 2 have each other's value",
    );
    refuse_altered(book, "pcr-digest-mismatch", &about, |q| {
        let (one, two) = (q.values[1].2.clone(), q.values[2].2.clone());
        (q.values[1].2, q.values[2].2) = (two, one);
    });
    let about = altered(
        "B5",
        "labels-swapped",
        "the labels of two registers are swapped",
        "the values of PCR 1 and 2 carry each other's index",
    );
    refuse_altered(book, "selection-mismatch", &about, |q| {
        (q.values[1].1, q.values[2].1) = (2, 1);
    });
    for (slug, value) in [("zero", [0; 32]), ("ones", [0xff; 32])] {
        let title = "firmware registers that nothing was measured into";
        let mutation = format!("PCR 0 to 7 are all {slug}");
        let about = resigned("B17", slug, title, &mutation);
        refuse(book, P256, "pcr-uninitialised", &about, |q| {
            for (.., held) in q.values.iter_mut().take(8) {
                *held = value.to_vec();
            }
            q.digest_values();
        });
    }
    for pcr in [16, 23] {
        let (slug, mutation) =
            (format!("register-{pcr}"), format!("PCR {pcr} is quoted, and relied on"));
        let about = resigned("B18", &slug, "a register anybody can reset is relied on", &mutation);
        refuse(book, P256, "pcr-resettable", &about, |q| quote_only(q, &[7, pcr], [0x5a; 32]));
    }
}

/// B6 to B8.
fn banks(book: &mut Book) {
    let about = resigned(
        "B6",
        "bank-twice",
        "the SHA-256 bank is listed twice",
        "two equal entries; the digest covers the values once for each",
    );
    refuse(book, P256, "duplicate-bank", &about, |q| {
        q.attest.selection = selection(&[(SHA256, HOST), (SHA256, HOST)]);
        let twice = [q.values.clone(), q.values.clone()].concat();
        q.values = twice;
        q.digest_values();
        q.values.truncate(HOST.len());
    });
    let about = resigned(
        "B7",
        "sha1-only",
        "the SHA-1 bank is quoted where SHA-256 is required",
        "SHA-1 selected, values of 20 bytes",
    );
    refuse(book, P256, "bank-not-allowed", &about, |q| {
        for (bank, _, value) in &mut q.values {
            *bank = "sha1".into();
            value.truncate(20);
        }
        q.attest.selection = selection(&[(alg::SHA1, HOST)]);
        q.digest_values();
    });
    let about = resigned(
        "B8",
        "second-bank-without-values",
        "two banks are quoted, values are sent for one",
        "SHA-1 and SHA-256 selected and digested; values of SHA-256 only",
    );
    refuse(book, P256, "bank-not-allowed", &about, |q| {
        let all = q.values.clone();
        let sha1 = all.iter().map(|(_, pcr, v)| ("sha1".to_owned(), *pcr, v[..20].to_vec()));
        q.values = sha1.chain(all.clone()).collect();
        q.digest_values();
        q.values = all;
        q.attest.selection = selection(&[(alg::SHA1, HOST), (SHA256, HOST)]);
    });
}

/// B9 to B11: the list as bytes.
fn bitmaps(book: &mut Book) {
    let list = |select: &[u8]| {
        [&[0, 0, 0, 1, 0, 0x0b, u8::try_from(select.len()).unwrap()], select].concat()
    };
    let title = "a bitmap of another size than three bytes";
    for (slug, bytes) in [
        ("bitmap-of-0", list(&[])),
        ("bitmap-of-2", list(&[0xff, 0x7b])),
        ("bitmap-of-4", list(&[0xff, 0x7b, 0, 0])),
        ("bitmap-of-255", list(&[0; 255])),
        ("bitmap-of-255-cut", [&[0, 0, 0, 1, 0, 0x0b, 0xff], &[0xff, 0x7b, 0][..]].concat()),
    ] {
        let about = resigned("B9", slug, title, slug);
        refuse(book, P256, "malformed", &about, |q| q.attest.selection = bytes);
    }
    let about = resigned(
        "B10",
        "bit-24",
        "a register beyond 23 is selected",
        "a bitmap of four bytes with bit 24 set",
    );
    refuse(book, P256, "pcr-out-of-range", &about, |q| {
        q.attest.selection = list(&[0xff, 0x7b, 0, 1])
    });
    let about = resigned(
        "B11",
        "count-of-4294967295",
        "a list of 2^32-1 banks",
        "count is ffffffff, one entry follows",
    );
    refuse(book, P256, "limit-exceeded", &about, |q| {
        q.attest.selection[..4].copy_from_slice(&[0xff; 4]);
    });
}

/// B12 and B13.
fn digests(book: &mut Book) {
    let about = resigned(
        "B12",
        "digest-by-bank-hash",
        "pcrDigest is made with the bank's hash, not the scheme's",
        "SHA-384 over the values of the SHA-384 bank, under an ECDSA key with SHA-256",
    );
    refuse(book, P256_SHA384, "pcr-digest-mismatch", &about, Quote::digest_values_sha384);
    let about = resigned(
        "B13",
        "digest-in-reverse",
        "pcrDigest is over the values in reverse order",
        "PCR 14 first",
    );
    refuse(book, P256, "pcr-digest-mismatch", &about, |q| {
        q.values.reverse();
        q.digest_values();
        q.values.reverse();
    });
}

/// B14 and B15; B16 needs the message around a quote and lies with the evidence.
fn values(book: &mut Book) {
    let about = altered(
        "B14",
        "value-of-20-bytes",
        "a value of another length than its bank's",
        "PCR 4 has 20 bytes",
    );
    refuse_altered(book, "malformed", &about, |q| q.values[4].2.truncate(20));
    let about = altered(
        "B15",
        "register-twice",
        "a register is sent twice",
        "PCR 0 again, with another value, after itself",
    );
    refuse_altered(book, "selection-mismatch", &about, |q| {
        q.values.insert(1, ("sha256".into(), 0, vec![0xee; 32]));
    });
}

/// The signed part stays; values and what is required change.
#[track_caller]
fn refuse_altered(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Quote)) {
    book.refuse(Surface::Quote, quoted::P256, code, about, |files| {
        let mut quote = Quote::read(files);
        change(&mut quote);
        files.insert("pcrs.json".into(), write_values(&quote.values));
        files.insert("context.json".into(), crate::record::text(&quote.context));
    });
}
