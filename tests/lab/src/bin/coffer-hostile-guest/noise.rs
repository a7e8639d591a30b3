//! Numbers without order, the same in every run.

/// Marsaglia's xorshift64.
pub struct Noise(u64);

impl Noise {
    /// Starts at `seed`, which is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.any() % limit as u64) as usize
    }

    /// One of the widths a bus access can have, and sometimes one of the values that matter.
    pub fn width(&mut self) -> usize {
        1 << self.below(4)
    }

    /// A value to write: small, all ones, or anything.
    pub fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.any() % 16,
            1 => u64::MAX,
            _ => self.any(),
        }
    }
}
