//! Whoever owns the storage gives back any mix of what it ever held, and cuts the power at will.

use super::support::*;
use crate::*;

const BLOCKS: u64 = 5;
const IMAGES_KEPT: usize = 60;

#[derive(Debug, Default)]
struct Tally {
    openings: u64,
    accepted: u64,
    refused: u64,
    violations: u64,
    cuts: u64,
}

#[test]
fn no_mix_of_old_states_is_ever_accepted() {
    let mut sum = Tally::default();
    for seed in 0..60 {
        play(seed, true, &mut sum);
    }
    println!("adversary: {sum:?}");
    assert_eq!(sum.violations, 0, "{sum:?}");
    assert!(sum.openings >= 20_000 && sum.accepted >= 3_000 && sum.cuts >= 3_000, "{sum:?}");
}

/// The negative twin: without the anchor the same adversary succeeds.
#[test]
fn without_the_anchor_old_states_are_accepted() {
    let mut sum = Tally::default();
    for seed in 0..4 {
        play(seed, false, &mut sum);
    }
    println!("adversary without anchor: {sum:?}");
    assert!(sum.violations > 100, "{sum:?}");
}

fn play(seed: u64, anchored: bool, sum: &mut Tally) {
    let mut dice = Dice(seed);
    let (world, disk) = fresh(BLOCKS, 16, &mut dice);
    let id = disk.info().id;
    drop(disk);
    let mut images = vec![world.0.borrow().image.clone()];
    {
        let mut world = world.0.borrow_mut();
        world.allowed = vec![world.model.clone()];
    }
    for _ in 0..400 {
        let image = concoct(&images, &mut dice);
        {
            let mut world = world.0.borrow_mut();
            world.image = image;
            world.session = false;
            world.log.clear();
            // An opening does at most six things: it is cut often.
            world.fuse = (dice.below(3) == 0).then(|| dice.below(6));
        }
        sum.openings += 1;
        let opened = match anchored {
            true => reopen(&world, id, &mut dice),
            false => TestDisk::dangerous_open_any_epoch(
                world.clone(),
                world.clone(),
                &key(1),
                id,
                &mut dice,
            ),
        };
        let found = opened.and_then(|mut disk| contents(&mut disk).map(|found| (disk, found)));
        match found {
            Ok((disk, found)) => {
                sum.accepted += 1;
                let allowed = world.0.borrow().allowed.contains(&found);
                sum.violations += u64::from(!allowed);
                work(disk, found, &world, &mut dice, sum);
            }
            Err(_) => sum.refused += 1,
        }
        remember(&mut images, &world, &mut dice);
    }
}

/// A session: writes and flushes until the power is cut.
fn work(mut disk: TestDisk, found: Vec<u8>, world: &Recorder, dice: &mut Dice, sum: &mut Tally) {
    {
        let mut world = world.0.borrow_mut();
        world.session = true;
        world.allowed = vec![found.clone()];
        world.model = found;
        world.fuse = Some(dice.below(40));
    }
    for _ in 0..dice.below(20) {
        let block = dice.below(BLOCKS);
        let data = dice.block();
        let result = match dice.below(3) {
            0 => disk.flush(),
            1 => disk.zero(block, 1).map(|()| {
                world.0.borrow_mut().model[block as usize * BLOCK..][..BLOCK].fill(0);
            }),
            _ => disk.write(block, &data).map(|()| {
                world.0.borrow_mut().model[block as usize * BLOCK..][..BLOCK]
                    .copy_from_slice(&data);
            }),
        };
        if result.is_err() {
            sum.cuts += 1;
            // The power, or only the storage for a moment: then the guest goes on trying.
            if dice.below(2) == 0 {
                break;
            }
            world.0.borrow_mut().fuse = None;
        }
    }
}

/// The newest image, an old one, or superblocks and the rest from three different times.
fn concoct(images: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let any = |dice: &mut Dice| images[dice.below(images.len() as u64) as usize].clone();
    let recent = |dice: &mut Dice| {
        let back = dice.below(images.len().min(6) as u64) as usize;
        images[images.len() - 1 - back].clone()
    };
    match dice.below(9) {
        0..=3 => images[images.len() - 1].clone(),
        4 => any(dice),
        5 | 6 => recent(dice),
        _ => {
            let mut image = recent(dice);
            for slot in 0..2 {
                let other = recent(dice);
                let place = slot * BLOCK..(slot + 1) * BLOCK;
                image[place.clone()].copy_from_slice(&other[place]);
            }
            image
        }
    }
}

/// Keeps the image as it is, and with each superblock that was written on the way.
fn remember(images: &mut Vec<Vec<u8>>, world: &Recorder, dice: &mut Dice) {
    let world = world.0.borrow();
    if world.log.is_empty() {
        return;
    }
    let superblocks = world.log.iter().filter_map(|op| match op {
        Op::Write(offset, bytes) if *offset < 2 * BLOCK as u64 => Some((*offset, bytes)),
        _ => None,
    });
    for (offset, bytes) in superblocks {
        let mut image = world.image.clone();
        image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        images.push(image);
    }
    images.push(world.image.clone());
    while images.len() > IMAGES_KEPT {
        let gone = dice.below(images.len() as u64 - 8) as usize;
        images.remove(gone);
    }
}
