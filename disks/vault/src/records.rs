//! Records by name, on the blocks of the vault's disk that are no counters (SPEC 11.14.5).
//!
//! ```text
//! blocks 0 to 8191      counters, one each        8192 to 16383   directory: one record each
//!        16384 to 49151 extents: what does not fit in the directory
//!
//! directory block:  0 "COFFERRC"   8 version 1 (u32)   12 length of the name (u32)   16 length of the data (u32)
//!                  20 zero (4)    24 name, zeros (200)
//!                 224 data of at most 3872 bytes, zeros; or numbers of extents (u32 each), zeros
//! ```
//! Little-endian. An update writes free extents, last the one directory block that names them, and commits. So a record
//! is what it was or what it is to be. Everything here is authentic, being on the disk; it is checked all the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use coffer_disk::{Anchor, BLOCK, Disk, DiskError, Ledger, Shape, Store};
use zeroize::Zeroizing;

use crate::error::VaultError;

/// The vault's disk.
pub(crate) type VaultDisk = Disk<Box<dyn Store + Send>, Box<dyn Anchor + Send>>;
/// The same, with the counters of the volumes.
pub(crate) type VaultLedger = Ledger<Box<dyn Store + Send>, Box<dyn Anchor + Send>>;

/// Counters there are.
pub(crate) const HOLDERS: u64 = 8192;
const DIRECTORY: u64 = HOLDERS;
const SLOTS: u64 = 8192;
const EXTENTS: u64 = DIRECTORY + SLOTS;
const EXTENT_COUNT: u64 = 32_768;
/// Most bytes of a record.
pub(crate) const RECORD_MAX: usize = 256 << 10;
/// Most bytes of a name.
const NAME_MAX: usize = 200;
const MAGIC: &[u8; 8] = b"COFFERRC";
const VERSION: u32 = 1;
const NAME: usize = 24;
const BODY: usize = NAME + NAME_MAX;
const INLINE_MAX: usize = BLOCK - BODY;
/// Directory blocks read at once.
const READ_AT_ONCE: u64 = 64;

/// The shape of the vault's disk. Spare blocks are far more than any update writes, so none is committed half way.
pub(crate) fn shape() -> Shape {
    Shape::of(EXTENTS + EXTENT_COUNT)
}

/// The records of a disk.
pub(crate) struct Records {
    ledger: VaultLedger,
    /// None after a failure: what the disk holds then is read again.
    index: Mutex<Option<Index>>,
}

struct Index {
    entries: BTreeMap<String, Entry>,
    slots: Vec<bool>,
    extents: Vec<bool>,
}

#[derive(Clone)]
struct Entry {
    slot: u64,
    length: usize,
    extents: Vec<u32>,
}

impl Records {
    pub(crate) fn new(ledger: VaultLedger) -> Result<Self, VaultError> {
        let records = Self { ledger, index: Mutex::new(None) };
        records.with(|_, _| Ok(()))?;
        Ok(records)
    }

