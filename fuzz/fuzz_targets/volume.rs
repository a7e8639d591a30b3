//! Encrypted disks on storage whose owner altered it, mixed it from several times, or took pieces of another disk: what
//! opens is the last state, block by block or not at all, and goes on as a disk does; what a repair leaves is the last
//! state, or lost, and opens.
#![no_main]

use std::sync::LazyLock;

use coffer_disk::{
    BLOCK, DangerousMemoryAnchor, Disk, DiskError, DiskId, DiskKey, Entropy, MemoryStore, Place,
    Shape,
};
use coffer_fuzz::one_in;
use libfuzzer_sys::fuzz_target;

const SHAPE: Shape = Shape { blocks: 6, spare: 16 };
/// States of the disk that the storage's owner kept, the last one included.
const STATES: usize = 4;
/// Edits of one input.
const EDITS_MAX: usize = 8;

type Volume = Disk<MemoryStore, DangerousMemoryAnchor>;

/// Bytes that nobody else has, the same in every run.
struct Dice(u64);

impl Entropy for Dice {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        for byte in bytes {
            // Knuth's MMIX generator.
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 56) as u8;
        }
        Ok(())
    }
}

struct Kept {
    id: DiskId,
    /// Storage, oldest first; behind them one of another disk under the same key.
    storages: Vec<Vec<u8>>,
    /// What the last state holds.
    content: Vec<u8>,
    /// And what of it is lost: it was repaired once.
    lost: Option<u64>,
    /// Where the anchor stood after each state.
    epochs: Vec<u64>,
}

/// A disk that was never damaged, and one that was repaired before its last state.
static KEPT: LazyLock<[Kept; 2]> = LazyLock::new(|| {
    let mut dice = Dice(1);
    [None, Some(LOST)].map(|lost| {
        let (id, mut storages, content, epochs) = history(&mut dice, 1, lost);
        let (_, foreign, ..) = history(&mut dice, 101, None);
        storages.push(foreign[STATES - 1].clone());
        Kept { id, storages, content, lost, epochs }
    })
});

/// Not written in the last state.
const LOST: u64 = 1;

/// The storage with the data of one block damaged.
fn damaged(storage: &[u8], at: u64, id: DiskId, block: u64) -> Vec<u8> {
    let tries = (2..storage.len() / BLOCK).map(|physical| {
        let mut storage = storage.to_vec();
        storage[physical * BLOCK] ^= 1;
        storage
    });
    let hit = |storage: &Vec<u8>| {
        let (store, anchor) = (MemoryStore(storage.clone()), DangerousMemoryAnchor::at(at));
        let report = Disk::repair(store, anchor, &key(), id, &mut Dice(5)).unwrap().1;
        report.places == [Place::Data(block)]
    };
    tries.into_iter().find(hit).expect("it lies somewhere")
}

fn history(
    dice: &mut Dice,
    mark: u8,
    lost: Option<u64>,
) -> (DiskId, Vec<Vec<u8>>, Vec<u8>, Vec<u64>) {
    let store = MemoryStore::zeroed(SHAPE.storage().unwrap());
    let mut disk =
        Disk::create(store, DangerousMemoryAnchor::default(), &key(), SHAPE, dice).unwrap();
    let id = disk.info().id;
    let (mut storages, mut epochs) = (Vec::new(), Vec::new());
    let mut content = vec![0; SHAPE.blocks as usize * BLOCK];
    for state in 0..STATES {
        // Every state leaves some blocks as they were, and the first block is never written.
        let written = |block: &u64| *block as usize % STATES <= state && state + 1 < STATES;
        for block in (1..SHAPE.blocks).filter(|block| written(block) || *block + 1 == SHAPE.blocks)
        {
            let data = [mark + state as u8 * 10 + block as u8; BLOCK];
            disk.write(block, &data).unwrap();
            content[block as usize * BLOCK..][..BLOCK].copy_from_slice(&data);
        }
        disk.flush().unwrap();
        epochs.push(disk.info().epoch);
        let (store, anchor) = disk.close().unwrap();
        storages.push(store.0.clone());
        if state + 1 == STATES {
            return (id, storages, content, epochs);
        }
        disk = match lost.filter(|_| state + 2 == STATES) {
            Some(block) => {
                let storage = damaged(&store.0, epochs[state], id, block);
                content[block as usize * BLOCK..][..BLOCK].fill(0);
                Disk::repair(MemoryStore(storage), anchor, &key(), id, dice).unwrap().0
            }
            None => Disk::open(store, anchor, &key(), id, dice).unwrap(),
        };
    }
    unreachable!("there are states")
}

fn key() -> DiskKey {
    DiskKey::new(&mut [7; 32])
}

fn open(kept: &Kept, storage: Vec<u8>, epoch: u64) -> Result<Volume, DiskError> {
    let anchor = DangerousMemoryAnchor::at(epoch);
    Disk::open(MemoryStore(storage), anchor, &key(), kept.id, &mut Dice(2))
}

