//! The integrity disk against a loop that only reads and hashes.

use std::hint::black_box;
use std::sync::Mutex;

use coffer_formats::Digest;
use coffer_image::blob::ReadAt as _;
use coffer_image::verity::{Geometry, Salt, TreeSink, build_tree};
use sha2::{Digest as _, Sha256};

use super::{BLOCKS, Measured, Pattern, measure};
use crate::{BLOCK, BLOCK_BYTES, BlockDevice as _, DiskError, Integrity};

/// What the integrity disk has to keep (DESIGN section 7).
pub(super) const BUDGET: f64 = 0.90;
const SALT: [u8; 32] = [7; 32];

/// Data and tree, and their root.
pub(super) struct Bench {
    blob: Vec<u8>,
    root: Digest,
}

impl Bench {
    pub(super) fn new() -> Result<Self, DiskError> {
        let geometry = Geometry::new(BLOCKS * BLOCK_BYTES)
            .map_err(|_| DiskError::BadShape { blocks: BLOCKS, spare: 0 })?;
        let data = vec![0x5a; geometry.data_size() as usize];
        let blob = Blob(Mutex::new(vec![0; geometry.blob_size() as usize]));
        let root = build_tree(data.as_slice(), &geometry, &salt(), &blob, 1)
            .map_err(DiskError::storage("building a tree"))?;
        let mut blob = blob.0.into_inner().unwrap_or_default();
        blob.iter_mut().zip(&data).for_each(|(to, from)| *to = *from);
        Ok(Self { blob, root })
    }

    pub(super) fn reads(&mut self, pattern: &Pattern) -> Result<Measured, DiskError> {
        let storage = self.blob.as_slice();
        let mut disk = Integrity::optimistic(storage, BLOCKS * BLOCK_BYTES, self.root, &salt())?;
        let salted = Sha256::new_with_prefix(SALT);
        measure(
            || {
                each(pattern, |first, buffer| {
                    storage
                        .read_exact_at(buffer, first * BLOCK_BYTES)
                        .map_err(DiskError::storage("reading"))?;
                    buffer.chunks_exact(BLOCK).for_each(|block| {
                        black_box(salted.clone().chain_update(block).finalize());
                    });
                    Ok(())
                })
            },
            || each(pattern, |first, buffer| disk.read(first, buffer)),
        )
    }
}

fn each(
    pattern: &Pattern,
    mut request: impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let mut buffer = pattern.buffer();
    pattern.firsts.iter().try_for_each(|first| request(*first, black_box(&mut buffer)))
}

fn salt() -> Salt {
    Salt::new(&SALT).unwrap_or_default()
}

/// Takes the tree of one thread.
struct Blob(Mutex<Vec<u8>>);

impl TreeSink for Blob {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> std::io::Result<()> {
        let mut blob = self.0.lock().map_err(|_| std::io::ErrorKind::Other)?;
        let place = blob.iter_mut().skip(offset as usize);
        place.zip(block).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}
