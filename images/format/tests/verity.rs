//! The tree against `veritysetup`, which shares no code with it, and the reader against hostile storage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_formats::Digest;
use coffer_image::blob::ReadAt;
use coffer_image::verity::{
    BLOCK, Geometry, Place, Salt, Superblock, SuperblockError, TreeSink, VerityError, VerityReader,
    build_tree,
};
use proptest::prelude::*;

/// One block; one full hash block; one more; two full levels and one more block; three levels of that.
const EDGES: [u64; 7] = [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1];

/// Cheap data in which every block differs.
fn data(blocks: u64) -> Vec<u8> {
    (0..blocks)
        .flat_map(|n| Digest::of(&[&n.to_le_bytes()]).0.into_iter().cycle().take(BLOCK))
        .collect()
}

struct Memory(Mutex<Vec<u8>>);

impl TreeSink for Memory {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> std::io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        bytes[offset as usize..][..BLOCK].copy_from_slice(block);
        Ok(())
    }
}

/// A whole blob in memory, and its root hash.
fn sealed(data: &[u8], salt: &Salt, threads: usize) -> (Vec<u8>, Geometry, Digest) {
    let geometry = Geometry::new(data.len() as u64).unwrap();
    let mut blob = data.to_vec();
    blob.resize(geometry.blob_size() as usize, 0);
    let sink = Memory(Mutex::new(blob));
    let root = build_tree(data, &geometry, salt, &sink, threads).unwrap();
    let mut blob = sink.0.into_inner().unwrap();
    let superblock = Superblock::of(&geometry, &root, salt).encode();
    blob[data.len()..][..BLOCK].copy_from_slice(&superblock);
    (blob, geometry, root)
}

