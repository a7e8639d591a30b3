//! The encrypted disk against its cipher alone.
//!
//! Both sides work in memory on the same number of blocks in the same order. The cipher alone seals or opens each
//! block with the same key schedule, length of associated data and kind of nonce; the disk does that, moves the bytes to
//! or from its storage, keeps its tree, and commits after every 16 MiB written.

use std::hint::black_box;

use aes_gcm::aead::inout::InOutBuf;

use super::{BLOCKS, Measured, Pattern, measure, places};
use crate::keys::{DataKey, SessionCipher};
use crate::{
    BLOCK, DangerousMemoryAnchor, Disk, DiskError, DiskId, DiskKey, MemoryStore, Shape,
    SystemEntropy,
};

/// What the encrypted disk has to keep (DESIGN section 7).
pub(super) const BUDGET: f64 = 0.80;
/// Blocks written between two commits: 16 MiB.
const COMMIT: u64 = 1 << 12;

/// Both sides.
pub(super) struct Bench {
    disk: Disk<MemoryStore, DangerousMemoryAnchor>,
    cipher: Cipher,
}

impl Bench {
    pub(super) fn new() -> Result<Self, DiskError> {
        let shape = Shape::of(BLOCKS);
        let store = MemoryStore::zeroed(shape.storage()?);
        let anchor = DangerousMemoryAnchor::default();
        let key = DiskKey::new(&mut [1; 32]);
        let disk = Disk::create(store, anchor, &key, shape, &mut SystemEntropy)?;
        Ok(Self { disk, cipher: Cipher::new()? })
    }

    pub(super) fn writes(&mut self, pattern: &Pattern) -> Result<Measured, DiskError> {
        measure(|| self.cipher.write(pattern), || write(&mut self.disk, pattern))
    }

    pub(super) fn reads(&mut self, pattern: &Pattern) -> Result<Measured, DiskError> {
        measure(|| self.cipher.read(pattern), || read(&mut self.disk, pattern))
    }
}

fn write(
    disk: &mut Disk<MemoryStore, DangerousMemoryAnchor>,
    pattern: &Pattern,
) -> Result<(), DiskError> {
    let data = pattern.buffer();
    let mut written = 0;
    for first in &pattern.firsts {
        disk.write(*first, black_box(&data))?;
        written += pattern.blocks;
        if written % COMMIT == 0 {
            disk.flush()?;
        }
    }
    Ok(())
}

fn read(
    disk: &mut Disk<MemoryStore, DangerousMemoryAnchor>,
    pattern: &Pattern,
) -> Result<(), DiskError> {
    let mut buffer = pattern.buffer();
    for first in &pattern.firsts {
        disk.read(*first, black_box(&mut buffer))?;
    }
    Ok(())
}

/// The cipher and nothing else, over an arena as large as the disk.
struct Cipher {
    cipher: SessionCipher,
    arena: Vec<u8>,
    tags: Vec<[u8; 16]>,
}

impl Cipher {
    fn new() -> Result<Self, DiskError> {
        let cipher = DataKey::draw(&mut SystemEntropy)?.session(DiskId([0; 16]), &[0; 16]);
        let arena = vec![0; BLOCKS as usize * BLOCK];
        Ok(Self { cipher, arena, tags: vec![[0; 16]; BLOCKS as usize] })
    }

    fn write(&mut self, pattern: &Pattern) -> Result<(), DiskError> {
        let data = pattern.buffer();
        for first in &pattern.firsts {
            let (arena, tags) = places(*first);
            let arena = self.arena.get_mut(arena).unwrap_or_default().chunks_exact_mut(BLOCK);
            let sealed = arena.zip(self.tags.get_mut(tags).unwrap_or_default()).zip(*first..);
            for (plain, ((sealed, tag), block)) in black_box(&data).chunks_exact(BLOCK).zip(sealed)
            {
                let buffer = InOutBuf::new(plain, sealed).expect("both are a block");
                *tag = self.cipher.seal(block, &[0; 25], buffer);
            }
        }
        Ok(())
    }

    fn read(&mut self, pattern: &Pattern) -> Result<(), DiskError> {
        let mut buffer = pattern.buffer();
        for first in &pattern.firsts {
            let (arena, tags) = places(*first);
            let arena = self.arena.get(arena).unwrap_or_default().chunks_exact(BLOCK);
            let sealed = arena.zip(self.tags.get(tags).unwrap_or_default()).zip(*first..);
            for (plain, ((sealed, tag), block)) in buffer.chunks_exact_mut(BLOCK).zip(sealed) {
                let buffer = InOutBuf::new(sealed, plain).expect("both are a block");
                let opened = self.cipher.open(block, &[0; 25], buffer, tag);
                opened.then_some(()).ok_or(DiskError::WrongKey)?;
            }
            black_box(&mut buffer);
        }
        Ok(())
    }
}
