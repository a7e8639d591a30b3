//! The fuzzer's bytes, read as a program. A program that ends in the middle of a step goes on with zeros for that step.

/// What is left of the input.
pub struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    /// A program of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next step: what to do (the low four bits) and how (the high four); none at the end.
    pub fn step(&mut self) -> Option<(u8, u8)> {
        (!self.0.is_empty()).then(|| {
            let byte = self.byte();
            (byte & 15, byte >> 4)
        })
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    /// Two bytes.
    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Four bytes.
    pub fn word(&mut self) -> u32 {
        u32::from(self.half()) | u32::from(self.half()) << 16
    }

    /// At most so many bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[usize::from(self.byte()) % choice.len()]
    }

    /// A value of a register: mostly a small one, else one at an edge, else any.
    pub fn value(&mut self) -> u32 {
        match self.byte() {
            small @ 0..=0xDF => small.into(),
            bit @ 0xE0..=0xEF => 1 << (2 * (bit & 15)),
            0xF0..=0xF3 => u32::MAX,
            0xF4..=0xF7 => 0x1_0000,
            _ => self.word(),
        }
    }
}
