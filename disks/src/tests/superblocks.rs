//! parse and write are each other's inverse; nothing else parses.

use proptest::prelude::*;

use super::support::*;
use crate::entry::{Entry, Seal};
use crate::keys::DataKey;
use crate::superblock::{Superblock, Unfit};
use crate::*;

fn any_superblock() -> impl Strategy<Value = (Superblock, [u8; 4096])> {
    let entry = (any::<u64>(), any::<[u8; 16]>(), any::<u64>(), any::<[u8; 16]>()).prop_map(
        |(physical, salt, counter, tag)| Entry { physical, seal: Seal { salt, counter, tag } },
    );
    let shape = (1..=BLOCKS_MAX, SPARE_MIN..=BLOCKS_MAX)
        .prop_map(|(blocks, spare)| Shape { blocks, spare });
    (any::<[u8; 16]>(), any::<u64>(), shape, entry, any::<u64>()).prop_map(
        |(id, epoch, shape, root, seed)| {
            let (id, mut dice) = (DiskId(id), Dice(seed));
            let data_key = DataKey::draw(&mut dice).unwrap();
            let slot = data_key.wrap(&key(1), id, &mut dice).unwrap();
            let superblock = Superblock { id, epoch, shape, root, slot };
            let block = superblock.encode(&key(1).superblock_key(id, &slot));
            (superblock, block)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_was_written_parses_to_the_same((superblock, block) in any_superblock()) {
        let (parsed, _, mac_key) = Superblock::open(&block, &key(1), superblock.id).ok().unwrap();
        prop_assert_eq!(parsed, superblock);
        prop_assert_eq!(parsed.encode(&mac_key), block);
    }

    #[test]
    fn nothing_altered_parses(
        (superblock, mut block) in any_superblock(),
        at in 0..BLOCK,
        mask in 1..=255_u8,
    ) {
        block[at] ^= mask;
        let refused = Superblock::open(&block, &key(1), superblock.id).err();
        let expected = match at {
            0..8 => Unfit::Absent,
            8..12 | 184..192 => refused.unwrap(),
            16..32 => Unfit::Foreign,
            104..184 => Unfit::WrongKey,
            _ => Unfit::Corrupt,
        };
        prop_assert_eq!(refused, Some(expected));
    }

    #[test]
    fn noise_does_not_parse(seed in any::<u64>(), magic in any::<bool>()) {
        let mut block = [0; BLOCK];
        Dice(seed).fill(&mut block).unwrap();
        if magic {
            block[..8].copy_from_slice(b"COFFERDK");
            block[8..12].copy_from_slice(&[1, 0, 0, 0]);
            block[16..32].fill(9);
            block[184..192].fill(0);
        }
        prop_assert!(Superblock::open(&block, &key(1), DiskId([9; 16])).is_err());
    }

    #[test]
    fn entries_survive(bytes in prop::array::uniform32(any::<u8>()), more in any::<[u8; 16]>()) {
        let mut entry = [0; 48];
        entry[..32].copy_from_slice(&bytes);
        entry[32..].copy_from_slice(&more);
        prop_assert_eq!(Entry::decode(&entry).encode(), entry);
    }
}

/// Authentic by its MAC, but of no shape a disk can have: reserved bytes set, sizes that do not fit.
#[test]
fn the_holder_of_the_key_cannot_break_the_format_either() {
    use hmac::Mac as _;
    let mut dice = Dice(1);
    let id = DiskId([9; 16]);
    let data_key = DataKey::draw(&mut dice).unwrap();
    let slot = data_key.wrap(&key(1), id, &mut dice).unwrap();
    let shape = Shape { blocks: 10, spare: 16 };
    let block = Superblock { id, epoch: 1, shape, root: Entry::NONE, slot }
        .encode(&key(1).superblock_key(id, &slot));
    let resign = |mut block: [u8; BLOCK]| {
        let mut mac = key(1).superblock_key(id, &slot).mac();
        mac.update(&block[..BLOCK - 32]);
        block[BLOCK - 32..].copy_from_slice(&mac.finalize().into_bytes());
        Superblock::open(&block, &key(1), id).err()
    };
    assert_eq!(resign(block), None);
    for (offset, value) in [(12, 1), (40, 0), (40, 255), (48, 0), (192, 1), (BLOCK - 33, 1)] {
        let mut broken = block;
        broken[offset] = value;
        assert_eq!(resign(broken), Some(Unfit::Corrupt), "{offset}");
    }
}

#[test]
fn after_rekeying_a_superblock_takes_the_new_key() {
    let mut dice = Dice(1);
    let id = DiskId([9; 16]);
    let data_key = DataKey::draw(&mut dice).unwrap();
    let slot = data_key.wrap(&key(2), id, &mut dice).unwrap();
    let shape = Shape { blocks: 10, spare: 16 };
    let state = Superblock { id, epoch: 5, shape, root: Entry::NONE, slot };
    let open = |block| Superblock::open(&block, &key(2), id).err();
    assert_eq!(open(state.encode(&key(2).superblock_key(id, &slot))), None);
    assert_eq!(open(state.encode(&key(1).superblock_key(id, &slot))), Some(Unfit::Corrupt));
}