    /// Names that begin so, in order.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        self.with(|_, index| {
            let from = index.entries.range(prefix.to_owned()..);
            let names = from.map(|(name, _)| name).take_while(|name| name.starts_with(prefix));
            Ok(names.cloned().collect())
        })
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        self.with(|disk, index| {
            let Some(entry) = index.entries.get(name) else { return Ok(None) };
            let mut data = Zeroizing::new(vec![0; entry.length.next_multiple_of(BLOCK)]);
            if entry.extents.is_empty() {
                let mut block = Zeroizing::new([0; BLOCK]);
                disk.read(DIRECTORY + entry.slot, &mut *block)?;
                let body = block.iter().skip(BODY).take(entry.length);
                data.iter_mut().zip(body).for_each(|(to, from)| *to = *from);
            }
            for (part, extent) in data.chunks_mut(BLOCK).zip(&entry.extents) {
                disk.read(EXTENTS + u64::from(*extent), part)?;
            }
            data.truncate(entry.length);
            Ok(Some(data))
        })
    }

    /// Makes `data` the record's; on the medium and the only state there is when this returns.
    pub(crate) fn put(&self, name: &str, data: &[u8]) -> Result<(), VaultError> {
        if data.len() > RECORD_MAX {
            return Err(VaultError::TooLarge { found: data.len(), limit: RECORD_MAX });
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(VaultError::BadName(name.to_owned()));
        }
        self.with(|disk, index| {
            let old = index.entries.get(name).cloned();
            let slot = match &old {
                Some(old) => old.slot,
                None => free(&index.slots, 1).ok_or(VaultError::Full)?.into_iter().sum(),
            };
            let count = if data.len() <= INLINE_MAX { 0 } else { data.len().div_ceil(BLOCK) };
            let extents = free(&index.extents, count).ok_or(VaultError::Full)?;
            let extents: Vec<u32> = extents.into_iter().map(|extent| extent as u32).collect();
            for (part, extent) in data.chunks(BLOCK).zip(&extents) {
                let mut block = Zeroizing::new([0; BLOCK]);
                block.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                disk.write(EXTENTS + u64::from(*extent), &*block)?;
            }
            let entry = Entry { slot, length: data.len(), extents };
            disk.write(DIRECTORY + slot, &*entry.encode(name, data))?;
            commit(disk, old.as_ref())?;
            index.adopt(name, entry);
            Ok(())
        })
    }

    /// Removes a record; nothing if there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VaultError> {
        self.with(|disk, index| {
            let Some(entry) = index.entries.get(name).cloned() else { return Ok(()) };
            disk.zero(DIRECTORY + entry.slot, 1)?;
            commit(disk, Some(&entry))?;
            index.forget(name);
            Ok(())
        })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut VaultDisk, &mut Index) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let mut guard = self.lock()?;
        self.ledger.with_disk(|disk| {
            let mut index = match guard.take() {
                Some(index) => index,
                // What a commit that failed left in memory is told to nobody before it is committed.
                None => disk.flush().map_err(VaultError::from).and_then(|()| Index::load(disk))?,
            };
            let done = work(disk, &mut index);
            let known = !matches!(&done, Err(VaultError::Disk(_)));
            *guard = known.then_some(index);
            done
        })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Option<Index>>, VaultError> {
        let poisoned = |_| DiskError::AnchorFailed("a user of the vault panicked".into());
        Ok(self.index.lock().map_err(poisoned)?)
    }
}

/// Commits, and gives back what nothing names any more.
fn commit(disk: &mut VaultDisk, old: Option<&Entry>) -> Result<(), VaultError> {
    for extent in old.iter().flat_map(|old| &old.extents) {
        disk.zero(EXTENTS + u64::from(*extent), 1)?;
    }
    Ok(disk.flush()?)
}

/// The first `count` that are free; `None` if there are not as many.
fn free(taken: &[bool], count: usize) -> Option<Vec<u64>> {
    let free = (0..).zip(taken).filter(|(_, taken)| !**taken).map(|(number, _)| number);
    let found: Vec<u64> = free.take(count).collect();
    (found.len() == count).then_some(found)
}

impl Index {
    fn empty() -> Self {
        Self {
            entries: BTreeMap::new(),
            slots: vec![false; SLOTS as usize],
            extents: vec![false; EXTENT_COUNT as usize],
        }
    }

    fn load(disk: &mut VaultDisk) -> Result<Self, VaultError> {
        let mut index = Self::empty();
        let mut blocks = Zeroizing::new(vec![0; READ_AT_ONCE as usize * BLOCK]);
        for first in (0..SLOTS).step_by(READ_AT_ONCE as usize) {
            disk.read(DIRECTORY + first, &mut blocks)?;
            for (slot, block) in (first..).zip(blocks.chunks(BLOCK)) {
                if block.iter().all(|byte| *byte == 0) {
                    continue;
                }
                index.enter(slot, block)?;
            }
        }
        Ok(index)
    }

