//! The disk against a plain vector.

use proptest::prelude::*;

use super::support::*;
use crate::*;

#[derive(Debug, Clone)]
enum Step {
    Write { first: u64, count: u64, seed: u64 },
    Zero { first: u64, count: u64 },
    Read { first: u64, count: u64 },
    Flush,
    Reopen,
    Grow(u64),
    Rekey,
    Check,
}

fn step(blocks: u64) -> impl Strategy<Value = Step> {
    let range = (0..blocks, 1..40_u64);
    prop_oneof![
        6 => (range.clone(), any::<u64>()).prop_map(|((first, count), seed)| Step::Write { first, count, seed }),
        2 => range.clone().prop_map(|(first, count)| Step::Zero { first, count }),
        3 => range.prop_map(|(first, count)| Step::Read { first, count }),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => (1..200_u64).prop_map(Step::Grow),
        1 => Just(Step::Rekey),
        1 => Just(Step::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn behaves_like_a_vector(
        blocks in 1_u64..400,
        spare in 16_u64..80,
        steps in prop::collection::vec(step(400), 1..60),
        seed in any::<u64>(),
    ) {
        let mut dice = Dice(seed);
        let (world, mut disk) = fresh(blocks, spare, &mut dice);
        let id = disk.info().id;
        let mut secret = 1;
        let mut model = vec![0_u8; blocks as usize * BLOCK];
        // Evict all the time.
        disk.set_cached_nodes(0).unwrap();
        for step in steps {
            let blocks = (model.len() / BLOCK) as u64;
            let clip = |first: u64, count: u64| {
                let first = first % blocks;
                (first, count.min(blocks - first))
            };
            let bytes = |first: u64, count: u64| {
                first as usize * BLOCK..(first + count) as usize * BLOCK
            };
            match step {
                Step::Write { first, count, seed } => {
                    let (first, count) = clip(first, count);
                    let mut dice = Dice(seed);
                    let data: Vec<u8> = (0..count).flat_map(|_| dice.block()).collect();
                    disk.write(first, &data).unwrap();
                    model[bytes(first, count)].copy_from_slice(&data);
                }
                Step::Zero { first, count } => {
                    let (first, count) = clip(first, count);
                    disk.zero(first, count).unwrap();
                    model[bytes(first, count)].fill(0);
                }
                Step::Read { first, count } => {
                    let (first, count) = clip(first, count);
                    let mut data = vec![1; count as usize * BLOCK];
                    disk.read(first, &mut data).unwrap();
                    prop_assert!(data == model[bytes(first, count)]);
                }
                Step::Flush => disk.flush().unwrap(),
                Step::Reopen => {
                    disk.close().unwrap();
                    disk = Disk::open(world.clone(), world.clone(), &key(secret), id, &mut dice).unwrap();
                    disk.set_cached_nodes(0).unwrap();
                }
                Step::Grow(more) => {
                    let shape = Shape { blocks: blocks + more, spare };
                    world.0.borrow_mut().image.resize(shape.storage().unwrap() as usize, 0);
                    disk.grow(blocks + more).unwrap();
                    model.resize(shape.blocks as usize * BLOCK, 0);
                }
                Step::Rekey => {
                    secret += 1;
                    disk.rekey(&key(secret), &mut dice).unwrap();
                }
                Step::Check => {
                    let report = disk.check().unwrap();
                    prop_assert_eq!(report.damaged, 0);
                    // Every block that is taken is accounted for.
                    prop_assert_eq!(disk.info().taken, 2 + report.data + report.nodes);
                }
            }
        }
        disk.flush().unwrap();
        prop_assert!(contents(&mut disk).unwrap() == model);
        drop(disk);
        let mut disk = Disk::open(world.clone(), world.clone(), &key(secret), id, &mut dice).unwrap();
        prop_assert!(contents(&mut disk).unwrap() == model);
    }
}
