//! Many disks on one counter.

use super::support::*;
use crate::*;

fn ledger(world: &Recorder, dice: &mut Dice) -> (DiskId, Ledger<Recorder, Recorder>) {
    let shape = Shape { blocks: 50, spare: 16 };
    world.0.borrow_mut().image = vec![0; shape.storage().unwrap() as usize];
    let disk = Disk::create(world.clone(), world.clone(), &key(9), shape, dice).unwrap();
    (disk.info().id, Ledger::new(disk))
}

#[test]
fn disks_on_one_ledger_refuse_old_copies_each() {
    let mut dice = Dice(1);
    let tpm = Recorder::default();
    let (_, ledger) = ledger(&tpm, &mut dice);
    let shape = Shape { blocks: 8, spare: 16 };
    let mut olds = Vec::new();
    for holder in 0..12 {
        let store = MemoryStore::zeroed(shape.storage().unwrap());
        let mut disk =
            Disk::create(store, ledger.counter(holder), &key(1), shape, &mut dice).unwrap();
        let id = disk.info().id;
        disk.write(0, &[1; BLOCK]).unwrap();
        let (old, _) = disk.close().unwrap();
        let mut disk =
            Disk::open(old.clone(), ledger.counter(holder), &key(1), id, &mut dice).unwrap();
        disk.write(0, &[2; BLOCK]).unwrap();
        let (new, _) = disk.close().unwrap();
        olds.push((holder, id, old, new));
    }
    for (holder, id, old, new) in olds {
        let refused = Disk::open(old, ledger.counter(holder), &key(1), id, &mut dice);
        assert_eq!(refused.err().unwrap().code(), "stale");
        // Another's counter is no help.
        let other = Disk::open(new.clone(), ledger.counter(holder + 20), &key(1), id, &mut dice);
        assert_eq!(other.err().unwrap().code(), "anchor-behind");
        let mut disk = Disk::open(new, ledger.counter(holder), &key(1), id, &mut dice).unwrap();
        let mut block = [0; BLOCK];
        disk.read(0, &mut block).unwrap();
        assert_eq!(block, [2; BLOCK]);
    }
}

#[test]
fn an_old_ledger_is_refused() {
    let mut dice = Dice(1);
    let tpm = Recorder::default();
    let (id, ledger) = ledger(&tpm, &mut dice);
    ledger.counter(3).advance(0).unwrap();
    let old = tpm.0.borrow().image.clone();
    ledger.counter(3).advance(1).unwrap();
    drop(ledger);
    let open = |dice: &mut Dice| Disk::open(tpm.clone(), tpm.clone(), &key(9), id, dice);
    let new = std::mem::replace(&mut tpm.0.borrow_mut().image, old);
    assert_eq!(open(&mut dice).err().unwrap().code(), "stale");
    tpm.0.borrow_mut().image = new;
    let ledger = Ledger::new(open(&mut dice).unwrap());
    assert_eq!(ledger.counter(3).read().unwrap(), 2);
    assert_eq!(ledger.counter(4).read().unwrap(), 0);
}

/// An advance fails before its commit: its value must not be told, or a power cut would take it back.
#[test]
fn a_value_that_is_not_committed_is_not_told() {
    for fuse in 0..8 {
        let mut dice = Dice(1);
        let tpm = Recorder::default();
        let (id, ledger) = ledger(&tpm, &mut dice);
        let mut counter = ledger.counter(0);
        counter.advance(0).unwrap();
        tpm.0.borrow_mut().fuse = Some(fuse);
        let moved = counter.advance(1).is_ok();
        let told = counter.read().ok();
        tpm.0.borrow_mut().fuse = None;
        let told = told.or_else(|| counter.read().ok());
        drop((ledger, counter));
        let disk = Disk::open(tpm.clone(), tpm.clone(), &key(9), id, &mut dice).unwrap();
        let kept = Ledger::new(disk).counter(0).read().unwrap();
        assert!(kept >= 1 && kept >= told.unwrap_or(0), "{fuse}: {told:?} {kept}");
        assert!(!moved || kept == 2, "{fuse}");
    }
}

#[test]
fn moves_that_wait_share_one_move_of_the_tpm() {
    let shape = Shape { blocks: 50, spare: 16 };
    let tpm = Slow::default();
    let store = MemoryStore::zeroed(shape.storage().unwrap());
    let disk = Disk::create(store, tpm.clone(), &key(9), shape, &mut Dice(1)).unwrap();
    let ledger = Ledger::new(disk);
    let before = tpm.0.clone().read().unwrap();
    std::thread::scope(|scope| {
        for holder in 0..16 {
            let mut counter = ledger.counter(holder);
            scope.spawn(move || (0..4).for_each(|from| counter.advance(from).unwrap()));
        }
    });
    let moves = tpm.0.clone().read().unwrap() - before;
    println!("64 moves of 16 holders took {moves} of the TPM");
    assert!(moves <= 32, "{moves}");
    for holder in 0..16 {
        assert_eq!(ledger.counter(holder).read().unwrap(), 4);
    }
}

