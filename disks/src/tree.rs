//! The tree that says of each block where it lies and which seal it has, up to the root (SPEC 11.3).
//!
//! Changes stay in memory until a commit or until the cache has to let go of a node; either way a node is written
//! where nothing committed lies. A node that holds no entry is not stored.

use crate::FANOUT;
use crate::cache::{Cache, Cached, Slot};
use crate::entry::Entry;
use crate::error::{DiskError, Place};
use crate::node::Node;
use crate::shape::{levels, nodes_of};
use crate::store::Store;
use crate::volume::Volume;

/// The map of a disk.
pub(crate) struct Tree {
    blocks: u64,
    levels: u8,
    /// As stored; stands for the root node when that is not dirty.
    root: Entry,
    cache: Cache,
    dirty: u64,
}

impl Tree {
    pub(crate) fn new(blocks: u64, root: Entry, cached_nodes: usize) -> Self {
        Self { blocks, levels: levels(blocks), root, cache: Cache::new(cached_nodes), dirty: 0 }
    }

    /// Forgets what was not stored: the tree of a disk of so many blocks, as it lies under `root`.
    pub(crate) fn reset(&mut self, blocks: u64, root: Entry) {
        self.cache.clear();
        (self.blocks, self.levels, self.root, self.dirty) = (blocks, levels(blocks), root, 0);
    }

    /// The root as written last; the state's, once [`Self::write_out`] returned.
    pub(crate) fn root(&self) -> Entry {
        self.root
    }

    pub(crate) fn levels(&self) -> u8 {
        self.levels
    }

    /// Blocks of storage that [`Self::write_out`] will take.
    pub(crate) fn dirty(&self) -> u64 {
        self.dirty
    }

