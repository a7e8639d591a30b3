//! D10, D12 to D30: EK certificates and their chains.

use coffer_conformance::case::{Files, Surface};
use rcgen::{
    BasicConstraints, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SerialNumber,
};
use serde_json::{Value, json};

use super::{altered, resigned};
use crate::book::{About, Book};
use crate::certificates::{Chain, NOW, Party, Signer, at, authority, extension, issuers_url};
use crate::keys::Key;
use crate::record::text;

const ECC: &str = "endorsement-ecc";
const RSA: &str = "endorsement-rsa";
const SWTPM: &str = "endorsement-swtpm-rsa";

pub fn originals(book: &mut Book) {
    book.derive(ECC, "fixed keys", Sent::of(&Chain::ecc()).files());
    book.derive(RSA, "fixed keys", Sent::of(&Chain::rsa()).files());
}

/// What reaches the verifier, and what it knows.
pub struct Sent {
    ek: Vec<u8>,
    leaf: Vec<u8>,
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
    crls: Vec<Vec<u8>>,
    crl_required: bool,
    now: u64,
}

impl Sent {
    fn of(chain: &Chain) -> Self {
        let (root, sent) = chain.authorities();
        Self {
            ek: chain.ek(),
            leaf: chain.leaf(),
            chain: sent,
            roots: vec![root],
            crls: vec![],
            crl_required: false,
            now: NOW,
        }
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut names = |stem: &str, certificates: &[Vec<u8>]| -> Vec<String> {
            let mut names = Vec::new();
            for (n, der) in certificates.iter().enumerate() {
                let name = format!("{stem}-{n}.der");
                files.insert(name.clone(), der.clone());
                names.push(name);
            }
            names
        };
        let context: Value = json!({
            "now": self.now,
            "chain": names("chain", &self.chain),
            "roots": names("root", &self.roots),
            "software_roots": [],
            "crls": names("crl", &self.crls),
            "crl_required": self.crl_required,
        });
        files.insert("ek.pub".into(), self.ek.clone());
        files.insert("ek.der".into(), self.leaf.clone());
        files.insert("context.json".into(), text(&context));
        files
    }
}

/// Changed before it is signed.
#[track_caller]
fn refuse(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Chain)) {
    refuse_sent(book, code, about, |chain| {
        change(chain);
        Sent::of(chain)
    });
}

/// Changed before or after it is signed.
#[track_caller]
fn refuse_sent(
    book: &mut Book,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Chain) -> Sent,
) {
    let mut chain = Chain::ecc();
    let sent = change(&mut chain);
    book.refuse(Surface::Endorsement, ECC, code, about, |files| replace(files, &sent));
}

#[track_caller]
fn accept(book: &mut Book, about: &About<'_>, change: impl FnOnce(&mut Chain) -> Sent) {
    let mut chain = Chain::ecc();
    let sent = change(&mut chain);
    book.accept(Surface::Endorsement, ECC, about, |files| replace(files, &sent));
}

fn replace(files: &mut Files, sent: &Sent) {
    files.retain(|name, _| !name.ends_with(".der"));
    files.extend(sent.files());
}

pub fn cases(book: &mut Book) {
    let about = altered(
        "D10",
        "other-key-certified",
        "the certificate is for another key than the TPM's",
        "ek.pub is another EK",
    );
    refuse_sent(book, "ek-mismatch", &about, |chain| {
        let mut other = Chain::ecc();
        other.leaf.signer = Signer::new(Key::p256(14));
        Sent { ek: other.ek(), ..Sent::of(chain) }
    });
    roots(book);
    authorities(book);
    usages(book);
    times(book);
    revocation(book);
    names(book);
    encodings(book);
    limits(book);
}

