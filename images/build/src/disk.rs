//! From a file system image to the blob of an integrity disk (SPEC 3.5): padding, superblock, tree, digests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use coffer_formats::Digest;
use coffer_image::verity::{BLOCK, Geometry, Salt, Superblock, build_tree};
use sha2::{Digest as _, Sha256};

/// A finished disk blob.
#[derive(Debug)]
pub struct SealedDisk {
    pub geometry: Geometry,
    pub root_hash: Digest,
    /// SHA-256 of the whole blob.
    pub digest: Digest,
}

/// Pads the data in `file` to whole blocks and appends superblock and tree.
///
/// The data is hashed twice, block by block for the tree and as a whole for the blob's name; the two run
/// beside each other.
pub fn seal(file: &File, salt: &Salt) -> io::Result<SealedDisk> {
    let length = file.metadata()?.len();
    let geometry =
        Geometry::new(length.next_multiple_of(BLOCK as u64)).map_err(io::Error::other)?;
    // What the file grows by is zero, which is the padding.
    file.set_len(geometry.blob_size())?;
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let (root_hash, mut hash) = std::thread::scope(|scope| {
        let whole = scope.spawn(|| absorb(file, Sha256::new(), 0, geometry.data_size()));
        let root_hash = build_tree(file, &geometry, salt, file, threads);
        let whole =
            whole.join().unwrap_or_else(|_| Err(io::Error::other("a hashing thread ended early")));
        Ok::<_, io::Error>((root_hash?, whole?))
    })?;
    file.write_all_at(&Superblock::of(&geometry, &root_hash, salt).encode(), geometry.data_size())?;
    hash = absorb(file, hash, geometry.data_size(), geometry.blob_size())?;
    Ok(SealedDisk { geometry, root_hash, digest: Digest(hash.finalize().into()) })
}

fn absorb(file: &File, mut hash: Sha256, from: u64, to: u64) -> io::Result<Sha256> {
    let mut buffer = vec![0_u8; 1 << 18];
    let mut offset = from;
    while offset < to {
        let count = (to - offset).min(buffer.len() as u64) as usize;
        let (part, _) = buffer.split_at_mut(count);
        file.read_exact_at(part, offset)?;
        hash.update(part);
        offset += count as u64;
    }
    Ok(hash)
}
