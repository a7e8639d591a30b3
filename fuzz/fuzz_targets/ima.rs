//! The kernel's list of files, in both forms: what is read binary is read the same as text, and is covered by
//! the register it leads to and by no other. The fuzzer finds no SHA-1: those of its templates are put right.
#![no_main]

use coffer_attestation::event_log::Registers;
use coffer_attestation::event_log::ima::{ImaList, boot_aggregate};
use coffer_formats::tpm::hash::HashAlg;
use libfuzzer_sys::fuzz_target;

const BANK: HashAlg = HashAlg::Sha256;

fuzz_target!(|data: &[u8]| {
    check(ImaList::ascii(data).ok(), data.len());
    let repaired = repaired(data);
    for bytes in [data, &repaired] {
        let Ok(list) = ImaList::binary(bytes) else { continue };
        if let Some(text) = text(bytes) {
            assert_eq!(ImaList::ascii(text.as_bytes()).as_ref(), Ok(&list));
        }
        check(Some(list), bytes.len());
    }
});

fn check(list: Option<ImaList<'_>>, size: usize) {
    let Some(list) = list else { return };
    let paths: usize = list.entries().iter().map(|entry| entry.path().len()).sum();
    assert!(paths <= size);
    let firmware = Registers::reset(BANK, 0);
    let mut value = BANK.zero();
    for entry in list.entries() {
        assert!(!entry.path().contains(&0));
        value = value.extend(entry.extended(BANK).as_bytes());
    }
    if let Ok(covered) = list.covered(&firmware, &value) {
        assert_eq!(covered.len(), list.entries().len());
        assert_eq!(Some(covered[0].digest), boot_aggregate(&firmware));
    }
    let other = value.extend(&[0; 32]);
    assert!(list.covered(&firmware, &other).is_err());
}

/// Where the parts of an entry stand: SHA-1, name, template data, and the end.
struct Place {
    sha1: usize,
    name: (usize, usize),
    data: (usize, usize),
}

/// Places of entries as long as lengths hold.
fn places(bytes: &[u8]) -> Vec<Place> {
    let field = |at: usize| {
        let length = bytes.get(at..at + 4)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let end = (at + 4).checked_add(length).filter(|end| *end <= bytes.len())?;
        Some((at + 4, end))
    };
    let mut places: Vec<Place> = vec![];
    while let Some(name) = field(places.last().map_or(0, |place| place.data.1) + 24)
        && let Some(data) = field(name.1)
    {
        places.push(Place { sha1: name.0 - 24, name, data });
    }
    places
}

/// The list with each register 10, each boot aggregate that of [`check`]'s firmware, and each SHA-1 that of its
/// template.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut repaired = bytes.to_vec();
    for Place { sha1, data, .. } in places(bytes) {
        let template = &mut repaired[data.0..data.1];
        if template.starts_with(b"\x28\0\0\0sha256:\0") && template.ends_with(b"boot_aggregate\0") {
            let aggregate = boot_aggregate(&Registers::reset(BANK, 0)).expect("24 registers");
            template[12..44].copy_from_slice(aggregate.as_bytes());
        }
        let digest = HashAlg::Sha1.digest(&[&*template]);
        repaired[sha1..sha1 + 20].copy_from_slice(digest.as_bytes());
        repaired[sha1 - 4..sha1].copy_from_slice(&10u32.to_le_bytes());
    }
    repaired
}

/// A list that was read, as the kernel prints it; none if a path cannot be printed and read again.
fn text(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    for Place { sha1, name, data } in places(bytes) {
        let mut rest = &bytes[data.0..data.1];
        let mut field = || {
            let (length, after) = rest.split_first_chunk().expect("it was read");
            let (field, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            rest = after;
            field
        };
        let (digest, path) = (field(), field());
        let split = digest.iter().position(|b| *b == 0).expect("it was read");
        let algorithm = std::str::from_utf8(&digest[..split]).expect("it was read");
        let path = std::str::from_utf8(path.strip_suffix(&[0]).expect("it was read")).ok()?;
        if path.contains([' ', '\n']) {
            return None;
        }
        let name = std::str::from_utf8(&bytes[name.0..name.1]).expect("it was read");
        let sha1 = hex::encode(&bytes[sha1..sha1 + 20]);
        text +=
            &format!("10 {sha1} {name} {algorithm}{} {path}", hex::encode(&digest[split + 1..]));
        if name == "ima-sig" {
            text += &format!(" {}", hex::encode(field()));
        }
        text.push('\n');
    }
    Some(text)
}
