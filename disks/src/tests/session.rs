//! What a caller can do wrong, and what goes wrong under it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use super::support::*;
use crate::*;

#[test]
fn flush_moves_the_anchor_once_and_only_for_something_new() {
    let (world, mut disk) = fresh(10, 16, &mut Dice(1));
    let at = world.0.borrow().counter;
    disk.flush().unwrap();
    assert_eq!(world.0.borrow().counter, at);
    for _ in 0..3 {
        disk.write(0, &[1; 3 * BLOCK]).unwrap();
    }
    // Three flushes that waited for one another.
    (0..3).for_each(|_| disk.flush().unwrap());
    assert_eq!(world.0.borrow().counter, at + 1);
    let id = disk.info().id;
    drop(disk);
    let disk = reopen(&world, id, &mut Dice(2)).unwrap();
    assert_eq!(world.0.borrow().counter, at + 3);
    assert_eq!(disk.info().epoch, at + 3);
}

#[test]
fn refuses_what_lies_outside_or_is_ragged() {
    let (_, mut disk) = fresh(10, 16, &mut Dice(1));
    let code = |result: Result<(), DiskError>| result.unwrap_err().code();
    assert_eq!(code(disk.read(10, &mut [0; BLOCK])), "out-of-range");
    assert_eq!(code(disk.write(9, &[0; 2 * BLOCK])), "out-of-range");
    assert_eq!(code(disk.zero(u64::MAX, 2)), "out-of-range");
    assert_eq!(code(disk.read(0, &mut [0; 100])), "unaligned");
    assert_eq!(code(disk.write(0, &[0; BLOCK + 1])), "unaligned");
    disk.write(9, &[3; BLOCK]).unwrap();
    disk.read(0, &mut []).unwrap();
    let mut last = [0; BLOCK];
    disk.read(9, &mut last).unwrap();
    assert_eq!(last, [3; BLOCK]);
}

#[test]
fn a_disk_is_made_only_where_nothing_is() {
    let shape = Shape { blocks: 4, spare: 16 };
    let storage = shape.storage().unwrap();
    let make = |store: MemoryStore, shape| {
        let anchor = DangerousMemoryAnchor::at(3);
        Disk::create(store, anchor, &key(1), shape, &mut Dice(1)).map(|disk| disk.info())
    };
    let mut used = MemoryStore::zeroed(storage);
    used.0[5000] = 1;
    assert_eq!(make(used, shape).unwrap_err().code(), "not-empty");
    let short = MemoryStore::zeroed(storage - 1);
    assert_eq!(make(short, shape).unwrap_err().code(), "storage-short");
    for (blocks, spare) in [(0, 16), (4, 15), (BLOCKS_MAX + 1, 16), (4, u64::MAX)] {
        let store = MemoryStore::zeroed(storage);
        assert_eq!(make(store, Shape { blocks, spare }).unwrap_err().code(), "bad-shape");
    }
    let info = make(MemoryStore::zeroed(storage), shape).unwrap();
    assert_eq!((info.epoch, info.shape, info.levels), (4, shape, 1));
}

#[test]
fn discarded_storage_is_used_again() {
    let mut dice = Dice(1);
    let (_, mut disk) = fresh(200, 16, &mut dice);
    let empty = disk.info().taken;
    for round in 0..5 {
        disk.write(0, &[round; 200 * BLOCK]).unwrap();
        disk.zero(0, 200).unwrap();
        disk.flush().unwrap();
    }
    assert_eq!(disk.info().taken, empty);
    assert_eq!(contents(&mut disk).unwrap(), [0; 200 * BLOCK]);
}

/// What was never committed is free at once.
#[test]
fn writing_one_block_over_and_over_needs_no_commit() {
    let (world, mut disk) = fresh(100, 16, &mut Dice(1));
    disk.write(0, &[1; 100 * BLOCK]).unwrap();
    disk.flush().unwrap();
    let at = world.0.borrow().counter;
    (0..500).for_each(|n| disk.write(n % 3, &[n as u8; BLOCK]).unwrap());
    assert_eq!(world.0.borrow().counter, at);
    // Other blocks each time: the spare ones are used up.
    (0..100).for_each(|n| disk.write(n, &[2; BLOCK]).unwrap());
    assert!(world.0.borrow().counter > at);
}

