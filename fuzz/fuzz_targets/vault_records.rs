//! Directory blocks of a vault's disk (SPEC 11.14.5), four at a time: taken as a second reader takes them by the book, no name
//! and no extent twice, or refused.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use coffer_disk::BLOCK;
use coffer_fuzz::edited;
use coffer_vault::fuzzing::directory;
use libfuzzer_sys::fuzz_target;

/// Blocks of one input.
const BLOCKS: usize = 4;
const NAME: usize = 24;
const BODY: usize = 224;
const INLINE_MAX: usize = BLOCK - BODY;
const RECORD_MAX: usize = 262_144;
const EXTENTS: u32 = 32_768;
/// Where most of a block is to be found.
const FRONT: usize = 320;

fn block(name: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let numbers = [1, name.len() as u32, length as u32, 0].map(u32::to_le_bytes).concat();
    block[..8].copy_from_slice(b"COFFERRC");
    block[8..NAME].copy_from_slice(&numbers);
    block[NAME..][..name.len()].copy_from_slice(name.as_bytes());
    block[BODY..][..body.len()].copy_from_slice(body);
    block
}

fn extents(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    numbers.flat_map(u32::to_le_bytes).collect()
}

static ORIGINALS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        block("vault", 4, &[1, 0, 0, 0]),
        block("volume/data", 40, &[0xa5; 40]),
        block("vtpm/00112233445566778899aabbccddeeff", 4096 * 2 - 5, &extents(0..2)),
        block("vtpm/ff112233445566778899aabbccddeeff", INLINE_MAX + 1, &extents(7..8)),
        block("counter/closed/image/00", RECORD_MAX, &extents(100..164)),
        block(&"n".repeat(200), INLINE_MAX, &[1; INLINE_MAX]),
    ]
});

/// Name, bytes and extents of one record.
fn by_the_book(block: &[u8]) -> Option<(String, usize, Vec<u32>)> {
    let number = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
    let (name_length, length) = (number(12) as usize, number(16) as usize);
    let head = block.starts_with(b"COFFERRC") && number(8) == 1 && number(20) == 0;
    if !head || !(1..=200).contains(&name_length) || length > RECORD_MAX {
        return None;
    }
    let (name, rest) = block[NAME..BODY].split_at(name_length);
    let count = if length <= INLINE_MAX { 0 } else { length.div_ceil(BLOCK) };
    let used = if count == 0 { length } else { count * 4 };
    let zeros = rest.iter().chain(&block[BODY + used..]).all(|byte| *byte == 0);
    let extents: Vec<u32> = (0..count).map(|n| number(BODY + 4 * n)).collect();
    let name = String::from_utf8(name.to_vec()).ok()?;
    (zeros && extents.iter().all(|extent| *extent < EXTENTS)).then_some((name, length, extents))
}

fn all_by_the_book(blocks: &[&[u8]]) -> Option<Vec<(String, usize, Vec<u32>)>> {
    let (mut records, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for block in blocks {
        let (name, length, extents) = by_the_book(block)?;
        let once = extents.iter().all(|extent| taken.insert(*extent));
        if !once || records.insert(name, (length, extents)).is_some() {
            return None;
        }
    }
    Some(records.into_iter().map(|(name, (length, extents))| (name, length, extents)).collect())
}

fuzz_target!(init: {
    let all: Vec<&[u8]> = ORIGINALS.iter().map(Vec::as_slice).collect();
    assert_eq!(directory(&all).map(|records| records.len()), Some(ORIGINALS.len()));
}, |data: &[u8]| {
    // For each block: which one, and bytes of its edits.
    let (mut blocks, mut rest) = (Vec::new(), data);
    while let ([which, count, after @ ..], true) = (rest, blocks.len() < BLOCKS) {
        let (edits, after) = after.split_at(after.len().min(usize::from(count % 4) * 4));
        let original = &ORIGINALS[usize::from(*which) % ORIGINALS.len()];
        // In front, or anywhere.
        let part = if count & 4 == 0 { FRONT } else { BLOCK };
        let (front, back) = original.split_at(part);
        let mut block = [edited(front, edits), back.to_vec()].concat();
        block.resize(BLOCK, 0);
        blocks.push(block);
        rest = after;
    }
    // A block without a record is zero, and not read.
    let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    assert_eq!(directory(&blocks), all_by_the_book(&blocks));
});
