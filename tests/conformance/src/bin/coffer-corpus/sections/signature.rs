//! C: signatures and keys.

use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::wire::Writer;
use coffer_conformance::case::{Files, Surface, Sweep, SweepKind};
use rsa::signature::SignatureEncoding as _;
use rsa::signature::hazmat::PrehashSigner as _;

use super::quoted::{self, P256, RSA, put};
use super::{altered, resigned};
use crate::attest::Attest;
use crate::book::{About, Book};
use crate::keys::{Key, Private, ecdsa, rsassa};

/// Order of P-256 (SEC 2, 2.4.2).
const N: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

pub fn cases(book: &mut Book) {
    flips(book);
    headers(book);
    scalars(book);
    rsa_forgery(book);
    weak_keys(book);
    points(book);
    let about = altered(
        "C15",
        "other-key",
        "signed by another key than the enrolled one",
        "a second attestation key signs, under the first one's qualified name",
    );
    refuse(book, P256, "bad-signature", &about, |files| {
        let signature = Key::p256(2).sign(&files["quote.msg"]);
        files.insert("quote.sig".into(), signature);
    });
    let about = altered(
        "C16",
        "high-s",
        "s is replaced by n - s: as good a signature",
        "accepted, and worth nothing to whoever repeats it: a nonce is consumed, not a signature",
    );
    book.accept(Surface::Quote, P256, &about, |files| {
        let signature = files.get_mut("quote.sig").unwrap();
        let s = p256::Scalar::from_repr(signature[40..72].try_into().unwrap()).unwrap();
        let mirrored: [u8; 32] = (-s).to_repr().into();
        signature[40..72].copy_from_slice(&mirrored);
    });
}

use p256::elliptic_curve::PrimeField as _;

#[track_caller]
fn refuse(
    book: &mut Book,
    original: &str,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Files),
) {
    book.refuse(Surface::Quote, original, code, about, change);
}

/// C1.
fn flips(book: &mut Book) {
    let flip = |file: &str, from, to| Sweep {
        file: file.into(),
        kind: SweepKind::FlipBit,
        from,
        to,
        beside: None,
    };
    let message = book.original(P256)["quote.msg"].len();
    for (slug, original, sweep) in [
        ("bit-of-r", P256, flip("quote.sig", 6, 38)),
        ("bit-of-s", P256, flip("quote.sig", 40, 72)),
        ("bit-of-rsa-signature", RSA, flip("quote.sig", 6, 262)),
        ("bit-of-attest", P256, flip("quote.msg", 0, message)),
        ("bit-of-attest-rsa", RSA, flip("quote.msg", 0, message)),
    ] {
        let about =
            altered("C1", slug, "one bit is flipped", "bit `offset mod 8` of each byte in turn");
        book.sweep(Surface::Quote, original, "bad-signature", &about, sweep, vec![]);
    }
    let about =
        altered("C1", "bit-of-register", "one bit of a register's value is flipped", "in PCR 3");
    refuse(book, P256, "pcr-digest-mismatch", &about, |files| {
        let mut values = quoted::values(&files["pcrs.json"]);
        values[3].2[9] ^= 0x10;
        files.insert("pcrs.json".into(), quoted::write_values(&values));
    });
}

