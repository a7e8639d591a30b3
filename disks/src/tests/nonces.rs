//! No two seals under one key have one nonce: every test of this crate keeps watch.

use std::cell::RefCell;
use std::collections::HashSet;

use super::support::*;
use crate::*;

type Used = HashSet<([u8; 16], [u8; 16], u64)>;

thread_local! {
    static USED: RefCell<Option<Used>> = const { RefCell::new(None) };
}

/// Called for each seal. Salt and disk give the key, the counter is the nonce.
pub(crate) fn witness(id: DiskId, salt: &[u8; 16], counter: u64) {
    USED.with_borrow_mut(|used| {
        if let Some(used) = used {
            assert!(used.insert((id.0, *salt, counter)), "a nonce was used twice");
        }
    });
}

fn watch() {
    USED.set(Some(HashSet::new()));
}

fn seals() -> usize {
    USED.with_borrow(|used| used.as_ref().map_or(0, HashSet::len))
}

/// Gives the same bytes for ever: a broken generator.
struct Stuck;

impl Entropy for Stuck {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        bytes.fill(42);
        Ok(())
    }
}

/// Opens the same image 50 times, each time writing other data to the same block: storage rolled back, power cut.
fn fork(entropy: &mut dyn Entropy, turn_back: bool) {
    let (world, mut disk) = fresh(4, 16, &mut Dice(1));
    let id = disk.info().id;
    disk.write(0, &Dice(2).block()).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let (image, counter) = (world.0.borrow().image.clone(), world.0.borrow().counter);
    for n in 0..50 {
        if turn_back {
            let mut world = world.0.borrow_mut();
            world.image = image.clone();
            world.counter = counter;
        }
        let mut disk = Disk::open(world.clone(), world.clone(), &key(1), id, entropy).unwrap();
        disk.write(0, &Dice(n).block()).unwrap();
        // Every other time the power is cut before the flush.
        if n % 2 == 0 {
            disk.flush().unwrap();
        }
    }
}

#[test]
fn no_nonce_repeats_with_a_broken_generator() {
    watch();
    fork(&mut Stuck, false);
    assert!(seals() >= 75);
}

#[test]
fn no_nonce_repeats_with_an_anchor_that_was_turned_back() {
    watch();
    fork(&mut Dice(3), true);
    assert!(seals() >= 75);
}

/// The twin: with both defences gone the watch sees it.
#[test]
#[should_panic(expected = "a nonce was used twice")]
fn a_nonce_repeats_when_generator_and_anchor_both_fail() {
    watch();
    fork(&mut Stuck, true);
}