/// D12 to D14, D30.
fn roots(book: &mut Book) {
    let about = altered(
        "D12",
        "self-signed",
        "the EK certificate vouches for itself",
        "subject is issuer, signed by the EK",
    );
    refuse_sent(book, "untrusted-root", &about, |chain| {
        chain.leaf.params.distinguished_name.push(DnType::CommonName, "ek");
        Sent { leaf: chain.leaf.self_signed(), ..Sent::of(chain) }
    });
    let about = altered(
        "D13",
        "swtpm-localca",
        "the authority is one that swtpm makes on each machine",
        "a chain of swtpm_localca, good by itself, before a verifier that trusts no such root",
    );
    book.refuse(Surface::Endorsement, SWTPM, "untrusted-root", &about, |files| {
        let mut context: Value = serde_json::from_slice(&files["context.json"]).unwrap();
        context["software_roots"] = json!([]);
        files.insert("context.json".into(), text(&context));
    });
    let about = altered(
        "D13",
        "brings-its-own-root",
        "the chain brings the root it ends in",
        "the root is sent, and not trusted",
    );
    refuse_sent(book, "untrusted-root", &about, |chain| {
        let mut sent = Sent::of(chain);
        sent.chain.append(&mut sent.roots);
        let other = Party { params: authority("other root"), signer: Signer::new(Key::p384(21)) };
        sent.roots = vec![other.self_signed()];
        sent
    });
    let about = altered(
        "D13",
        "root-of-the-same-name",
        "the chain ends in an authority of a trusted one's name",
        "another key under the name of the trusted root",
    );
    refuse_sent(book, "untrusted-root", &about, |chain| {
        let mut sent = Sent::of(chain);
        chain.root.signer = Signer::new(Key::p384(21));
        sent.roots = vec![chain.root.self_signed()];
        sent
    });
    let about = altered(
        "D14",
        "issued-by-the-ak-authority",
        "the issuer is the verifier's own authority of attestation keys",
        "an authority the verifier runs, which is no root for EKs",
    );
    refuse_sent(book, "untrusted-root", &about, |chain| {
        let ours =
            Party { params: authority("attestation keys"), signer: Signer::new(Key::p256(22)) };
        Sent { leaf: chain.leaf.issue(&ours), chain: vec![ours.self_signed()], ..Sent::of(chain) }
    });
    let url = "http://169.254.169.254/latest/meta-data/";
    let about = resigned(
        "D30",
        "issuer-to-be-fetched",
        "the issuer is to be fetched from where the certificate says",
        "no intermediate is sent; AIA points to a link-local address",
    );
    refuse_sent(book, "untrusted-root", &about, |chain| {
        chain.leaf.params.custom_extensions.push(issuers_url(url));
        Sent { chain: vec![], ..Sent::of(chain) }
    });
    let about = resigned(
        "D30",
        "url-not-followed",
        "a certificate may name where its issuer is; nobody goes there",
        "the same certificate with its issuer beside it",
    );
    accept(book, &about, |chain| {
        chain.leaf.params.custom_extensions.push(issuers_url(url));
        Sent::of(chain)
    });
}

/// D15 to D19.
fn authorities(book: &mut Book) {
    let ca = IsCa::Ca;
    let about = resigned(
        "D15",
        "leaf-is-authority",
        "the EK certificate is an authority's",
        "basicConstraints say CA",
    );
    refuse(book, "bad-ek-cert", &about, |c| {
        c.leaf.params.is_ca = ca(BasicConstraints::Unconstrained)
    });
    let about = resigned(
        "D15",
        "leaf-signs-certificates",
        "the EK certificate is an authority's",
        "keyUsage has keyCertSign",
    );
    refuse(book, "bad-ek-cert", &about, |c| {
        c.leaf.params.key_usages.push(KeyUsagePurpose::KeyCertSign)
    });
    let about = resigned(
        "D16",
        "issued-by-a-leaf",
        "the issuer is another EK certificate",
        "a genuine leaf signs a leaf",
    )
    .source(&["keylime: one-level match"]);
    refuse_sent(book, "bad-ek-chain", &about, |chain| {
        chain.intermediate.params.is_ca = IsCa::ExplicitNoCa;
        Sent::of(chain)
    });
    let about = resigned(
        "D16",
        "issuer-says-nothing",
        "the issuer does not say that it is an authority",
        "an intermediate without basicConstraints",
    );
    refuse(book, "bad-ek-chain", &about, |c| c.intermediate.params.is_ca = IsCa::NoCa);
    let about = resigned(
        "D17",
        "path-too-long",
        "more authorities than pathLenConstraint allows",
        "the root allows none below it",
    );
    refuse(book, "bad-ek-chain", &about, |c| {
        c.root.params.is_ca = ca(BasicConstraints::Constrained(0));
    });
    let about = resigned(
        "D18",
        "issuer-may-not-sign",
        "the issuer may not sign certificates",
        "keyUsage of the intermediate is cRLSign alone",
    );
    refuse(book, "bad-ek-chain", &about, |c| {
        c.intermediate.params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    let about = resigned(
        "D19",
        "name-constraints",
        "a name the issuer may not certify",
        "the root permits example.org only; critical",
    );
    refuse(book, "bad-ek-chain", &about, |c| {
        c.root.params.name_constraints = None;
        c.intermediate.params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
            excluded_subtrees: vec![],
        });
    });
    let unknown = || extension(&[1, 2, 3, 4], true, vec![5, 0]);
    let about = resigned(
        "D19",
        "unknown-critical-in-authority",
        "a critical extension nobody here knows",
        "1.2.3.4 in the intermediate",
    );
    refuse(book, "bad-ek-chain", &about, |c| {
        c.intermediate.params.custom_extensions.push(unknown())
    });
    let about = resigned(
        "D19",
        "unknown-critical-in-leaf",
        "a critical extension nobody here knows",
        "1.2.3.4 in the EK certificate",
    );
    refuse(book, "bad-ek-cert", &about, |c| c.leaf.params.custom_extensions.push(unknown()));
}