    /// Appends the entries of `count` blocks from `first` on.
    pub(crate) fn entries<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        first: u64,
        count: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), DiskError> {
        let (mut block, end) = (first, first + count);
        while block < end {
            let leaf = self.locate(volume, 1, block / FANOUT, false)?;
            let stop = end.min((block / FANOUT + 1) * FANOUT);
            out.extend((block..stop).map(|block| match leaf {
                Some(slot) => self.cache.get(slot).node.entry(slot_of(block)),
                None => Entry::NONE,
            }));
            block = stop;
        }
        Ok(())
    }

    /// Enters what is known of a block now; what was known before.
    pub(crate) fn replace<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        block: u64,
        entry: &Entry,
    ) -> Result<Entry, DiskError> {
        let Some(leaf) = self.locate(volume, 1, block / FANOUT, !entry.is_none())? else {
            return Ok(Entry::NONE);
        };
        let node = &mut self.cache.get_mut(leaf).node;
        let old = node.entry(slot_of(block));
        if old != *entry {
            node.set(slot_of(block), entry);
            self.mark(leaf);
        }
        Ok(old)
    }

    /// Gives up a node that cannot be read, and with it all blocks below it.
    pub(crate) fn give_up<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        level: u8,
        index: u64,
    ) -> Result<(), DiskError> {
        if level == self.levels {
            volume.give_back(&std::mem::replace(&mut self.root, Entry::LOST));
            return Ok(());
        }
        let Some(parent) = self.locate(volume, level + 1, index / FANOUT, false)? else {
            return Ok(());
        };
        let node = &mut self.cache.get_mut(parent).node;
        volume.give_back(&node.entry(slot_of(index)));
        node.set(slot_of(index), &Entry::LOST);
        self.mark(parent);
        Ok(())
    }

    /// Before a disk grows beyond `block`, its last: if that was given up with a node above it, the node is written again,
    /// with entries for the blocks there were and none for those to come.
    pub(crate) fn spell_out_lost<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        block: u64,
    ) -> Result<(), DiskError> {
        if let Some(leaf) = self.locate(volume, 1, block / FANOUT, false)?
            && self.cache.get(leaf).node.entry(slot_of(block)).is_lost()
        {
            self.mark(leaf);
        }
        Ok(())
    }

    /// Whether anything is stored of the 85 blocks around `block`.
    pub(crate) fn has_leaf<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        block: u64,
    ) -> Result<bool, DiskError> {
        Ok(self.locate(volume, 1, block / FANOUT, false)?.is_some())
    }

    /// Writes every dirty node, children first. After an error what is not written is still dirty.
    pub(crate) fn write_out<S: Store>(&mut self, volume: &mut Volume<S>) -> Result<(), DiskError> {
        for level in 1..=self.levels {
            for slot in self.cache.dirty(level) {
                self.store(volume, slot)?;
            }
        }
        Ok(())
    }

    /// Makes the tree high enough for `blocks` blocks. Nothing may be dirty.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let (old, new) = (self.levels, levels(blocks));
        self.cache.clear();
        (self.blocks, self.levels) = (blocks, new);
        if old == new || self.root.is_none() {
            return;
        }
        let mut parent = None;
        for level in (old + 1..=new).rev() {
            let mut cached = Cached::new(level, 0, Node::empty(), parent);
            cached.dirty = true;
            self.dirty += 1;
            if level == old + 1 {
                cached.node.set(0, &self.root);
            }
            if let Some(parent) = parent {
                self.cache.get_mut(parent).children += 1;
            }
            parent = Some(self.cache.insert(cached));
        }
        // The old root is a child now: writing the new one replaces nothing.
        self.root = Entry::NONE;
    }

    /// The node in memory, read and verified if need be. `None` if it is not stored, unless it is to be created.
    fn locate<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        level: u8,
        index: u64,
        create: bool,
    ) -> Result<Option<Slot>, DiskError> {
        if let Some(slot) = self.cache.find(level, index) {
            return Ok(Some(slot));
        }
        let (parent, entry) = if level == self.levels {
            (None, self.root)
        } else {
            match self.locate(volume, level + 1, index / FANOUT, create)? {
                Some(parent) => (Some(parent), self.cache.get(parent).node.entry(slot_of(index))),
                None => return Ok(None),
            }
        };
        if entry.is_none() && !create {
            return Ok(None);
        }
        // Pinned before room is made: the parent must not be what goes.
        if let Some(parent) = parent {
            self.cache.get_mut(parent).children += 1;
        }
        match self.load(volume, level, index, &entry) {
            Ok(node) => Ok(Some(self.cache.insert(Cached::new(level, index, node, parent)))),
            Err(error) => {
                if let Some(parent) = parent {
                    self.cache.get_mut(parent).children -= 1;
                }
                Err(error)
            }
        }
    }

    fn load<S: Store>(
        &mut self,
        volume: &mut Volume<S>,
        level: u8,
        index: u64,
        entry: &Entry,
    ) -> Result<Node, DiskError> {
        while self.cache.is_full() {
            let Some(slot) = self.cache.victim() else { break };
            if self.cache.get(slot).dirty {
                self.store(volume, slot)?;
            }
            self.cache.remove(slot);
        }
        if entry.is_lost() {
            return Ok(Node::lost(nodes_of(self.blocks, level - 1) - index * FANOUT));
        }
        let mut node = Node::empty();
        if !entry.is_none() {
            volume.read(Place::Node { level, index }, entry, &mut *node.0)?;
        }
        Ok(node)
    }

    /// Writes a dirty node and enters it in its parent, which is dirty too.
    fn store<S: Store>(&mut self, volume: &mut Volume<S>, slot: Slot) -> Result<(), DiskError> {
        let Cached { level, index, node, parent, .. } = self.cache.get(slot);
        let (index, parent) = (*index, *parent);
        let new = if node.is_empty() {
            Entry::NONE
        } else {
            volume.write_node(Place::Node { level: *level, index }, &*node.0)?
        };
        let old = match parent {
            Some(parent) => {
                let node = &mut self.cache.get_mut(parent).node;
                let old = node.entry(slot_of(index));
                node.set(slot_of(index), &new);
                old
            }
            None => std::mem::replace(&mut self.root, new),
        };
        volume.give_back(&old);
        self.cache.get_mut(slot).dirty = false;
        self.dirty -= 1;
        Ok(())
    }

    /// Marks a node and its ancestors: all of them will be written.
    fn mark(&mut self, slot: Slot) {
        let mut next = Some(slot);
        while let Some(slot) = next {
            let cached = self.cache.get_mut(slot);
            if std::mem::replace(&mut cached.dirty, true) {
                break;
            }
            self.dirty += 1;
            next = cached.parent;
        }
    }
}

/// Slot of a child in its parent.
fn slot_of(child: u64) -> usize {
    (child % FANOUT) as usize
}
