//! Why a disk is refused, or an operation on it (SPEC 11.10).
//!
//! One closed enum; `code` is stable: reason in a log, label of a metric, anchor in SPEC.md.

use std::io;

use crate::anchor::AnchorError;

/// A block that is not what the disk's root says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A superblock; 0 or 1.
    Superblock(u64),
    /// A node of the tree.
    Node {
        /// 1 holds the entries of data blocks.
        level: u8,
        /// Its number in the level.
        index: u64,
    },
    /// A data block.
    Data(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock(slot) => write!(f, "superblock {slot}"),
            Self::Node { level, index } => write!(f, "node {index} of level {level}"),
            Self::Data(block) => write!(f, "data block {block}"),
        }
    }
}

/// Why an operation on a disk failed. Nothing unauthenticated was handed out.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    // --- what is stored is not a disk that can be used
    /// Neither superblock has the magic.
    #[error("the storage holds no encrypted disk")]
    NotADisk,
    /// A newer format, or a feature of one.
    #[error("the disk has format version {version} with features {features:#x}")]
    UnsupportedVersion {
        /// Format version.
        version: u32,
        /// Features a reader must know.
        features: u64,
    },
    /// The storage is shorter than the disk.
    #[error("the disk has {needed} bytes, of which {found} are there")]
    Truncated {
        /// Bytes the superblock promises.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },

    // --- what is stored is not what was stored
    /// A block fails its authentication: altered, torn, moved, from another time or another disk.
    #[error("{0} is not what was written there")]
    Corrupt(Place),
    /// A block that a repair gave up, and that nothing was written to since.
    #[error("{0} was given up when the disk was repaired")]
    Lost(Place),
    /// An older state of the disk.
    #[error("the disk is in state {found}, but the anchor is at {anchor}: it is an old copy")]
    Stale {
        /// The newest state found.
        found: u64,
        /// What the anchor says.
        anchor: u64,
    },
    /// Another disk.
    #[error("the storage holds another disk")]
    Foreign,
    /// The key opens neither superblock.
    #[error("the key does not open the disk")]
    WrongKey,

    // --- the anchor
    /// The disk is newer than the anchor: the TPM was reset, or is another one.
    #[error("the disk is in state {found}, which the anchor at {anchor} has not reached")]
    AnchorBehind {
        /// The oldest state found.
        found: u64,
        /// What the anchor says.
        anchor: u64,
    },
    /// The anchor moved without this session: the disk is in use elsewhere.
    #[error("the anchor moved from {expected} to {found} under this session")]
    Superseded {
        /// Where this session left it.
        expected: u64,
        /// Where it is.
        found: u64,
    },
    /// The anchor cannot be read or moved.
    #[error("the anchor fails: {0}")]
    AnchorFailed(#[source] Box<dyn std::error::Error + Send + Sync>),

    // --- storage and host
    /// The storage fails.
    #[error("{doing} fails: {source}")]
    Storage {
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The storage is full.
    #[error("the storage has no room left")]
    StorageFull,
    /// Somebody else has the storage open.
    #[error("the storage is in use")]
    Busy,
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    NoEntropy,

    // --- the caller
    /// The range leaves the disk.
    #[error("{count} blocks from {first} on lie outside the disk")]
    OutOfRange {
        /// First block.
        first: u64,
        /// Blocks.
        count: u64,
    },
    /// The buffer is no whole number of blocks.
    #[error("{0} bytes are no whole number of blocks")]
    Unaligned(usize),
    /// The disk is for reading only.
    #[error("the disk cannot be written")]
    ReadOnly,
    /// A disk cannot have this size.
    #[error("a disk cannot have {blocks} blocks and {spare} spare ones")]
    BadShape {
        /// Blocks of data.
        blocks: u64,
        /// Blocks to spare.
        spare: u64,
    },
    /// The storage is too short for the disk that is to be made.
    #[error("the disk needs {needed} bytes of storage; there are {found}")]
    StorageShort {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A disk is not made where something is.
    #[error("the storage is not empty")]
    NotEmpty,
    /// A commit failed half way; what it left is decided when the disk is opened again.
    #[error("the session ended when a commit failed")]
    SessionEnded,
}

impl DiskError {
    /// Stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotADisk => "not-a-disk",
            Self::UnsupportedVersion { .. } => "unsupported-version",
            Self::Truncated { .. } => "truncated",
            Self::Corrupt(_) => "corrupt",
            Self::Lost(_) => "lost",
            Self::Stale { .. } => "stale",
            Self::Foreign => "foreign",
            Self::WrongKey => "wrong-key",
            Self::AnchorBehind { .. } => "anchor-behind",
            Self::Superseded { .. } => "superseded",
            Self::AnchorFailed(_) => "anchor-failed",
            Self::Storage { .. } => "storage-failed",
            Self::StorageFull => "storage-full",
            Self::Busy => "busy",
            Self::NoEntropy => "no-entropy",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Unaligned(_) => "unaligned",
            Self::ReadOnly => "read-only",
            Self::BadShape { .. } => "bad-shape",
            Self::StorageShort { .. } => "storage-short",
            Self::NotEmpty => "not-empty",
            Self::SessionEnded => "session-ended",
        }
    }

    /// The code that this is, if it is one of [`DiskError::code`]'s.
    pub fn known_code(code: &str) -> Option<&'static str> {
        CODES.into_iter().find(|known| *known == code)
    }

    /// Whether the storage, the anchor or the system failed, and not who asked for something that cannot be.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::OutOfRange { .. } | Self::Unaligned(_) | Self::ReadOnly)
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotADisk => "name the file the disk was created in",
            Self::UnsupportedVersion { .. } => "use the version of coffer that made the disk",
            Self::Truncated { .. } => {
                "restore a backup, or repair the disk: what is missing is given up"
            }
            Self::Corrupt(_) => {
                "the storage is not to be trusted: restore a backup elsewhere, or, without one, repair the disk"
            }
            Self::Lost(_) => "write the block anew, all 4096 bytes of it, or restore a backup",
            Self::Stale { .. } => "give back the newest copy; an older one is not accepted",
            Self::Foreign => "check which file belongs to which disk",
            Self::WrongKey => {
                "check that the file is this disk's; if its key slot is damaged, restore a backup"
            }
            Self::AnchorBehind { .. } => {
                "the TPM was cleared or is not the disk's: restore a backup"
            }
            Self::Superseded { .. } => "stop the other VM that uses the disk",
            Self::AnchorFailed(_) => {
                "check the TPM, and the storage of the vault if it has the counter; then open the disk again"
            }
            Self::Storage { .. } => "check the storage, then open the disk again",
            Self::StorageFull => "make room; nothing that was flushed is lost",
            Self::Busy => "stop the other user of the storage",
            Self::NoEntropy => "try again once the system has started",
            Self::OutOfRange { .. } | Self::Unaligned(_) => "stay inside the disk, in whole blocks",
            Self::ReadOnly => "write to an encrypted or a raw disk",
            Self::BadShape { .. } => "a disk has 1 to 2^28 blocks and at least 16 spare ones",
            Self::StorageShort { .. } => "enlarge the file first",
            Self::NotEmpty => "remove the file, or name another",
            Self::SessionEnded => "open the disk again",
        }
    }

    pub(crate) fn storage(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull,
            _ => Self::Storage { doing, source },
        }
    }
}

/// All that [`DiskError::code`] gives.
const CODES: [&str; 22] = [
    "not-a-disk",
    "unsupported-version",
    "truncated",
    "corrupt",
    "lost",
    "stale",
    "foreign",
    "wrong-key",
    "anchor-behind",
    "superseded",
    "anchor-failed",
    "storage-failed",
    "storage-full",
    "busy",
    "no-entropy",
    "out-of-range",
    "unaligned",
    "read-only",
    "bad-shape",
    "storage-short",
    "not-empty",
    "session-ended",
];

impl From<AnchorError> for DiskError {
    fn from(error: AnchorError) -> Self {
        match error {
            AnchorError::Moved { expected, found } => Self::Superseded { expected, found },
            AnchorError::Failed(source) => Self::AnchorFailed(source),
        }
    }
}
