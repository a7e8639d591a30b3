//! Trees no writer makes, sealed with the right key: refused, whatever they name.

use super::support::*;
use crate::entry::Entry;
use crate::keys::DataKey;
use crate::node::Node;
use crate::sealer::Sealer;
use crate::shape::RESERVED;
use crate::space::Space;
use crate::superblock::Superblock;
use crate::volume::Volume;
use crate::*;

/// 200 blocks: two levels, three leaves.
const SHAPE: Shape = Shape { blocks: 200, spare: 16 };

/// A pen with the keys of a disk.
struct Forger {
    id: DiskId,
    volume: Volume<MemoryStore>,
    state: Superblock,
}

impl Forger {
    fn new() -> Self {
        let mut dice = Dice(1);
        let id = DiskId([9; 16]);
        let data_key = DataKey::draw(&mut dice).unwrap();
        let slot = data_key.wrap(&key(1), id, &mut dice).unwrap();
        let state = Superblock { id, epoch: 5, shape: SHAPE, root: Entry::NONE, slot };
        let sealer = Sealer::new(id, data_key, 5, &mut dice).unwrap();
        let store = MemoryStore::zeroed(SHAPE.storage().unwrap());
        let space = Space::new(SHAPE.physical().unwrap(), RESERVED);
        Self { id, volume: Volume::new(store, sealer, space), state }
    }

    fn node(&mut self, level: u8, index: u64, entries: &[(usize, Entry)]) -> Entry {
        let mut node = Node::empty();
        entries.iter().for_each(|(slot, entry)| node.set(*slot, entry));
        self.sealed(level, index, &node)
    }

    fn sealed(&mut self, level: u8, index: u64, node: &Node) -> Entry {
        self.volume.write_node(Place::Node { level, index }, &*node.0).unwrap()
    }

    fn data(&mut self, block: u64) -> Entry {
        let mut entries = Vec::new();
        self.volume.write_run(block, &[7; BLOCK], &mut entries).unwrap();
        entries[0]
    }

    #[track_caller]
    fn check(&mut self, root: Entry, expected: Option<Place>) {
        let state = Superblock { root, ..self.state };
        let mut store = self.volume.store.clone();
        let block = state.encode(&key(1).superblock_key(self.id, &state.slot));
        store.write_at(0, &block).unwrap();
        let anchor = DangerousMemoryAnchor::at(5);
        match (Disk::open(store, anchor, &key(1), self.id, &mut Dice(2)), expected) {
            (Ok(mut disk), None) => disk.read(0, &mut [0; 200 * BLOCK]).unwrap(),
            (Err(DiskError::Corrupt(at)), Some(expected)) => assert_eq!(at, expected),
            (Ok(_), Some(expected)) => panic!("opened; expected {expected} to be refused"),
            (Err(error), _) => panic!("{error}"),
        }
    }
}

fn leaf(index: u64) -> Place {
    Place::Node { level: 1, index }
}

const ROOT: Place = Place::Node { level: 2, index: 0 };

#[test]
fn refuses_trees_that_no_writer_makes() {
    let mut pen = Forger::new();
    let (a, b) = (pen.data(0), pen.data(199));
    let first = pen.node(1, 0, &[(0, a)]);
    let last = pen.node(1, 2, &[(29, b)]);
    let good = pen.node(2, 0, &[(0, first), (2, last)]);
    pen.check(good, None);
    pen.check(Entry::NONE, None);

    // A block beyond the end of the disk, a leaf beyond the last.
    let beyond = pen.node(1, 2, &[(30, b)]);
    let root = pen.node(2, 0, &[(2, beyond)]);
    pen.check(root, Some(leaf(2)));
    let root = pen.node(2, 0, &[(3, first)]);
    pen.check(root, Some(ROOT));

    // One block of storage named twice: by two entries, by child and parent, as superblock, beyond the storage.
    let twice = pen.node(1, 0, &[(0, a), (1, a)]);
    let root = pen.node(2, 0, &[(0, twice)]);
    pen.check(root, Some(Place::Data(1)));
    let root = pen.node(2, 0, &[(0, first), (1, first)]);
    pen.check(root, Some(leaf(1)));
    let taken = first.physical;
    for physical in [1, taken, SHAPE.physical().unwrap(), u64::MAX] {
        let stray = pen.node(1, 2, &[(0, Entry { physical, ..a })]);
        let root = pen.node(2, 0, &[(0, first), (2, stray)]);
        pen.check(root, Some(Place::Data(170)));
    }
    let outside = Entry { physical: u64::MAX / 2, ..good };
    pen.check(outside, Some(ROOT));

    // Bytes where there should be none: in the padding, in an entry that is none.
    for at in [85 * 48, BLOCK - 1, 48 + 8, 48 + 47] {
        let mut node = Node::empty();
        node.set(0, &a);
        node.0[at] = 1;
        let stray = pen.sealed(1, 0, &node);
        let root = pen.node(2, 0, &[(0, stray)]);
        pen.check(root, Some(leaf(0)));
    }

    // A node of another level or number.
    let root = pen.node(2, 0, &[(1, first)]);
    pen.check(root, Some(leaf(1)));
    pen.check(first, Some(ROOT));
}

/// Nodes of noise under the right key: refused, without a panic.
#[test]
fn refuses_nodes_of_noise() {
    let mut dice = Dice(3);
    for _ in 0..2000 {
        let mut pen = Forger::new();
        let mut node = Node::empty();
        for slot in 0..85 {
            let mut bytes = [0; 48];
            dice.fill(&mut bytes).unwrap();
            let mut entry = Entry::decode(&bytes);
            // Often in the storage, seldom a real block.
            entry.physical %= 1 << (dice.below(60) + 4);
            node.set(slot, &entry);
        }
        let root = pen.sealed(2, 0, &node);
        pen.check(root, Some(ROOT));
        // Three entries are as many as there are leaves: now it is the children that fail.
        (3..85).for_each(|slot| node.set(slot, &Entry::NONE));
        let root = pen.sealed(2, 0, &node);
        let state = Superblock { root, ..pen.state };
        let block = state.encode(&key(1).superblock_key(pen.id, &state.slot));
        let mut store = pen.volume.store.clone();
        store.write_at(0, &block).unwrap();
        let anchor = DangerousMemoryAnchor::at(5);
        let opened = Disk::open(store, anchor, &key(1), pen.id, &mut dice);
        if node.entries().any(|entry| !entry.is_none()) {
            assert_eq!(opened.err().unwrap().code(), "corrupt");
        }
    }
}
