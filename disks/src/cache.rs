//! Nodes of the tree in memory, where storage cannot reach them.
//!
//! A node is kept only together with its parent, so that a changed node that has to go can be written and entered in
//! its parent without reading anything.

use std::collections::HashMap;

use crate::node::Node;

/// Where a node is kept.
pub(crate) type Slot = usize;

/// A node in memory.
pub(crate) struct Cached {
    pub level: u8,
    pub index: u64,
    pub node: Node,
    /// `None` for the root.
    pub parent: Option<Slot>,
    /// Differs from storage, or a descendant does.
    pub dirty: bool,
    /// Children in memory; a node that has some stays.
    pub children: u32,
    /// Used since the hand last passed.
    recent: bool,
}

impl Cached {
    pub(crate) fn new(level: u8, index: u64, node: Node, parent: Option<Slot>) -> Self {
        Self { level, index, node, parent, dirty: false, children: 0, recent: true }
    }
}

/// At most `capacity` nodes, as long as that leaves one to let go; the clock algorithm picks it.
pub(crate) struct Cache {
    slots: Vec<Option<Cached>>,
    places: HashMap<(u8, u64), Slot>,
    vacant: Vec<Slot>,
    hand: Slot,
    capacity: usize,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            places: HashMap::new(),
            vacant: Vec::new(),
            hand: 0,
            capacity: capacity.max(CAPACITY_MIN),
        }
    }

    pub(crate) fn find(&mut self, level: u8, index: u64) -> Option<Slot> {
        let slot = *self.places.get(&(level, index))?;
        self.get_mut(slot).recent = true;
        Some(slot)
    }

    pub(crate) fn insert(&mut self, cached: Cached) -> Slot {
        let place = (cached.level, cached.index);
        let slot = match self.vacant.pop() {
            Some(slot) => {
                *self.slots.get_mut(slot).expect("vacant slots exist") = Some(cached);
                slot
            }
            None => {
                self.slots.push(Some(cached));
                self.slots.len() - 1
            }
        };
        self.places.insert(place, slot);
        slot
    }

    pub(crate) fn get(&self, slot: Slot) -> &Cached {
        self.slots.get(slot).and_then(Option::as_ref).expect("slots come from find and insert")
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Cached {
        self.slots.get_mut(slot).and_then(Option::as_mut).expect("slots come from find and insert")
    }

    pub(crate) fn is_full(&self) -> bool {
        self.places.len() >= self.capacity
    }

    /// A node without children in memory that was not used for a while.
    pub(crate) fn victim(&mut self) -> Option<Slot> {
        // Two rounds: the first clears the marks.
        for _ in 0..2 * self.slots.len() {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if let Some(Some(cached)) = self.slots.get_mut(slot)
                && cached.children == 0
                && !std::mem::take(&mut cached.recent)
            {
                return Some(slot);
            }
        }
        None
    }

    /// Lets go of a node that has no children in memory.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let Some(cached) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.places.remove(&(cached.level, cached.index));
        self.vacant.push(slot);
        if let Some(parent) = cached.parent {
            self.get_mut(parent).children -= 1;
        }
    }

    /// Nodes of a level that differ from storage, in order.
    pub(crate) fn dirty(&self, level: u8) -> Vec<Slot> {
        let dirty = |cached: &Cached| cached.level == level && cached.dirty;
        let mut found: Vec<(u64, Slot)> = (0..)
            .zip(&self.slots)
            .filter_map(|(slot, cached)| cached.as_ref().map(|cached| (slot, cached)))
            .filter(|(_, cached)| dirty(cached))
            .map(|(slot, cached)| (cached.index, slot))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, slot)| slot).collect()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }
}

/// A path of five nodes, and some to let go.
const CAPACITY_MIN: usize = 16;
