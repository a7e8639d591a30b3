//! Altered, moved, exchanged and old bytes: refused by name, or provably without effect.

use super::support::*;
use crate::*;

/// A flushed disk with five of six blocks written, as image and contents.
struct Sample {
    id: DiskId,
    image: Vec<u8>,
    counter: u64,
    contents: Vec<u8>,
}

fn sample(seed: u64) -> Sample {
    let mut dice = Dice(seed);
    let (world, mut disk) = fresh(6, 16, &mut dice);
    let id = disk.info().id;
    for block in 0..5 {
        disk.write(block, &dice.block()).unwrap();
        disk.flush().unwrap();
    }
    let contents = contents(&mut disk).unwrap();
    let world = world.0.borrow();
    Sample { id, image: world.image.clone(), counter: world.counter, contents }
}

impl Sample {
    /// All there is to read of `image`.
    fn read(&self, image: Vec<u8>) -> Result<Vec<u8>, DiskError> {
        let world = Recorder::new(image, self.counter);
        reopen(&world, self.id, &mut Dice(5)).and_then(|mut disk| contents(&mut disk))
    }

    #[track_caller]
    fn check(&self, image: Vec<u8>, expected: Result<(), &str>) {
        match (self.read(image), expected) {
            (Ok(found), Ok(())) => assert!(found == self.contents),
            (Ok(_), Err(code)) => panic!("accepted instead of {code}"),
            (Err(error), expected) => assert_eq!(Err(error.code()), expected, "{error}"),
        }
    }

    /// Where a block lies in the storage, by looking for what changes when it is written.
    fn physical(&self, block: u64) -> usize {
        let world = Recorder::new(self.image.clone(), self.counter);
        let mut disk = reopen(&world, self.id, &mut Dice(5)).unwrap();
        disk.physical(block) as usize
    }

    fn live_superblock(&self) -> usize {
        let (older, newer) = (epoch(&self.image, 0), epoch(&self.image, 1));
        usize::from(newer > older)
    }
}

fn epoch(image: &[u8], slot: usize) -> u64 {
    crate::bytes::get_u64(image, slot * BLOCK + 32)
}

fn swap(image: &mut [u8], a: usize, b: usize) {
    for i in 0..BLOCK {
        image.swap(a * BLOCK + i, b * BLOCK + i);
    }
}

fn copy(to: &mut [u8], at: usize, from: &[u8], from_at: usize) {
    to[at * BLOCK..][..BLOCK].copy_from_slice(&from[from_at * BLOCK..][..BLOCK]);
}

#[test]
fn every_byte_flipped_is_refused_or_without_effect() {
    let sample = sample(1);
    sample.check(sample.image.clone(), Ok(()));
    let blocks = sample.image.len() / BLOCK;
    let (mut at_opening, mut at_reading, mut harmless) = (0, 0, vec![0; blocks]);
    for offset in 0..sample.image.len() {
        let mut image = sample.image.clone();
        image[offset] ^= 1 << (offset % 8);
        let world = Recorder::new(image, sample.counter);
        match reopen(&world, sample.id, &mut Dice(5)) {
            Err(_) => at_opening += 1,
            Ok(mut disk) => match contents(&mut disk) {
                Err(_) => at_reading += 1,
                Ok(found) => {
                    assert!(found == sample.contents, "byte {offset} changed what is read");
                    harmless[offset / BLOCK] += 1;
                }
            },
        }
    }
    println!(
        "flips: {at_opening} refused at opening, {at_reading} at reading, {} without effect",
        harmless.iter().sum::<usize>()
    );
    // A block counts in all its bytes or in none: superblock, node and five data blocks, and nothing else.
    assert!(harmless.iter().all(|n| *n == 0 || *n == BLOCK), "{harmless:?}");
    assert_eq!((at_opening, at_reading), (2 * BLOCK, 5 * BLOCK));
    assert_eq!(harmless[sample.live_superblock()], 0);
    for block in 0..5 {
        assert_eq!(harmless[sample.physical(block)], 0);
    }
}

#[test]
fn refuses_swapped_blocks() {
    let sample = sample(2);
    let (a, b) = (sample.physical(0), sample.physical(3));
    let mut image = sample.image.clone();
    swap(&mut image, a, b);
    sample.check(image.clone(), Err("corrupt"));
    swap(&mut image, a, b);
    sample.check(image, Ok(()));
}

#[test]
fn refuses_blocks_of_another_disk() {
    let (sample, other) = (sample(3), sample(4));
    for block in 0..5 {
        let mut image = sample.image.clone();
        copy(&mut image, sample.physical(block), &other.image, other.physical(block));
        sample.check(image.clone(), Err("corrupt"));
        copy(&mut image, sample.physical(block), &sample.image, sample.physical(block));
        sample.check(image, Ok(()));
    }
}

#[test]
fn refuses_another_disk() {
    let (sample, other) = (sample(3), sample(4));
    sample.check(other.image.clone(), Err("foreign"));
    other.check(other.image.clone(), Ok(()));
    // One foreign superblock beside the right one is no matter.
    let mut image = sample.image.clone();
    let dead = 1 - sample.live_superblock();
    copy(&mut image, dead, &other.image, other.live_superblock());
    sample.check(image, Ok(()));
}

