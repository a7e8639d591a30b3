//! Power cut at every boundary of a recorded workload: unflushed writes are lost, reordered and torn. Twice in it the medium
//! decays and the disk is repaired (SPEC 11.20): what was given up stays so, and nothing else goes with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::repair::below;
use super::support::*;
use crate::*;

/// What a model holds where the disk gives nothing.
const GIVEN_UP: [u8; BLOCK] = [0xee; BLOCK];
const SECTOR: usize = 512;
const BLOCKS: u64 = 90;
const GROWN: u64 = 120;
const SPARE: u64 = 20;

/// A recorded history: what reached storage and anchor from `image` and `counter` on.
struct Recording {
    id: DiskId,
    image: Vec<u8>,
    counter: u64,
    log: Vec<Op>,
    history: BTreeMap<u64, Rc<Vec<u8>>>,
    keys: Vec<u8>,
}

#[derive(Debug, Default)]
struct Tally {
    trials: u64,
    boundaries: u64,
    refused: u64,
    lost: u64,
    mixed: u64,
    rolled_forward: u64,
    cut_again: u64,
    died: u64,
    repaired: u64,
}

/// Writes, oldest first, that no flush has followed.
type Pending = Vec<(u64, Vec<u8>)>;

#[test]
fn power_cut_at_every_boundary_loses_nothing_flushed() {
    let recording = record(11);
    let tally = cut_everywhere(&recording, 18, true);
    println!("power cut: {tally:?}");
    assert!(tally.trials >= 10_000, "{tally:?}");
    assert_eq!((tally.refused, tally.lost, tally.mixed), (0, 0, 0), "{tally:?}");
    // The interesting cut, between superblock and anchor, was among them.
    assert!(tally.rolled_forward > 100, "{tally:?}");
    assert!(tally.died > 1000, "{tally:?}");
    assert!(tally.repaired > 100, "{tally:?}");
}

/// The negative twin: on a medium whose flush does nothing the same cuts do harm, so the test can see it.
#[test]
fn power_cut_does_harm_where_flush_lies() {
    let recording = record(11);
    let tally = cut_everywhere(&recording, 2, false);
    println!("power cut, lying flush: {tally:?}");
    assert!(tally.refused > 0, "{tally:?}");
}

/// Writes, zeroes, flushes, reopens, grows, rekeys, decays and is repaired; the spare blocks are few, so commits come unasked too.
fn record(seed: u64) -> Recording {
    let mut dice = Dice(seed);
    let shape = Shape { blocks: GROWN, spare: SPARE };
    let world = Recorder::new(vec![0; shape.storage().unwrap() as usize], 7);
    world.0.borrow_mut().model = vec![0; GROWN as usize * BLOCK];
    let shape = Shape { blocks: BLOCKS, spare: SPARE };
    let mut disk = Disk::create(world.clone(), world.clone(), &key(1), shape, &mut dice).unwrap();
    let id = disk.info().id;
    let (image, counter) = {
        let mut world = world.0.borrow_mut();
        world.log.clear();
        (world.image.clone(), world.counter)
    };
    let mut keys = vec![1];
    for step in 0..420 {
        let blocks = disk.info().shape.blocks;
        let block = dice.below(blocks);
        let bytes = block as usize * BLOCK..(block as usize + 1) * BLOCK;
        match dice.below(40) {
            0..=27 => {
                let data = dice.block();
                disk.write(block, &data).unwrap();
                world.0.borrow_mut().model[bytes].copy_from_slice(&data);
            }
            28..=31 => {
                disk.zero(block, 1).unwrap();
                world.0.borrow_mut().model[bytes].fill(0);
            }
            32..=37 => disk.flush().unwrap(),
            38 => {
                disk.flush().unwrap();
                drop(disk);
                let key = key(*keys.last().unwrap());
                disk = Disk::open(world.clone(), world.clone(), &key, id, &mut dice).unwrap();
            }
            _ => {
                let next = keys.len() as u8 + 1;
                keys.push(next);
                disk.rekey(&key(next), &mut dice).unwrap();
            }
        }
        let decays: Option<fn(Place) -> bool> = match step {
            120 => Some(|place| matches!(place, Place::Data(_))),
            300 => Some(|place| matches!(place, Place::Node { level: 1, index: 1 })),
            _ => None,
        };
        if let Some(decays) = decays {
            disk.flush().unwrap();
            drop(disk);
            let key = key(*keys.last().unwrap());
            decay(&world, id, &key, decays);
            let repair = Disk::repair(world.clone(), world.clone(), &key, id, &mut dice);
            disk = repair.unwrap().0;
        }
        if step == 200 {
            disk.grow(GROWN).unwrap();
        }
        world.0.borrow_mut().log.push(Op::Step);
        if disk.info().dirty {
            continue;
        }
        world.0.borrow_mut().log.push(Op::Returned);
    }
    disk.flush().unwrap();
    let world = world.0.borrow();
    Recording { id, image, counter, log: world.log.clone(), history: world.history.clone(), keys }
}

