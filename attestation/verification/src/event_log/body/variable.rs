//! UEFI_VARIABLE_DATA (PFP 1.06, 10.2.6).

use std::fmt;

use crate::Reject;
use crate::event_log::parse::u64_le;
use crate::tpm::wire::Reader;

/// Most UTF-16 units of a variable's name: the longest that firmware measures have 30 ("OsRecoveryOrder"
/// and makers' own); UEFI sets no limit, EDK2 refuses names over 1 KiB.
const NAME_MAX: usize = 512;

/// A UEFI variable as it was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Namespace.
    pub guid: Guid,
    /// Name; characters that are no UTF-16 are replaced.
    pub name: String,
    /// Value.
    pub data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Reads exactly one variable.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let guid = Guid(r.array()?);
        let size = |r: &mut Reader<'_>| usize::try_from(u64_le(r)?).map_err(|_| Reject::Malformed);
        let (name, data) = (size(&mut r)?, size(&mut r)?);
        if name > NAME_MAX {
            return Err(Reject::LimitExceeded);
        }
        let name = r.bytes(name.checked_mul(2).ok_or(Reject::Malformed)?)?;
        let (units, _) = name.as_chunks::<2>();
        let name = char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit)))
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        let variable = Self { guid, name, data: r.bytes(data)? };
        r.finish().map_err(|_| Reject::Malformed)?;
        Ok(variable)
    }

    /// Reads an authority. Old shims count the characters of its name for bytes and measure as many stray bytes more;
    /// whoever verified an image is still the variable before them.
    pub fn read_authority(bytes: &'a [u8]) -> Result<Self, Reject> {
        Self::read(bytes).or_else(|reject| {
            let whole = bytes.len().saturating_sub(STRAY_MAX)..bytes.len();
            let mut shorter = whole.rev().filter_map(|end| bytes.get(..end));
            shorter.find_map(|bytes| Self::read(bytes).ok()).ok_or(reject)
        })
    }

    /// True for this name in this namespace.
    pub fn is(&self, guid: Guid, name: &str) -> bool {
        self.guid == guid && self.name == name
    }
}

/// A GUID as UEFI stores it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK, boot options.
    pub const GLOBAL: Self =
        Self(*b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c");
    /// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt, dbr.
    pub const IMAGE_SECURITY: Self =
        Self(*b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f");
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, tail @ ..] = self.0;
        let (first, second, third) = (
            u32::from_le_bytes([a, b, c, d]),
            u16::from_le_bytes([e, g]),
            u16::from_le_bytes([h, i]),
        );
        let [j, k, node @ ..] = tail;
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{j:02x}{k:02x}-{}", hex::encode(node))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Most stray bytes after an authority: the shim of a recorded log wrote 6.
const STRAY_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::tests::variable;
    use super::*;

    #[test]
    fn reads_a_variable_and_refuses_its_near_misses() {
        let good = variable("SecureBoot", &[1]);
        let read = Variable::read(&good).unwrap();
        assert!(read.is(Guid::GLOBAL, "SecureBoot") && read.data == [1]);
        assert!(!read.is(Guid::IMAGE_SECURITY, "SecureBoot"));
        assert_eq!(Guid::GLOBAL.to_string(), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
        let changed = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            Variable::read(&bytes).map(drop)
        };
        assert_eq!(changed(16, &[9]), Err(Reject::Malformed), "name too short");
        assert_eq!(changed(16, &[11]), Err(Reject::Malformed), "name too long");
        assert_eq!(changed(16, &[1, 2]), Err(Reject::LimitExceeded), "name over its limit");
        assert_eq!(changed(24, &[0xff; 8]), Err(Reject::Malformed), "value of 2^64-1");
        let good_read = Variable::read(&good).unwrap();
        let stray = |count| [&good[..], &vec![0xaf; count]].concat();
        for (count, read) in [(0, true), (1, true), (6, true), (8, true), (9, false)] {
            let authority = stray(count);
            let found = Variable::read_authority(&authority);
            assert_eq!(found.is_ok_and(|found| found == good_read), read, "{count} stray bytes");
        }
        assert_eq!(Variable::read(&stray(1)), Err(Reject::Malformed), "of no other type");
        let named = |units: usize| Variable::read(&variable(&"n".repeat(units), &[])).map(drop);
        assert_eq!(named(NAME_MAX), Ok(()));
        assert_eq!(named(NAME_MAX + 1), Err(Reject::LimitExceeded));
        for len in 0..good.len() {
            assert_eq!(Variable::read(&good[..len]), Err(Reject::Malformed), "{len}");
        }
    }
}
