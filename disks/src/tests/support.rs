//! Deterministic randomness, keys, and a recorder of everything that reaches storage and anchor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use crate::anchor::{Anchor, AnchorError};
use crate::*;

/// SplitMix64: seeded, so that every failure can be had again.
#[derive(Clone)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    pub(super) fn block(&mut self) -> Vec<u8> {
        let word = self.next();
        (0..BLOCK).map(|i| (word >> (i % 8 * 8)) as u8 ^ (i / 8) as u8).collect()
    }
}

impl Entropy for Dice {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        bytes.iter_mut().for_each(|byte| *byte = self.next() as u8);
        Ok(())
    }
}

pub(super) fn key(n: u8) -> DiskKey {
    DiskKey::new(&mut [n; 32])
}

/// What reached the world.
#[derive(Clone)]
pub(super) enum Op {
    Write(u64, Vec<u8>),
    Flush,
    Advance,
    /// These bytes of the medium became others, which costs those blocks of the disk.
    Decay(usize, Vec<u8>, Range<u64>),
    /// The workload took a step.
    Step,
    /// All that was written is flushed, and the guest knows.
    Returned,
}

#[derive(Default)]
pub(super) struct World {
    pub image: Vec<u8>,
    pub counter: u64,
    pub log: Vec<Op>,
    /// What the disk should hold now.
    pub model: Vec<u8>,
    /// What it held when the anchor reached a value.
    pub history: BTreeMap<u64, Rc<Vec<u8>>>,
    /// Fail the n-th operation from now on.
    pub fuse: Option<u64>,
    /// A session runs, as against an opening.
    pub session: bool,
    /// What the next session may see: what the last one saw or flushed, and what was being committed since.
    pub allowed: Vec<Vec<u8>>,
}

impl World {
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::other("unplugged")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Storage and anchor that record in one log, so that their order is known.
#[derive(Clone, Default)]
pub(super) struct Recorder(pub Rc<RefCell<World>>);

impl Recorder {
    pub(super) fn new(image: Vec<u8>, counter: u64) -> Self {
        Self(Rc::new(RefCell::new(World { image, counter, ..World::default() })))
    }
}

impl Store for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().image.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let world = self.0.borrow();
        let start = offset as usize;
        let from = world.image.get(start..start + buffer.len());
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.burn()?;
        let start = offset as usize;
        world.image[start..start + bytes.len()].copy_from_slice(bytes);
        if world.session && offset < 2 * BLOCK as u64 {
            let model = world.model.clone();
            world.allowed.push(model);
        }
        world.log.push(Op::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.burn()?;
        world.log.push(Op::Flush);
        Ok(())
    }
}

impl Anchor for Recorder {
    fn read(&mut self) -> Result<u64, AnchorError> {
        Ok(self.0.borrow().counter)
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let mut world = self.0.borrow_mut();
        world.burn().map_err(|error| AnchorError::Failed(error.into()))?;
        if world.counter != from {
            return Err(AnchorError::Moved { expected: from, found: world.counter });
        }
        world.counter += 1;
        let model = world.model.clone();
        if world.session {
            world.allowed = vec![model.clone()];
        }
        world.history.insert(from + 1, Rc::new(model));
        world.log.push(Op::Advance);
        Ok(())
    }
}

pub(super) type TestDisk = Disk<Recorder, Recorder>;

/// A new disk of `blocks` blocks in its own world.
pub(super) fn fresh(blocks: u64, spare: u64, dice: &mut Dice) -> (Recorder, TestDisk) {
    let shape = Shape { blocks, spare };
    let world = Recorder::new(vec![0; shape.storage().unwrap() as usize], 7);
    world.0.borrow_mut().model = vec![0; blocks as usize * BLOCK];
    let disk = Disk::create(world.clone(), world.clone(), &key(1), shape, dice).unwrap();
    (world, disk)
}

pub(super) fn reopen(world: &Recorder, id: DiskId, dice: &mut Dice) -> Result<TestDisk, DiskError> {
    Disk::open(world.clone(), world.clone(), &key(1), id, dice)
}

pub(super) fn contents(disk: &mut TestDisk) -> Result<Vec<u8>, DiskError> {
    let mut all = vec![0; disk.info().shape.blocks as usize * BLOCK];
    disk.read(0, &mut all).map(|()| all)
}
