//! Repair (SPEC 11.20): what is damaged is given up and is an error from then on, never zeros and never old data; all else
//! stays; and it is no way around a refusal of the whole disk.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::support::*;
use crate::*;

/// Three levels of nodes, the last of each level not full.
const BLOCKS: u64 = FANOUT * FANOUT + 90;
const WRITTEN: [u64; 8] = [0, 1, 84, 85, 170, 7224, 7225, BLOCKS - 1];

struct Sample {
    id: DiskId,
    image: Vec<u8>,
    counter: u64,
    contents: BTreeMap<u64, Vec<u8>>,
}

impl Sample {
    fn of(blocks: u64, written: &[u64], dice: &mut Dice) -> Self {
        let (world, mut disk) = fresh(blocks, 16, dice);
        let mut contents = BTreeMap::new();
        for block in written {
            let data = dice.block();
            // What was written before lies where it lay until it is replaced by a commit.
            if contents.contains_key(block) {
                disk.flush().unwrap();
            }
            disk.write(*block, &data).unwrap();
            contents.insert(*block, data);
        }
        disk.flush().unwrap();
        let id = disk.info().id;
        let world = world.0.borrow();
        Self { id, image: world.image.clone(), counter: world.counter, contents }
    }

    /// The world with one byte of a block of storage changed.
    fn damaged(&self, physical: u64) -> Recorder {
        let mut image = self.image.clone();
        image[physical as usize * BLOCK + 7] ^= 1;
        Recorder::new(image, self.counter)
    }

    /// Every block is what was written, or zero, or lost and then nothing is in the buffer; which are lost.
    fn lost_of<S: Store>(&self, disk: &mut Disk<S, Recorder>) -> BTreeSet<u64> {
        let mut lost = BTreeSet::new();
        for block in 0..disk.info().shape.blocks {
            let mut buffer = vec![0xaa; BLOCK];
            match disk.read(block, &mut buffer) {
                Ok(()) => match self.contents.get(&block) {
                    Some(data) => assert!(buffer == *data, "block {block}"),
                    None => assert!(buffer == [0; BLOCK], "block {block}"),
                },
                Err(error) => {
                    assert_eq!(error.code(), "lost", "block {block}: {error}");
                    assert!(buffer == [0; BLOCK], "block {block}");
                    lost.insert(block);
                }
            }
        }
        lost
    }
}

fn repair(world: &Recorder, id: DiskId) -> Result<(TestDisk, Report), DiskError> {
    Disk::repair(world.clone(), world.clone(), &key(1), id, &mut Dice(9))
}

/// Data blocks that hang from a place.
pub(super) fn below(place: Place, blocks: u64) -> Range<u64> {
    let (level, index) = match place {
        Place::Node { level, index } => (level, index),
        Place::Data(block) => (0, block),
        Place::Superblock(_) => return 0..0,
    };
    let reach = FANOUT.pow(level.into());
    index * reach..((index + 1) * reach).min(blocks)
}

