//! dm-verity, version 1: the layout of an integrity disk, its tree, and reading through it (SPEC 3.5).
//!
//! ```text
//! offset 0          data_size      data_size + 4096
//! | data            | superblock   | top level | ... | level 0 |      every block is 4096 bytes
//! ```
//! A hash block holds 128 SHA-256 digests of blocks of the level below (level 0: of data blocks), padded
//! with zeros; a digest is `SHA-256(salt | block)` (hash type 1). The root hash is the digest of the single
//! block of the top level, or of the data block itself where there is only one.
//! `veritysetup` (package cryptsetup) is the independent judge of this layout.
//!
//! Trusts the root hash and salt it is given, which come from the descriptor. The superblock is for other
//! tools: reading through the tree never looks at it.

mod geometry;
mod reader;
mod superblock;
mod tree;

pub use geometry::{Geometry, Level, Salt, UnfitSize};
pub use reader::{Place, VerityError, VerityReader};
pub use superblock::{Superblock, SuperblockError};
pub use tree::{TreeSink, build_tree};

/// Bytes of a data block and of a hash block.
pub const BLOCK: usize = 4096;
/// Digests in a hash block.
pub const FANOUT: u64 = (BLOCK / DIGEST) as u64;
/// Bytes of a digest.
const DIGEST: usize = 32;
