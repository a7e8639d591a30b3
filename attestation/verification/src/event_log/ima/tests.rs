//! Lists of the kernel: what is read, what is covered, and near misses.

use proptest::prelude::*;

use super::*;

const BANK: HashAlg = HashAlg::Sha256;

fn template(digest: &[u8], path: &[u8], signature: Option<&[u8]>) -> Vec<u8> {
    let mut out = vec![];
    append(&mut out, &[digest]);
    append(&mut out, &[path]);
    if let Some(signature) = signature {
        append(&mut out, &[signature]);
    }
    out
}

fn raw(pcr: u32, recorded: &[u8], name: &[u8], template: &[u8]) -> Vec<u8> {
    let mut out = [&pcr.to_le_bytes()[..], recorded].concat();
    append(&mut out, &[name]);
    append(&mut out, &[template]);
    out
}

fn one(name: &[u8], template: &[u8]) -> Vec<u8> {
    raw(10, HashAlg::Sha1.digest(&[template]).as_bytes(), name, template)
}

fn named(digest: Ha) -> Vec<u8> {
    [digest.hash().name().as_bytes(), b":\0", digest.as_bytes()].concat()
}

fn file(path: &str) -> Vec<u8> {
    let path_nul = format!("{path}\0");
    template(&named(BANK.digest(&[path.as_bytes()])), path_nul.as_bytes(), None)
}

fn firmware() -> Registers {
    let mut registers = Registers::reset(BANK, 0);
    for pcr in 0..10 {
        registers.extend(pcr, &BANK.digest(&[&[pcr]])).unwrap();
    }
    registers
}

fn aggregate() -> Vec<u8> {
    template(&named(boot_aggregate(&firmware()).unwrap()), b"boot_aggregate\0", None)
}

fn value(templates: &[Vec<u8>]) -> Ha {
    let extend = |value: Ha, t: &Vec<u8>| value.extend(BANK.digest(&[t]).as_bytes());
    templates.iter().fold(BANK.zero(), extend)
}

fn list(templates: &[Vec<u8>]) -> Vec<u8> {
    templates.iter().flat_map(|t| one(b"ima-ng", t)).collect()
}

#[test]
fn covers_the_prefix_that_was_quoted() {
    let templates = [aggregate(), file("/sbin/init"), file("/bin/sh"), file("/bin/ls")];
    let bytes = list(&templates);
    let read = ImaList::binary(&bytes).unwrap();
    for count in 1..=4 {
        let covered = read.covered(&firmware(), &value(&templates[..count]));
        assert_eq!(covered.unwrap().len(), count);
    }
    assert_eq!(read.entries()[1].path(), b"/sbin/init");
    let mismatch = Err(Reject::ReplayMismatch);
    let skipped = value(&[aggregate(), file("/bin/sh")]);
    assert_eq!(read.covered(&firmware(), &skipped), mismatch, "an entry is never skipped");
    assert_eq!(read.covered(&firmware(), &BANK.zero()), mismatch);
    let more = value(&[&templates[..], &[file("/bin/cat")]].concat());
    assert_eq!(read.covered(&firmware(), &more), mismatch, "the list is cut off");
}

#[test]
fn the_quoted_bank_is_the_firmware_s_and_not_sha_1() {
    let bytes = list(&[aggregate()]);
    let read = ImaList::binary(&bytes).unwrap();
    let quoted = value(&[aggregate()]);
    assert!(read.covered(&firmware(), &quoted).is_ok());
    let refused = Err(Reject::BankNotAllowed);
    let of = |bank| Registers::reset(bank, 0);
    assert_eq!(read.covered(&of(HashAlg::Sha384), &quoted), refused);
    assert_eq!(read.covered(&of(HashAlg::Sha1), &HashAlg::Sha1.zero()), refused);
}

#[test]
fn the_boot_aggregate_is_of_pcr_0_to_9() {
    let refuses = |what: &str, templates: &[Vec<u8>], firmware: &Registers| {
        let bytes = list(templates);
        let read = ImaList::binary(&bytes).unwrap();
        let verdict = read.covered(firmware, &value(templates)).map(drop);
        assert_eq!(verdict, Err(Reject::ImaInvalid), "{what}");
    };
    for pcr in 0..10 {
        let mut other = firmware();
        other.extend(pcr, &BANK.digest(&[b"more"])).unwrap();
        refuses("another register", &[aggregate(), file("/a")], &other);
    }
    refuses("absent", &[file("/a")], &firmware());
    refuses("not the first", &[file("/a"), aggregate()], &firmware());
    let zero = template(&named(BANK.zero()), b"boot_aggregate\0", None);
    refuses("no TPM when IMA began", std::slice::from_ref(&zero), &firmware());
    refuses("another one later", &[aggregate(), zero], &firmware());
    refuses("empty", &[], &firmware());
}

