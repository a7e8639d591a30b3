//! A disk: an integrity disk whose storage turns bad, or a plain one that fails.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use coffer_formats::{Digest, Reject};
use coffer_image::verity::{BLOCK, Geometry, Salt, TreeSink, build_tree};
use coffer_monitor_wire::{DiskSpec, EndReason};
use coffer_vmm::virtio::block::{Block, BlockSource, Fault};
use coffer_vmm::virtio::device::VirtioDevice;
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, WRITE};
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

/// virtio-blk: what was asked for and is there, in the buffer and nowhere else, and a status byte at its end; a write is
/// refused; a bad block ends the VM, and none of it arrives; the storage is what it was.
pub struct BlockPeer {
    verity: bool,
    /// A plain disk's block that cannot be read.
    failing: Arc<AtomicU64>,
    /// An integrity disk's block that was altered.
    forged: Option<usize>,
    served: bool,
}

struct Plain(Arc<AtomicU64>);

impl BlockSource for Plain {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        for (number, block) in (first..).zip(buffer.chunks_mut(BLOCK)) {
            if number == self.0.load(Ordering::Relaxed) {
                return Err(Fault::Storage);
            }
            block.copy_from_slice(&BUILT.blob[number as usize * BLOCK..][..BLOCK]);
        }
        Ok(())
    }
}

impl BlockPeer {
    /// An integrity disk, or a plain one.
    pub fn new(verity: bool) -> Self {
        let failing = Arc::new(AtomicU64::new(NONE));
        Self { verity, failing, forged: None, served: false }
    }

    /// The device.
    pub fn device(&self) -> Box<dyn VirtioDevice> {
        if !self.verity {
            return Box::new(Block::over(7, Box::new(Plain(self.failing.clone()))));
        }
        let spec = DiskSpec::Integrity {
            data_size: SIZE as u64,
            root_hash: BUILT.root,
            salt: BUILT.salt.to_hex(),
        };
        let file = STORAGE.try_clone().expect("a descriptor");
        Box::new(Block::open(7, &spec, file).expect("a disk"))
    }

    /// The storage is what it was, but for what this altered itself.
    pub fn finish(&mut self) {
        if !std::mem::take(&mut self.served) {
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

    /// Status, and bytes of data, of a request; none if the VM has to end.
    fn answer(&self, header: &[u8], room: usize) -> Option<(u8, Vec<u8>)> {
        const OK: u8 = 0;
        const IO_ERROR: u8 = 1;
        const UNSUPPORTED: u8 = 2;
        let Some(header) = header.first_chunk::<16>() else { return Some((IO_ERROR, Vec::new())) };
        let sector = u64::from_le_bytes(*header.last_chunk().expect("eight bytes"));
        match u32::from_le_bytes(*header.first_chunk().expect("four bytes")) {
            0 => {}
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
        if !self.verity && blocks.contains(&(self.failing.load(Ordering::Relaxed) as usize)) {
            return Some((IO_ERROR, Vec::new()));
        }
        Some((OK, BUILT.blob[end - room..end].to_vec()))
    }

    fn of(&self, chain: &Chain, image: &[u8]) -> Option<(u8, Vec<u8>)> {
        let room = chain.writable.len.checked_sub(1)?;
        self.answer(&chain.readable.read(image, 16), room)
    }
}

impl Peer for BlockPeer {
    fn nature(&self) -> Nature {
        let mut config = vec![0; 24];
        config[..8].copy_from_slice(&(SIZE as u64 / SECTOR).to_le_bytes());
        config[8..12].copy_from_slice(&8192u32.to_le_bytes());
        config[12..16].copy_from_slice(&126u32.to_le_bytes());
        config[20..24].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        // Read-only; most segments, their size, and the size of a block.
        let features = [5, 2, 1, 6].iter().map(|bit| 1 << bit).sum();
        Nature { kind: 2, features, queues: &[128], config }
    }

    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory) {
        let at = slot(program);
        let kind = program.one_of(&[0, 0, 0, 8, 4, 1, 11, 13, 0xFFFF_FFFF]);
        let sector = program.value();
        memory.put(at, &[u32::to_le_bytes(kind), [0; 4], sector.to_le_bytes(), [0; 4]].concat());
        let shape = program.byte();
        let (data, len) = (0x800 + u64::from(program.byte()) * 16, u32::from(shape & 0x1F) * 512);
        let len = if shape & 0x80 != 0 { 20 } else { len };
        // In one piece or two, of which one may be ragged.
        let cut = if shape & 0x40 != 0 { len.min(program.byte().into()) } else { 0 };
        let chain = [
            (at, 16, 0),
            (data, cut, WRITE),
            (data + u64::from(cut), len - cut, WRITE),
            (at + 16, 1, WRITE),
        ];
        guest.put_chain(0, &chain, Link::Sound, memory);
    }

    fn event(&mut self, how: u8, program: &mut Program<'_>) {
        let block = usize::from(program.byte()) % (BLOCKS + 1);
        if !self.verity {
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
        let (status, data) = self.of(done.chain, done.before).expect("a bad block ends the vm");
        assert_eq!(done.used as usize, data.len() + 1, "bytes written");
        writable.write(expected, 0, &data);
        writable.write(expected, room, &[status]);
    }

    fn ended(&mut self, reason: &EndReason, waiting: &[Chain], image: &[u8]) {
        let bad = |chain: &Chain| {
            !chain.writable.astray
                && !chain.readable.astray
                && chain.writable.len > 0
                && self.of(chain, image).is_none()
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
