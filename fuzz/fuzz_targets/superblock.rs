//! Superblocks of dm-verity: accepted is exactly what is written for some tree.
#![no_main]

use coffer_formats::Digest;
use coffer_fuzz::edited;
use coffer_image::verity::{BLOCK, Geometry, Salt, Superblock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, [u8; 32], &[u8])| {
    let (blocks, root, edits) = input;
    let Ok(geometry) = Geometry::new(u64::from(blocks) * BLOCK as u64) else { return };
    let Some(salt) = Salt::new(&root) else { return };
    let written = Superblock::of(&geometry, &Digest(root), &salt);
    assert_eq!(Superblock::decode(&written.encode()), Ok(written.clone()));
    let mut block = edited(&written.encode(), edits);
    block.resize(BLOCK, 0);
    let block: [u8; BLOCK] = block.try_into().expect("its size");
    if let Ok(superblock) = Superblock::decode(&block) {
        assert_eq!(superblock.encode(), block);
    }
});
