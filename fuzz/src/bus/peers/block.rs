//! A disk: an integrity disk whose storage turns bad, a plain one that fails, or a raw one that is written to.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use coffer_disk::{BlockDevice, DiskError};
use coffer_formats::{Digest, Reject};
use coffer_image::verity::{BLOCK, Geometry, Salt, TreeSink, build_tree};
use coffer_monitor_wire::{DiskSpec, EndReason};
use coffer_vmm::virtio::block::Block;
use coffer_vmm::virtio::device::VirtioDevice;
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, Turn, WRITE};
use super::slot;

/// Data blocks: fewer than guest memory holds, so that the whole disk can be asked for.
const BLOCKS: usize = 3;
const SIZE: usize = BLOCKS * BLOCK;
const SECTOR: u64 = 512;
/// No block.
const NONE: u64 = u64::MAX;
/// The most that one request may carry: a queue less header and status, of segments of 8 KiB.
const REQUEST_MAX: usize = 126 * 8192;

struct Built {
    blob: Vec<u8>,
    root: Digest,
    salt: Salt,
}

struct Blob(Mutex<Vec<u8>>);

impl TreeSink for Blob {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> std::io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..BLOCK].copy_from_slice(block);
        Ok(())
    }
}

static BUILT: LazyLock<Built> = LazyLock::new(|| {
    // No sector is like another.
    let data: Vec<u8> = (0..SIZE).map(|n| (n ^ (n >> 8)) as u8 | 1).collect();
    let geometry = Geometry::new(SIZE as u64).unwrap();
    let salt = Salt::new(&[9; 32]).unwrap();
    let mut blob = data.clone();
    blob.resize(geometry.blob_size() as usize, 0);
    let sink = Blob(Mutex::new(blob));
    let root = build_tree(&data[..], &geometry, &salt, &sink, 1).unwrap();
    Built { blob: sink.0.into_inner().unwrap(), root, salt }
});

/// The storage of integrity disks; put right again after each execution.
static STORAGE: LazyLock<File> = LazyLock::new(|| {
    let mut file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&BUILT.blob).unwrap();
    file
});

/// The storage of raw disks; put right again after each execution.
static RAW: LazyLock<File> = LazyLock::new(|| {
    let mut file = File::from(memfd_create("raw", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&BUILT.blob[..SIZE]).unwrap();
    file
});

/// Which disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Verified; its storage may turn bad.
    Integrity,
    /// For reading, without promise; its storage may fail.
    Plain,
    /// Written to.
    Raw,
}

/// virtio-blk: what was asked for and is there, in the buffer and nowhere else, and a status byte at its end; a raw disk
/// holds what was written and nothing else, others what they held; a bad block ends the VM, and none of it arrives.
pub struct BlockPeer {
    kind: Kind,
    /// What a raw disk holds.
    written: Vec<u8>,
    /// A plain disk's block that cannot be read.
    failing: Arc<AtomicU64>,
    /// An integrity disk's block that was altered.
    forged: Option<usize>,
    served: bool,
}

struct Plain(Arc<AtomicU64>);

impl BlockDevice for Plain {
    fn blocks(&self) -> u64 {
        BLOCKS as u64
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        for (number, block) in (first..).zip(buffer.chunks_mut(BLOCK)) {
            if number == self.0.load(Ordering::Relaxed) {
                return Err(DiskError::StorageFull);
            }
            block.copy_from_slice(&BUILT.blob[number as usize * BLOCK..][..BLOCK]);
        }
        Ok(())
    }
}

impl BlockPeer {
    /// A disk of that kind.
    pub fn new(kind: Kind) -> Self {
        let failing = Arc::new(AtomicU64::new(NONE));
        let written = BUILT.blob[..SIZE].to_vec();
        Self { kind, written, failing, forged: None, served: false }
    }

    /// The device.
    pub fn device(&self) -> Box<dyn VirtioDevice> {
        let (spec, file) = match self.kind {
            Kind::Plain => {
                return Box::new(Block::over(7, Box::new(Plain(self.failing.clone()))));
            }
            Kind::Raw => (DiskSpec::Raw { size: SIZE as u64 }, &*RAW),
            Kind::Integrity => {
                let (root_hash, salt) = (BUILT.root, BUILT.salt.to_hex());
                (
                    DiskSpec::Integrity { data_size: SIZE as u64, root_hash, salt, ahead: false },
                    &*STORAGE,
                )
            }
        };
        let file = file.try_clone().expect("a descriptor");
        Box::new(Block::open(7, &spec, file, None, Box::new(|_| ())).expect("a disk"))
    }

