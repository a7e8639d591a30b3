//! Records of volumes and of guests' counters (SPEC 11.15.1, 11.16.4) and policies (11.15.2): read, written again and judged as by
//! a second reader that goes by the book.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use coffer_fuzz::edited;
use coffer_fuzz::guests::{admitted, canonical, guest, owner, svn};
use coffer_fuzz::map::{self, Item};
use coffer_vault::fuzzing::{admit, counters, volume_record};
use coffer_vault::{Owner, VolumeKind};
use libfuzzer_sys::fuzz_target;

const KINDS: [VolumeKind; 4] =
    [VolumeKind::Raw, VolumeKind::Integrity, VolumeKind::Encrypted, VolumeKind::Vtpm];

/// Fields 0 to 10 of a volume, and some of those that its kind has.
fn volume(kind: u8, owner: &Owner, more: &[&[u8]]) -> Vec<u8> {
    let version = if let Owner::Signer { svn, .. } = owner { *svn as u8 } else { 0 };
    let parts: [&[u8]; 8] = [
        &[0xa0 + 11 + more.len() as u8, 0, 1, 1, 0x50],
        &[3; 16],
        &[2, kind, 3, 0x19, 0x20, 0, 4, 0x58, 33],
        &canonical(owner),
        &[5, version, 6, version + 1],
        &[7, 0x1a, 0x6a, 0, 0, 1],
        &[8, 0x19, 0x40, 0, 9, 1, 10, 0xf4],
        &more.concat(),
    ];
    parts.concat()
}

static VOLUMES: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    let (holder, disk) = ([11, 0x19, 0x1f, 0xff], [&[12, 0x50], &[4; 16][..]].concat());
    let hash = [&[13, 0x58, 32], &[5; 32][..]].concat();
    let salt = [&[14, 0x58, 32], &[6; 32][..]].concat();
    let verifier = [&[15, 0x58, 65], &[4; 65][..]].concat();
    [
        volume(0, &owner([0, 1, 0]), &[]),
        volume(1, &owner([2, 0, 0]), &[&hash, &salt]),
        volume(2, &owner([1, 1, 2]), &[&holder, &disk, &verifier]),
        volume(3, &owner([1, 2, 0]), &[]),
    ]
});
/// Two counters.
const COUNTERS: &[u8] =
    b"\xa2\x00\x01\x01\xa2\x61a\x18\x64\x62ab\x1b\xff\xff\xff\xff\xff\xff\xff\xff";
static POLICIES: LazyLock<[String; 4]> = LazyLock::new(|| {
    let hex = "0f".repeat(32);
    [format!("image:{hex}"), format!("signer:{hex}"), format!("signer:{hex},svn=7"), "open".into()]
});

fuzz_target!(init: {
    assert!(VOLUMES.iter().all(|bytes| by_the_book(bytes).is_some()));
    assert!(counters_by_the_book(COUNTERS).is_some());
    assert!(POLICIES.iter().all(|text| is_policy(text)));
    VOLUMES.iter().for_each(|bytes| check_volume(bytes));
}, |data: &[u8]| {
    let Some((what, rest)) = data.split_first() else { return };
    let which = usize::from(what >> 6);
    match what % 8 {
        0 => check_counters(&edited(COUNTERS, rest)),
        1 => {
            check_policy(rest);
            check_policy(&edited(POLICIES[which].as_bytes(), rest));
        }
        2 => check_admission(rest),
        _ => check_volume(&edited(&VOLUMES[which], rest)),
    }
});

