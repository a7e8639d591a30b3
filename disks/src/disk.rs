//! The encrypted disk: a writable block device whose promise holds against whoever owns the storage (SPEC 11).
//!
//! ```text
//!           create            flush, or spare used up
//!   storage ------> session -------------------------.  commit: nodes | flush | superblock | flush | anchor + 1
//!      ^   open     |  ^---------------------------- '
//!      |  anchor +2 |  a step of a commit failed
//!      '------------'  (the session has ended; opening, or resuming, decides)
//! ```
//! Promises: after `flush` returned, every later session sees that state or a later one of this history; nothing else
//! opens. Trusts: the disk key, the anchor, that the storage's flush is durable. Refuses all else by name.

use zeroize::Zeroizing;

use crate::anchor::{Anchor, AnchorError};
use crate::entropy::Entropy;
use crate::entry::Entry;
use crate::error::{DiskError, Place};
use crate::keys::{DataKey, DiskId, DiskKey, SuperblockKey};
use crate::opening::{Damage, Opened, find, spent, write_superblock};
use crate::sealer::Sealer;
use crate::shape::{RESERVED, Shape};
use crate::space::Space;
use crate::store::Store;
use crate::superblock::Superblock;
use crate::tree::Tree;
use crate::volume::{CHUNK, Volume};
use crate::walk::{Report, Walk};
use crate::{BLOCK, BLOCK_BYTES, FANOUT};

/// Nodes kept in memory: 1 MiB, the map of 85 MiB of data. With [`CHUNK`] blocks of scratch, two bits for each block of
/// storage and 8 bytes for each block replaced since the last commit this is all the memory a disk takes.
const CACHED_NODES: usize = 256;

/// A disk in use. Dropping it loses what was not flushed, and nothing else.
pub struct Disk<S, A> {
    volume: Volume<S>,
    tree: Tree,
    anchor: A,
    /// The last committed state.
    state: Superblock,
    /// Which superblock holds it.
    place: u64,
    superblock_key: SuperblockKey,
    /// A commit failed half way: whether it counts is decided at the next opening.
    ended: bool,
    /// Somebody else moved the anchor, from where to where: this one's states are dead.
    superseded: Option<(u64, u64)>,
    /// Scratch.
    entries: Vec<Entry>,
}

/// What a disk is and how full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub id: DiskId,
    /// Number of the last committed state: where the anchor is.
    pub epoch: u64,
    /// Its sizes.
    pub shape: Shape,
    /// Blocks of storage.
    pub physical: u64,
    /// Blocks of storage that hold something.
    pub taken: u64,
    /// Levels of the tree.
    pub levels: u8,
    /// Whether something was written since the last commit.
    pub dirty: bool,
}