/// D20, D21.
fn usages(book: &mut Book) {
    let about =
        resigned("D20", "no-purpose", "the certificate is not for endorsement", "no extKeyUsage");
    refuse(book, "bad-ek-cert", &about, |c| c.leaf.params.extended_key_usages.clear());
    let about = resigned(
        "D21",
        "for-servers",
        "the certificate is not for endorsement",
        "extKeyUsage is serverAuth",
    );
    refuse(book, "bad-ek-cert", &about, |c| {
        c.leaf.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
}

/// D22, D23.
fn times(book: &mut Book) {
    let about = resigned(
        "D22",
        "leaf-expired",
        "the EK certificate has expired",
        "accepted with a warning: the key is in the chip for life",
    );
    accept(book, &about, |c| {
        c.leaf.params.not_after = at(NOW - 1);
        Sent::of(c)
    });
    let about = resigned(
        "D22",
        "authority-expired-before-issue",
        "the issuer had expired when it issued",
        "notAfter of the intermediate lies before notBefore of the leaf",
    );
    refuse(book, "bad-ek-chain", &about, |c| {
        c.intermediate.params.not_before = at(NOW - 3_000_000);
        c.intermediate.params.not_after = at(NOW - 2_000_000);
    });
    let about = resigned(
        "D23",
        "leaf-not-yet-valid",
        "the EK certificate is from the future",
        "notBefore of the leaf is in one second",
    );
    refuse(book, "bad-ek-chain", &about, |c| c.leaf.params.not_before = at(NOW + 1));
    let about = resigned(
        "D23",
        "authority-not-yet-valid",
        "the issuer is from the future",
        "notBefore of the intermediate is in one second",
    );
    refuse(book, "bad-ek-chain", &about, |c| c.intermediate.params.not_before = at(NOW + 1));
}

/// D24, D25.
fn revocation(book: &mut Book) {
    let later = NOW + 1_000_000;
    let about = resigned(
        "D24",
        "leaf-revoked",
        "the EK certificate is revoked",
        "the issuer's CRL names it",
    );
    refuse_sent(book, "revoked", &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[&[0x42, 0x17]], later)],
        ..Sent::of(c)
    });
    let about = resigned(
        "D24",
        "leaf-revoked-in-stale-list",
        "the EK certificate is revoked",
        "a CRL past its nextUpdate names it: a revocation does not lapse",
    );
    refuse_sent(book, "revoked", &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[&[0x42, 0x17]], NOW - 1)],
        ..Sent::of(c)
    });
    let about = resigned(
        "D24",
        "authority-revoked",
        "the issuer is revoked",
        "the root's CRL names the intermediate",
    );
    refuse_sent(book, "revoked", &about, |c| Sent {
        crls: vec![c.root.revoke(&[&[0x21, 0x05]], later)],
        ..Sent::of(c)
    });
    let about =
        resigned("D24", "another-revoked", "a CRL that names another certificate", "accepted");
    accept(book, &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[&[0x42, 0x18]], later)],
        ..Sent::of(c)
    });
    let about = resigned(
        "D25",
        "stale-list-required-current",
        "the CRL is out of date where a current one is required",
        "nextUpdate was a second ago",
    );
    refuse_sent(book, "crl-unusable", &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[], NOW - 1), c.root.revoke(&[], later)],
        crl_required: true,
        ..Sent::of(c)
    });
    let about = resigned(
        "D25",
        "no-list-required-one",
        "there is no CRL where one is required",
        "none is loaded",
    );
    refuse_sent(book, "crl-unusable", &about, |c| Sent { crl_required: true, ..Sent::of(c) });
    let about = resigned(
        "D25",
        "current-lists",
        "current CRLs where they are required",
        "accepted: both name nobody",
    );
    accept(book, &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[], later), c.root.revoke(&[], later)],
        crl_required: true,
        ..Sent::of(c)
    });
    let about = resigned(
        "D25",
        "stale-list",
        "the CRL is out of date where none is required",
        "accepted with a warning",
    );
    accept(book, &about, |c| Sent {
        crls: vec![c.intermediate.revoke(&[], NOW - 1)],
        ..Sent::of(c)
    });
    let about = altered(
        "D25",
        "list-of-a-stranger",
        "the CRL is not signed by the issuer it names, where one is required",
        "same name, another key",
    );
    refuse_sent(book, "crl-unusable", &about, |c| {
        let stranger =
            Party { params: authority("intermediate"), signer: Signer::new(Key::p256(23)) };
        Sent {
            crls: vec![stranger.revoke(&[], later), c.root.revoke(&[], later)],
            crl_required: true,
            ..Sent::of(c)
        }
    });
}