    /// Takes what a directory block says, if nothing before it says otherwise.
    fn enter(&mut self, slot: u64, block: &[u8]) -> Result<(), VaultError> {
        let refused = || VaultError::Record(format!("in slot {slot}"));
        let (name, entry) = Entry::decode(slot, block).ok_or_else(refused)?;
        let taken = entry.extents.iter().any(|extent| is(&self.extents, *extent as usize));
        if taken || self.entries.contains_key(&name) {
            return Err(refused());
        }
        self.adopt(&name, entry);
        Ok(())
    }

    fn adopt(&mut self, name: &str, entry: Entry) {
        self.forget(name);
        self.mark(&entry, true);
        self.entries.insert(name.to_owned(), entry);
    }

    fn forget(&mut self, name: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.mark(&entry, false);
        }
    }

    fn mark(&mut self, entry: &Entry, taken: bool) {
        let slot = self.slots.get_mut(entry.slot as usize);
        slot.into_iter().for_each(|slot| *slot = taken);
        for extent in &entry.extents {
            let extent = self.extents.get_mut(*extent as usize);
            extent.into_iter().for_each(|extent| *extent = taken);
        }
    }
}

/// Outside is taken.
fn is(taken: &[bool], number: usize) -> bool {
    taken.get(number).copied().unwrap_or(true)
}

impl Entry {
    fn encode(&self, name: &str, data: &[u8]) -> Zeroizing<[u8; BLOCK]> {
        let mut block = Zeroizing::new([0; BLOCK]);
        let mut put = |offset: usize, field: &[u8]| {
            block.iter_mut().skip(offset).zip(field).for_each(|(to, from)| *to = *from);
        };
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(name.len() as u32).to_le_bytes());
        put(16, &(self.length as u32).to_le_bytes());
        put(NAME, name.as_bytes());
        match self.extents.is_empty() {
            true => put(BODY, data),
            false => {
                for (at, extent) in (BODY..).step_by(4).zip(&self.extents) {
                    put(at, &extent.to_le_bytes());
                }
            }
        }
        block
    }

    /// Exactly what [`Entry::encode`] writes.
    fn decode(slot: u64, block: &[u8]) -> Option<(String, Self)> {
        let number = |offset: usize| -> Option<usize> {
            Some(u32::from_le_bytes(block.get(offset..offset + 4)?.try_into().ok()?) as usize)
        };
        let (name_length, length) = (number(12)?, number(16)?);
        if length > RECORD_MAX || name_length > NAME_MAX {
            return None;
        }
        let name = std::str::from_utf8(block.get(NAME..NAME + name_length)?).ok()?;
        let count = if length <= INLINE_MAX { 0 } else { length.div_ceil(BLOCK) };
        let extents = (0..count).map(|n| Some(number(BODY + 4 * n)? as u32));
        let entry = Self { slot, length, extents: extents.collect::<Option<_>>()? };
        let different: std::collections::BTreeSet<_> = entry.extents.iter().collect();
        if different.len() != entry.extents.len() {
            return None;
        }
        let data = block.get(BODY..)?.get(..length.min(INLINE_MAX))?;
        let same = entry.encode(name, data).as_slice() == block;
        (same && !name.is_empty()).then(|| (name.to_owned(), entry))
    }
}

/// What a directory of these blocks says, slot after slot: name, bytes, extents; none if it is refused.
#[cfg(fuzzing)]
pub(crate) fn directory(blocks: &[&[u8]]) -> Option<Vec<(String, usize, Vec<u32>)>> {
    let mut index = Index::empty();
    (0..).zip(blocks).try_for_each(|(slot, block)| index.enter(slot, block)).ok()?;
    let told = index.entries.into_iter().map(|(name, entry)| (name, entry.length, entry.extents));
    Some(told.collect())
}
