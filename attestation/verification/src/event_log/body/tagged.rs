//! TCG_PCClientTaggedEvent: a number and data (PFP 1.06, 10.2.9). Linux's EFI stub and systemd use it for
//! labels; the digest is of what the label speaks of.

use crate::Reject;
use crate::event_log::parse::u32_le;
use crate::tpm::wire::Reader;

/// A tagged event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tagged<'a> {
    /// Number that its writer chose.
    pub tag: u32,
    /// The label.
    pub data: &'a [u8],
}

impl<'a> Tagged<'a> {
    /// Linux's EFI stub: the initrd's digest.
    pub const LINUX_INITRD: u32 = 0x8f3b_22ec;
    /// Linux's EFI stub: the load options' digest.
    pub const LINUX_LOAD_OPTIONS: u32 = 0x8f3b_22ed;

    /// Reads exactly one event.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let tag = u32_le(&mut r)?;
        let size = usize::try_from(u32_le(&mut r)?).map_err(|_| Reject::Malformed)?;
        let tagged = Self { tag, data: r.bytes(size)? };
        r.finish().map_err(|_| Reject::Malformed)?;
        Ok(tagged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_tag_and_refuses_its_near_misses() {
        let bytes = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0";
        let expected = Tagged { tag: Tagged::LINUX_INITRD, data: b"Linux initrd\0" };
        assert_eq!(Tagged::read(bytes), Ok(expected));
        for len in 0..bytes.len() {
            assert_eq!(Tagged::read(&bytes[..len]), Err(Reject::Malformed));
        }
        assert_eq!(Tagged::read(&[&bytes[..], &[0]].concat()), Err(Reject::Malformed));
    }
}
