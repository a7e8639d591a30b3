//! Building a hash tree: level 0 from the data on all cores, the rest from the level below.
//!
//! Memory stays small whatever the data size: a hash block is written as soon as it is full, and only its
//! own digest is kept for the level above (32 bytes for 512 KiB of data).

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coffer_formats::Digest;

use super::geometry::BlockHasher;
use super::{BLOCK, DIGEST, FANOUT, Geometry, Level, Salt};
use crate::blob::ReadAt;

/// Takes hash blocks at their offset in the blob, in any order, from several threads.
pub trait TreeSink: Sync {
    /// Writes one hash block.
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> io::Result<()>;
}

impl TreeSink for std::fs::File {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, block, offset)
    }
}

/// Keeps nothing: for those who want the root hash alone.
impl TreeSink for () {
    fn write_block(&self, _: u64, _: &[u8; BLOCK]) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes all data on `threads` threads, gives every hash block to `sink` and returns the root hash.
pub fn build_tree<D: ReadAt + Sync + ?Sized, S: TreeSink + ?Sized>(
    data: &D,
    geometry: &Geometry,
    salt: &Salt,
    sink: &S,
    threads: usize,
) -> io::Result<Digest> {
    let hasher = salt.hasher();
    let Some((bottom, upper)) = geometry.levels().split_first() else {
        let mut block = [0_u8; BLOCK];
        data.read_exact_at(&mut block, 0)?;
        return Ok(hasher.digest(&block));
    };
    let job = Bottom { data, geometry, level: *bottom, hasher: &hasher, sink };
    let mut digests = job.run(threads)?;
    for level in upper {
        digests = hash_level(&digests, *level, &hasher, sink)?;
    }
    digests.first().copied().ok_or_else(|| io::Error::other("a tree without a top"))
}

/// Packs the digests of one level into the hash blocks of the next, and returns the digests of those.
fn hash_level<S: TreeSink + ?Sized>(
    below: &[Digest],
    level: Level,
    hasher: &BlockHasher,
    sink: &S,
) -> io::Result<Vec<Digest>> {
    below
        .chunks(FANOUT as usize)
        .enumerate()
        .map(|(n, digests)| {
            let block = pack(digests.iter().copied());
            sink.write_block(level.offset + (n * BLOCK) as u64, &block)?;
            Ok(hasher.digest(&block))
        })
        .collect()
}

fn pack(digests: impl Iterator<Item = Digest>) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    block
        .chunks_exact_mut(DIGEST)
        .zip(digests)
        .for_each(|(slot, digest)| slot.copy_from_slice(&digest.0));
    block
}

/// Level 0: one unit of work is one hash block, that is 512 KiB of data.
struct Bottom<'a, D: ?Sized, S: ?Sized> {
    data: &'a D,
    geometry: &'a Geometry,
    level: Level,
    hasher: &'a BlockHasher,
    sink: &'a S,
}

impl<D: ReadAt + Sync + ?Sized, S: TreeSink + ?Sized> Bottom<'_, D, S> {
    fn run(&self, threads: usize) -> io::Result<Vec<Digest>> {
        let digests = Mutex::new(vec![Digest::ZERO; self.level.blocks as usize]);
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let work = || {
            let result = self.work(&next, &failed, &digests);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads.clamp(1, 64)).map(|_| scope.spawn(work)).collect();
            let own = work();
            helpers.into_iter().fold(own, |sum, helper| {
                let other = helper
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a hashing thread ended early")));
                sum.and(other)
            })
        })?;
        digests.into_inner().map_err(|_| io::Error::other("a hashing thread ended early"))
    }

    fn work(
        &self,
        next: &AtomicU64,
        failed: &AtomicBool,
        digests: &Mutex<Vec<Digest>>,
    ) -> io::Result<()> {
        let mut buffer = vec![0_u8; FANOUT as usize * BLOCK];
        while !failed.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= self.level.blocks {
                break;
            }
            let first = n * FANOUT;
            let count = FANOUT.min(self.geometry.data_blocks() - first) as usize;
            let (data, _) = buffer.split_at_mut(count * BLOCK);
            self.data.read_exact_at(data, first * BLOCK as u64)?;
            let block = pack(data.chunks_exact(BLOCK).map(|block| self.hasher.digest(block)));
            self.sink.write_block(self.level.offset + n * BLOCK as u64, &block)?;
            let digest = self.hasher.digest(&block);
            let mut digests =
                digests.lock().map_err(|_| io::Error::other("a hashing thread ended early"))?;
            if let Some(slot) = digests.get_mut(n as usize) {
                *slot = digest;
            }
        }
        Ok(())
    }
}