/// One byte of what is stored for such a place changes by itself.
fn decay(world: &Recorder, id: DiskId, key: &DiskKey, suits: impl Fn(Place) -> bool) {
    let mut world = world.0.borrow_mut();
    let place_at = |physical: usize| {
        let mut image = world.image.clone();
        image[physical * BLOCK + 7] ^= 1;
        let trial = Recorder::new(image, world.counter);
        let repaired = Disk::repair(trial.clone(), trial, key, id, &mut Dice(3)).unwrap();
        let place = repaired.1.places.first().copied().filter(|place| suits(*place))?;
        Some((physical, below(place, repaired.0.info().shape.blocks)))
    };
    let blocks = world.image.len() / BLOCK;
    let (physical, lost) = (2..blocks).find_map(place_at).expect("a block of that place");
    world.image[physical * BLOCK + 7] ^= 1;
    let bytes = world.image[physical * BLOCK..][..BLOCK].to_vec();
    give_up(&mut world.model, &lost);
    world.log.push(Op::Decay(physical * BLOCK, bytes, lost));
}

fn give_up(model: &mut [u8], lost: &Range<u64>) {
    lost.clone().for_each(|block| put(model, block * BLOCK as u64, &GIVEN_UP));
}

fn cut_everywhere(recording: &Recording, variants: u64, flush_holds: bool) -> Tally {
    let mut tally = Tally::default();
    let mut dice = Dice(99);
    let mut durable = recording.image.clone();
    let mut pending = Pending::new();
    let mut decayed = false;
    let (mut counter, mut returned) = (recording.counter, recording.counter);
    let mut history = recording.history.clone();
    history.insert(recording.counter, Rc::new(vec![0; GROWN as usize * BLOCK]));
    for op in &recording.log {
        match op {
            Op::Write(offset, bytes) => pending.push((*offset, bytes.clone())),
            Op::Flush if flush_holds => {
                pending.drain(..).for_each(|(offset, bytes)| put(&mut durable, offset, &bytes));
            }
            Op::Flush if pending.len() > 40 => {
                let old = pending.len() - 40;
                pending.drain(..old).for_each(|(offset, bytes)| put(&mut durable, offset, &bytes));
            }
            Op::Flush => {}
            Op::Advance => counter += 1,
            // Repaired by now, if it decayed.
            Op::Returned => (returned, decayed) = (counter, false),
            Op::Decay(offset, bytes, lost) => {
                put(&mut durable, *offset as u64, bytes);
                for (_, model) in history.range_mut(..=counter) {
                    let model: &mut Vec<u8> = Rc::make_mut(model);
                    give_up(model, lost);
                }
                decayed = true;
            }
            Op::Step => continue,
        }
        tally.boundaries += 1;
        for variant in 0..variants {
            // Without anything pending all variants are one.
            if pending.is_empty() && variant > 1 {
                break;
            }
            let image = cut(&durable, &pending, variant, &mut dice);
            let at = Cut { counter, returned, history: &history, recording, decayed };
            at.judge(image, &mut tally, &mut dice, true);
        }
        if flush_holds && !pending.is_empty() {
            let at = Cut { counter, returned, history: &history, recording, decayed };
            at.die(&durable, &pending, &mut tally, &mut dice);
        }
    }
    tally
}

