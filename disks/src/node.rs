//! A node of the tree: 85 entries in a block, and 16 bytes of zeros to grow into.

use crate::entry::{ENTRY, Entry};
use crate::{BLOCK, FANOUT, bytes};

/// The plaintext of a node.
#[derive(Clone)]
pub(crate) struct Node(pub Box<[u8; BLOCK]>);

impl Node {
    pub(crate) fn empty() -> Self {
        Self(Box::new([0; BLOCK]))
    }

    /// One of which nothing is left: `count` entries of blocks that were given up.
    pub(crate) fn lost(count: u64) -> Self {
        let mut node = Self::empty();
        (0..count.min(FANOUT)).for_each(|slot| node.set(slot as usize, &Entry::LOST));
        node
    }

    /// The entry in `slot`, which is less than 85.
    pub(crate) fn entry(&self, slot: usize) -> Entry {
        Entry::decode(&bytes::get(&*self.0, slot * ENTRY))
    }

    pub(crate) fn set(&mut self, slot: usize, entry: &Entry) {
        bytes::put(&mut *self.0, slot * ENTRY, &entry.encode());
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..FANOUT as usize).map(|slot| self.entry(slot))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether it is one this code could have written: no stray bytes, and nothing from `count` entries on.
    pub(crate) fn is_well_formed(&self, count: u64) -> bool {
        let (entries, rest) = self.0.split_at(FANOUT as usize * ENTRY);
        rest.iter().all(|byte| *byte == 0)
            && entries.chunks_exact(ENTRY).zip(0..).all(|(bytes, slot)| {
                let zero = bytes.iter().all(|byte| *byte == 0);
                let none = bytes.iter().take(8).all(|byte| *byte == 0);
                zero || (!none && slot < count)
            })
    }
}