#[test]
fn refuses_every_near_miss() {
    let good = file("/bin/sh");
    assert!(ImaList::binary(&one(b"ima-ng", &good)).is_ok());
    let digest = named(BANK.zero());
    let sha1 = named(HashAlg::Sha1.digest(&[b"x"]));
    let ng = |digest: &[u8], path: &[u8]| one(b"ima-ng", &template(digest, path, None));
    let cases = [
        ("a violation (F31)", raw(10, &[0; 20], b"ima-ng", &good)),
        ("the `ima` template (F31)", one(b"ima", &good)),
        ("an unknown template", one(b"ima-buf", &good)),
        ("another register", raw(11, HashAlg::Sha1.digest(&[&good]).as_bytes(), b"ima-ng", &good)),
        ("another template hash", raw(10, &[1; 20], b"ima-ng", &good)),
        ("a path with a NUL (F31)", ng(&digest, b"/bin/sh\0.evil\0")),
        ("a path without one", ng(&digest, b"/bin/sh")),
        ("no path", ng(&digest, b"\0")),
        ("an empty path field", ng(&digest, b"")),
        ("a SHA-1 file digest", ng(&sha1, b"/a\0")),
        ("a digest cut off", ng(&digest[..20], b"/a\0")),
        ("no algorithm", ng(&[0; 32], b"/a\0")),
        ("a signature under ima-ng", one(b"ima-ng", &template(&digest, b"/a\0", Some(b"s")))),
        ("none under ima-sig", one(b"ima-sig", &good)),
    ];
    for (what, bytes) in cases {
        assert_eq!(ImaList::binary(&bytes), Err(Reject::ImaInvalid), "{what}");
    }
    let bytes = one(b"ima-ng", &good);
    for len in 1..bytes.len() {
        assert_eq!(ImaList::binary(&bytes[..len]), Err(Reject::ImaInvalid), "{len} bytes");
    }
    let large = one(b"ima-ng", &vec![0; TEMPLATE_MAX + 1]);
    assert_eq!(ImaList::binary(&large), Err(Reject::LimitExceeded));
    assert_eq!(ImaList::binary(&vec![0; LIST_MAX + 1]), Err(Reject::LimitExceeded));
    assert_eq!(ImaList::binary(&vec![0; LIST_MAX]), Err(Reject::ImaInvalid), "read, and no list");
}

#[test]
fn the_ascii_list_says_the_same() {
    let signed = template(&named(BANK.digest(&[b"x"])), b"/bin/x\0", Some(&[3, 2]));
    let unsigned = template(&named(BANK.digest(&[b"y"])), b"/bin/y\0", Some(&[]));
    let hash = |t: &[u8]| HashAlg::Sha1.digest(&[t]);
    let (x, y, z) = (BANK.digest(&[b"x"]), BANK.digest(&[b"y"]), BANK.digest(&[b"/bin/z"]));
    let text = format!(
        "10 {} ima-sig sha256:{x} /bin/x 0302\n10 {} ima-sig sha256:{y} /bin/y \n10 {} ima-ng sha256:{z} /bin/z\n",
        hash(&signed),
        hash(&unsigned),
        hash(&file("/bin/z")),
    );
    let bytes =
        [one(b"ima-sig", &signed), one(b"ima-sig", &unsigned), one(b"ima-ng", &file("/bin/z"))]
            .concat();
    let ascii = ImaList::ascii(text.as_bytes()).unwrap();
    assert_eq!(ascii, ImaList::binary(&bytes).unwrap());
    assert_eq!(ascii.entries()[0].signature(), [3, 2]);
    for (from, to) in [
        ("10 ", "11 "),
        ("10 ", ""),
        ("sha256:", "sha1:"),
        ("sha256:", ""),
        ("/bin/x", "/bin/w"),
        ("0302", "0303"),
        ("0302", "0302 00"),
        ("0302", "zz"),
        ("/bin/z\n", "/bin/z"),
        ("/bin/z\n", "/bin/z x\n"),
        ("ima-ng", "ima"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_eq!(ImaList::ascii(changed.as_bytes()), Err(Reject::ImaInvalid), "{from} to {to}");
    }
}

#[test]
fn a_template_is_as_long_as_a_path_and_a_signature_may_be() {
    let digest = BANK.digest(&[b"x"]);
    let both = |size: usize| {
        // Two lengths, the digest with its name, the path's NUL.
        let path = "p".repeat(size - 4 - 40 - 4 - 1);
        let whole = template(&named(digest), format!("{path}\0").as_bytes(), None);
        assert_eq!(whole.len(), size);
        let hash = HashAlg::Sha1.digest(&[&whole]);
        let line = format!("10 {hash} ima-ng sha256:{digest} {path}\n");
        let binary = ImaList::binary(&one(b"ima-ng", &whole)).map(|list| list.entries().len());
        (binary, ImaList::ascii(line.as_bytes()).map(|list| list.entries().len()))
    };
    assert_eq!(both(TEMPLATE_MAX), (Ok(1), Ok(1)));
    let limit = Err(Reject::LimitExceeded);
    assert_eq!(both(TEMPLATE_MAX + 1), (limit, limit));
}

proptest! {
    #[test]
    fn never_panics(at in 0usize..200, value: [u8; 4], text in "[0-9a-f :/\n-]{0,100}") {
        let mut bytes = list(&[aggregate(), file("/bin/sh")]);
        let at = at.min(bytes.len() - 4);
        bytes[at..at + 4].copy_from_slice(&value);
        if let Ok(list) = ImaList::binary(&bytes) {
            let _ = list.covered(&firmware(), &BANK.zero());
        }
        let _ = ImaList::ascii(text.as_bytes());
    }
}
