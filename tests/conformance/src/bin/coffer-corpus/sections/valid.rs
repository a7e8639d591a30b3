//! What has to be accepted: every original, as recorded and as signed again.

use coffer_conformance::case::Surface;

use super::encoding;
use crate::book::{About, Book};

pub fn cases(book: &mut Book) {
    let mut n = 0;
    let mut add = |book: &mut Book, surface: Surface, original: &str, title: &str| {
        n += 1;
        let resigned = original.ends_with("-resigned");
        let about = About {
            id: &format!("V{n}"),
            slug: original,
            title,
            mutation: "none",
            resigned,
            source: &[],
        };
        book.accept(surface, original, &about, |_| {});
    };
    for (original, title) in [
        ("quote-p256-sha256", "ECDSA P-256, SHA-256 bank"),
        ("quote-p256-sha384", "ECDSA P-256, SHA-384 bank"),
        ("quote-p256-sha256-one-register", "ECDSA P-256, SHA-256 bank, one register"),
        ("quote-rsa2048-sha256", "RSASSA RSA-2048, SHA-256 bank"),
        ("quote-rsa2048-sha384", "RSASSA RSA-2048, SHA-384 bank"),
        ("quote-p384-sha256", "ECDSA P-384 with SHA-384, SHA-256 bank"),
        ("quote-p384-sha384", "ECDSA P-384 with SHA-384, SHA-384 bank"),
        ("quote-p256-sha256-resigned", "ECDSA P-256, signed by a test key"),
        ("quote-p256-sha384-resigned", "ECDSA P-256, SHA-384 bank, signed by a test key"),
        ("quote-p384-sha384-resigned", "ECDSA P-384, signed by a test key"),
        ("quote-rsa2048-sha256-resigned", "RSASSA, signed by a test key"),
    ] {
        add(book, Surface::Quote, original, title);
    }
    for (original, title) in [
        ("eventlog-host", "log of a host as firmware, boot manager and EFI stub write it"),
        ("eventlog-vm", "launch log of a VM"),
        ("eventlog-host-ima", "log of a host, and the kernel's list of files under PCR 10"),
    ] {
        add(book, Surface::Eventlog, original, title);
    }
    for boot in &super::event_log::BOOTS {
        add(book, Surface::Eventlog, boot.original, &format!("log of {}", boot.title));
    }
    for (original, title) in [
        ("endorsement-swtpm-rsa", "RSA EK certified by swtpm's authority, named as software root"),
        ("endorsement-ecc", "P-256 EK under P-256 and P-384 authorities"),
        ("endorsement-rsa", "RSA EK under RSA authorities"),
    ] {
        add(book, Surface::Endorsement, original, title);
    }
    for (original, title) in [
        ("enrolment-rsa-ek", "credential under an RSA EK, activated by swtpm"),
        ("enrolment-p256-ek", "credential under a P-256 EK, activated by swtpm"),
        ("enrolment-resigned", "first quote signed by a test key"),
    ] {
        add(book, Surface::Enrolment, original, title);
    }
    for (original, title) in [
        ("evidence-batch-1", "two TPMs, a batch of one"),
        ("evidence-batch-2", "two TPMs, a batch of two"),
        ("evidence-batch-7", "two TPMs, a batch of seven"),
        ("evidence-rsa-host", "a host whose attestation key is RSA"),
        ("evidence-resigned", "both halves signed by test keys"),
    ] {
        add(book, Surface::Evidence, original, title);
    }
    add(book, Surface::Decision, "decision-closed-on-sealed", "a closed box on a sealed host");
    add(book, Surface::Release, "release-two-secrets", "two secrets");
    let title = "a host enrols and a VM on it gets its secret, from the real service";
    add(book, Surface::Protocol, super::protocol::RELEASE, title);
    for original in encoding::ALL {
        add(book, Surface::Encoding, original, "as it should be");
    }
    let title = "log of a host, and systemd's list after it";
    add(book, Surface::Eventlog, super::event_log::USERSPACE, title);
}