/// What is on the medium after a cut: a subset of the pending writes' sectors, in some order.
fn cut(durable: &[u8], pending: &[(u64, Vec<u8>)], variant: u64, dice: &mut Dice) -> Vec<u8> {
    let mut image = durable.to_vec();
    let mut order: Vec<&(u64, Vec<u8>)> = pending.iter().collect();
    if variant > 2 {
        dice.shuffle(&mut order);
    }
    let newest = order.len().saturating_sub(1);
    for (n, (offset, bytes)) in order.into_iter().enumerate() {
        // 0: nothing arrived. 1: all. 2: only the newest. 3: all, in another order. 4, 5: whole blocks, some.
        // 6 and more: sectors, few to many.
        let keep = match variant {
            0 => 0,
            1 | 3 => 8,
            2 => 8 * u64::from(n == newest),
            4 | 5 => 8 * dice.below(2),
            _ => 1 + dice.below(7),
        };
        for (sector, part) in bytes.chunks(SECTOR).enumerate() {
            if dice.below(8) < keep {
                put(&mut image, offset + (sector * SECTOR) as u64, part);
            }
        }
    }
    image
}

fn put(image: &mut [u8], offset: u64, bytes: &[u8]) {
    image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
}

struct Cut<'a> {
    counter: u64,
    returned: u64,
    history: &'a BTreeMap<u64, Rc<Vec<u8>>>,
    recording: &'a Recording,
    /// And it may not be repaired yet.
    decayed: bool,
}

