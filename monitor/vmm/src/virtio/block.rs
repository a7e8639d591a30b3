//! virtio-blk (virtio 1.2 section 5.2) over a disk of any kind that `coffer-disk` has.
//!
//! What it trusts: nothing below it that the kind of disk does not promise; of an integrity disk every block is checked
//! against the root hash before any byte of the request it belongs to reaches the guest.
//! What it refuses: writes to what is for reading, whatever features the driver took; requests larger than it offered;
//! and to go on after one block that is not what was promised: the VM ends with `disk-integrity`.
//! Storage that fails, or is full, is an I/O error of that request. A flush is answered when what was written before is
//! on storage; for a driver that did not take the feature, so is each write. Nothing is discarded.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use coffer_disk::{
    BLOCK, BlockDevice, Disk, DiskError, DiskId, FileStore, Integrity, Raw, RemoteAnchor,
    SystemEntropy, Tell, ToldDisk,
};
use coffer_formats::Reject;
use coffer_image::verity::Salt;
use coffer_monitor_wire::{DiskSpec, EndReason, Refusal};
use thiserror::Error;
use virtio_bindings::virtio_blk as blk;
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
const ID_SIZE: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// Why a disk cannot be served.
#[derive(Debug, Error)]
pub enum DiskRefused {
    /// The salt is not hex, or too long.
    #[error("the salt of disk {0} is not a salt")]
    Salt(usize),
    /// The size is no size of such a disk, or not that of its file.
    #[error("disk {0} cannot have {1} bytes of data")]
    Size(usize, u64),
    /// It is not what it has to be.
    #[error("disk {0}: {1}")]
    Disk(usize, DiskError),
}

impl DiskRefused {
    /// How a VM ends for it, if a promise was broken.
    pub fn broken(&self) -> Option<EndReason> {
        let Self::Disk(_, DiskError::Corrupt(_)) = self else { return None };
        Some(EndReason::Refused { reject: Reject::DiskIntegrity, detail: self.to_string() })
    }
}

/// What is below.
pub type Source = Box<dyn BlockDevice + Send>;

/// A disk.
pub struct Block {
    index: usize,
    source: Source,
    /// Grows to the largest request seen, at most [`REQUEST_MAX`] and two blocks.
    bounce: Vec<u8>,
    /// The driver asks for flushes itself.
    flushed_on_request: bool,
}

impl Block {
    /// Serves disk `index` of the spec; what fails of it, now and later, is told.
    pub fn open(
        index: usize,
        spec: &DiskSpec,
        file: File,
        anchor: Option<OwnedFd>,
        tell: Tell,
    ) -> Result<Self, DiskRefused> {
        let refused = |error| {
            tell(&error);
            DiskRefused::Disk(index, error)
        };
        let source: Source = match spec {
            DiskSpec::Integrity { data_size, root_hash, salt, ahead } => {
                let salt = Salt::from_hex(salt).ok_or(DiskRefused::Salt(index))?;
                let open = if *ahead { Integrity::ahead_of_time } else { Integrity::optimistic };
                Box::new(open(file, *data_size, *root_hash, &salt).map_err(refused)?)
            }
            DiskSpec::Encrypted { id, size } => {
                let disk = encrypted(id, file, anchor).map_err(refused)?;
                let whole = Some(disk).filter(|disk| bytes(disk) == *size);
                Box::new(whole.ok_or(DiskRefused::Size(index, *size))?)
            }
            DiskSpec::Raw { size } => {
                let disk = FileStore::new(file).and_then(Raw::new).map_err(refused)?;
                let whole = Some(disk).filter(|disk| disk.blocks() > 0 && bytes(disk) == *size);
                Box::new(whole.ok_or(DiskRefused::Size(index, *size))?)
            }
        };
        Ok(Self::over(index, Box::new(ToldDisk::new(source, tell))))
    }

