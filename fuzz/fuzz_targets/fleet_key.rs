//! Key files of fleets, and the record of a vault's fleet (SPEC 11.19): with edits, with the id that is the key's or another.
//! What is read is a key with its own id, and what is written of it.
#![no_main]

use std::sync::LazyLock;

use coffer_fuzz::edited;
use coffer_fuzz::kdf::sha256;
use coffer_vault::FleetKey;
use coffer_vault::fuzzing::fleet_record;
use libfuzzer_sys::fuzz_target;

const KEY: [u8; 32] = [7; 32];
const ID: usize = 16;
const FILE: &[u8] = b"COFFERFK\x01\0\0\0";
/// Map of three: version 1, the id, the key.
const RECORD: &[u8] = &[0xa3, 0, 1, 1, 0x50];
const RECORD_KEY: &[u8] = &[2, 0x58, 0x20];

static WRITTEN: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [file(&KEY), record(&KEY)]);

fn id(key: &[u8]) -> [u8; ID] {
    sha256(&[b"coffer/fleet-id/v1\0", key])[..ID].try_into().unwrap()
}

fn file(key: &[u8]) -> Vec<u8> {
    [FILE, &id(key), key].concat()
}

fn record(key: &[u8]) -> Vec<u8> {
    [RECORD, &id(key), RECORD_KEY, key].concat()
}

/// The key that these bytes, written by the book, have at their end.
fn key_of(bytes: &[u8], written: fn(&[u8]) -> Vec<u8>) -> Option<&[u8]> {
    let key = bytes.last_chunk::<32>()?;
    (written(key) == bytes).then_some(key)
}

fn check(bytes: &[u8], is_record: bool) {
    let (found, expected) = match is_record {
        true => (fleet_record(bytes), key_of(bytes, record)),
        false => (FleetKey::decode(bytes), key_of(bytes, file)),
    };
    assert_eq!(found.map(|key| key.encode().to_vec()), expected.map(file));
}

fuzz_target!(init: {
    let [a_file, a_record] = &*WRITTEN;
    assert!(FleetKey::decode(a_file).is_some() && fleet_record(a_record).is_some());
}, |data: &[u8]| {
    let Some((what, edits)) = data.split_first() else { return };
    let is_record = what & 1 == 1;
    let mut bytes = edited(&WRITTEN[usize::from(is_record)], edits);
    // With the id that its last 32 bytes have, where an id is.
    let at = if is_record { RECORD.len() } else { FILE.len() };
    if let (2, Some(key)) = (what & 2, bytes.last_chunk::<32>().copied())
        && let Some(place) = bytes.get_mut(at..at + ID)
    {
        place.copy_from_slice(&id(&key));
    }
    check(&bytes, is_record);
});