    /// A raw disk's storage.
    fn stored() -> Vec<u8> {
        let mut held = vec![0; SIZE + 1];
        assert_eq!(RAW.read_at(&mut held, 0).expect("a memory file"), SIZE, "it grew or shrank");
        held.pop();
        held
    }

    /// The storage is what it was, but for what this altered itself.
    pub fn finish(&mut self) {
        if !std::mem::take(&mut self.served) {
            return;
        }
        if self.kind == Kind::Raw {
            assert!(Self::stored() == self.written, "not what was written");
            RAW.write_all_at(&BUILT.blob[..SIZE], 0).expect("a memory file");
            return;
        }
        let mut blob = vec![0; BUILT.blob.len() + 1];
        assert_eq!(STORAGE.read_at(&mut blob, 0).expect("a memory file"), BUILT.blob.len());
        blob.pop();
        if let Some(block) = self.forged.take() {
            blob[block * BLOCK] ^= 1;
            STORAGE.write_all_at(&blob, 0).expect("a memory file");
        }
        assert!(blob == BUILT.blob, "the storage was written to");
    }

    /// Status, and bytes of data, of a request; none if the VM has to end. What it writes to a raw disk goes to `written`.
    fn answer(
        &self,
        header: &[u8],
        data: &[u8],
        room: usize,
        written: &mut Vec<u8>,
    ) -> Option<(u8, Vec<u8>)> {
        const OK: u8 = 0;
        const IO_ERROR: u8 = 1;
        const UNSUPPORTED: u8 = 2;
        let Some(header) = header.first_chunk::<16>() else { return Some((IO_ERROR, Vec::new())) };
        let sector = u64::from_le_bytes(*header.last_chunk().expect("eight bytes"));
        let request = u32::from_le_bytes(*header.first_chunk().expect("four bytes"));
        let room = if request == 1 { data.len() } else { room };
        match request {
            0 => {}
            1 if self.kind == Kind::Raw => {}
            1 => return Some((IO_ERROR, Vec::new())),
            4 => return Some((OK, Vec::new())),
            8 if room < 20 => return Some((IO_ERROR, Vec::new())),
            8 => return Some((OK, b"coffer-disk-7\0\0\0\0\0\0\0".to_vec())),
            _ => return Some((UNSUPPORTED, Vec::new())),
        }
        let end = sector.checked_mul(SECTOR).and_then(|start| start.checked_add(room as u64));
        let Some(end) = end.filter(|end| *end <= SIZE as u64).map(|end| end as usize) else {
            return Some((IO_ERROR, Vec::new()));
        };
        if room == 0 || room > REQUEST_MAX || !room.is_multiple_of(SECTOR as usize) {
            return Some((IO_ERROR, Vec::new()));
        }
        let blocks = (end - room) / BLOCK..end.div_ceil(BLOCK);
        if self.forged.is_some_and(|block| blocks.contains(&block)) {
            return None;
        }
        let failing = self.failing.load(Ordering::Relaxed) as usize;
        if self.kind == Kind::Plain && blocks.contains(&failing) {
            return Some((IO_ERROR, Vec::new()));
        }
        if request == 1 {
            written[end - room..end].copy_from_slice(data);
            return Some((OK, Vec::new()));
        }
        match self.kind {
            Kind::Raw => Some((OK, written[end - room..end].to_vec())),
            Kind::Integrity | Kind::Plain => Some((OK, BUILT.blob[end - room..end].to_vec())),
        }
    }

    fn of(&self, chain: &Chain, image: &[u8], written: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
        let room = chain.writable.len.checked_sub(1)?;
        let sent = chain.readable.read(image, 16 + REQUEST_MAX + 1);
        let (header, data) = sent.split_at(sent.len().min(16));
        self.answer(header, data, room, written)
    }
}

