//! virtio-blk (virtio 1.2 section 5.2), read-only, over a verified disk.
//!
//! What it trusts: nothing below it; every block is checked against the disk's root hash before any byte of the
//! request it belongs to reaches the guest.
//! What it refuses: writes, whatever features the driver took; requests larger than it offered; and to go on after
//! one block that does not match: the VM ends with `disk-integrity`.

use std::fs::File;
use std::io::{Read, Write};

use coffer_formats::Reject;
use coffer_image::verity::{BLOCK, Salt, VerityError, VerityReader};
use coffer_monitor_wire::{DiskSpec, EndReason, Refusal};
use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestMemoryMmap;

use crate::refusals::Refusals;
use crate::virtio::device::{Chain, Pace, Queues, VirtioDevice};

const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 128;
/// Data segments of one request: a queue's descriptors less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SEGMENT_MAX: u32 = 8192;
/// Most data one request can carry by the two limits above: about 1 MiB, which is also the bounce buffer.
const REQUEST_MAX: usize = (SEGMENTS_MAX * SEGMENT_MAX) as usize;
const HEADER: usize = 16;
const ID_SIZE: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Why a disk cannot be served.
#[derive(Debug, Error)]
pub enum DiskRefused {
    /// The salt is not hex, or too long.
    #[error("the salt of disk {0} is not a salt")]
    Salt(usize),
    /// The size is no size of a verity disk.
    #[error("disk {0} cannot have {1} bytes of data")]
    Size(usize, u64),
}

/// Why blocks could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The disk is not the one that was promised.
    Integrity(String),
    /// The storage failed; the promise stands.
    Storage,
}

/// Where blocks come from. What `read` leaves in the buffer has been verified, or it failed.
pub trait BlockSource: Send {
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// Fills `buffer`, a whole number of blocks, from block `first` on. The range lies within the disk.
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), Fault>;
}

impl BlockSource for VerityReader<File> {
    fn size(&self) -> u64 {
        self.geometry().data_size()
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.read_blocks(first, buffer).map_err(|error| match error {
            VerityError::Mismatch(_) | VerityError::Truncated(_) => {
                Fault::Integrity(error.to_string())
            }
            VerityError::Read(..) | VerityError::OutOfRange(_) => Fault::Storage,
        })
    }
}

/// A disk.
pub struct Block {
    index: usize,
    source: Box<dyn BlockSource>,
    /// Grows to the largest request seen, at most [`REQUEST_MAX`] and two blocks.
    bounce: Vec<u8>,
}

impl Block {
    /// Serves disk `index` of the spec.
    pub fn open(index: usize, spec: &DiskSpec, file: File) -> Result<Self, DiskRefused> {
        let DiskSpec::Integrity { data_size, root_hash, salt } = spec;
        let salt = Salt::from_hex(salt).ok_or(DiskRefused::Salt(index))?;
        let reader = VerityReader::new(file, *data_size, *root_hash, &salt)
            .map_err(|_| DiskRefused::Size(index, *data_size))?;
        Ok(Self::over(index, Box::new(reader)))
    }

    /// Serves any source as disk `index`.
    pub fn over(index: usize, source: Box<dyn BlockSource>) -> Self {
        Self { index, source, bounce: Vec::new() }
    }

    /// Serves one request; returns the bytes written to the guest.
    fn serve(
        &mut self,
        chain: Chain<'_>,
        memory: &GuestMemoryMmap,
        refusals: &Refusals,
    ) -> Result<u32, EndReason> {
        let unanswerable = || {
            refusals.count(Refusal::Chain);
            Ok(0)
        };
        let (Ok(mut reader), Ok(mut data)) = (chain.clone().reader(memory), chain.writer(memory))
        else {
            return unanswerable();
        };
        // The status byte is the last writable one; without it the driver cannot be answered.
        let Some(len) = data.available_bytes().checked_sub(1) else { return unanswerable() };
        let Ok(mut status) = data.split_at(len) else { return unanswerable() };
        let mut header = [0; HEADER];
        let (code, written) = match reader.read_exact(&mut header) {
            Ok(()) => self.answer(&Request::parse(&header), len, &mut data)?,
            Err(_) => (VIRTIO_BLK_S_IOERR, 0),
        };
        if code != VIRTIO_BLK_S_OK {
            refusals.count(Refusal::BlockRequest);
        }
        let _ = status.write_all(&[code as u8]);
        Ok(written + 1)
    }