/// C2 to C6, C8: what the signature says of itself.
fn headers(book: &mut Book) {
    for (id, slug, original, code, title, at, bytes) in [
        (
            "C2",
            "rsapss-under-rsassa",
            RSA,
            "scheme-mismatch",
            "sigAlg says RSAPSS, the key's scheme is RSASSA",
            0,
            [0, 0x16],
        ),
        (
            "C2",
            "ecdaa-under-ecdsa",
            P256,
            "scheme-mismatch",
            "sigAlg says ECDAA, the key's scheme is ECDSA",
            0,
            [0, 0x1a],
        ),
        (
            "C3",
            "hash-sha1",
            P256,
            "weak-hash",
            "the signature's hash is said to be SHA-1",
            2,
            [0, 4],
        ),
        (
            "C3",
            "hash-sha1-rsa",
            RSA,
            "weak-hash",
            "the signature's hash is said to be SHA-1",
            2,
            [0, 4],
        ),
        (
            "C4",
            "hash-sha512",
            P256,
            "scheme-mismatch",
            "the signature's hash is said to be SHA-512, the key's is SHA-256",
            2,
            [0, 0x0d],
        ),
        (
            "C4",
            "hash-sha384-rsa",
            RSA,
            "scheme-mismatch",
            "the signature's hash is said to be SHA-384, the key's is SHA-256",
            2,
            [0, 0x0c],
        ),
    ] {
        let mutation = format!("bytes {at} and {} are {:02x}{:02x}", at + 1, bytes[0], bytes[1]);
        let about = altered(id, slug, title, &mutation);
        refuse(book, original, code, &about, |files| {
            files.get_mut("quote.sig").unwrap()[at..at + 2].copy_from_slice(&bytes);
        });
    }
    let about = altered(
        "C2",
        "rsassa-under-rsapss",
        "sigAlg says RSASSA, the key's scheme is RSAPSS",
        "scheme of the key is 0016; its name, and who signed, follow",
    );
    refuse(book, RSA, "scheme-mismatch", &about, |files| {
        let key = quoted::key(RSA);
        let mut public = key.public();
        public[12..14].copy_from_slice(&[0, 0x16]);
        let mut attest = Attest::parse(&files["quote.msg"]);
        let name = crate::keys::name(&public);
        attest.signer = crate::keys::qualified(crate::keys::ENDORSEMENT, &name);
        put(files, &key, &attest);
        files.insert("ak.pub".into(), public);
    });
    for (id, slug, code, title, signature) in [
        ("C5", "null", "no-signature", "sigAlg is TPM_ALG_NULL", vec![0, 0x10]),
        ("C5", "absent", "malformed", "no signature at all", vec![]),
        (
            "C2",
            "rsassa-under-ecdsa",
            "scheme-mismatch",
            "sigAlg says RSASSA, the key's scheme is ECDSA",
            rsassa(&[0x77; 256]),
        ),
        (
            "C6",
            "hmac",
            "scheme-mismatch",
            "sigAlg is TPM_ALG_HMAC",
            [&[0, 5, 0, 0x0b][..], &[0x77; 32]].concat(),
        ),
    ] {
        let about = altered(id, slug, title, slug);
        refuse(book, P256, code, &about, |files| {
            files.insert("quote.sig".into(), signature);
        });
    }
    let about = altered(
        "C8",
        "der",
        "a DER signature where TPMT_SIGNATURE is expected",
        "SEQUENCE of two INTEGERs, good for the message",
    );
    refuse(book, P256, "scheme-mismatch", &about, |files| {
        let der = quoted::key(P256).sign_der(&files["quote.msg"]);
        files.insert("quote.sig".into(), der);
    });
    let about = altered(
        "C8",
        "der-in-tpmt",
        "a DER signature where TPMT_SIGNATURE is expected",
        "ECDSA, SHA-256, then the DER as if it were r",
    );
    refuse(book, P256, "malformed", &about, |files| {
        let der = quoted::key(P256).sign_der(&files["quote.msg"]);
        let tpmt = Writer::new().u16(alg::ECDSA).u16(alg::SHA256).tpm2b(&der).finish();
        files.insert("quote.sig".into(), tpmt);
    });
    let about =
        altered("C8", "bare-scalars", "r and s without the structure around them", "64 bytes");
    refuse(book, P256, "scheme-mismatch", &about, |files| {
        let signature = files["quote.sig"].clone();
        let bare = [&signature[6..38], &signature[40..72]].concat();
        files.insert("quote.sig".into(), bare);
    });
}

/// C7.
fn scalars(book: &mut Book) {
    let n = hex::decode(N).unwrap();
    let good = book.original(P256)["quote.sig"].clone();
    let (r, s) = (good[6..38].to_vec(), good[40..72].to_vec());
    let sig = |r: &[u8], s: &[u8]| {
        Writer::new().u16(alg::ECDSA).u16(alg::SHA256).tpm2b(r).tpm2b(s).finish()
    };
    let zero = [0; 32];
    for (slug, code, signature) in [
        ("r-and-s-zero", "bad-signature", sig(&zero, &zero)),
        ("r-and-s-empty", "bad-signature", sig(&[], &[])),
        ("r-zero", "bad-signature", sig(&zero, &s)),
        ("s-zero", "bad-signature", sig(&r, &zero)),
        ("r-is-n", "bad-signature", sig(&n, &s)),
        ("s-is-n", "bad-signature", sig(&r, &n)),
        ("r-and-s-ones", "bad-signature", sig(&[0xff; 32], &[0xff; 32])),
        ("r-negative", "malformed", sig(&[&[0xff], &r[..]].concat(), &s)),
        ("r-padded", "malformed", sig(&[&[0], &r[..]].concat(), &s)),
        ("trailing-byte", "trailing-data", [&good[..], &[0]].concat()),
        ("swapped", "bad-signature", ecdsa(alg::SHA256, &[&s[..], &r[..]].concat())),
    ] {
        let about = altered("C7", slug, "scalars out of range", slug);
        refuse(book, P256, code, &about, |files| {
            files.insert("quote.sig".into(), signature);
        });
    }
}

