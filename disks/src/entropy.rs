//! Randomness, handed in: tests own theirs.

use crate::error::DiskError;

/// Gives bytes nobody can predict.
pub trait Entropy {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError>;
}

/// The operating system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        getrandom::fill(bytes).map_err(|_| DiskError::NoEntropy)
    }
}