#[test]
fn rekeying_puts_the_old_key_out_of_use() {
    let mut dice = Dice(1);
    let (world, mut disk) = fresh(4, 16, &mut dice);
    let id = disk.info().id;
    disk.write(1, &[7; BLOCK]).unwrap();
    disk.rekey(&key(2), &mut dice).unwrap();
    drop(disk);
    let open = |n| Disk::open(world.clone(), world.clone(), &key(n), id, &mut Dice(n.into()));
    assert_eq!(open(1).err().unwrap().code(), "wrong-key");
    let mut block = [0; BLOCK];
    open(2).unwrap().read(1, &mut block).unwrap();
    assert_eq!(block, [7; BLOCK]);
}

#[test]
fn a_second_session_ends_the_first() {
    let mut dice = Dice(1);
    let (world, mut first) = fresh(4, 16, &mut dice);
    let mut second = reopen(&world, first.info().id, &mut dice).unwrap();
    first.write(0, &[1; BLOCK]).unwrap();
    assert_eq!(first.flush().unwrap_err().code(), "superseded");
    assert_eq!(first.flush().unwrap_err().code(), "superseded");
    assert_eq!(first.read(0, &mut [0; BLOCK]).unwrap_err().code(), "superseded");
    // It is not begun anew either: its states are dead.
    assert_eq!(first.resume(&key(1), &mut dice).unwrap_err().code(), "superseded");
    // A check of the anchor is no lock: the first wrote into the second's storage. What is damaged is refused.
    second.write(1, &[2; BLOCK]).unwrap();
    let _ = second.flush();
}

/// Each operation fails in turn: nothing flushed is lost, and the error is the caller's to see. Whether the disk is opened
/// again or its session begun anew is the same.
#[test]
fn nothing_flushed_is_lost_when_storage_or_anchor_fail() {
    let mut ended = 0;
    for (fuse, resumed) in (0..60).flat_map(|fuse| [(fuse, false), (fuse, true)]) {
        let mut dice = Dice(fuse);
        let (world, mut disk) = fresh(100, 16, &mut dice);
        let id = disk.info().id;
        disk.write(0, &[1; 100 * BLOCK]).unwrap();
        disk.flush().unwrap();
        world.0.borrow_mut().fuse = Some(fuse);
        let mut flushed = contents(&mut disk).unwrap();
        let mut failed = false;
        'session: for round in 2..6 {
            for block in 0..30 {
                failed = disk.write(block, &[round; BLOCK]).is_err();
                if failed {
                    break 'session;
                }
            }
            failed = disk.flush().is_err();
            if failed {
                break;
            }
            flushed[..30 * BLOCK].fill(round);
        }
        assert!(failed);
        world.0.borrow_mut().fuse = None;
        let mut disk = match resumed {
            true => {
                ended += u32::from(disk.in_session().is_err());
                disk.resume(&key(1), &mut dice).unwrap();
                disk
            }
            false => {
                drop(disk);
                reopen(&world, id, &mut dice).unwrap()
            }
        };
        let found = contents(&mut disk).unwrap();
        assert!(found[30 * BLOCK..] == flushed[30 * BLOCK..]);
        let old = flushed[0];
        let fits = |found: u8| found == old || found == old + 1;
        assert!(found[..30 * BLOCK].iter().all(|byte| fits(*byte)));
        disk.write(0, &[9; BLOCK]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let mut disk = reopen(&world, id, &mut dice).unwrap();
        assert!(contents(&mut disk).unwrap()[..BLOCK] == [9; BLOCK]);
    }
    assert!(ended > 5, "{ended} sessions were begun anew");
}

/// A write that fails before the commit leaves a session that works on once there is room again.
#[test]
fn a_full_disk_is_an_error_and_no_end() {
    let mut dice = Dice(1);
    let (world, mut disk) = fresh(100, 16, &mut dice);
    disk.write(0, &[1; 100 * BLOCK]).unwrap();
    world.0.borrow_mut().fuse = Some(0);
    assert_eq!(disk.write(3, &[2; BLOCK]).unwrap_err().code(), "storage-failed");
    assert_eq!(disk.flush().unwrap_err().code(), "storage-failed");
    world.0.borrow_mut().fuse = None;
    disk.write(3, &[2; BLOCK]).unwrap();
    disk.flush().unwrap();
    let id = disk.info().id;
    drop(disk);
    let mut disk = reopen(&world, id, &mut dice).unwrap();
    let found = contents(&mut disk).unwrap();
    let count = |n: u8| found.iter().filter(|byte| **byte == n).count();
    assert_eq!((count(1), count(2)), (99 * BLOCK, BLOCK));
}