    fn answer(
        &mut self,
        request: &Request,
        len: usize,
        data: &mut impl Write,
    ) -> Result<(u32, u32), EndReason> {
        let found = match request.kind {
            VIRTIO_BLK_T_IN => self.read(request.sector, len)?,
            VIRTIO_BLK_T_GET_ID => (len >= ID_SIZE).then(|| self.id()),
            // Nothing is ever dirty.
            VIRTIO_BLK_T_FLUSH => Some(&[][..]),
            VIRTIO_BLK_T_OUT => None,
            _ => return Ok((VIRTIO_BLK_S_UNSUPP, 0)),
        };
        Ok(match found.map(|bytes| (bytes.len(), data.write_all(bytes))) {
            Some((written, Ok(()))) => (VIRTIO_BLK_S_OK, written as u32),
            Some((_, Err(_))) | None => (VIRTIO_BLK_S_IOERR, 0),
        })
    }

    /// Verified bytes of `len` from `sector`; `None` is an I/O error for the guest, `Err` ends the VM.
    fn read(&mut self, sector: u64, len: usize) -> Result<Option<&[u8]>, EndReason> {
        let Some(span) = Span::new(sector, len, self.source.size()) else { return Ok(None) };
        if self.bounce.len() < span.buffer {
            self.bounce.resize(span.buffer, 0);
        }
        let Some(buffer) = self.bounce.get_mut(..span.buffer) else { return Ok(None) };
        match self.source.read(span.first, buffer) {
            Ok(()) => Ok(self.bounce.get(span.skip..span.skip + len)),
            Err(Fault::Storage) => Ok(None),
            Err(Fault::Integrity(detail)) => Err(EndReason::Refused {
                reject: Reject::DiskIntegrity,
                detail: format!("disk {}: {detail}", self.index),
            }),
        }
    }

    fn id(&mut self) -> &[u8] {
        self.bounce.resize(self.bounce.len().max(ID_SIZE), 0);
        let name = format!("coffer-disk-{}", self.index);
        let (id, _) = self.bounce.split_at_mut(ID_SIZE);
        id.fill(0);
        id.iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
        id
    }
}

/// The header of a request: type, reserved, sector; little-endian.
struct Request {
    kind: u32,
    sector: u64,
}

impl Request {
    fn parse(header: &[u8; HEADER]) -> Self {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
        Self { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) }
    }
}

/// Whole blocks around the sectors of a request.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    first: u64,
    skip: usize,
    buffer: usize,
}

impl Span {
    /// `None` if the request is empty, ragged, larger than offered, or leaves the disk.
    fn new(sector: u64, len: usize, disk: u64) -> Option<Self> {
        if len == 0 || len > REQUEST_MAX || !(len as u64).is_multiple_of(SECTOR) {
            return None;
        }
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(len as u64).filter(|end| *end <= disk)?;
        let first = start / BLOCK as u64;
        let blocks = end.div_ceil(BLOCK as u64) - first;
        let skip = (start % BLOCK as u64) as usize;
        Some(Self { first, skip, buffer: blocks as usize * BLOCK })
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        [VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_BLK_SIZE]
            .into_iter()
            .fold(0, |features, bit| features | (1 << bit))
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config`: capacity at 0, size_max at 8, seg_max at 12, blk_size at 20.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 24];
        let fields: [(usize, &[u8]); 4] = [
            (0, &(self.source.size() / SECTOR).to_le_bytes()),
            (8, &SEGMENT_MAX.to_le_bytes()),
            (12, &SEGMENTS_MAX.to_le_bytes()),
            (20, &(BLOCK as u32).to_le_bytes()),
        ];
        for (at, bytes) in fields {
            config.iter_mut().skip(at).zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        }
        data.iter_mut().zip(config.iter().skip(offset)).for_each(|(slot, byte)| *slot = *byte);
    }

    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        let refusals = io.refusals;
        io.drain(queue, |chain, memory| self.serve(chain, memory, refusals))
    }

    fn reset(&mut self) {
        self.bounce = Vec::new();
    }
}

#[cfg(test)]
mod tests;