fuzz_target!(init: {
    for kept in &*KEPT {
        for (at, storage) in kept.storages.iter().enumerate() {
            let opened = open(kept, storage.clone(), kept.epochs[STATES - 1]);
            assert_eq!(opened.is_ok(), at == STATES - 1, "only the last state opens");
            // Each of them opened in its time.
            assert!(at == STATES || open(kept, storage.clone(), kept.epochs[at]).is_ok());
        }
    }
}, |data: &[u8]| {
    let kept = &KEPT[data.len() % 2];
    let mut storage = kept.storages[STATES - 1].clone();
    data.chunks_exact(4).take(EDITS_MAX).for_each(|edit| apply(kept, edit, &mut storage));
    let altered = storage != kept.storages[STATES - 1];
    let opened = open(kept, storage.clone(), kept.epochs[STATES - 1]);
    assert!(altered || opened.is_ok(), "what nobody altered opens");
    if one_in(3, data) {
        match (repair(kept, storage), &opened) {
            (Ok(disk), Ok(_) | Err(DiskError::Corrupt(Place::Node { .. }))) => use_repaired(kept, disk),
            (Err(found), Err(refused)) => assert_eq!(found.code(), refused.code()),
            (found, _) => panic!("repaired: {:?}", found.err()),
        }
    }
    if let Ok(disk) = opened {
        use_it(kept, disk, one_in(8, data));
    }
});

fn repair(kept: &Kept, storage: Vec<u8>) -> Result<Volume, DiskError> {
    let anchor = DangerousMemoryAnchor::at(kept.epochs[STATES - 1]);
    let repaired = Disk::repair(MemoryStore(storage), anchor, &key(), kept.id, &mut Dice(4))?;
    Ok(repaired.0)
}

/// Every block is the last state's or lost, at the next opening too; and lost no more when it is written.
fn use_repaired(kept: &Kept, mut disk: Volume) {
    for again in [false, true] {
        for block in 0..SHAPE.blocks {
            let mut buffer = [0xaa; BLOCK];
            let expected = &kept.content[block as usize * BLOCK..][..BLOCK];
            match disk.read(block, &mut buffer) {
                Ok(()) => {
                    assert!(buffer == expected, "block {block} is not what was written");
                    assert!(again || kept.lost != Some(block), "block {block} was lost");
                }
                Err(DiskError::Lost(_)) => {
                    assert!(buffer == [0; BLOCK] && !again, "block {block}");
                    disk.write(block, expected).expect("there is room");
                }
                Err(error) => panic!("block {block}: {error}"),
            }
        }
        let (store, anchor) = disk.close().expect("nothing hinders it");
        disk = Disk::open(store, anchor, &key(), kept.id, &mut Dice(3)).expect("it was repaired");
    }
}

/// What the owner of the storage can do.
fn apply(kept: &Kept, edit: &[u8], storage: &mut Vec<u8>) {
    let [what, high, low, value] = *edit else { return };
    let at = usize::from(u16::from_be_bytes([high, low]));
    let blocks = storage.len() / BLOCK;
    match what % 4 {
        0 if !storage.is_empty() => {
            // Superblocks and the first bytes of blocks are where most is to be found.
            let at = if what & 4 == 0 { at % storage.len() } else { at * 64 % storage.len() };
            storage[at] ^= value.max(1);
        }
        1 if blocks > 0 => {
            let source = &kept.storages[usize::from(value) % kept.storages.len()];
            let (from, to) =
                (usize::from(high) % (source.len() / BLOCK), usize::from(low) % blocks);
            let from = if what & 4 == 0 { to } else { from };
            storage[to * BLOCK..][..BLOCK].copy_from_slice(&source[from * BLOCK..][..BLOCK]);
        }
        2 if blocks > 0 => {
            let (from, to) = (usize::from(high) % blocks, usize::from(low) % blocks);
            storage.copy_within(from * BLOCK..(from + 1) * BLOCK, to * BLOCK);
        }
        3 if value < 8 => storage.truncate(at % (storage.len() + 1)),
        _ => {}
    }
}

/// Every block is the last state's or an error with nothing in the buffer; a write is found again.
fn use_it(kept: &Kept, mut disk: Volume, at_length: bool) {
    let mut held = Vec::new();
    for block in 0..SHAPE.blocks {
        let mut buffer = [0xaa; BLOCK];
        let expected = &kept.content[block as usize * BLOCK..][..BLOCK];
        match disk.read(block, &mut buffer) {
            Ok(()) => {
                assert!(buffer == expected, "block {block} is not what was written");
                assert!(kept.lost != Some(block), "block {block} was lost");
            }
            Err(_) => assert!(buffer == [0; BLOCK], "an error leaves nothing behind"),
        }
        held.push(buffer);
    }
    if !at_length {
        return;
    }
    let written = disk.write(2, &[9; BLOCK]).and_then(|()| disk.flush());
    if written.is_ok() {
        let (store, anchor) = disk.close().expect("nothing is left to write");
        let mut disk =
            Disk::open(store, anchor, &key(), kept.id, &mut Dice(3)).expect("it was written");
        held[2] = [9; BLOCK];
        for (block, held) in (0..).zip(held) {
            let mut buffer = [0; BLOCK];
            if disk.read(block, &mut buffer).is_ok() {
                assert!(buffer == held, "block {block} after a flush");
            }
        }
    }
}
