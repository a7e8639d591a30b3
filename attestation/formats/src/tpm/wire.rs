//! Reading and writing TPM structures: big-endian integers and sized buffers (Part 2, 4 and 10.4).
//!
//! A length is an allegation until the bytes are there: every read is bounded by what was received and
//! by a limit the caller names.

use crate::Reject;

/// A cursor over received bytes. Every failed read is [`Reject::Malformed`].
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Reject> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(Reject::Malformed)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(Reject::Malformed)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Reject> {
        self.array().map(u8::from_be_bytes)
    }

    /// Two bytes, big-endian.
    pub fn u16(&mut self) -> Result<u16, Reject> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Result<u32, Reject> {
        self.array().map(u32::from_be_bytes)
    }

    /// A TPM2B: two bytes of size, then that many bytes, at most `max`.
    pub fn tpm2b(&mut self, max: usize) -> Result<&'a [u8], Reject> {
        let size = usize::from(self.u16()?);
        if size > max {
            return Err(Reject::Malformed);
        }
        self.bytes(size)
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Ends the reading; bytes left over are [`Reject::TrailingData`].
    pub fn finish(self) -> Result<(), Reject> {
        if self.rest.is_empty() { Ok(()) } else { Err(Reject::TrailingData) }
    }
}

/// Builds a structure we author.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// One byte.
    #[must_use]
    pub fn u8(self, v: u8) -> Self {
        self.bytes(&[v])
    }

    /// Two bytes, big-endian.
    #[must_use]
    pub fn u16(self, v: u16) -> Self {
        self.bytes(&v.to_be_bytes())
    }

    /// Four bytes, big-endian.
    #[must_use]
    pub fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_be_bytes())
    }

    /// A TPM2B. Longer than a TPM2B can say, it is written with the largest size there is: the structure
    /// is then inconsistent and every TPM and every reader here refuses it.
    #[must_use]
    pub fn tpm2b(self, bytes: &[u8]) -> Self {
        let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(size).bytes(bytes)
    }

    /// The bytes written.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_a_sized_buffer_longer_than_what_was_received() {
        assert_eq!(Reader::new(&[0, 3, 1, 2]).tpm2b(64), Err(Reject::Malformed));
        assert_eq!(Reader::new(&[0xff, 0xff, 1]).tpm2b(usize::MAX), Err(Reject::Malformed));
    }

    #[test]
    fn refuses_a_sized_buffer_over_its_limit() {
        assert_eq!(Reader::new(&[0, 3, 1, 2, 3]).tpm2b(2), Err(Reject::Malformed));
    }

    #[test]
    fn names_bytes_left_over() {
        let mut r = Reader::new(&[1, 2]);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.finish(), Err(Reject::TrailingData));
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(a: u8, b: u16, c: u32, d in proptest::collection::vec(any::<u8>(), 0..300)) {
            let out = Writer::new().u8(a).u16(b).tpm2b(&d).u32(c).finish();
            let mut r = Reader::new(&out);
            prop_assert_eq!(r.u8(), Ok(a));
            prop_assert_eq!(r.u16(), Ok(b));
            prop_assert_eq!(r.tpm2b(300), Ok(d.as_slice()));
            prop_assert_eq!(r.u32(), Ok(c));
            prop_assert!(r.finish().is_ok());
        }
    }
}
