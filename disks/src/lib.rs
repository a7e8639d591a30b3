//! Disks whose promise holds against whoever owns the storage (SPEC 11).
//!
//! Three kinds behind one trait, [`BlockDevice`]: [`Raw`] promises nothing, [`Integrity`] is for reading and verified up
//! to a root hash, [`Disk`] is encrypted.
//!
//! The encrypted disk: writable, confidential, authenticated, crash-consistent, rollback-proof. A copy-on-write tree
//! of AES-256-GCM-sealed blocks hangs from one superblock; which superblock counts, a counter says that storage cannot
//! turn back. [`Disk`] is the whole of it; [`Store`] and [`Anchor`] are what it stands on.
//!
//! Trusts its key, its anchor and the durability of a flush. No clock, no unsafe, no panic on any stored byte.
#![forbid(unsafe_code)]

mod anchor;
pub mod bench;
mod bytes;
mod cache;
mod device;
mod disk;
mod entropy;
mod entry;
mod error;
mod integrity;
mod keys;
mod ledger;
mod node;
mod opening;
mod remote;
mod sealer;
mod shape;
mod space;
mod store;
mod superblock;
#[cfg(test)]
mod tests;
mod told;
mod tree;
mod volume;
mod walk;

pub use anchor::{Anchor, AnchorError, DangerousMemoryAnchor};
pub use device::{BlockDevice, Raw};
pub use disk::{Disk, Info};
pub use entropy::{Entropy, SystemEntropy};
pub use error::{DiskError, Place};
pub use integrity::Integrity;
pub use keys::{DiskId, DiskKey};
pub use ledger::{Ledger, LedgerCounter};
pub use remote::{RemoteAnchor, serve};
pub use shape::{BLOCKS_MAX, SPARE_MIN, Shape};
pub use store::{FileStore, MemoryStore, Store, try_lock};
pub use told::{Tell, ToldDisk};
pub use walk::Report;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const BLOCK_BYTES: u64 = BLOCK as u64;
/// Entries in a node.
const FANOUT: u64 = (BLOCK / entry::ENTRY) as u64;
