//! Firmware blobs and tables handed off, in both forms (PFP 1.06, 10.2.4 and 10.2.7).
//!
//! These say where in memory something was; the digest is of what stood there.

use super::Guid;
use crate::Reject;
use crate::event_log::parse::u64_le;
use crate::tpm::wire::Reader;

/// Most tables: EDK2 hands off a dozen.
const TABLES_MAX: usize = 256;

/// A piece of firmware in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareBlob<'a> {
    /// What it is, in the maker's words; the first form has none.
    pub description: &'a [u8],
    /// Where.
    pub base: u64,
    /// How many bytes.
    pub length: u64,
}

impl<'a> FirmwareBlob<'a> {
    /// UEFI_PLATFORM_FIRMWARE_BLOB.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        Self::rest(Reader::new(bytes), &[])
    }

    /// UEFI_PLATFORM_FIRMWARE_BLOB2.
    pub fn described(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let description = description(&mut r)?;
        Self::rest(r, description)
    }

    fn rest(mut r: Reader<'a>, description: &'a [u8]) -> Result<Self, Reject> {
        let blob = Self { description, base: u64_le(&mut r)?, length: u64_le(&mut r)? };
        r.finish().map_err(|_| Reject::Malformed)?;
        Ok(blob)
    }
}

/// Pointers to configuration tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandoffTables<'a> {
    /// What they are, in the maker's words; the first form has none.
    pub description: &'a [u8],
    /// Kind and address of each.
    pub tables: Vec<(Guid, u64)>,
}

impl<'a> HandoffTables<'a> {
    /// UEFI_HANDOFF_TABLE_POINTERS.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        Self::rest(Reader::new(bytes), &[])
    }

    /// UEFI_HANDOFF_TABLE_POINTERS2.
    pub fn described(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let description = description(&mut r)?;
        Self::rest(r, description)
    }

    fn rest(mut r: Reader<'a>, description: &'a [u8]) -> Result<Self, Reject> {
        let count = usize::try_from(u64_le(&mut r)?).map_err(|_| Reject::Malformed)?;
        if count.checked_mul(TABLE) != Some(r.rest().len()) {
            return Err(Reject::Malformed);
        }
        if count > TABLES_MAX {
            return Err(Reject::LimitExceeded);
        }
        let table = |_| Ok((Guid(r.array()?), u64_le(&mut r)?));
        Ok(Self { description, tables: (0..count).map(table).collect::<Result<_, Reject>>()? })
    }
}

fn description<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Reject> {
    let size = usize::from(r.u8()?);
    r.bytes(size)
}

/// Bytes of a GUID and a pointer.
const TABLE: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_and_refuses_their_near_misses() {
        let place = [1u64, 2].map(u64::to_le_bytes).concat();
        let blob = FirmwareBlob { description: b"", base: 1, length: 2 };
        assert_eq!(FirmwareBlob::read(&place), Ok(blob));
        let described = [&[3], &b"PEI"[..], &place].concat();
        let expected = FirmwareBlob { description: b"PEI", ..blob };
        assert_eq!(FirmwareBlob::described(&described), Ok(expected));
        for bytes in [&place[..15], &[&place[..], &[0]].concat(), &described] {
            assert_eq!(FirmwareBlob::read(bytes), Err(Reject::Malformed));
        }
        assert_eq!(FirmwareBlob::described(&[200, 1, 2]), Err(Reject::Malformed));
        let tables = |count: u64, bytes: usize| {
            let bytes = [&count.to_le_bytes()[..], &vec![7; bytes]].concat();
            HandoffTables::read(&bytes).map(|t| t.tables.len())
        };
        assert_eq!(tables(2, 48), Ok(2));
        assert_eq!(tables(u64::MAX, 48), Err(Reject::Malformed));
        assert_eq!(tables(2, 47), Err(Reject::Malformed));
        assert_eq!(tables(256, 256 * 24), Ok(256));
        assert_eq!(tables(257, 257 * 24), Err(Reject::LimitExceeded));
        let named = [&[1, b'x'][..], &1u64.to_le_bytes(), &[7; 24]].concat();
        assert_eq!(HandoffTables::described(&named).unwrap().description, b"x");
    }
}