fn veritysetup(arguments: &[&str]) -> String {
    let output = Command::new("/usr/sbin/veritysetup")
        .args(arguments)
        .output()
        .expect("cryptsetup-bin is installed");
    assert!(
        output.status.success(),
        "veritysetup {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn salt_argument(salt: &Salt) -> String {
    if salt.as_bytes().is_empty() { "--salt=-".into() } else { format!("--salt={}", salt.to_hex()) }
}

#[track_caller]
fn agrees_with_veritysetup(blocks: u64, salt: &Salt) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let data = data(blocks);
    let (blob, geometry, root) = sealed(&data, salt, 2);
    let ours = path("ours");
    std::fs::write(&ours, &blob).unwrap();
    let offset = format!("--hash-offset={}", geometry.data_size());
    veritysetup(&["verify", &ours, &ours, &root.to_hex(), &offset]);

    // Their tree has their UUID in the superblock and nothing else that differs.
    let theirs = path("theirs");
    std::fs::write(&theirs, &data).unwrap();
    let uuid = Superblock::decode(block_at(&blob, geometry.data_size())).unwrap().uuid;
    let printed = veritysetup(&[
        "format",
        &theirs,
        &theirs,
        &offset,
        &salt_argument(salt),
        &format!("--uuid={}", uuid_text(&uuid)),
        &format!("--data-blocks={blocks}"),
    ]);
    assert!(printed.contains(&root.to_hex()), "{blocks} blocks: other root hash:\n{printed}");
    assert!(std::fs::read(&theirs).unwrap() == blob, "{blocks} blocks: other tree or superblock");
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = hex::encode(uuid);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn block_at(blob: &[u8], offset: u64) -> &[u8; BLOCK] {
    blob[offset as usize..][..BLOCK].try_into().unwrap()
}

#[test]
fn veritysetup_makes_the_same_blob_for_every_edge_size() {
    for blocks in EDGES {
        agrees_with_veritysetup(blocks, &Salt::default());
    }
}

#[test]
fn veritysetup_makes_the_same_blob_with_a_salt() {
    for blocks in [1, 129, 300] {
        agrees_with_veritysetup(blocks, &Salt::new(&[7; 32]).unwrap());
        agrees_with_veritysetup(blocks, &Salt::new(b"abc").unwrap());
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_tree() {
    let data = data(700);
    let one = sealed(&data, &Salt::default(), 1);
    for threads in [2, 3, 16] {
        assert!(sealed(&data, &Salt::default(), threads).0 == one.0, "{threads} threads");
    }
}

#[test]
fn reads_every_block_of_every_edge_size() {
    for blocks in EDGES {
        let data = data(blocks);
        let (blob, _, root) = sealed(&data, &Salt::default(), 2);
        let mut reader =
            VerityReader::new(&blob[..], data.len() as u64, root, &Salt::default()).unwrap();
        reader.verify_all().unwrap();
        let mut buffer = [0; BLOCK];
        for n in [0, blocks / 2, blocks - 1] {
            reader.read_block(n, &mut buffer).unwrap();
            assert!(buffer == *block_at(&data, n * BLOCK as u64));
        }
        assert!(matches!(reader.read_block(blocks, &mut buffer), Err(VerityError::OutOfRange(_))));
        assert!(matches!(
            reader.read_block(u64::MAX, &mut buffer),
            Err(VerityError::OutOfRange(_))
        ));
    }
}

/// Flips the byte at `offset` and reads block `n`.
fn read_after_flip(blocks: u64, offset: u64, n: u64) -> (Result<(), VerityError>, [u8; BLOCK]) {
    let data = data(blocks);
    let (mut blob, _, root) = sealed(&data, &Salt::default(), 2);
    blob[offset as usize] ^= 1;
    let mut reader =
        VerityReader::new(&blob[..], data.len() as u64, root, &Salt::default()).unwrap();
    let mut buffer = [0xaa; BLOCK];
    (reader.read_block(n, &mut buffer), buffer)
}

#[test]
fn names_the_block_that_was_flipped_and_leaves_nothing_of_it() {
    let geometry = Geometry::new(300 * BLOCK as u64).unwrap();
    let [level0, level1] = geometry.levels() else { panic!("two levels") };
    let cases = [
        (5 * BLOCK as u64 + 17, 5, Place::Data { block: 5 }),
        (level0.offset + BLOCK as u64, 128, Place::Tree { level: 0, block: 1 }),
        (level1.offset + 4095, 0, Place::Tree { level: 1, block: 0 }),
    ];
    for (offset, n, place) in cases {
        let (result, buffer) = read_after_flip(300, offset, n);
        assert!(
            matches!(result, Err(VerityError::Mismatch(found)) if found == place),
            "{place}: {result:?}"
        );
        assert_eq!(buffer, [0; BLOCK], "{place}");
    }
}

#[test]
fn a_flipped_neighbour_does_not_stop_other_blocks() {
    assert!(read_after_flip(300, 5 * BLOCK as u64, 6).0.is_ok());
}

#[test]
fn a_long_read_with_one_bad_block_gives_nothing() {
    let data = data(64);
    let (mut blob, _, root) = sealed(&data, &Salt::default(), 1);
    blob[63 * BLOCK] ^= 0x80;
    let mut reader =
        VerityReader::new(&blob[..], data.len() as u64, root, &Salt::default()).unwrap();
    let mut buffer = vec![1; 64 * BLOCK];
    let result = reader.read_blocks(0, &mut buffer);
    assert!(matches!(result, Err(VerityError::Mismatch(Place::Data { block: 63 }))));
    assert!(buffer.iter().all(|b| *b == 0));
    let mut odd = vec![1; BLOCK + 1];
    assert!(matches!(reader.read_blocks(0, &mut odd), Err(VerityError::OutOfRange(0))));
}

/// Storage that answers honestly until it is told not to.
struct Turncoat {
    blob: Vec<u8>,
    lie: AtomicBool,
}

impl ReadAt for Turncoat {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.blob[..].read_exact_at(buffer, offset)?;
        buffer[0] ^= u8::from(self.lie.load(Ordering::Relaxed));
        Ok(())
    }
}

#[test]
fn data_is_verified_again_on_every_read() {
    let data = data(200);
    let (blob, _, root) = sealed(&data, &Salt::default(), 1);
    let storage = Turncoat { blob, lie: AtomicBool::new(false) };
    let mut reader =
        VerityReader::new(&storage, data.len() as u64, root, &Salt::default()).unwrap();
    let mut buffer = [0; BLOCK];
    reader.read_block(9, &mut buffer).unwrap();
    storage.lie.store(true, Ordering::Relaxed);
    let result = reader.read_block(9, &mut buffer);
    assert!(matches!(result, Err(VerityError::Mismatch(Place::Data { block: 9 }))));
}

#[test]
fn a_truncated_disk_is_named_as_such() {
    let data = data(200);
    let (blob, geometry, root) = sealed(&data, &Salt::default(), 1);
    let mut buffer = [0; BLOCK];
    let cut = &blob[..geometry.data_size() as usize];
    let mut reader = VerityReader::new(cut, geometry.data_size(), root, &Salt::default()).unwrap();
    let result = reader.read_block(0, &mut buffer);
    assert!(matches!(result, Err(VerityError::Truncated(Place::Tree { .. }))), "{result:?}");
    let mut reader =
        VerityReader::new(&blob[..BLOCK], geometry.data_size(), root, &Salt::default()).unwrap();
    let result = reader.read_block(1, &mut buffer);
    assert!(matches!(result, Err(VerityError::Truncated(Place::Data { block: 1 }))), "{result:?}");
}

#[test]
fn another_root_hash_or_salt_gives_no_data() {
    let data = data(3);
    let (blob, _, root) = sealed(&data, &Salt::default(), 1);
    let salt = Salt::new(&[1]).unwrap();
    let mut buffer = [0; BLOCK];
    for (root, salt) in [(Digest::ZERO, Salt::default()), (root, salt)] {
        let mut reader = VerityReader::new(&blob[..], data.len() as u64, root, &salt).unwrap();
        assert!(matches!(reader.read_block(0, &mut buffer), Err(VerityError::Mismatch(_))));
    }
}

/// More hash blocks than are kept, so that slots are taken over.
#[test]
fn reads_far_apart_blocks_of_a_disk_larger_than_the_cache() {
    let blocks: u64 = 128 * 300;
    let directory = tempfile::tempdir().unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(directory.path().join("disk"))
        .unwrap();
    let geometry = Geometry::new(blocks * BLOCK as u64).unwrap();
    file.set_len(geometry.blob_size()).unwrap();
    for n in [0, 128 * 256, blocks - 1] {
        file.write_all_at(&n.to_le_bytes(), n * BLOCK as u64).unwrap();
    }
    let root = build_tree(&file, &geometry, &Salt::default(), &file, 2).unwrap();
    let mut reader =
        VerityReader::new(&file, geometry.data_size(), root, &Salt::default()).unwrap();
    let mut buffer = [0; BLOCK];
    for n in [0, 128 * 256, 0, blocks - 1, 128 * 256] {
        reader.read_block(n, &mut buffer).unwrap();
        assert_eq!(buffer[..8], n.to_le_bytes());
    }
}

#[test]
fn refuses_sizes_that_are_no_whole_blocks() {
    for size in [0, 1, 4095, 4097, u64::MAX, (1 << 40) + 4096] {
        assert!(Geometry::new(size).is_err(), "{size}");
    }
    assert_eq!(Geometry::new(1 << 40).unwrap().levels().len(), 4);
}

#[test]
fn names_what_is_wrong_with_a_superblock() {
    let geometry = Geometry::new(BLOCK as u64).unwrap();
    let good = Superblock::of(&geometry, &Digest::ZERO, &Salt::default()).encode();
    let cases = [
        (0, SuperblockError::Missing),
        (8, SuperblockError::Other("version")),
        (12, SuperblockError::Other("hash type")),
        (33, SuperblockError::Other("hash")),
        (65, SuperblockError::Other("data block size")),
        (69, SuperblockError::Other("hash block size")),
        (81, SuperblockError::Other("salt size")),
        (82, SuperblockError::Padding),
        (100, SuperblockError::Padding),
        (4095, SuperblockError::Padding),
    ];
    for (offset, expected) in cases {
        let mut bad = good;
        bad[offset] ^= 1;
        assert_eq!(Superblock::decode(&bad), Err(expected), "byte {offset}");
    }
}

proptest! {
    #[test]
    fn superblock_reads_back_as_written(uuid: [u8; 16], data_blocks: u64, salt in proptest::collection::vec(any::<u8>(), 0..=32)) {
        let superblock = Superblock { uuid, data_blocks, salt: Salt::new(&salt).unwrap() };
        prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }

    #[test]
    fn any_flipped_bit_of_data_or_tree_is_found(blocks in 1_u64..400, at: prop::sample::Index, bit in 0_u8..8) {
        let data = data(blocks);
        let (mut blob, geometry, root) = sealed(&data, &Salt::default(), 2);
        let offset = at.index(blob.len());
        let superblock = (geometry.data_size()..geometry.data_size() + BLOCK as u64).contains(&(offset as u64));
        blob[offset] ^= 1 << bit;
        let mut reader = VerityReader::new(&blob[..], data.len() as u64, root, &Salt::default()).unwrap();
        prop_assert_eq!(reader.verify_all().is_err(), !superblock);
    }
}