/// D26.
fn names(book: &mut Book) {
    let about = resigned(
        "D26",
        "no-names",
        "the certificate does not say which TPM it is for",
        "no subjectAltName, empty subject",
    );
    refuse(book, "bad-ek-cert", &about, |c| c.leaf.params.custom_extensions.clear());
    let about = resigned(
        "D26",
        "names-not-critical",
        "names are not critical though the subject is empty",
        "subjectAltName not critical",
    )
    .source(&["RFC 5280, 4.2.1.6"]);
    refuse(book, "bad-ek-cert", &about, |c| {
        c.leaf.params.custom_extensions = vec![crate::certificates::tpm_name("id:494E5443", false)];
    });
}

/// D27, D28.
fn encodings(book: &mut Book) {
    let about = altered(
        "D27",
        "ber-length",
        "the certificate is BER, not DER",
        "length of the outer sequence in three bytes where two do",
    )
    .source(&["keylime/keylime#1775"]);
    refuse_sent(book, "bad-ek-cert", &about, |c| {
        let mut sent = Sent::of(c);
        assert_eq!(sent.leaf[1], 0x82);
        sent.leaf[1] = 0x83;
        sent.leaf.insert(2, 0);
        sent
    });
    let about = altered(
        "D28",
        "zero-padding",
        "zero bytes after the certificate, as NV indices have them",
        "accepted: 64 of them",
    );
    accept(book, &about, |c| {
        let mut sent = Sent::of(c);
        sent.leaf.extend([0; 64]);
        sent
    });
    let about = altered(
        "D28",
        "bytes-after-padding",
        "other bytes than padding after the certificate",
        "zeros, then 01",
    );
    refuse_sent(book, "trailing-data", &about, |c| {
        let mut sent = Sent::of(c);
        sent.leaf.extend([0, 0, 0, 1]);
        sent
    });
    let about = altered(
        "D28",
        "signature-flipped",
        "a bit of the certificate's signature is flipped",
        "the last bit",
    );
    refuse_sent(book, "bad-ek-cert", &about, |c| {
        let mut sent = Sent::of(c);
        *sent.leaf.last_mut().unwrap() ^= 1;
        sent
    });
}

/// D29.
fn limits(book: &mut Book) {
    let about =
        resigned("D29", "loop", "two authorities that issued each other", "no root is on the way");
    refuse_sent(book, "limit-exceeded", &about, |c| {
        let mut back = authority("back");
        back.serial_number = Some(SerialNumber::from_slice(&[0x21, 0x06]));
        let back = Party { params: back, signer: Signer::new(Key::p256(24)) };
        let mut sent = Sent::of(c);
        sent.chain = vec![c.intermediate.issue(&back), back.issue(&c.intermediate)];
        sent
    });
    let about = resigned(
        "D29",
        "fifty-intermediates",
        "fifty authorities between leaf and root",
        "a chain good in every link",
    );
    refuse_sent(book, "limit-exceeded", &about, |c| {
        for n in 0..49 {
            let mut params = authority(&format!("between {n}"));
            params.serial_number = Some(SerialNumber::from_slice(&[0x22, n]));
            c.between.push(Party { params, signer: Signer::new(Key::p256(100 + n)) });
        }
        Sent::of(c)
    });
    let about = resigned("D29", "leaf-of-1-mib", "a certificate of 1 MiB", "an extension of zeros");
    refuse_sent(book, "limit-exceeded", &about, |c| {
        let filler = extension(&[1, 2, 3, 5], false, vec![0; 1 << 20]);
        c.leaf.params.custom_extensions.push(filler);
        Sent::of(c)
    });
}