impl Peer for BlockPeer {
    fn nature(&self) -> Nature {
        let mut config = vec![0; 24];
        config[..8].copy_from_slice(&(SIZE as u64 / SECTOR).to_le_bytes());
        config[8..12].copy_from_slice(&8192u32.to_le_bytes());
        config[12..16].copy_from_slice(&126u32.to_le_bytes());
        let raw = self.kind == Kind::Raw;
        let block = if raw { 512 } else { BLOCK as u32 };
        config[20..24].copy_from_slice(&block.to_le_bytes());
        // Flushes, or read-only; most segments, their size, and the size of a block.
        let own = if raw { 9 } else { 5 };
        let features = [own, 2, 1, 6].iter().map(|bit| 1 << bit).sum();
        Nature { kind: 2, features, queues: &[128], config }
    }

    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory) {
        let at = slot(program);
        let kind = program.one_of(&[0, 0, 1, 8, 4, 1, 11, 13, 0xFFFF_FFFF]);
        let sector = program.value();
        memory.put(at, &[u32::to_le_bytes(kind), [0; 4], sector.to_le_bytes(), [0; 4]].concat());
        let shape = program.byte();
        let (data, len) = (0x800 + u64::from(program.byte()) * 16, u32::from(shape & 0x1F) * 512);
        let len = if shape & 0x80 != 0 { 20 } else { len };
        // In one piece or two, of which one may be ragged.
        let cut = if shape & 0x40 != 0 { len.min(program.byte().into()) } else { 0 };
        // What is to be written is for the device to read, or the guest forgot.
        let way = if kind == 1 && shape & 0x20 == 0 { 0 } else { WRITE };
        let chain = [
            (at, 16, 0),
            (data, cut, way),
            (data + u64::from(cut), len - cut, way),
            (at + 16, 1, WRITE),
        ];
        guest.put_chain(0, &chain, Link::Sound, memory);
    }

    fn event(&mut self, how: u8, program: &mut Program<'_>) {
        let block = usize::from(program.byte()) % (BLOCKS + 1);
        if self.kind != Kind::Integrity {
            let failing = if block < BLOCKS { block as u64 } else { NONE };
            self.failing.store(failing, Ordering::Relaxed);
        } else if self.forged.is_none() && how & 4 != 0 && block < BLOCKS {
            let at = block * BLOCK;
            STORAGE.write_all_at(&[BUILT.blob[at] ^ 1], at as u64).expect("a memory file");
            (self.forged, self.served) = (Some(block), true);
        }
    }

    fn completed(&mut self, done: &Completed<'_>, expected: &mut [u8]) {
        self.served = true;
        let Chain { readable, writable, .. } = done.chain;
        let Some(room) = writable.len.checked_sub(1) else { return assert_eq!(done.used, 0) };
        if readable.astray || writable.astray {
            return assert_eq!(done.used, 0, "a chain that is not all memory");
        }
        let mut disk = std::mem::take(&mut self.written);
        let answer = self.of(done.chain, done.before, &mut disk);
        self.written = disk;
        let (status, data) = answer.expect("a bad block ends the vm");
        assert_eq!(done.used as usize, data.len() + 1, "bytes written");
        writable.write(expected, 0, &data);
        writable.write(expected, room, &[status]);
    }

    fn turn_over(&mut self, turn: &Turn) {
        // Nobody knows what it was asked for.
        if turn.live && !turn.known && self.kind == Kind::Raw {
            (self.written, self.served) = (Self::stored(), true);
        }
    }

    fn ended(&mut self, reason: &EndReason, waiting: &[Chain], image: &[u8]) {
        let bad = |chain: &Chain| {
            !chain.writable.astray
                && !chain.readable.astray
                && chain.writable.len > 0
                && self.of(chain, image, &mut Vec::new()).is_none()
        };
        assert!(waiting.first().is_some_and(bad), "no bad block was asked for: {reason:?}");
        assert!(matches!(reason, EndReason::Refused { reject: Reject::DiskIntegrity, .. }));
    }

    fn may_rest(&self, waiting: &[usize]) -> bool {
        waiting[0] == 0
    }

    fn renew(&mut self, _: bool) -> Box<dyn VirtioDevice> {
        self.device()
    }
}