/// Kind, owner and floor.
fn by_the_book(bytes: &[u8]) -> Option<(VolumeKind, Owner, u32)> {
    let map = map::read(bytes).filter(|_| bytes.len() <= 4096)?;
    let number = |key: u64| map.get(&key).and_then(Item::number);
    let small = |key: u64| number(key).and_then(|value| u32::try_from(value).ok());
    let has = |key: u64, length: usize| map.get(&key).map(|item| item.bytes(length).is_some());
    let kind = *KINDS.get(usize::try_from(number(2)?).ok()?)?;
    let (lowest, floor, _generation) = (small(5)?, small(6)?, small(9)?);
    let there = [3, 7, 8].iter().all(|key| number(*key).is_some());
    let whole = number(0)? == 1 && has(1, 16)? && there && map.get(&10)?.bool().is_some();
    let encrypted = (number(11).filter(|holder| *holder < 8192), has(12, 16));
    let fits = match kind {
        VolumeKind::Encrypted => encrypted.0.is_some() && encrypted.1 == Some(true),
        _ => !map.contains_key(&11) && !map.contains_key(&12),
    } && match kind {
        VolumeKind::Integrity => (has(13, 32), has(14, 32)) == (Some(true), Some(true)),
        _ => !map.contains_key(&13) && !map.contains_key(&14),
    };
    let good = whole && fits && has(15, 65) != Some(false) && map.keys().all(|key| *key <= 15);
    let [who, digest @ ..] = map.get(&4)?.bytes(33)? else { return None };
    let digest = coffer_formats::Digest::from_slice(digest)?;
    let owner = match (who, lowest) {
        (0, 0) => Owner::Image(digest),
        (1, svn) => Owner::Signer { key: digest, svn },
        (2, 0) if digest.0 == [0; 32] => Owner::Open,
        _ => return None,
    };
    (good && floor >= lowest).then_some((kind, owner, floor))
}

fn check_volume(bytes: &[u8]) {
    let read = volume_record(bytes);
    let told = read.as_ref().map(|(_, info)| (info.kind, info.owner, info.svn_floor));
    assert_eq!(told, by_the_book(bytes));
    assert!(read.is_none_or(|(written, _)| written == bytes), "two encodings of one record");
}

fn counters_by_the_book(bytes: &[u8]) -> Option<BTreeMap<String, u64>> {
    let map = map::read(bytes).filter(|map| map.len() == 2 && bytes.len() <= 32 << 10)?;
    let (Item::Number(1), Item::Named(values)) = (map.get(&0)?, map.get(&1)?) else { return None };
    let ascending = values.is_sorted_by(|(one, _), (next, _)| one < next);
    ascending.then(|| values.iter().cloned().collect())
}

fn check_counters(bytes: &[u8]) {
    let read = counters(bytes);
    assert_eq!(read.as_ref().map(|(values, _)| values.clone()), counters_by_the_book(bytes));
    assert!(read.is_none_or(|(_, written)| written == bytes), "two encodings of one record");
}

fn is_policy(text: &str) -> bool {
    let digest =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    match text.strip_prefix("signer:").map(|rest| rest.split_once(",svn=")) {
        Some(Some((hex, svn))) => {
            let digits = !svn.is_empty() && svn.bytes().all(|byte| byte.is_ascii_digit());
            let value = svn.bytes().fold(0_u64, |sum, digit| {
                sum.saturating_mul(10).saturating_add(u64::from(digit.wrapping_sub(b'0')))
            });
            digest(hex) && digits && value <= u64::from(u32::MAX)
        }
        Some(None) => text.strip_prefix("signer:").is_some_and(digest),
        None => text == "open" || text.strip_prefix("image:").is_some_and(digest),
    }
}

/// A policy is one, says itself again, and in the JSON of requests is the same.
fn check_policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = text.parse::<Owner>().ok();
    assert_eq!(read.is_some(), is_policy(text), "{text}");
    let Some(owner) = read else { return };
    assert_eq!(owner.to_string().parse::<Owner>().ok(), Some(owner));
    let json = serde_json::to_string(text).expect("text is JSON");
    assert_eq!(serde_json::from_str::<Owner>(&json).ok(), Some(owner));
}

fn check_admission(data: &[u8]) {
    let Some(([a, b, c, d, e, f, g, h], _)) = data.split_first_chunk::<8>() else { return };
    let (user, owner, floor) = (guest([*a, *b, *c, *d]), owner([*e, *f, *g]), svn(*h));
    let found = admit(&owner, &user, floor);
    assert_eq!(found.map_err(|error| error.code()), admitted(&owner, &user, floor));
    assert!(admitted(&owner, &user, floor).is_err() || admitted(&owner, &user, floor) >= Ok(floor));
}