/// Each block that is stored, data and nodes, damaged in turn.
#[test]
fn what_hangs_from_damage_is_given_up_and_all_else_stays() {
    let sample = Sample::of(BLOCKS, &WRITTEN, &mut Dice(1));
    let mut seen = BTreeMap::new();
    let stored = (2..(sample.image.len() / BLOCK) as u64)
        .filter(|at| sample.image[*at as usize * BLOCK..][..BLOCK] != [0; BLOCK]);
    for physical in stored {
        let world = sample.damaged(physical);
        let (mut disk, report) = repair(&world, sample.id).unwrap();
        let [place] = report.places[..] else {
            assert_eq!((report.damaged, report.lost), (0, 0), "nothing of this state");
            continue;
        };
        let lost = below(place, BLOCKS).collect::<BTreeSet<_>>();
        assert_eq!((report.damaged, report.lost), (1, lost.len() as u64), "{place}");
        assert_eq!(sample.lost_of(&mut disk), lost, "{place}");
        let level = if let Place::Node { level, .. } = place { level } else { 0 };
        *seen.entry(level).or_insert(0) += 1;
        // Before, nothing below it opened; now it opens as it was left, and has no damage.
        if level > 0 {
            let refused = reopen(&sample.damaged(physical), sample.id, &mut Dice(5));
            assert_eq!(refused.err().map(|error| error.code()), Some("corrupt"), "{place}");
        }
        let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
        assert_eq!(sample.lost_of(&mut disk), lost, "{place}");
        let found = disk.check().unwrap();
        assert_eq!((found.damaged, found.lost), (0, lost.len() as u64), "{place}");
        // The guest's own writes and discards bring blocks back, each for itself.
        let (first, last) = (*lost.first().unwrap(), *lost.last().unwrap());
        let mut left = lost.clone();
        disk.zero(last, 1).unwrap();
        disk.write(first, &[5; BLOCK]).unwrap();
        left.retain(|block| ![first, last].contains(block));
        let mut disk =
            disk.close().map(|_| reopen(&world, sample.id, &mut Dice(5)).unwrap()).unwrap();
        let mut after = Sample { contents: sample.contents.clone(), image: vec![], ..sample };
        after.contents.remove(&last);
        after.contents.insert(first, vec![5; BLOCK]);
        assert_eq!(after.lost_of(&mut disk), left, "{place}");
        assert_eq!(disk.check().unwrap().lost, left.len() as u64, "{place}");
    }
    assert_eq!(seen, BTreeMap::from([(0, 8), (1, 6), (2, 2), (3, 1)]));
}

#[test]
fn nothing_is_given_up_of_a_disk_that_is_whole() {
    let sample = Sample::of(BLOCKS, &WRITTEN, &mut Dice(2));
    let world = Recorder::new(sample.image.clone(), sample.counter);
    let (mut disk, report) = repair(&world, sample.id).unwrap();
    assert_eq!((report.damaged, report.lost, report.data), (0, 0, WRITTEN.len() as u64));
    assert!(sample.lost_of(&mut disk).is_empty());
    // No more moves of the anchor than an opening's.
    assert_eq!(world.0.borrow().counter, sample.counter + 2);
}

/// An old, foreign, strange or shortened disk is refused as at an opening, and the anchor stays.
#[test]
fn a_repair_is_no_way_around_a_refusal() {
    let sample = Sample::of(6, &[0, 3], &mut Dice(3));
    let other = Sample::of(6, &[0, 3], &mut Dice(4));
    let refused = |image: &[u8], counter, key: &DiskKey, expected| {
        let world = Recorder::new(image.to_vec(), counter);
        let repaired = Disk::repair(world.clone(), world.clone(), key, sample.id, &mut Dice(9));
        assert_eq!(repaired.err().map(|error| error.code()), expected);
        assert!(expected.is_none() || world.0.borrow().counter == counter, "{expected:?}");
    };
    refused(&sample.image, sample.counter + 2, &key(1), Some("stale"));
    refused(&sample.image, sample.counter - 3, &key(1), Some("anchor-behind"));
    refused(&sample.image, sample.counter, &key(2), Some("wrong-key"));
    refused(&other.image, other.counter, &key(1), Some("foreign"));
    refused(&sample.image[..sample.image.len() - 1], sample.counter, &key(1), Some("truncated"));
    refused(&vec![0; sample.image.len()], sample.counter, &key(1), Some("not-a-disk"));
    refused(&sample.image, sample.counter, &key(1), None);
}

