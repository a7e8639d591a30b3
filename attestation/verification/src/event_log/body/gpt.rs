//! UEFI_GPT_DATA: a partition table's header and its used entries (PFP 1.06, 10.2.5; UEFI 2.10, 5.3).

use super::Guid;
use crate::Reject;
use crate::event_log::parse::{u32_le, u64_le};
use crate::tpm::wire::Reader;

/// Most entries: GPT disks have 128 slots.
const PARTITIONS_MAX: usize = 128;

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt<'a> {
    /// The disk.
    pub disk: Guid,
    /// The partitions in use.
    pub partitions: Vec<Partition<'a>>,
}

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition<'a> {
    /// What it is for.
    pub kind: Guid,
    /// Which one it is.
    pub id: Guid,
    /// First and last block.
    pub blocks: (u64, u64),
    /// Name, UTF-16.
    pub name: &'a [u8],
}

impl<'a> Gpt<'a> {
    /// Reads exactly one table.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        if r.array()? != *b"EFI PART" {
            return Err(Reject::Malformed);
        }
        // Revision, header size and checksum, reserved; own, alternate, first and last usable block.
        r.bytes(16 + 32)?;
        let disk = Guid(r.array()?);
        // First block and number of entries on the disk, the size of one, their checksum.
        r.bytes(12)?;
        let entry = usize::try_from(u32_le(&mut r)?).map_err(|_| Reject::Malformed)?;
        r.bytes(4)?;
        let count = usize::try_from(u64_le(&mut r)?).map_err(|_| Reject::Malformed)?;
        // 2^32 partitions in an event of a kilobyte are refused before any is read.
        if entry < ENTRY_MIN || count.checked_mul(entry) != Some(r.rest().len()) {
            return Err(Reject::Malformed);
        }
        if count > PARTITIONS_MAX {
            return Err(Reject::LimitExceeded);
        }
        let entry = |_| partition(&mut Reader::new(r.bytes(entry)?));
        Ok(Self { disk, partitions: (0..count).map(entry).collect::<Result<_, Reject>>()? })
    }
}

fn partition<'a>(r: &mut Reader<'a>) -> Result<Partition<'a>, Reject> {
    let (kind, id) = (Guid(r.array()?), Guid(r.array()?));
    let blocks = (u64_le(r)?, u64_le(r)?);
    let _attributes = u64_le(r)?;
    Ok(Partition { kind, id, blocks, name: r.bytes(72)? })
}

/// Bytes of an entry: 128 times a power of two.
const ENTRY_MIN: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_table_and_refuses_its_near_misses() {
        let table = |count: u64, entry: u32, entries: usize| {
            let mut bytes = [&b"EFI PART"[..], &[0; 76]].concat();
            bytes.extend(entry.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(count.to_le_bytes());
            bytes.extend(vec![5; entries]);
            bytes
        };
        let read = |bytes: &[u8]| Gpt::read(bytes).map(|gpt| gpt.partitions.len());
        assert_eq!(read(&table(2, 128, 256)), Ok(2));
        assert_eq!(read(&table(0, 128, 0)), Ok(0));
        assert_eq!(read(&table(1 << 32, 128, 256)), Err(Reject::Malformed), "2^32 (F28)");
        assert_eq!(read(&table(u64::MAX, 128, 256)), Err(Reject::Malformed));
        assert_eq!(read(&table(2, 0, 0)), Err(Reject::Malformed), "entries of no size");
        assert_eq!(read(&table(2, 64, 128)), Err(Reject::Malformed), "entries too short");
        assert_eq!(read(&table(2, 128, 255)), Err(Reject::Malformed));
        assert_eq!(read(&table(128, 128, 128 * 128)), Ok(128));
        assert_eq!(read(&table(1, 256, 256)), Ok(1), "entries of another size");
        assert_eq!(read(&table(129, 128, 129 * 128)), Err(Reject::LimitExceeded));
        assert_eq!(read(&[0; 200]), Err(Reject::Malformed), "another signature");
    }
}