impl Cut<'_> {
    /// Opens the disk, or repairs it where that is what its owner would do.
    fn open(&self, world: &Recorder, tally: &mut Tally, dice: &mut Dice) -> Option<TestDisk> {
        let (world, id) = (|| (world.clone(), world.clone()), self.recording.id);
        // Whoever was rekeying holds the key of before and of after.
        let mut keys = self.recording.keys.iter().rev().map(|secret| key(*secret));
        let opened = keys.clone().find_map(|key| {
            let (store, anchor) = world();
            Disk::open(store, anchor, &key, id, dice).ok()
        });
        if !self.decayed {
            return opened;
        }
        let whole = |disk: &mut TestDisk| disk.check().is_ok_and(|report| report.damaged == 0);
        let repair = |key| {
            let (store, anchor) = world();
            let repaired = Disk::repair(store, anchor, &key, id, dice).ok();
            tally.repaired += u64::from(repaired.is_some());
            repaired.map(|(disk, _)| disk)
        };
        let whole = opened.and_then(|mut disk| whole(&mut disk).then_some(disk));
        whole.or_else(|| keys.find_map(repair))
    }

    fn judge(&self, image: Vec<u8>, tally: &mut Tally, dice: &mut Dice, outer: bool) {
        tally.trials += 1;
        let world = Recorder::new(image.clone(), self.counter);
        let Some(mut disk) = self.open(&world, tally, dice) else {
            tally.refused += 1;
            return;
        };
        let Ok(mut found) = readable(&mut disk) else {
            tally.refused += 1;
            return;
        };
        found.resize(GROWN as usize * BLOCK, 0);
        let epoch = (self.counter..=self.counter + 1)
            .find(|e| self.history.get(e).is_some_and(|old| **old == found));
        match epoch {
            None if self.history.values().any(|old| **old == found) => tally.lost += 1,
            None => tally.mixed += 1,
            Some(epoch) if epoch < self.returned => tally.lost += 1,
            Some(epoch) => tally.rolled_forward += u64::from(epoch > self.counter),
        }
        if outer && tally.trials.is_multiple_of(8) {
            self.cut_the_opening((image, Vec::new()), &world, &found, tally, dice);
        }
        if outer && tally.trials.is_multiple_of(16) {
            go_on(disk, found, dice);
        }
    }

    /// Only the process dies: the next reads what the medium has not got yet. Then the power fails while it opens.
    fn die(&self, durable: &[u8], pending: &Pending, tally: &mut Tally, dice: &mut Dice) {
        let mut cached = durable.to_vec();
        pending.iter().for_each(|(offset, bytes)| put(&mut cached, *offset, bytes));
        let world = Recorder::new(cached, self.counter);
        let opened = self.open(&world, tally, dice);
        let Some(mut found) = opened.and_then(|mut disk| readable(&mut disk).ok()) else {
            tally.refused += 1;
            return;
        };
        found.resize(GROWN as usize * BLOCK, 0);
        for _ in 0..4 {
            let medium = (durable.to_vec(), pending.clone());
            self.cut_the_opening(medium, &world, &found, tally, dice);
            tally.died += 1;
        }
    }

    /// The power fails again while the disk is being opened, over a medium and what a cache holds for it.
    fn cut_the_opening(
        &self,
        medium: (Vec<u8>, Pending),
        world: &Recorder,
        found: &[u8],
        tally: &mut Tally,
        dice: &mut Dice,
    ) {
        let log = world.0.borrow().log.clone();
        let upto = dice.below(log.len() as u64 + 1) as usize;
        let ((mut durable, mut pending), mut counter) = (medium, self.counter);
        for op in log.into_iter().take(upto) {
            match op {
                Op::Write(offset, bytes) => pending.push((offset, bytes)),
                Op::Flush => {
                    pending.drain(..).for_each(|(offset, bytes)| put(&mut durable, offset, &bytes));
                }
                Op::Advance => counter += 1,
                Op::Returned | Op::Step | Op::Decay(..) => {}
            }
        }
        // What it would find is what it found, or the rival that the first opening did not choose.
        let found = Rc::new(found.to_vec());
        let mut history: BTreeMap<u64, Rc<Vec<u8>>> =
            (counter..counter + 3).map(|epoch| (epoch, found.clone())).collect();
        if counter == self.counter {
            history = self.history.clone();
        }
        let image = cut(&durable, &pending, dice.below(8), dice);
        tally.cut_again += 1;
        let returned = self.returned.min(counter);
        Cut { counter, returned, history: &history, ..*self }.judge(image, tally, dice, false);
    }
}

/// A recovered disk works on: it is written, flushed, verified in whole and opened again.
fn go_on(mut disk: TestDisk, mut model: Vec<u8>, dice: &mut Dice) {
    let blocks = disk.info().shape.blocks;
    for _ in 0..10 {
        let block = dice.below(blocks);
        let data = dice.block();
        disk.write(block, &data).unwrap();
        put(&mut model, block * BLOCK as u64, &data);
    }
    let report = disk.check().unwrap();
    assert_eq!(report.damaged, 0);
    assert_eq!(disk.info().taken, 2 + report.data + report.nodes);
    let mut found = readable(&mut disk).unwrap();
    found.resize(model.len(), 0);
    assert!(found == model);
}

/// What the disk holds, as a model says it.
fn readable(disk: &mut TestDisk) -> Result<Vec<u8>, DiskError> {
    let mut all = vec![0; disk.info().shape.blocks as usize * BLOCK];
    for (block, bytes) in all.chunks_mut(BLOCK).enumerate() {
        match disk.read(block as u64, bytes) {
            Err(error) if error.code() == "lost" => bytes.copy_from_slice(&GIVEN_UP),
            other => other?,
        }
    }
    Ok(all)
}
