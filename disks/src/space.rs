//! Which blocks of the storage are taken.
//!
//! A block that the last committed state needs is never written: what a commit replaces is *released*, and becomes
//! free when the commit is anchored.

/// The blocks of the storage, one bit for each.
pub(crate) struct Space {
    taken: Bitmap,
    /// Taken since the last commit: free at once when given back.
    fresh: Bitmap,
    /// Needed by the last committed state, not by the next.
    released: Vec<u64>,
    blocks: u64,
    free: u64,
    /// Where to look next: neighbours in time become neighbours in place.
    next: u64,
}

impl Space {
    /// `blocks` blocks, of which the first `reserved` are taken.
    pub(crate) fn new(blocks: u64, reserved: u64) -> Self {
        let mut space = Self {
            taken: Bitmap::zeroed(blocks),
            fresh: Bitmap::zeroed(blocks),
            released: Vec::new(),
            blocks,
            free: blocks,
            next: reserved,
        };
        for block in 0..reserved {
            space.mark(block);
        }
        space
    }

    /// Takes a block of a committed state; false if there is no such block or it is taken.
    pub(crate) fn mark(&mut self, block: u64) -> bool {
        let free = block < self.blocks && !self.taken.get(block);
        if free {
            self.taken.set(block);
            self.free -= 1;
        }
        free
    }

    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks of storage that hold something, or did in the last committed state.
    pub(crate) fn taken(&self) -> u64 {
        self.blocks - self.free
    }

    /// Takes up to `max` neighbouring free blocks: the first and how many; `None` if nothing is free.
    pub(crate) fn take(&mut self, max: u64) -> Option<(u64, u64)> {
        let first = self
            .taken
            .first_zero(self.next, self.blocks)
            .or_else(|| self.taken.first_zero(0, self.next.min(self.blocks)))?;
        let mut count = 0;
        while count < max && first + count < self.blocks && !self.taken.get(first + count) {
            self.taken.set(first + count);
            self.fresh.set(first + count);
            count += 1;
        }
        self.free -= count;
        self.next = first + count;
        Some((first, count))
    }

    /// Gives a block back.
    pub(crate) fn give_back(&mut self, block: u64) {
        if self.fresh.get(block) {
            self.fresh.clear(block);
            self.taken.clear(block);
            self.free += 1;
        } else {
            self.released.push(block);
        }
    }

    /// The state that was being written is the committed one now.
    pub(crate) fn committed(&mut self) {
        for block in std::mem::take(&mut self.released) {
            self.taken.clear(block);
            self.free += 1;
        }
        self.fresh.0.fill(0);
    }

    /// More storage.
    pub(crate) fn grow(&mut self, blocks: u64) {
        self.taken.grow(blocks);
        self.fresh.grow(blocks);
        self.free += blocks.saturating_sub(self.blocks);
        self.blocks = self.blocks.max(blocks);
    }
}

struct Bitmap(Vec<u64>);

impl Bitmap {
    fn zeroed(bits: u64) -> Self {
        Self(vec![0; bits.div_ceil(64) as usize])
    }

    fn grow(&mut self, bits: u64) {
        self.0.resize(self.0.len().max(bits.div_ceil(64) as usize), 0);
    }

    fn get(&self, bit: u64) -> bool {
        self.0.get((bit / 64) as usize).is_none_or(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, bit: u64) {
        if let Some(word) = self.0.get_mut((bit / 64) as usize) {
            *word |= 1 << (bit % 64);
        }
    }

    fn clear(&mut self, bit: u64) {
        if let Some(word) = self.0.get_mut((bit / 64) as usize) {
            *word &= !(1 << (bit % 64));
        }
    }

    /// The first zero bit from `from` on that lies before `end`.
    fn first_zero(&self, from: u64, end: u64) -> Option<u64> {
        let mut bit = from;
        while bit < end {
            let word = self.0.get((bit / 64) as usize)? | ((1 << (bit % 64)) - 1);
            let zero = bit / 64 * 64 + u64::from(word.trailing_ones());
            if word != u64::MAX {
                return (zero < end).then_some(zero);
            }
            bit = zero;
        }
        None
    }
}