#[test]
fn works_in_a_file_that_nobody_else_has() {
    let shape = Shape { blocks: 300, spare: 64 };
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(shape.storage().unwrap()).unwrap();
    let reach = || file.reopen().unwrap();
    let anchor = DangerousMemoryAnchor::at(0);
    let store = FileStore::new(reach()).unwrap();
    let mut disk = Disk::create(store, anchor.clone(), &key(1), shape, &mut SystemEntropy).unwrap();
    let id = disk.info().id;
    assert_eq!(FileStore::new(reach()).err().unwrap().code(), "busy");
    let data: Vec<u8> = (0..300).flat_map(|n| Dice(n).block()).collect();
    disk.write(0, &data).unwrap();
    disk.close().unwrap();
    let store = FileStore::new(reach()).unwrap();
    let mut disk = Disk::open(store, anchor, &key(1), id, &mut SystemEntropy).unwrap();
    let mut found = vec![0; data.len()];
    disk.read(0, &mut found).unwrap();
    assert!(found == data);
    // Nothing of it lies in the file in clear.
    let raw = std::fs::read(file.path()).unwrap();
    assert!(data.chunks(BLOCK).all(|block| !raw.chunks(BLOCK).any(|stored| stored == block)));
}

/// Five levels' worth of numbers without the storage: geometry at its edges.
#[test]
fn shapes_at_the_edges() {
    for (blocks, levels, nodes) in
        [(1, 1, 1), (85, 1, 1), (86, 2, 3), (7225, 2, 86), (7226, 3, 86 + 2 + 1)]
    {
        assert_eq!(crate::shape::levels(blocks), levels, "{blocks}");
        let physical = Shape { blocks, spare: 16 }.physical().unwrap();
        assert_eq!(physical, 2 + blocks + nodes + 16, "{blocks}");
        assert_eq!(Shape::within(blocks, physical), Some(Shape { blocks, spare: 16 }));
        assert_eq!(Shape::within(blocks, physical - 1), None);
    }
    assert_eq!(crate::shape::levels(BLOCKS_MAX), 5);
    assert_eq!(Shape::within(u64::MAX, u64::MAX), None);
}

/// Devices live in threads.
#[test]
fn a_disk_can_be_sent() {
    fn sent<T: Send>() {}
    sent::<Disk<FileStore, DangerousMemoryAnchor>>();
    sent::<Ledger<FileStore, DangerousMemoryAnchor>>();
}

/// Creating is cut at each step: there is an empty disk or none.
#[test]
fn creating_can_be_cut() {
    let shape = Shape { blocks: 4, spare: 16 };
    for fuse in 0..4 {
        let world = Recorder::new(vec![0; shape.storage().unwrap() as usize], 7);
        world.0.borrow_mut().fuse = Some(fuse);
        let created = Disk::create(world.clone(), world.clone(), &key(1), shape, &mut Dice(1));
        // Write, flush, move of the anchor.
        assert_eq!(created.is_ok(), fuse >= 3);
        drop(created);
        world.0.borrow_mut().fuse = None;
        let id = DiskId(crate::bytes::get(&world.0.borrow().image, 16));
        match reopen(&world, id, &mut Dice(2)) {
            Ok(mut disk) => assert_eq!(contents(&mut disk).unwrap(), [0; 4 * BLOCK]),
            Err(error) => assert_eq!((error.code(), fuse), ("not-a-disk", 0)),
        }
    }
}

/// Storage behind a cache that takes for written what a failed flush did not write, as Linux does.
#[derive(Clone, Default)]
struct Cached(Rc<RefCell<Cache>>);

#[derive(Default)]
struct Cache {
    medium: Vec<u8>,
    pages: BTreeMap<u64, Vec<u8>>,
    dirty: BTreeSet<u64>,
    /// Flushes until one fails.
    fuse: Option<u32>,
}

