//! How much of the cipher's speed the encrypted disk keeps: each figure a ratio of CPU times in one run.
//!
//! Both sides work in memory on the same number of blocks in the same order. The cipher alone seals or opens each
//! block with the same key schedule, associated data and nonces; the disk does that, moves the bytes to or from its
//! storage, keeps its tree, and commits after every 16 MiB written.

use std::fmt;
use std::hint::black_box;

use aes_gcm::aead::inout::InOutBuf;
use rustix::time::{ClockId, clock_gettime};

use crate::keys::{DataKey, SessionCipher};
use crate::{
    BLOCK, DangerousMemoryAnchor, Disk, DiskError, DiskId, DiskKey, MemoryStore, Shape,
    SystemEntropy,
};

/// What the encrypted disk has to keep (DESIGN section 7).
const BUDGET: f64 = 0.80;
/// Blocks of the disk measured: 64 MiB, beyond any second-level cache.
const BLOCKS: u64 = 1 << 14;
/// Blocks written between two commits: 16 MiB.
const COMMIT: u64 = 1 << 12;
/// Blocks of a sequential request: 1 MiB.
const SEQUENTIAL: u64 = 256;
const ROUNDS: usize = 5;

/// One measurement: best of some rounds, both sides in turn.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// CPU seconds of the cipher alone.
    pub cipher: f64,
    /// CPU seconds of the disk.
    pub disk: f64,
}

impl Measured {
    /// The part of the cipher's speed that is left.
    pub fn ratio(self) -> f64 {
        self.cipher / self.disk
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |seconds: f64| (BLOCKS * BLOCK as u64) as f64 / seconds / 1e6;
        write!(f, "disk {:.0} MB/s, cipher {:.0} MB/s, ", speed(self.disk), speed(self.cipher))?;
        write!(f, "ratio {:.3}", self.ratio())
    }
}

/// Random accesses of 4 KiB and sequential ones of 1 MiB.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// 4 KiB reads in random order.
    pub random_read: Measured,
    /// 1 MiB reads in order.
    pub sequential_read: Measured,
    /// 4 KiB writes in random order.
    pub random_write: Measured,
    /// 1 MiB writes in order.
    pub sequential_write: Measured,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "encrypted disk, 4 KiB random read: {}", self.random_read)?;
        writeln!(f, "encrypted disk, 1 MiB sequential read: {}", self.sequential_read)?;
        writeln!(f, "encrypted disk, 4 KiB random write: {}", self.random_write)?;
        writeln!(f, "encrypted disk, 1 MiB sequential write: {}", self.sequential_write)?;
        let read = self.random_read.ratio().min(self.sequential_read.ratio());
        let write = self.random_write.ratio().min(self.sequential_write.ratio());
        writeln!(f, "{}", figure("disk.encrypted_read_ratio", read))?;
        write!(f, "{}", figure("disk.encrypted_write_ratio", write))
    }
}

/// The line a benchmark prints for a number with a budget.
fn figure(name: &str, ratio: f64) -> String {
    let verdict = if ratio >= BUDGET { "ok" } else { "short" };
    format!("figure {name} {ratio:.3} budget >= {BUDGET:.2} {verdict}")
}

/// Measures. Takes some seconds and 200 MiB of memory.
pub fn run() -> Result<Report, DiskError> {
    let shape = Shape::of(BLOCKS);
    let store = MemoryStore::zeroed(shape.storage()?);
    let anchor = DangerousMemoryAnchor::default();
    let key = DiskKey::new(&mut [1; 32]);
    let mut disk = Disk::create(store, anchor, &key, shape, &mut SystemEntropy)?;
    let mut cipher = Cipher::new()?;
    let (random, sequential) = (Pattern::random(), Pattern::sequential());
    Ok(Report {
        random_write: measure(|| cipher.write(&random), || write(&mut disk, &random))?,
        sequential_write: measure(|| cipher.write(&sequential), || write(&mut disk, &sequential))?,
        sequential_read: measure(|| cipher.read(&sequential), || read(&mut disk, &sequential))?,
        random_read: measure(|| cipher.read(&random), || read(&mut disk, &random))?,
    })
}

/// Requests that cover the disk once.
struct Pattern {
    firsts: Vec<u64>,
    blocks: u64,
}

impl Pattern {
    /// An odd step through a power of two meets every block once, far from the last.
    fn random() -> Self {
        let step = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
        Self { firsts: (0..BLOCKS).map(step).collect(), blocks: 1 }
    }

    fn sequential() -> Self {
        Self { firsts: (0..BLOCKS).step_by(SEQUENTIAL as usize).collect(), blocks: SEQUENTIAL }
    }

    fn buffer(&self) -> Vec<u8> {
        vec![0x5a; self.blocks as usize * BLOCK]
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

/// Where block `first` and its successors are in the arena and among the tags.
fn places(first: u64) -> (std::ops::RangeFrom<usize>, std::ops::RangeFrom<usize>) {
    (first as usize * BLOCK.., first as usize..)
}

fn measure(
    mut cipher: impl FnMut() -> Result<(), DiskError>,
    mut disk: impl FnMut() -> Result<(), DiskError>,
) -> Result<Measured, DiskError> {
    // The first of each warms caches and pages.
    cipher()?;
    disk()?;
    let mut best = Measured { cipher: f64::MAX, disk: f64::MAX };
    for _ in 0..ROUNDS {
        best.cipher = best.cipher.min(timed(&mut cipher)?);
        best.disk = best.disk.min(timed(&mut disk)?);
    }
    Ok(best)
}

/// CPU seconds of this thread: other work on the machine counts less.
fn timed(work: &mut impl FnMut() -> Result<(), DiskError>) -> Result<f64, DiskError> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let start = now();
    work()?;
    Ok(now() - start)
}