/// What was given up at the end of a disk says nothing of the blocks that it grows by.
#[test]
fn blocks_a_disk_grows_by_are_zero_whatever_was_lost_before_them() {
    let small = 100;
    for larger in [101, 170, 171, 7225, 7226, 7400] {
        for level in 0..=2 {
            let sample = Sample::of(small, &[0, small - 1], &mut Dice(5));
            let damage = (2..10).find_map(|at| {
                let world = sample.damaged(at);
                let (disk, report) = repair(&world, sample.id).unwrap();
                let end = report.places.first().map(|place| below(*place, small));
                let fits = end.is_some_and(|end| {
                    end.end == small && levels_of(&report) == level && !end.is_empty()
                });
                fits.then_some((world, disk))
            });
            let (world, disk) = damage.expect("each level has a node at the end");
            let (mut disk, _) = disk.close().map(|_| repair(&world, sample.id).unwrap()).unwrap();
            let lost = sample.lost_of(&mut disk);
            assert!(lost.contains(&(small - 1)));
            let storage = Shape { blocks: larger, spare: 16 }.storage().unwrap();
            world.0.borrow_mut().image.resize(storage as usize, 0);
            disk.grow(larger).unwrap();
            assert_eq!(sample.lost_of(&mut disk), lost, "{larger} {level}");
            let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
            assert_eq!(sample.lost_of(&mut disk), lost, "{larger} {level}");
            assert_eq!(disk.check().unwrap().lost, lost.len() as u64);
        }
    }
}

fn levels_of(report: &Report) -> u8 {
    match report.places.first() {
        Some(Place::Node { level, .. }) => *level,
        _ => 0,
    }
}

/// Cut off before any step it is done again, and has then given up the same.
#[test]
fn a_repair_may_be_cut_off_anywhere() {
    let sample = Sample::of(100, &[0, 1, 85, 99], &mut Dice(6));
    for physical in 2..10 {
        let (mut disk, whole) = repair(&sample.damaged(physical), sample.id).unwrap();
        let lost = sample.lost_of(&mut disk);
        let mut cuts = 0;
        loop {
            let world = sample.damaged(physical);
            world.0.borrow_mut().fuse = Some(cuts);
            let done = repair(&world, sample.id).is_ok();
            world.0.borrow_mut().fuse = None;
            let (mut disk, again) = repair(&world, sample.id).unwrap();
            assert_eq!(sample.lost_of(&mut disk), lost, "cut {cuts}");
            assert_eq!(again.lost, whole.lost);
            if done {
                break;
            }
            cuts += 1;
        }
        assert!(cuts >= 3, "an opening alone takes four steps");
    }
}

/// With nothing left of it, and fewer spare blocks than there is to give up.
#[test]
fn a_disk_of_which_nothing_is_left_can_be_used_again() {
    let all: Vec<u64> = (0..200).collect();
    let sample = Sample::of(200, &all, &mut Dice(7));
    for keep_nodes in [true, false] {
        let world = Recorder::new(sample.image.clone(), sample.counter);
        let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
        let data: BTreeSet<u64> = all.iter().map(|block| disk.physical(*block)).collect();
        let counter = world.0.borrow().counter;
        let mut image = world.0.borrow().image.clone();
        for at in (2..(image.len() / BLOCK) as u64).filter(|at| !keep_nodes || data.contains(at)) {
            image[at as usize * BLOCK] ^= 1;
        }
        let world = Recorder::new(image, counter);
        let (mut disk, report) = repair(&world, sample.id).unwrap();
        assert_eq!((report.lost, report.damaged), (200, if keep_nodes { 200 } else { 1 }));
        assert_eq!(report.places.len() as u64, report.damaged.min(64));
        assert_eq!(sample.lost_of(&mut disk).len(), 200);
        for block in &all {
            disk.write(*block, &sample.contents[block]).unwrap();
        }
        disk.flush().unwrap();
        assert!(sample.lost_of(&mut disk).is_empty());
        assert_eq!(disk.check().unwrap().lost, 0);
    }
}