/// The block is overwritten, flushed, and the old one put back where the new one lies.
#[test]
fn refuses_an_old_block() {
    let old = sample(6);
    let world = Recorder::new(old.image.clone(), old.counter);
    let mut disk = reopen(&world, old.id, &mut Dice(5)).unwrap();
    disk.write(2, &Dice(77).block()).unwrap();
    disk.flush().unwrap();
    let at = disk.physical(2) as usize;
    let mut found = vec![0; BLOCK];
    disk.read(2, &mut found).unwrap();
    let new = world.0.borrow().image.clone();
    let mut restored = new.clone();
    copy(&mut restored, at, &old.image, old.physical(2));
    world.0.borrow_mut().image = restored;
    let refused = disk.read(2, &mut found).unwrap_err();
    assert!(matches!(refused, DiskError::Corrupt(Place::Data(2))), "{refused}");
    assert!(found.iter().all(|byte| *byte == 0), "something unverified was handed out");
    // And after opening again.
    drop(disk);
    let mut disk = reopen(&world, old.id, &mut Dice(5)).unwrap();
    assert_eq!(disk.read(2, &mut found).unwrap_err().code(), "corrupt");
    world.0.borrow_mut().image[at * BLOCK..][..BLOCK].copy_from_slice(&new[at * BLOCK..][..BLOCK]);
    disk.read(2, &mut found).unwrap();
    assert!(found == Dice(77).block());
}

#[test]
fn refuses_an_old_image_and_an_old_superblock() {
    let sample = sample(7);
    let world = Recorder::new(sample.image.clone(), sample.counter);
    let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
    disk.write(2, &Dice(77).block()).unwrap();
    disk.flush().unwrap();
    let flushed = contents(&mut disk).unwrap();
    drop(disk);
    let newest = world.0.borrow().image.clone();

    world.0.borrow_mut().image = sample.image.clone();
    let refused = reopen(&world, sample.id, &mut Dice(5)).err().unwrap();
    assert_eq!(refused.code(), "stale", "{refused}");

    // Only the superblock that counts is taken back.
    let mut image = newest.clone();
    let live = usize::from(epoch(&newest, 1) > epoch(&newest, 0));
    copy(&mut image, live, &sample.image, sample.live_superblock());
    world.0.borrow_mut().image = image.clone();
    assert_eq!(reopen(&world, sample.id, &mut Dice(5)).err().unwrap().code(), "stale");

    // The negative twin: without the anchor the old state is taken.
    let anchorless = Recorder::new(sample.image.clone(), world.0.borrow().counter);
    let mut disk = TestDisk::dangerous_open_any_epoch(
        anchorless.clone(),
        anchorless.clone(),
        &key(1),
        sample.id,
        &mut Dice(5),
    )
    .unwrap();
    assert!(contents(&mut disk).unwrap() == sample.contents);

    // The positive twin.
    world.0.borrow_mut().image = newest;
    let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
    assert!(contents(&mut disk).unwrap() == flushed);
}

#[test]
fn refuses_a_counter_that_was_reset() {
    let sample = sample(8);
    let world = Recorder::new(sample.image.clone(), sample.counter - 3);
    assert_eq!(reopen(&world, sample.id, &mut Dice(5)).err().unwrap().code(), "anchor-behind");
}

#[test]
fn refuses_a_truncated_disk() {
    let sample = sample(9);
    for len in [sample.image.len() - 1, sample.image.len() / 2, 2 * BLOCK] {
        sample.check(sample.image[..len].to_vec(), Err("truncated"));
    }
    sample.check(Vec::new(), Err("not-a-disk"));
    // Longer is no matter.
    let mut longer = sample.image.clone();
    longer.extend([1; 5000]);
    sample.check(longer, Ok(()));
}

#[test]
fn refuses_another_key_and_another_format() {
    let sample = sample(10);
    let world = Recorder::new(sample.image.clone(), sample.counter);
    let refused = Disk::open(world.clone(), world, &key(2), sample.id, &mut Dice(5)).err().unwrap();
    assert_eq!(refused.code(), "wrong-key");
    // Where only the live superblock is broken the one before it is authentic, and too old.
    for offset in [0, 8, 16, 40, 184, BLOCK - 1] {
        let mut image = sample.image.clone();
        image[sample.live_superblock() * BLOCK + offset] ^= 2;
        sample.check(image, Err("stale"));
    }
    let mut image = sample.image.clone();
    image[8] ^= 2;
    image[BLOCK + 8] ^= 2;
    sample.check(image, Err("unsupported-version"));
}

/// What is read while the storage is altered under the session.
#[test]
fn refuses_what_changes_under_a_session() {
    let sample = sample(11);
    let world = Recorder::new(sample.image.clone(), sample.counter);
    let mut disk = reopen(&world, sample.id, &mut Dice(5)).unwrap();
    let at = sample.physical(4) * BLOCK + 100;
    world.0.borrow_mut().image[at] ^= 1;
    let report = disk.check().unwrap();
    assert_eq!((report.damaged, report.places), (1, vec![Place::Data(4)]));
    let mut all = vec![1; 6 * BLOCK];
    assert_eq!(disk.read(0, &mut all).unwrap_err().code(), "corrupt");
    assert!(all.iter().all(|byte| *byte == 0));
    world.0.borrow_mut().image[at] ^= 1;
    assert!(contents(&mut disk).unwrap() == sample.contents);
    assert_eq!(disk.check().unwrap().damaged, 0);
}
