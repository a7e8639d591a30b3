//! Going through a whole tree as it is stored: at opening, to learn what is taken; at a check, to verify all of it;
//! before a repair, to learn what is taken by what can be reached.

use zeroize::Zeroizing;

use crate::entry::Entry;
use crate::error::{DiskError, Place};
use crate::node::Node;
use crate::sealer::Sealer;
use crate::shape::{RESERVED, levels, nodes_of};
use crate::space::Space;
use crate::store::Store;
use crate::superblock::Superblock;
use crate::volume::read_block;
use crate::{BLOCK, FANOUT};

/// Damaged places named in a report; more are only counted.
const DAMAGE_NAMED: usize = 64;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Data blocks stored; all others are zero.
    pub data: u64,
    /// Nodes stored.
    pub nodes: u64,
    /// Data blocks that a repair gave up, and that nothing was written to since.
    pub lost: u64,
    /// The first of them.
    pub first_lost: Option<u64>,
    /// Damaged places; what lies below a damaged node was not reached.
    pub damaged: u64,
    /// The first of them.
    pub places: Vec<Place>,
}

impl Report {
    pub(crate) fn damage(&mut self, place: Place) {
        self.damaged += 1;
        if self.places.len() < DAMAGE_NAMED {
            self.places.push(place);
        }
    }
}

/// One pass.
pub(crate) struct Walk<'a, S> {
    store: &'a S,
    sealer: &'a mut Sealer,
    blocks: u64,
    space: Space,
    report: Report,
    how: How,
}

/// What is read, and what damage leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Nodes; a refusal.
    Nodes,
    /// Nodes; a line in the report.
    WhatIsLeft,
    /// Nodes and data; a line in the report.
    All,
}

impl<'a, S: Store> Walk<'a, S> {
    /// Reads all nodes; fails at the first that is damaged.
    pub(crate) fn nodes(
        store: &'a S,
        sealer: &'a mut Sealer,
        state: &Superblock,
    ) -> Result<Space, DiskError> {
        Ok(Self::run(store, sealer, state, How::Nodes)?.0)
    }

    /// The same, and refuses a disk of which something was given up.
    pub(crate) fn none_lost(
        store: &'a S,
        sealer: &'a mut Sealer,
        state: &Superblock,
    ) -> Result<(), DiskError> {
        let (_, report) = Self::run(store, sealer, state, How::Nodes)?;
        report.first_lost.map_or(Ok(()), |block| Err(DiskError::Lost(Place::Data(block))))
    }

    /// Reads all nodes that can be reached: what they name is taken.
    pub(crate) fn what_is_left(
        store: &'a S,
        sealer: &'a mut Sealer,
        state: &Superblock,
    ) -> Result<Space, DiskError> {
        Ok(Self::run(store, sealer, state, How::WhatIsLeft)?.0)
    }

    /// Reads all nodes and all data, and reports what is damaged.
    pub(crate) fn all(
        store: &'a S,
        sealer: &'a mut Sealer,
        state: &Superblock,
    ) -> Result<(Space, Report), DiskError> {
        Self::run(store, sealer, state, How::All)
    }

    fn run(
        store: &'a S,
        sealer: &'a mut Sealer,
        state: &Superblock,
        how: How,
    ) -> Result<(Space, Report), DiskError> {
        let blocks = state.shape.blocks;
        let space = Space::new(state.shape.physical()?, RESERVED);
        let report = Report::default();
        let mut walk = Self { store, sealer, blocks, space, report, how };
        walk.child(levels(blocks), 0, &state.root)?;
        Ok((walk.space, walk.report))
    }

    /// What an entry says of a node, or of data at level 0. Recursion ends there; there are at most five levels.
    fn child(&mut self, level: u8, index: u64, entry: &Entry) -> Result<(), DiskError> {
        match level {
            _ if entry.is_none() => Ok(()),
            _ if entry.is_lost() => {
                let reach = FANOUT.pow(level.into());
                self.report.first_lost.get_or_insert(index * reach);
                self.report.lost += reach.min(self.blocks.saturating_sub(index * reach));
                Ok(())
            }
            0 => self.data(index, entry),
            _ => self.node(level, index, entry),
        }
    }

    /// A node and what it holds.
    fn node(&mut self, level: u8, index: u64, entry: &Entry) -> Result<(), DiskError> {
        let place = Place::Node { level, index };
        let mut node = Node::empty();
        if !self.take(place, entry)? || !self.read(place, entry, &mut *node.0)? {
            return Ok(());
        }
        self.report.nodes += 1;
        let first = index * FANOUT;
        let children = nodes_of(self.blocks, level - 1).saturating_sub(first);
        if !node.is_well_formed(children) {
            return self.damage(place);
        }
        (first..).zip(node.entries()).try_for_each(|(at, entry)| self.child(level - 1, at, &entry))
    }

    fn data(&mut self, block: u64, entry: &Entry) -> Result<(), DiskError> {
        let place = Place::Data(block);
        self.report.data += 1;
        if self.take(place, entry)? && self.how == How::All {
            let mut buffer = Zeroizing::new([0; BLOCK]);
            self.read(place, entry, &mut *buffer)?;
        }
        Ok(())
    }

    /// Takes the block an entry names: one that is there and that nothing else names.
    fn take(&mut self, place: Place, entry: &Entry) -> Result<bool, DiskError> {
        match self.space.mark(entry.physical) {
            true => Ok(true),
            false => self.damage(place).map(|()| false),
        }
    }

    fn read(&mut self, place: Place, entry: &Entry, buffer: &mut [u8]) -> Result<bool, DiskError> {
        match read_block(self.store, self.sealer, place, entry, buffer) {
            Ok(()) => Ok(true),
            Err(DiskError::Corrupt(place)) => self.damage(place).map(|()| false),
            Err(other) => Err(other),
        }
    }

    fn damage(&mut self, place: Place) -> Result<(), DiskError> {
        if self.how == How::Nodes {
            return Err(DiskError::Corrupt(place));
        }
        self.report.damage(place);
        Ok(())
    }
}
