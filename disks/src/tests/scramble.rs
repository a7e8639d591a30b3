//! Images scrambled at random from a disk's present and past, another disk, and noise: right contents or a refusal.

use super::support::*;
use crate::*;

const SECTOR: usize = 512;

/// Images of one disk over time, the newest last, and what the newest holds.
struct Past {
    id: DiskId,
    counter: u64,
    images: Vec<Vec<u8>>,
    contents: Vec<u8>,
}

fn past() -> Past {
    let mut dice = Dice(21);
    let (world, mut disk) = fresh(6, 16, &mut dice);
    let (other, mut foreign) = fresh(6, 16, &mut dice);
    foreign.write(0, &[9; 6 * BLOCK]).unwrap();
    foreign.flush().unwrap();
    let mut images = vec![other.0.borrow().image.clone()];
    for _ in 0..6 {
        disk.write(dice.below(6), &dice.block()).unwrap();
        disk.flush().unwrap();
        images.push(world.0.borrow().image.clone());
    }
    let contents = contents(&mut disk).unwrap();
    let counter = world.0.borrow().counter;
    Past { id: disk.info().id, counter, images, contents }
}

/// A few changes: flipped bits, sectors and blocks from elsewhere and from other times, noise.
fn scrambled(past: &Past, dice: &mut Dice) -> Vec<u8> {
    let mut image = past.images[past.images.len() - 1].clone();
    // Half of all changes hit the superblocks.
    let blocks = if dice.below(2) == 0 { 2 } else { image.len() / BLOCK };
    for _ in 0..1 + dice.below(4) {
        let unit = if dice.below(2) == 0 { SECTOR } else { BLOCK };
        let places = (blocks * BLOCK / unit) as u64;
        let at = dice.below(places) as usize * unit;
        let source = &past.images[dice.below(past.images.len() as u64) as usize];
        match dice.below(5) {
            0 => image[at + dice.below(unit as u64) as usize] ^= 1 << dice.below(8),
            1 => image[at..at + unit].copy_from_slice(&source[at..at + unit]),
            2 => {
                let from = dice.below(places) as usize * unit;
                image[at..at + unit].copy_from_slice(&source[from..from + unit]);
            }
            3 => image[at..at + unit].fill(dice.next() as u8),
            _ => image.truncate(image.len() - dice.below(2) as usize * BLOCK),
        }
        if image.len() < past.images[0].len() {
            break;
        }
    }
    image
}

fn run(times: u64) {
    let past = past();
    let mut dice = Dice(22);
    let (mut same, mut codes) = (0_u64, std::collections::BTreeMap::new());
    for _ in 0..times {
        let world = Recorder::new(scrambled(&past, &mut dice), past.counter);
        let opened = reopen(&world, past.id, &mut dice);
        match opened.and_then(|mut disk| contents(&mut disk)) {
            Ok(found) => {
                assert!(found == past.contents, "something else was read");
                same += 1;
            }
            Err(error) => *codes.entry(error.code()).or_insert(0_u64) += 1,
        }
    }
    println!("{times} scrambled images: {same} with the right contents, refused: {codes:?}");
    assert!(same > times / 20 && codes.len() >= 3);
}

#[test]
fn scrambled_images_are_refused_or_right() {
    run(20_000);
}

#[test]
#[ignore = "minutes: run by hand with --ignored"]
fn scrambled_images_are_refused_or_right_a_million_times() {
    run(1_000_000);
}