/// A counter that takes its time, as a TPM does.
#[derive(Clone, Default)]
struct Slow(DangerousMemoryAnchor);

impl Anchor for Slow {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.0.read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        std::thread::sleep(std::time::Duration::from_millis(3));
        self.0.advance(from)
    }
}

/// A counter whose driver panics.
struct Broken(DangerousMemoryAnchor);

impl Anchor for Broken {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.0.read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        assert!(from < 1, "the driver panics");
        self.0.advance(from)
    }
}

#[test]
fn nobody_waits_for_a_holder_that_panicked() {
    let shape = Shape { blocks: 50, spare: 16 };
    let store = MemoryStore::zeroed(shape.storage().unwrap());
    let anchor = Broken(DangerousMemoryAnchor::at(0));
    let ledger = Ledger::new(Disk::create(store, anchor, &key(9), shape, &mut Dice(1)).unwrap());
    std::thread::scope(|scope| {
        for holder in 0..8 {
            let mut counter = ledger.counter(holder);
            scope.spawn(move || {
                assert!(matches!(counter.advance(0), Err(AnchorError::Failed(_))));
                assert!(matches!(counter.read(), Err(AnchorError::Failed(_))));
            });
        }
    });
}

/// A disk's counter in a ledger, telling the disk's world when it moved.
struct Watched(LedgerCounter<Recorder, Recorder>, Recorder);

impl Anchor for Watched {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.0.read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        self.0.advance(from)?;
        let mut world = self.1.0.borrow_mut();
        if world.session {
            world.allowed = vec![world.model.clone()];
        }
        Ok(())
    }
}

/// The owner of the storage mixes old and new of both, ledger and disk, and cuts either off at will.
#[test]
fn no_mix_of_old_ledgers_and_old_disks_is_accepted() {
    let (mut accepted, mut refused, mut cuts) = (0, 0, 0);
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let tpm = Recorder::default();
        let (ledger_id, ledger) = ledger(&tpm, &mut dice);
        let shape = Shape { blocks: 4, spare: 16 };
        let world = Recorder::new(vec![0; shape.storage().unwrap() as usize], 0);
        world.0.borrow_mut().model = vec![0; 4 * BLOCK];
        let anchor = Watched(ledger.counter(0), world.clone());
        let disk = Disk::create(world.clone(), anchor, &key(1), shape, &mut dice).unwrap();
        let id = disk.info().id;
        drop((disk, ledger));
        let model = world.0.borrow().model.clone();
        world.0.borrow_mut().allowed = vec![model];
        let mut ledgers = vec![tpm.0.borrow().image.clone()];
        let mut disks = vec![world.0.borrow().image.clone()];
        for _ in 0..150 {
            let pick = |images: &[Vec<u8>], dice: &mut Dice| {
                let back = if dice.below(5) == 0 { dice.below(images.len() as u64) } else { 0 };
                images[images.len() - 1 - back as usize].clone()
            };
            tpm.0.borrow_mut().image = pick(&ledgers, &mut dice);
            {
                let mut world = world.0.borrow_mut();
                world.image = pick(&disks, &mut dice);
                world.session = false;
                world.fuse = None;
            }
            tpm.0.borrow_mut().fuse = (dice.below(4) == 0).then(|| dice.below(20));
            let opened = Disk::open(tpm.clone(), tpm.clone(), &key(9), ledger_id, &mut dice)
                .map(Ledger::new)
                .and_then(|ledger| {
                    let anchor = Watched(ledger.counter(0), world.clone());
                    Disk::open(world.clone(), anchor, &key(1), id, &mut dice)
                })
                .and_then(|mut disk| {
                    let mut found = vec![0; 4 * BLOCK];
                    disk.read(0, &mut found).map(|()| (disk, found))
                });
            match opened {
                Err(_) => refused += 1,
                Ok((mut disk, found)) => {
                    accepted += 1;
                    assert!(world.0.borrow().allowed.contains(&found), "seed {seed}");
                    {
                        let mut world = world.0.borrow_mut();
                        world.session = true;
                        world.allowed = vec![found.clone()];
                        world.model = found;
                        world.fuse = Some(dice.below(60));
                    }
                    tpm.0.borrow_mut().fuse = Some(dice.below(60));
                    for _ in 0..dice.below(12) {
                        let (block, data) = (dice.below(4), dice.block());
                        let result = match dice.below(3) {
                            0 => disk.flush(),
                            _ => disk.write(block, &data).map(|()| {
                                world.0.borrow_mut().model[block as usize * BLOCK..][..BLOCK]
                                    .copy_from_slice(&data);
                            }),
                        };
                        if result.is_err() {
                            cuts += 1;
                            break;
                        }
                    }
                }
            }
            // What was written to is the newest there is.
            for (of, images) in [(&tpm, &mut ledgers), (&world, &mut disks)] {
                let mut of = of.0.borrow_mut();
                if !std::mem::take(&mut of.log).is_empty() {
                    images.push(of.image.clone());
                }
            }
        }
    }
    println!("ledger and disk: {accepted} accepted, {refused} refused, {cuts} cut off");
    assert!(accepted > 500 && refused > 500 && cuts > 200);
}
