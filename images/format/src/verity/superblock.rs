//! The dm-verity superblock, byte for byte as `veritysetup` writes and reads it.
//!
//! ```text
//!   0 "verity\0\0"      8 version 1 (u32)   12 hash type 1 (u32)   16 uuid (16)   32 "sha256" (32)
//!  64 data block size (u32)   68 hash block size (u32)   72 data blocks (u64)   80 salt size (u16)
//!  82 zero (6)   88 salt (256)   344 zero to the end of the block                 little-endian
//! ```

use coffer_formats::Digest;

use super::{BLOCK, Geometry, Salt};

/// What varies in a superblock of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identifies the disk to tools.
    pub uuid: [u8; 16],
    /// Blocks of data.
    pub data_blocks: u64,
    /// Salt.
    pub salt: Salt,
}

/// A superblock that is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// The signature is missing.
    #[error("there is no verity superblock")]
    Missing,
    /// Another version, hash type, hash or block size.
    #[error("the verity superblock has another {0}")]
    Other(&'static str),
    /// Bytes that must be zero are not.
    #[error("the verity superblock has bytes that should be zero")]
    Padding,
}

impl Superblock {
    /// The superblock for a tree; the UUID is derived from the root hash so that building is repeatable.
    pub fn of(geometry: &Geometry, root: &Digest, salt: &Salt) -> Self {
        let mut uuid = [0_u8; 16];
        let derived = Digest::of(&[b"coffer/verity-uuid/v1\0", root.as_bytes()]);
        uuid.iter_mut().zip(derived.0).for_each(|(to, from)| *to = from);
        // RFC 9562: version 8 (custom), variant 10.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Self { uuid, data_blocks: geometry.data_blocks(), salt: salt.clone() }
    }

    /// Its block.
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0_u8; BLOCK];
        let salt = self.salt.as_bytes();
        let fields: [(usize, &[u8]); 10] = [
            (0, SIGNATURE),
            (8, &1_u32.to_le_bytes()),
            (12, &1_u32.to_le_bytes()),
            (16, &self.uuid),
            (32, b"sha256"),
            (64, &(BLOCK as u32).to_le_bytes()),
            (68, &(BLOCK as u32).to_le_bytes()),
            (72, &self.data_blocks.to_le_bytes()),
            (80, &(salt.len() as u16).to_le_bytes()),
            (88, salt),
        ];
        for (offset, bytes) in fields {
            block.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
        }
        block
    }

    /// Reads a block; accepts exactly what [`Self::encode`] makes.
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, SuperblockError> {
        let at = Fields(block);
        if at.bytes::<8>(0) != SIGNATURE {
            return Err(SuperblockError::Missing);
        }
        let mut algorithm = [0_u8; 32];
        algorithm.iter_mut().zip(b"sha256").for_each(|(to, from)| *to = *from);
        let wanted = [
            (at.u32(8) == 1, "version"),
            (at.u32(12) == 1, "hash type"),
            (at.bytes::<32>(32) == algorithm, "hash"),
            (at.u32(64) == BLOCK as u32, "data block size"),
            (at.u32(68) == BLOCK as u32, "hash block size"),
        ];
        if let Some((_, what)) = wanted.into_iter().find(|(ok, _)| !ok) {
            return Err(SuperblockError::Other(what));
        }
        let salt_size = usize::from(u16::from_le_bytes(at.bytes(80)));
        let salt =
            at.0.get(88..88 + salt_size)
                .and_then(Salt::new)
                .ok_or(SuperblockError::Other("salt size"))?;
        let superblock =
            Self { uuid: at.bytes(16), data_blocks: u64::from_le_bytes(at.bytes(72)), salt };
        if superblock.encode() != *block {
            return Err(SuperblockError::Padding);
        }
        Ok(superblock)
    }
}

const SIGNATURE: &[u8] = b"verity\0\0";

/// Fixed offsets in a block of fixed size.
struct Fields<'a>(&'a [u8; BLOCK]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0
            .get(offset..offset + N)
            .and_then(|bytes| bytes.try_into().ok())
            .expect("offsets above lie in the block")
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }
}