/// C11: PKCS#1 v1.5 with shorter padding and bytes after the digest (Bleichenbacher 2006).
fn rsa_forgery(book: &mut Book) {
    use sha2::Digest as _;
    // DigestInfo of SHA-256 (RFC 8017, 9.2, note 1).
    let prefix = hex::decode("3031300d060960864801650304020105000420").unwrap();
    let Private::Rsa(key) = quoted::key(RSA).private else { unreachable!() };
    let raw = rsa::pkcs1v15::SigningKey::<sha2::Sha256>::new_unprefixed(key.as_ref().clone());
    let digest = |files: &Files| sha2::Sha256::digest(&files["quote.msg"]).to_vec();
    let about = altered(
        "C11",
        "bytes-after-hash",
        "bytes follow the digest inside the RSA block",
        "shorter padding, DigestInfo, digest, 64 bytes of ee; made with the private key",
    )
    .source(&["Bleichenbacher 2006", "CVE-2006-4339"]);
    refuse(book, RSA, "bad-signature", &about, |files| {
        let block = [&prefix[..], &digest(files), &[0xee; 64]].concat();
        let signature = raw.sign_prehash(&block).unwrap().to_vec();
        files.insert("quote.sig".into(), rsassa(&signature));
    });
    let about = altered(
        "C11",
        "no-digest-info",
        "the RSA block has no DigestInfo",
        "padding and the bare digest",
    );
    refuse(book, RSA, "bad-signature", &about, |files| {
        let signature = raw.sign_prehash(&digest(files)).unwrap().to_vec();
        files.insert("quote.sig".into(), rsassa(&signature));
    });
}

/// C9, C10, C12.
fn weak_keys(book: &mut Book) {
    let trust = |files: &mut Files, key: &Key, public: Vec<u8>| {
        let mut attest = Attest::parse(&files["quote.msg"]);
        let name = crate::keys::name(&public);
        attest.signer = crate::keys::qualified(crate::keys::ENDORSEMENT, &name);
        put(files, key, &attest);
        files.insert("ak.pub".into(), public);
    };
    for (id, slug, title, name, source) in [
        ("C9", "rsa-1024", "an RSA key of 1024 bits", "rsa1024", ""),
        ("C10", "exponent-3", "an RSA key with exponent 3", "rsa2048-e3", "CVE-2006-4339"),
        ("C12", "roca", "an RSA modulus of the ROCA family", "rsa2048-roca", "CVE-2017-15361"),
    ] {
        let source: &[&str] = if source.is_empty() { &[] } else { &[source] };
        let about = resigned(id, slug, title, slug).source(source);
        refuse(book, RSA, "weak-key", &about, |files| {
            let key = Key::rsa(name);
            let public = key.public();
            trust(files, &key, public);
        });
    }
    for (slug, exponent) in [("exponent-1", 1u32), ("exponent-even", 65536)] {
        let about = altered("C10", slug, "an RSA key with an exponent that is none", slug);
        refuse(book, RSA, "weak-key", &about, |files| {
            let public = files.get_mut("ak.pub").unwrap();
            public[18..22].copy_from_slice(&exponent.to_be_bytes());
        });
    }
}

/// C13 and C14.
fn points(book: &mut Book) {
    let public = quoted::key(P256).public();
    let fixed = &public[..public.len() - 68];
    let with = |x: &[u8], y: &[u8]| Writer::new().bytes(fixed).tpm2b(x).tpm2b(y).finish();
    let (x, y) = (&public[22..54], &public[56..88]);
    let mut off = y.to_vec();
    off[31] ^= 1;
    for (slug, bytes) in [
        ("off-the-curve", with(x, &off)),
        ("infinity", with(&[], &[])),
        ("zero-point", with(&[0; 32], &[0; 32])),
    ] {
        let about = altered("C13", slug, "no point of the curve", slug);
        refuse(book, P256, "bad-key", &about, |files| {
            files.insert("ak.pub".into(), bytes);
        });
    }
    for (slug, curve) in [("p192", 1), ("p224", 2), ("p521", 5), ("bn256", 0x10), ("sm2", 0x20)] {
        let about = altered("C14", slug, "a curve that is not allowed", slug);
        refuse(book, P256, "weak-key", &about, |files| {
            files.get_mut("ak.pub").unwrap()[17] = curve;
        });
    }
}