/// Damage of all sorts, repairs, and a guest that goes on, against a model.
#[test]
fn repaired_disks_go_on_as_a_model_says() {
    let mut dice = Dice(8);
    let (mut repaired, mut refused) = (0, 0);
    for _ in 0..150 {
        let blocks = 1 + dice.below(300);
        let (world, mut disk) = fresh(blocks, 16, &mut dice);
        let id = disk.info().id;
        // None is lost; a block never written is zero.
        let mut model: Vec<Option<Vec<u8>>> = vec![Some(vec![0; BLOCK]); blocks as usize];
        for _ in 0..6 {
            for _ in 0..dice.below(20) {
                let block = dice.below(disk.info().shape.blocks);
                let data = if dice.below(4) == 0 { vec![0; BLOCK] } else { dice.block() };
                match data[..] == [0; BLOCK] {
                    true => disk.zero(block, 1).unwrap(),
                    false => disk.write(block, &data).unwrap(),
                }
                model[block as usize] = Some(data);
            }
            if dice.below(4) == 0 {
                let blocks = model.len() as u64 + 1 + dice.below(90);
                let storage = Shape { blocks, spare: 16 }.storage().unwrap();
                world.0.borrow_mut().image.resize(storage as usize, 0);
                disk.grow(blocks).unwrap();
                model.resize(blocks as usize, Some(vec![0; BLOCK]));
            }
            disk.flush().unwrap();
            for _ in 0..dice.below(8) {
                let mut world = world.0.borrow_mut();
                let at = 2 * BLOCK as u64 + dice.below(world.image.len() as u64 - 2 * BLOCK as u64);
                world.image[at as usize] ^= 1 << dice.below(8);
            }
            refused += usize::from(reopen(&world, id, &mut dice).is_err());
            let report;
            (disk, report) =
                Disk::repair(world.clone(), world.clone(), &key(1), id, &mut dice).unwrap();
            repaired += usize::from(report.damaged > 0);
            for place in &report.places {
                let under = below(*place, model.len() as u64);
                model[under.start as usize..under.end as usize].fill(None);
            }
            for (block, expected) in (0..).zip(&model) {
                let mut buffer = vec![0; BLOCK];
                match (disk.read(block, &mut buffer), expected) {
                    (Ok(()), Some(data)) => assert!(buffer == *data, "block {block}"),
                    (Err(DiskError::Lost(_)), None) => {}
                    (found, _) => panic!("block {block}: {found:?}"),
                }
            }
            let lost = model.iter().filter(|block| block.is_none()).count();
            assert_eq!(report.lost, lost as u64);
        }
    }
    assert!(repaired > 50 && refused > 20, "{repaired} {refused}");
}

/// Storage that shows a node damaged when it is first asked, and whole after.
struct Wavering(Recorder, Rc<Cell<Option<u64>>>);

impl Store for Wavering {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buffer)?;
        if self.1.get() == Some(offset) {
            self.1.set(None);
            buffer[0] ^= 1;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// What hangs from a node that was damaged for a while is right or lost, at once and after a guest has gone on.
#[test]
fn damage_that_comes_and_goes_leaves_nothing_wrong() {
    // Some are written twice: what is free lies before what hangs from the last leaf, and is taken first.
    let all: Vec<u64> = (0..200).chain(85..95).collect();
    let sample = Sample::of(200, &all, &mut Dice(10));
    let mut whole = 0;
    for physical in 2..(sample.image.len() / BLOCK) as u64 {
        // One data block is damaged for good, so that something is written.
        let world = Recorder::new(sample.image.clone(), sample.counter);
        let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
        let (broken, counter) = (disk.physical(150), world.0.borrow().counter);
        let mut image = world.0.borrow().image.clone();
        image[broken as usize * BLOCK] ^= 1;
        let world = Recorder::new(image, counter);
        let first = Rc::new(Cell::new(Some(physical * BLOCK as u64)));
        let store = Wavering(world.clone(), Rc::clone(&first));
        let repaired = Disk::repair(store, world.clone(), &key(1), sample.id, &mut Dice(9));
        let Ok((mut disk, _)) = repaired else { continue };
        first.set(None);
        whole += 1;
        let lost = sample.lost_of(&mut disk);
        for block in &lost {
            disk.write(*block, &sample.contents[block]).unwrap();
        }
        // The guest writes more than there are blocks of storage.
        for _ in 0..2 * sample.image.len() / BLOCK {
            disk.write(150, &sample.contents[&150]).unwrap();
        }
        disk.flush().unwrap();
        assert!(sample.lost_of(&mut disk).is_empty());
        assert_eq!(disk.check().unwrap().damaged, 0);
    }
    assert!(whole > 100, "{whole} repairs came to an end");
}