impl<S: Store, A: Anchor> Disk<S, A> {
    /// Makes a disk of zeros in empty storage. The anchor is moved once.
    pub fn create(
        mut store: S,
        mut anchor: A,
        key: &DiskKey,
        shape: Shape,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, DiskError> {
        enough_storage(&store, shape)?;
        require_empty(&store)?;
        let at = anchor.read()?;
        let epoch = at.checked_add(1).ok_or_else(spent)?;
        let mut id = DiskId([0; 16]);
        entropy.fill(&mut id.0)?;
        let data_key = DataKey::draw(entropy)?;
        let slot = data_key.wrap(key, id, entropy)?;
        let sealer = Sealer::new(id, data_key, epoch, entropy)?;
        let state = Superblock { id, epoch, shape, root: Entry::NONE, slot };
        let superblock_key = key.superblock_key(id, &slot);
        write_superblock(&mut store, &superblock_key, &state, 0)?;
        anchor.advance(at)?;
        let space = Space::new(shape.physical()?, RESERVED);
        let opened = Opened { state, place: 0, superblock_key, sealer, space };
        Ok(Self::with(store, anchor, opened))
    }

    /// Opens a disk. The anchor is moved twice; once more if the last commit was cut off before it moved.
    pub fn open(
        mut store: S,
        mut anchor: A,
        key: &DiskKey,
        id: DiskId,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, DiskError> {
        let opened = find(&mut store, &mut anchor, key, id, Damage::Refused, entropy)?;
        Ok(Self::with(store, anchor, opened))
    }

    /// Opens a disk as [`Disk::open`] does, and gives up for good what of it is `corrupt`: from then on the rest can be
    /// used, and what was given up is an error, never zeros, until something is written there. The report tells what was
    /// given up now, as `damaged`, and what is left.
    pub fn repair(
        mut store: S,
        mut anchor: A,
        key: &DiskKey,
        id: DiskId,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, Report), DiskError> {
        let opened = find(&mut store, &mut anchor, key, id, Damage::Tolerated, entropy)?;
        let mut disk = Self::with(store, anchor, opened);
        let report = disk.give_up_damage()?;
        Ok((disk, report))
    }

    /// Begins the next session after one that a failed commit ended, as opening would; nothing if none did. What was not
    /// flushed is lost. A disk that somebody else has taken over stays ended.
    pub fn resume(&mut self, key: &DiskKey, entropy: &mut dyn Entropy) -> Result<(), DiskError> {
        if !self.ended || self.superseded.is_some() {
            return self.in_session();
        }
        let store = &mut self.volume.store;
        let (anchor, id) = (&mut self.anchor, self.state.id);
        let opened = find(store, anchor, key, id, Damage::Refused, entropy)?;
        let Opened { state, place, superblock_key, sealer, space } = opened;
        (self.volume.sealer, self.volume.space) = (sealer, space);
        self.tree.reset(state.shape.blocks, state.root);
        (self.state, self.place, self.superblock_key) = (state, place, superblock_key);
        self.ended = false;
        Ok(())
    }

    /// Opens the newest state there is, be it old: shows what the anchor is for.
    #[cfg(test)]
    pub(crate) fn dangerous_open_any_epoch(
        mut store: S,
        mut anchor: A,
        key: &DiskKey,
        id: DiskId,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, DiskError> {
        let at = anchor.read()?;
        let found = crate::opening::dangerous_choose_newest(&store, key, id)?;
        let damage = Damage::Refused;
        let opened = crate::opening::begin(&mut store, &mut anchor, found, at, damage, entropy)?;
        Ok(Self::with(store, anchor, opened))
    }

    fn with(store: S, anchor: A, opened: Opened) -> Self {
        let Opened { state, place, superblock_key, sealer, space } = opened;
        Self {
            volume: Volume::new(store, sealer, space),
            tree: Tree::new(state.shape.blocks, state.root, CACHED_NODES),
            anchor,
            state,
            place,
            superblock_key,
            ended: false,
            superseded: None,
            entries: Vec::new(),
        }
    }

    /// Keeps at most `nodes` nodes of 4 KiB in memory from now on, at least 16. Flushes.
    pub fn set_cached_nodes(&mut self, nodes: usize) -> Result<(), DiskError> {
        self.flush()?;
        self.tree = Tree::new(self.state.shape.blocks, self.state.root, nodes);
        Ok(())
    }

    /// Reads blocks from `first` on until `buffer` is full. On an error it is all zero.
    ///
    /// `buffer` must be memory of this process alone: it is deciphered in place after its tag was compared.
    pub fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let result = self.fill(first, buffer);
        if result.is_err() {
            buffer.fill(0);
        }
        result
    }

    /// Writes `data` from block `first` on. It survives a power cut once `flush` returned; before, any block of it may.
    pub fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError> {
        self.in_session()?;
        self.inside(first, blocks_in(data.len())?)?;
        let (mut block, mut rest) = (first, data);
        while !rest.is_empty() {
            let room = self.make_room(rest.len() / BLOCK)?;
            let (part, _) = rest.split_at(room * BLOCK);
            self.entries.clear();
            self.volume.write_run(block, part, &mut self.entries)?;
            let written = self.entries.len();
            self.adopt(block)?;
            block += written as u64;
            (_, rest) = rest.split_at(written * BLOCK);
        }
        Ok(())
    }

    /// Makes `count` blocks zero and gives their storage back: serves discard and write-zeroes alike.
    ///
    /// The old ciphertext stays in the storage until something is written there; it opens under this disk's key only.
    pub fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError> {
        self.in_session()?;
        self.inside(first, count)?;
        let (mut block, end) = (first, first + count);
        while block < end {
            if !self.tree.has_leaf(&mut self.volume, block)? {
                block = (block / FANOUT + 1) * FANOUT;
                continue;
            }
            self.make_room(1)?;
            let old = self.tree.replace(&mut self.volume, block, &Entry::NONE)?;
            self.volume.give_back(&old);
            block += 1;
        }
        Ok(())
    }

    /// Returns when all that was written survives a power cut and nothing older is accepted any more.
    ///
    /// Moves the anchor once, or not at all if nothing was written since the last commit: so of flushes that wait for
    /// one another the first commits for all, and the rest are free.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.in_session()?;
        match self.tree.dirty() {
            0 => Ok(()),
            _ => self.commit(),
        }
    }

    /// Makes the disk larger; the new blocks are zero. The storage must be long enough already.
    pub fn grow(&mut self, blocks: u64) -> Result<(), DiskError> {
        let shape = Shape { blocks, ..self.state.shape };
        let physical = shape.physical()?;
        if blocks <= self.state.shape.blocks {
            return Err(DiskError::BadShape { blocks, spare: shape.spare });
        }
        enough_storage(&self.volume.store, shape)?;
        self.flush()?;
        self.tree.spell_out_lost(&mut self.volume, self.state.shape.blocks - 1)?;
        self.flush()?;
        self.ended = true;
        self.volume.space.grow(physical);
        self.tree.grow(blocks);
        self.state.shape = shape;
        self.commit()
    }

    /// From the moment this returned, `key` opens the disk and the key before does not.
    ///
    /// This hands a disk on; it takes nothing back. Data is not written anew: who had the old key and a copy of the
    /// storage has the data key, can read what is written later, and alter it. Against such a one copy to a new disk.
    pub fn rekey(&mut self, key: &DiskKey, entropy: &mut dyn Entropy) -> Result<(), DiskError> {
        self.flush()?;
        let slot = self.volume.sealer.data_key().wrap(key, self.state.id, entropy)?;
        self.ended = true;
        self.state.slot = slot;
        self.superblock_key = key.superblock_key(self.state.id, &slot);
        self.commit()
    }

    /// Flushes, then reads and verifies everything that is stored.
    pub fn check(&mut self) -> Result<Report, DiskError> {
        self.flush()?;
        let Volume { store, sealer, .. } = &mut self.volume;
        let (_, mut report) = Walk::all(store, sealer, &self.state)?;
        let mut block = [0; BLOCK];
        store
            .read_at(self.place * BLOCK_BYTES, &mut block)
            .map_err(DiskError::storage("reading a superblock"))?;
        if block != self.state.encode(&self.superblock_key) {
            report.damaged += 1;
            report.places.insert(0, Place::Superblock(self.place));
        }
        Ok(report)
    }

    /// Flushes, and refuses a disk of which something was given up and not written since.
    pub fn require_none_lost(&mut self) -> Result<(), DiskError> {
        self.flush()?;
        let Volume { store, sealer, .. } = &mut self.volume;
        Walk::none_lost(store, sealer, &self.state)
    }

    fn give_up_damage(&mut self) -> Result<Report, DiskError> {
        let (mut found, mut block) = (Report::default(), 0);
        while block < self.state.shape.blocks {
            match self.give_up_data(block, &mut found) {
                Ok(count) => block += count,
                Err(DiskError::Corrupt(place @ Place::Node { level, index })) => {
                    self.make_room(1)?;
                    self.tree.give_up(&mut self.volume, level, index)?;
                    found.damage(place);
                }
                Err(other) => return Err(other),
            }
        }
        if found.damaged > 0 {
            self.commit()?;
        }
        // What is left is whole, and what it takes is known from it alone: a node that was damaged only for a while may have
        // named what was given away since.
        let Volume { store, sealer, .. } = &mut self.volume;
        let (space, left) = Walk::all(store, sealer, &self.state)?;
        if let Some(place) = left.places.first() {
            return Err(DiskError::Corrupt(*place));
        }
        self.volume.space = space;
        Ok(Report { damaged: found.damaged, places: found.places, ..left })
    }

    /// Of the blocks that have one leaf with `first`, from there on; how many there are.
    fn give_up_data(&mut self, first: u64, found: &mut Report) -> Result<u64, DiskError> {
        let count = (FANOUT - first % FANOUT).min(self.state.shape.blocks - first);
        let (mut entries, mut buffer) = (Vec::new(), Zeroizing::new([0; BLOCK]));
        self.tree.entries(&mut self.volume, first, count, &mut entries)?;
        for (block, entry) in (first..).zip(&entries).filter(|(_, entry)| entry.is_stored()) {
            match self.volume.read(Place::Data(block), entry, &mut *buffer) {
                Err(DiskError::Corrupt(place)) => {
                    self.make_room(1)?;
                    let old = self.tree.replace(&mut self.volume, block, &Entry::LOST)?;
                    self.volume.give_back(&old);
                    found.damage(place);
                }
                other => other?,
            }
        }
        Ok(count)
    }

    /// What the disk is and how full.
    pub fn info(&self) -> Info {
        Info {
            id: self.state.id,
            epoch: self.state.epoch,
            shape: self.state.shape,
            physical: self.volume.space.blocks(),
            taken: self.volume.space.taken(),
            levels: self.tree.levels(),
            dirty: self.tree.dirty() > 0,
        }
    }

    /// Flushes and gives storage and anchor back.
    pub fn close(mut self) -> Result<(S, A), DiskError> {
        self.flush()?;
        Ok((self.volume.store, self.anchor))
    }

    /// Where a block lies in the storage.
    #[cfg(test)]
    pub(crate) fn physical(&mut self, block: u64) -> u64 {
        let mut entries = Vec::new();
        self.tree.entries(&mut self.volume, block, 1, &mut entries).unwrap();
        entries[0].physical
    }

    fn fill(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.in_session()?;
        self.inside(first, blocks_in(buffer.len())?)?;
        let (mut block, mut rest) = (first, buffer);
        while !rest.is_empty() {
            let count = (rest.len() / BLOCK).min(CHUNK);
            let (part, tail) = rest.split_at_mut(count * BLOCK);
            self.entries.clear();
            self.tree.entries(&mut self.volume, block, count as u64, &mut self.entries)?;
            self.fill_chunk(block, part)?;
            block += count as u64;
            rest = tail;
        }
        Ok(())
    }

    /// Fills `part` as `self.entries` say, with one read for blocks that lie side by side.
    fn fill_chunk(&mut self, first: u64, part: &mut [u8]) -> Result<(), DiskError> {
        let (mut block, mut rest) = (first, part);
        for run in self.entries.chunk_by(side_by_side) {
            let (data, tail) = rest.split_at_mut(run.len() * BLOCK);
            match run.first() {
                Some(entry) if entry.is_stored() => self.volume.read_run(block, run, data)?,
                Some(entry) if entry.is_lost() => return Err(DiskError::Lost(Place::Data(block))),
                _ => data.fill(0),
            }
            block += run.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    /// Enters the blocks just written from `first` on in the tree. Those that cannot be are given back.
    fn adopt(&mut self, first: u64) -> Result<(), DiskError> {
        let mut failure = None;
        for (block, entry) in (first..).zip(&self.entries) {
            let old = match failure {
                None => self.tree.replace(&mut self.volume, block, entry),
                Some(_) => Ok(*entry),
            };
            let unused = old.unwrap_or_else(|error| {
                failure = Some(error);
                *entry
            });
            self.volume.give_back(&unused);
        }
        failure.map_or(Ok(()), Err)
    }

    /// How many of `wanted` blocks can be written so that a commit still finds room; commits first if none can.
    fn make_room(&mut self, wanted: usize) -> Result<usize, DiskError> {
        if self.room() == 0 {
            self.commit()?;
        }
        match self.room().min(CHUNK as u64) as usize {
            0 => Err(DiskError::StorageFull),
            room => Ok(wanted.min(room)),
        }
    }

    /// Free blocks beyond what a commit takes, if a chunk makes two paths of nodes dirty.
    fn room(&self) -> u64 {
        let needed = self.tree.dirty() + 2 * u64::from(self.tree.levels());
        self.volume.space.free().saturating_sub(needed)
    }

    /// Makes what was written the committed state (SPEC 11.8).
    fn commit(&mut self) -> Result<(), DiskError> {
        // 1. The tree, where nothing committed lies. Failing here changes nothing.
        self.tree.write_out(&mut self.volume)?;
        let epoch = self.state.epoch.checked_add(1).ok_or_else(spent)?;
        let next = Superblock { epoch, root: self.tree.root(), ..self.state };
        // From here on only success leaves a session: otherwise another state of this epoch could be written later.
        self.ended = true;
        // 2. All of it on the medium before a superblock names it.
        self.volume.store.flush().map_err(DiskError::storage("flushing"))?;
        // 3. The superblock, where the committed one is not; on the medium before the anchor moves.
        write_superblock(&mut self.volume.store, &self.superblock_key, &next, self.place ^ 1)?;
        // 4. The state before is dead when this returns.
        self.anchor.advance(self.state.epoch).inspect_err(|error| {
            if let AnchorError::Moved { expected, found } = error {
                self.superseded = Some((*expected, *found));
            }
        })?;
        self.volume.space.committed();
        self.state = next;
        self.place ^= 1;
        self.ended = false;
        Ok(())
    }

    /// Or why there is none.
    pub(crate) fn in_session(&self) -> Result<(), DiskError> {
        match (self.ended, self.superseded) {
            (_, Some((expected, found))) => Err(DiskError::Superseded { expected, found }),
            (true, None) => Err(DiskError::SessionEnded),
            (false, None) => Ok(()),
        }
    }

    fn inside(&self, first: u64, count: u64) -> Result<(), DiskError> {
        let inside = first.checked_add(count).is_some_and(|end| end <= self.state.shape.blocks);
        inside.then_some(()).ok_or(DiskError::OutOfRange { first, count })
    }
}

fn blocks_in(len: usize) -> Result<u64, DiskError> {
    match len.is_multiple_of(BLOCK) {
        true => Ok((len / BLOCK) as u64),
        false => Err(DiskError::Unaligned(len)),
    }
}

/// Zero blocks too are a run.
fn side_by_side(a: &Entry, b: &Entry) -> bool {
    match a.is_stored() && b.is_stored() {
        true => b.physical == a.physical + 1,
        false => a == b,
    }
}

fn enough_storage<S: Store>(store: &S, shape: Shape) -> Result<(), DiskError> {
    let needed = shape.storage()?;
    let found = store.len().map_err(DiskError::storage("measuring the storage"))?;
    if found < needed { Err(DiskError::StorageShort { needed, found }) } else { Ok(()) }
}

/// Where superblocks go there must be nothing.
fn require_empty<S: Store>(store: &S) -> Result<(), DiskError> {
    let mut blocks = [0; 2 * BLOCK];
    store.read_at(0, &mut blocks).map_err(DiskError::storage("reading"))?;
    if blocks.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(DiskError::NotEmpty) }
}