    /// Serves any source as disk `index`.
    pub fn over(index: usize, source: Source) -> Self {
        Self { index, source, bounce: Vec::new(), flushed_on_request: false }
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
            Ok(()) => {
                let sent = reader.available_bytes();
                self.answer(header, (sent, &mut reader), (len, &mut data))?
            }
            Err(_) => (blk::VIRTIO_BLK_S_IOERR, 0),
        };
        if code != blk::VIRTIO_BLK_S_OK {
            refusals.count(Refusal::BlockRequest);
        }
        let _ = status.write_all(&[code as u8]);
        Ok(written + 1)
    }

    /// Status, and bytes written into the chain. `sent` and `wanted` are the data to read from it and to write into it.
    fn answer(
        &mut self,
        header: [u8; HEADER],
        sent: (usize, &mut impl Read),
        wanted: (usize, &mut impl Write),
    ) -> Result<(u32, u32), EndReason> {
        // Type, reserved, sector; little-endian.
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let (len, data) = wanted;
        let found = match u32::from_le_bytes([k0, k1, k2, k3]) {
            blk::VIRTIO_BLK_T_IN => self.read(sector, len)?,
            blk::VIRTIO_BLK_T_OUT => self.write(sector, sent.0, sent.1)?.then_some(&[][..]),
            blk::VIRTIO_BLK_T_FLUSH => {
                let done = self.source.flush();
                self.settled(done)?.then_some(&[][..])
            }
            blk::VIRTIO_BLK_T_GET_ID => (len >= ID_SIZE).then(|| self.id()),
            _ => return Ok((blk::VIRTIO_BLK_S_UNSUPP, 0)),
        };
        Ok(match found.map(|bytes| (bytes.len(), data.write_all(bytes))) {
            Some((written, Ok(()))) => (blk::VIRTIO_BLK_S_OK, written as u32),
            Some((_, Err(_))) | None => (blk::VIRTIO_BLK_S_IOERR, 0),
        })
    }

    /// Bytes of `len` from `sector`, as the disk promises them; `None` is an I/O error for the guest, `Err` ends the VM.
    fn read(&mut self, sector: u64, len: usize) -> Result<Option<&[u8]>, EndReason> {
        let Some(span) = self.span(sector, len) else { return Ok(None) };
        let Some(buffer) = self.bounce.get_mut(..span.buffer) else { return Ok(None) };
        let done = self.source.read(span.first, buffer);
        let filled = self.settled(done)?;
        Ok(self.bounce.get(span.skip..span.skip + len).filter(|_| filled))
    }

    /// True if it was written. Of a block that is written in part the rest stays as it was.
    fn write(&mut self, sector: u64, len: usize, data: &mut impl Read) -> Result<bool, EndReason> {
        // Not even read first, of a block that is written in part.
        if self.source.is_read_only() {
            return Ok(false);
        }
        let Some(span) = self.span(sector, len) else { return Ok(false) };
        let Some(buffer) = self.bounce.get_mut(..span.buffer) else { return Ok(false) };
        let whole = span.buffer == len;
        let before = if whole { Ok(()) } else { self.source.read(span.first, buffer) };
        let done = before.and_then(|()| {
            let part = buffer.get_mut(span.skip..span.skip + len).unwrap_or_default();
            data.read_exact(part).map_err(|_| DiskError::Unaligned(len))?;
            self.source.write(span.first, buffer)?;
            if self.flushed_on_request { Ok(()) } else { self.source.flush() }
        });
        self.settled(done)
    }

    /// The blocks of a request, with room for them.
    fn span(&mut self, sector: u64, len: usize) -> Option<Span> {
        let span = Span::new(sector, len, bytes(&*self.source))?;
        self.bounce.resize(self.bounce.len().max(span.buffer), 0);
        Some(span)
    }

    /// True if it was done; a broken promise ends the VM.
    fn settled(&self, done: Result<(), DiskError>) -> Result<bool, EndReason> {
        match done.map_err(|error| DiskRefused::Disk(self.index, error).broken()) {
            Err(Some(reason)) => Err(reason),
            done => Ok(done.is_ok()),
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

/// Opens an encrypted disk, whose key and counter are at the other end of `anchor`. The state of the file that counts is
/// verified as a whole.
fn encrypted(
    id: &str,
    file: File,
    anchor: Option<OwnedFd>,
) -> Result<Disk<FileStore, RemoteAnchor>, DiskError> {
    let mut disk = DiskId([0; 16]);
    hex::decode_to_slice(id, &mut disk.0).map_err(|_| DiskError::Foreign)?;
    let silent = |error: std::io::Error| DiskError::AnchorFailed(error.into());
    let anchor = anchor.ok_or_else(|| silent(std::io::ErrorKind::NotConnected.into()))?;
    let (key, anchor) = RemoteAnchor::connect(anchor.into()).map_err(silent)?;
    Disk::open(FileStore::new(file)?, anchor, &key, disk, &mut SystemEntropy)
}

fn bytes(disk: &dyn BlockDevice) -> u64 {
    disk.blocks() * BLOCK as u64
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
        let own =
            if self.source.is_read_only() { blk::VIRTIO_BLK_F_RO } else { blk::VIRTIO_BLK_F_FLUSH };
        let limits = (1 << blk::VIRTIO_BLK_F_SEG_MAX) | (1 << blk::VIRTIO_BLK_F_SIZE_MAX);
        (1 << own) | limits | (1 << blk::VIRTIO_BLK_F_BLK_SIZE)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config`: capacity at 0, size_max at 8, seg_max at 12, blk_size at 20.
    fn config(&self) -> Vec<u8> {
        // Partition tables of most disks count in sectors.
        let block = if self.source.is_read_only() { BLOCK } else { SECTOR as usize };
        let capacity = (bytes(&*self.source) / SECTOR).to_le_bytes();
        let [size, segments, block] =
            [SEGMENT_MAX, SEGMENTS_MAX, block as u32].map(u32::to_le_bytes);
        [&capacity[..], &size, &segments, &[0; 4], &block].concat()
    }

    fn activate(&mut self, features: u64) {
        self.flushed_on_request = features & (1 << blk::VIRTIO_BLK_F_FLUSH) != 0;
    }

    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        let refusals = io.refusals;
        io.drain(queue, self, |_| true, |disk, chain, memory| disk.serve(chain, memory, refusals))
    }

    fn reset(&mut self) {
        self.bounce = Vec::new();
    }
}

#[cfg(test)]
mod tests;
