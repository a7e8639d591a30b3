//! The one thing an attacker cannot turn back: a counter (SPEC 11.7).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a counter did not move.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// It is not where the session left it.
    #[error("the counter is at {found}, not at {expected}")]
    Moved {
        /// Where the session left it.
        expected: u64,
        /// Where it is.
        found: u64,
    },
    /// It cannot be reached; whether it moved is not known.
    #[error("the counter cannot be reached: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A monotonic counter that belongs to one disk. Meant for a `TPM_NT_COUNTER` index of the host TPM.
///
/// The root of the disk is not kept here: a superblock carries it together with the counter's value, under a MAC.
///
/// Duties of an implementation:
/// 1. The value never falls, whatever happens to storage and power. A TPM starts a new counter index at the highest
///    value any counter of that TPM ever had, so deleting the index does not turn it back.
/// 2. When `advance` returns, the new value survives a power cut. So the index must not be `TPMA_NV_ORDERLY`.
/// 3. One holder at a time: from before `Disk::open` until the disk is dropped nobody else moves it.
/// 4. What the TPM answers is authenticated (HMAC session, salted): the bus is not trusted.
pub trait Anchor {
    /// The value.
    fn read(&mut self) -> Result<u64, AnchorError>;
    /// Moves the value from `from` to `from + 1`; leaves it alone, and says `Moved`, if it is not at `from`.
    fn advance(&mut self, from: u64) -> Result<(), AnchorError>;
}

impl<A: Anchor + ?Sized> Anchor for Box<A> {
    fn read(&mut self) -> Result<u64, AnchorError> {
        (**self).read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        (**self).advance(from)
    }
}

/// A counter in memory, for tests and benchmarks: it forgets, so whoever owns the storage can turn the disk back.
#[derive(Debug, Clone, Default)]
pub struct DangerousMemoryAnchor(Arc<AtomicU64>);

impl DangerousMemoryAnchor {
    /// A counter at `value`. Clones share it.
    pub fn at(value: u64) -> Self {
        Self(Arc::new(AtomicU64::new(value)))
    }
}

impl Anchor for DangerousMemoryAnchor {
    fn read(&mut self) -> Result<u64, AnchorError> {
        Ok(self.0.load(Ordering::SeqCst))
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let next = from.checked_add(1).ok_or_else(|| AnchorError::Failed("it is spent".into()))?;
        self.0
            .compare_exchange(from, next, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
            .map_err(|found| AnchorError::Moved { expected: from, found })
    }
}
