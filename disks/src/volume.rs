//! Sealed blocks in storage: reading one, and writing one where nothing committed lies.

use crate::entry::Entry;
use crate::error::{DiskError, Place};
use crate::sealer::Sealer;
use crate::space::Space;
use crate::store::Store;
use crate::{BLOCK, BLOCK_BYTES};

/// Blocks sealed and written at once: 256 KiB of scratch stay in the second-level cache.
pub(crate) const CHUNK: usize = 64;

/// Storage, the keys to it, and what of it is taken.
pub(crate) struct Volume<S> {
    pub store: S,
    pub sealer: Sealer,
    pub space: Space,
    scratch: Box<[u8]>,
}

impl<S: Store> Volume<S> {
    pub(crate) fn new(store: S, sealer: Sealer, space: Space) -> Self {
        Self { store, sealer, space, scratch: vec![0; CHUNK * BLOCK].into_boxed_slice() }
    }

    /// Reads and opens one block; on an error `buffer` is not to be used.
    pub(crate) fn read(
        &mut self,
        place: Place,
        entry: &Entry,
        buffer: &mut [u8],
    ) -> Result<(), DiskError> {
        read_block(&self.store, &mut self.sealer, place, entry, buffer)
    }

    /// Reads and opens data blocks that lie side by side: block `first` and its successors.
    pub(crate) fn read_run(
        &mut self,
        first: u64,
        run: &[Entry],
        buffer: &mut [u8],
    ) -> Result<(), DiskError> {
        let Some(start) = run.first() else { return Ok(()) };
        self.store
            .read_at(start.physical * BLOCK_BYTES, buffer)
            .map_err(|error| read_error(Place::Data(first), error))?;
        for ((entry, data), block) in run.iter().zip(buffer.chunks_exact_mut(BLOCK)).zip(first..) {
            self.sealer.open(Place::Data(block), &entry.seal, data)?;
        }
        Ok(())
    }

    /// Seals and writes as many blocks of `plain` as find room side by side, at most [`CHUNK`]; their entries.
    pub(crate) fn write_run(
        &mut self,
        first: u64,
        plain: &[u8],
        entries: &mut Vec<Entry>,
    ) -> Result<(), DiskError> {
        let wanted = (plain.len() / BLOCK).min(CHUNK) as u64;
        let (physical, count) = self.space.take(wanted).ok_or(DiskError::StorageFull)?;
        let len = count as usize * BLOCK;
        let blocks = plain.chunks_exact(BLOCK).zip(self.scratch.chunks_exact_mut(BLOCK));
        for ((plain, sealed), offset) in blocks.zip(0..count) {
            let seal = self.sealer.seal(Place::Data(first + offset), plain, sealed);
            entries.push(Entry { physical: physical + offset, seal });
        }
        let sealed = self.scratch.get(..len).unwrap_or_default();
        self.store.write_at(physical * BLOCK_BYTES, sealed).map_err(|error| {
            (physical..physical + count).for_each(|block| self.space.give_back(block));
            DiskError::storage("writing data")(error)
        })
    }

    /// Seals and writes a node somewhere else.
    pub(crate) fn write_node(&mut self, place: Place, plain: &[u8]) -> Result<Entry, DiskError> {
        let (physical, _) = self.space.take(1).ok_or(DiskError::StorageFull)?;
        let (sealed, _) = self.scratch.split_at_mut(BLOCK);
        let seal = self.sealer.seal(place, plain, sealed);
        self.store.write_at(physical * BLOCK_BYTES, sealed).map_err(|error| {
            self.space.give_back(physical);
            DiskError::storage("writing the tree")(error)
        })?;
        Ok(Entry { physical, seal })
    }

    /// Gives back what an entry named.
    pub(crate) fn give_back(&mut self, entry: &Entry) {
        if entry.is_stored() {
            self.space.give_back(entry.physical);
        }
    }
}

/// Reads and opens one block.
pub(crate) fn read_block<S: Store>(
    store: &S,
    sealer: &mut Sealer,
    place: Place,
    entry: &Entry,
    buffer: &mut [u8],
) -> Result<(), DiskError> {
    // A block number from an entry is below 2^30, or the walk at opening refused it.
    let offset = entry.physical.checked_mul(BLOCK_BYTES).ok_or(DiskError::Corrupt(place))?;
    store.read_at(offset, buffer).map_err(|error| read_error(place, error))?;
    sealer.open(place, &entry.seal, buffer)
}

fn read_error(place: Place, error: std::io::Error) -> DiskError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => DiskError::Corrupt(place),
        _ => DiskError::storage("reading")(error),
    }
}