impl Store for Cached {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().medium.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let cache = self.0.borrow();
        for (at, part) in (offset..).step_by(BLOCK).zip(buffer.chunks_mut(BLOCK)) {
            let at_medium = &cache.medium[at as usize..][..part.len()];
            let page = cache.pages.get(&at).map_or(at_medium, |page| &page[..part.len()]);
            part.copy_from_slice(page);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut cache = self.0.borrow_mut();
        for (at, part) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            cache.pages.insert(at, part.to_vec());
            cache.dirty.insert(at);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut cache = self.0.borrow_mut();
        let dirty = std::mem::take(&mut cache.dirty);
        let left = cache.fuse.map(|left| left.checked_sub(1));
        cache.fuse = left.flatten();
        if left == Some(None) {
            return Err(io::Error::other("the cable was loose"));
        }
        for at in dirty {
            let page = cache.pages[&at].clone();
            cache.medium[at as usize..][..BLOCK].copy_from_slice(&page);
        }
        Ok(())
    }
}

/// What the first flush of a commit did not bring to the medium is named by nothing; a superblock that the second did not is
/// written again before it counts.
#[test]
fn what_a_failed_flush_left_in_a_cache_is_not_built_upon() {
    for failing in 0..2 {
        let (store, anchor) = (Cached::default(), DangerousMemoryAnchor::default());
        let shape = Shape { blocks: 300, spare: 32 };
        store.0.borrow_mut().medium = vec![0; shape.storage().unwrap() as usize];
        let mut dice = Dice(1);
        let (mut disk, keep) = (
            Disk::create(store.clone(), anchor.clone(), &key(1), shape, &mut dice).unwrap(),
            |disk: &mut Disk<_, _>, block, byte| {
                disk.write(block, &[byte; BLOCK])?;
                disk.flush()
            },
        );
        disk.write(0, &[1; 300 * BLOCK]).unwrap();
        disk.flush().unwrap();
        store.0.borrow_mut().fuse = Some(failing);
        keep(&mut disk, 0, 2).unwrap_err();
        disk.resume(&key(1), &mut dice).unwrap();
        keep(&mut disk, 200, 3).unwrap();
        let id = disk.info().id;
        drop(disk);
        // The power is cut: what there is is the medium.
        store.0.borrow_mut().pages.clear();
        let mut disk = Disk::open(store, anchor, &key(1), id, &mut dice).unwrap();
        let mut blocks = vec![0; 300 * BLOCK];
        disk.read(0, &mut blocks).unwrap();
        assert!(blocks[BLOCK..200 * BLOCK].iter().all(|byte| *byte == 1));
        assert!(blocks[200 * BLOCK..201 * BLOCK] == [3; BLOCK], "failing {failing}");
        assert!(blocks[201 * BLOCK..].iter().all(|byte| *byte == 1));
    }
}

/// A monitor takes a code from a VM process only if it is one of these.
#[test]
fn every_code_is_known() {
    let io = || io::Error::other("x");
    let (found, anchor, needed) = (1, 2, 3);
    let errors = [
        DiskError::NotADisk,
        DiskError::UnsupportedVersion { version: 2, features: 0 },
        DiskError::Truncated { needed, found },
        DiskError::Corrupt(Place::Data(1)),
        DiskError::Stale { found, anchor },
        DiskError::Foreign,
        DiskError::WrongKey,
        DiskError::AnchorBehind { found, anchor },
        DiskError::Superseded { expected: 1, found },
        DiskError::AnchorFailed("x".into()),
        DiskError::Storage { doing: "x", source: io() },
        DiskError::StorageFull,
        DiskError::Busy,
        DiskError::NoEntropy,
        DiskError::OutOfRange { first: 1, count: 1 },
        DiskError::Unaligned(1),
        DiskError::ReadOnly,
        DiskError::BadShape { blocks: 1, spare: 1 },
        DiskError::StorageShort { needed, found },
        DiskError::NotEmpty,
        DiskError::SessionEnded,
    ];
    for error in &errors {
        assert_eq!(DiskError::known_code(error.code()), Some(error.code()));
    }
    assert_eq!(DiskError::known_code("policy-denied"), None);
}
