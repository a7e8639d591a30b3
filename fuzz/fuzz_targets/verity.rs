//! Integrity disks on storage that was edited: a block is read if it and the tree above it are what was built, and
//! otherwise refused with nothing left in the buffer.
#![no_main]

use std::cell::RefCell;
use std::sync::{LazyLock, Mutex};

use coffer_formats::Digest;
use coffer_image::verity::{BLOCK, Geometry, Salt, TreeSink, VerityReader, build_tree};
use libfuzzer_sys::fuzz_target;

/// More than one hash block's worth would be the same again and slower.
const BLOCKS: usize = 3;

struct Built {
    salt: Salt,
    blob: Vec<u8>,
    root: Digest,
    /// Where the one hash block is.
    tree: usize,
}

struct Memory(Mutex<Vec<u8>>);

impl TreeSink for Memory {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> std::io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..BLOCK].copy_from_slice(block);
        Ok(())
    }
}

static BUILT: LazyLock<Built> = LazyLock::new(|| {
    let data: Vec<u8> = (0..BLOCKS).flat_map(|n| [n as u8 + 1; BLOCK]).collect();
    let geometry = Geometry::new(data.len() as u64).unwrap();
    let salt = Salt::new(&[9; 32]).unwrap();
    let mut blob = data.clone();
    blob.resize(geometry.blob_size() as usize, 0);
    let sink = Memory(Mutex::new(blob));
    let root = build_tree(&data[..], &geometry, &salt, &sink, 1).unwrap();
    let tree = geometry.levels()[0].offset as usize;
    Built { salt, blob: sink.0.into_inner().unwrap(), root, tree }
});

thread_local! {
    /// The storage; put right again after each input.
    static STORAGE: RefCell<Vec<u8>> = RefCell::new(BUILT.blob.clone());
}

fuzz_target!(init: {
    assert_eq!(check(&mut BUILT.blob.clone()), BLOCKS, "the original is read");
}, |data: &[u8]| {
    STORAGE.with_borrow_mut(|storage| {
        let edits = data.chunks_exact(3).take(4).map(|edit| {
            (usize::from(u16::from_be_bytes([edit[0], edit[1]])) % storage.len(), edit[2])
        });
        let edits: Vec<(usize, u8)> = edits.collect();
        edits.iter().for_each(|(at, value)| storage[*at] = *value);
        check(storage);
        edits.iter().for_each(|(at, _)| storage[*at] = BUILT.blob[*at]);
    });
});

/// Reads every block, and says how many were there.
fn check(storage: &mut Vec<u8>) -> usize {
    let Built { salt, blob, root, tree } = &*BUILT;
    let same = |at: usize| storage[at..at + BLOCK] == blob[at..at + BLOCK];
    let mut reader = VerityReader::new(&storage[..], (BLOCKS * BLOCK) as u64, *root, salt).unwrap();
    let read_one = |n: &usize| {
        let mut buffer = [0xaa; BLOCK];
        let read = reader.read_block(*n as u64, &mut buffer).is_ok();
        let at = n * BLOCK;
        assert_eq!(read, same(at) && same(*tree), "block {n}");
        assert!(buffer == if read { blob[at..at + BLOCK].try_into().unwrap() } else { [0; BLOCK] });
        read
    };
    (0..BLOCKS).filter(read_one).count()
}
