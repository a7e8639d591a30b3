//! What the disks keep of the speed of their cryptography: each figure a ratio of CPU times in one run.

mod encrypted;
mod integrity;

use std::fmt;

use rustix::time::{ClockId, clock_gettime};

use crate::{BLOCK, DiskError};

/// Blocks of the disks measured: 64 MiB, beyond any second-level cache.
const BLOCKS: u64 = 1 << 14;
/// Blocks of a sequential request: 1 MiB.
const SEQUENTIAL: u64 = 256;
const ROUNDS: usize = 5;

/// One measurement: best of some rounds, both sides in turn.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// CPU seconds of the cryptography alone.
    pub bare: f64,
    /// CPU seconds of the disk.
    pub disk: f64,
}

impl Measured {
    /// The part of the bare speed that is left.
    pub fn ratio(self) -> f64 {
        self.bare / self.disk
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |seconds: f64| (BLOCKS * BLOCK as u64) as f64 / seconds / 1e6;
        write!(f, "disk {:.0} MB/s, bare {:.0} MB/s, ", speed(self.disk), speed(self.bare))?;
        write!(f, "ratio {:.3}", self.ratio())
    }
}

/// Random accesses of 4 KiB and sequential ones of 1 MiB.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Encrypted, 4 KiB reads in random order.
    pub encrypted_random_read: Measured,
    /// Encrypted, 1 MiB reads in order.
    pub encrypted_sequential_read: Measured,
    /// Encrypted, 4 KiB writes in random order.
    pub encrypted_random_write: Measured,
    /// Encrypted, 1 MiB writes in order.
    pub encrypted_sequential_write: Measured,
    /// Integrity, 4 KiB reads in random order.
    pub integrity_random: Measured,
    /// Integrity, 1 MiB reads in order.
    pub integrity_sequential: Measured,
}

/// Measures. Takes some seconds and 300 MiB of memory.
pub fn run() -> Result<Report, DiskError> {
    let (random, sequential) = (Pattern::random(), Pattern::sequential());
    let mut encrypted = encrypted::Bench::new()?;
    let mut integrity = integrity::Bench::new()?;
    Ok(Report {
        encrypted_random_write: encrypted.writes(&random)?,
        encrypted_sequential_write: encrypted.writes(&sequential)?,
        encrypted_sequential_read: encrypted.reads(&sequential)?,
        encrypted_random_read: encrypted.reads(&random)?,
        integrity_random: integrity.reads(&random)?,
        integrity_sequential: integrity.reads(&sequential)?,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("encrypted disk, 4 KiB random read", self.encrypted_random_read),
            ("encrypted disk, 1 MiB sequential read", self.encrypted_sequential_read),
            ("encrypted disk, 4 KiB random write", self.encrypted_random_write),
            ("encrypted disk, 1 MiB sequential write", self.encrypted_sequential_write),
            ("integrity disk, 4 KiB random read", self.integrity_random),
            ("integrity disk, 1 MiB sequential read", self.integrity_sequential),
        ];
        rows.iter().try_for_each(|(name, measured)| writeln!(f, "{name}: {measured}"))?;
        // The lowest of reads and writes stands for the disk.
        let lower = |a: Measured, b: Measured| if a.ratio() < b.ratio() { a } else { b };
        let encrypted = lower(
            lower(self.encrypted_random_read, self.encrypted_sequential_read),
            lower(self.encrypted_random_write, self.encrypted_sequential_write),
        );
        let figures = [
            ("disk.encrypted_ratio", encrypted, encrypted::BUDGET),
            ("disk.integrity_random_ratio", self.integrity_random, integrity::BUDGET),
            ("disk.integrity_sequential_ratio", self.integrity_sequential, integrity::BUDGET),
        ];
        figures.iter().try_for_each(|(name, measured, budget)| {
            let ratio = measured.ratio();
            let verdict = if ratio >= *budget { "ok" } else { "short" };
            writeln!(f, "figure {name} {ratio:.3} ratio budget >= {budget:.2} {verdict}")
        })
    }
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

/// Where block `first` and its successors are in the arena and among the tags.
fn places(first: u64) -> (std::ops::RangeFrom<usize>, std::ops::RangeFrom<usize>) {
    (first as usize * BLOCK.., first as usize..)
}

fn measure(
    mut bare: impl FnMut() -> Result<(), DiskError>,
    mut disk: impl FnMut() -> Result<(), DiskError>,
) -> Result<Measured, DiskError> {
    // The first of each warms caches and pages.
    bare()?;
    disk()?;
    let mut best = Measured { bare: f64::MAX, disk: f64::MAX };
    for _ in 0..ROUNDS {
        best.bare = best.bare.min(timed(&mut bare)?);
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
