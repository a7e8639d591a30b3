//! Hostile guests against the block device: what they may ask and what they never get.

use super::*;
use coffer_disk::{Anchor as _, DangerousMemoryAnchor, DiskKey, Place, Shape};
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_bindings::virtio_blk::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

const WRITE: u16 = 2;
const HEADER_AT: u64 = 0x1_0000;
const DATA_AT: u64 = 0x2_0000;
const STATUS_AT: u64 = 0x8_0000;
const BLOCKS: u64 = 8;

/// Block `n` is filled with `n`; one block may be forged, one unreadable.
struct Numbered {
    forged: Option<u64>,
    broken: Option<u64>,
}

impl BlockDevice for Numbered {
    fn blocks(&self) -> u64 {
        BLOCKS
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
            assert!(number < BLOCKS);
            if self.forged == Some(number) {
                return Err(DiskError::Corrupt(Place::Data(number)));
            }
            if self.broken == Some(number) {
                let lost = DiskError::Lost(Place::Data(number));
                return Err(if number == 0 { DiskError::StorageFull } else { lost });
            }
            block.fill(number as u8);
        }
        Ok(())
    }
}

fn memory() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    memory.write_slice(&[0xEE; 0x1000], GuestAddress(STATUS_AT)).unwrap();
    memory.write_slice(&vec![0xEE; 0x4_0000], GuestAddress(DATA_AT)).unwrap();
    memory
}

fn put_header(memory: &GuestMemoryMmap, kind: u32, sector: u64) {
    memory.write_obj(kind, GuestAddress(HEADER_AT)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER_AT + 8)).unwrap();
}

fn request(
    memory: &GuestMemoryMmap,
    disk: Numbered,
    descriptors: &[(u64, u32, u16)],
) -> Result<u32, EndReason> {
    counted(memory, disk, descriptors, &Refusals::default())
}

fn counted(
    memory: &GuestMemoryMmap,
    disk: Numbered,
    descriptors: &[(u64, u32, u16)],
    refusals: &Refusals,
) -> Result<u32, EndReason> {
    serve_counted(&mut Block::over(0, Box::new(disk)), memory, descriptors, refusals)
}

fn serve(
    disk: &mut Block,
    memory: &GuestMemoryMmap,
    descriptors: &[(u64, u32, u16)],
) -> Result<u32, EndReason> {
    serve_counted(disk, memory, descriptors, &Refusals::default())
}

fn serve_counted(
    disk: &mut Block,
    memory: &GuestMemoryMmap,
    descriptors: &[(u64, u32, u16)],
    refusals: &Refusals,
) -> Result<u32, EndReason> {
    let descriptors: Vec<RawDescriptor> = descriptors
        .iter()
        .map(|(addr, len, flags)| RawDescriptor::from(Descriptor::new(*addr, *len, *flags, 0)))
        .collect();
    let queue = MockSplitQueue::new(memory, 16);
    let chain = queue.build_desc_chain(&descriptors).unwrap();
    disk.serve(chain, memory, refusals)
}

fn ordinary(len: u32) -> Vec<(u64, u32, u16)> {
    vec![(HEADER_AT, 16, 0), (DATA_AT, len, WRITE), (STATUS_AT, 1, WRITE)]
}

const SOUND: Numbered = Numbered { forged: None, broken: None };

#[track_caller]
fn check(kind: u32, sector: u64, len: u32, status: u32, written: u32) -> GuestMemoryMmap {
    let memory = memory();
    put_header(&memory, kind, sector);
    let refusals = Refusals::default();
    assert_eq!(counted(&memory, SOUND, &ordinary(len), &refusals), Ok(written + 1));
    let refused = (status != VIRTIO_BLK_S_OK).then_some((Refusal::BlockRequest, 1));
    assert_eq!(refusals.sums(), refused.into_iter().collect());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), status as u8);
    memory
}

#[test]
fn reads_sectors_across_blocks() {
    let memory = check(VIRTIO_BLK_T_IN, 15, 1024, VIRTIO_BLK_S_OK, 1024);
    let mut data = [0; 1024];
    memory.read_slice(&mut data, GuestAddress(DATA_AT)).unwrap();
    assert!(data[..512].iter().all(|b| *b == 1) && data[512..].iter().all(|b| *b == 2));
}

#[test]
fn refuses_writes_whatever_was_negotiated() {
    check(VIRTIO_BLK_T_OUT, 0, 512, VIRTIO_BLK_S_IOERR, 0);
}

/// A device that read the rest of the block first would end the VM for it.
#[test]
fn a_write_to_what_is_for_reading_looks_at_no_block() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_OUT, 0);
    let descriptors = [(HEADER_AT, 16, 0), (DATA_AT, 512, 0), (STATUS_AT, 1, WRITE)];
    assert_eq!(request(&memory, Numbered { forged: Some(0), broken: None }, &descriptors), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), VIRTIO_BLK_S_IOERR as u8);
}

#[test]
fn refuses_what_leaves_the_disk_or_the_limits() {
    let sectors = BLOCKS * 8;
    for (sector, len) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 0),
    ] {
        check(VIRTIO_BLK_T_IN, sector, len, VIRTIO_BLK_S_IOERR, 0);
    }
    assert_eq!(Span::new(0, REQUEST_MAX + 512, u64::MAX), None);
}

#[test]
fn unknown_requests_are_unsupported() {
    check(99, 0, 512, VIRTIO_BLK_S_UNSUPP, 0);
    check(VIRTIO_BLK_T_FLUSH, 0, 512, VIRTIO_BLK_S_OK, 0);
    let memory = check(VIRTIO_BLK_T_GET_ID, 0, 20, VIRTIO_BLK_S_OK, 20);
    let mut id = [0; 20];
    memory.read_slice(&mut id, GuestAddress(DATA_AT)).unwrap();
    assert_eq!(&id[..14], b"coffer-disk-0\0");
}

#[test]
fn a_forged_block_ends_the_vm_before_any_byte_reaches_the_guest() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    let disk = Numbered { forged: Some(1), broken: None };
    let ended = request(&memory, disk, &ordinary(8192));
    assert!(matches!(ended, Err(EndReason::Refused { reject: Reject::DiskIntegrity, .. })));
    let mut data = [0; 8192];
    memory.read_slice(&mut data, GuestAddress(DATA_AT)).unwrap();
    assert!(data.iter().all(|b| *b == 0xEE));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), 0xEE);
}

#[test]
fn failing_storage_and_a_lost_block_are_errors_of_that_request() {
    for number in [0, 1] {
        let (memory, disk) = (memory(), Numbered { forged: None, broken: Some(number) });
        put_header(&memory, VIRTIO_BLK_T_IN, 8 * number);
        assert_eq!(request(&memory, disk, &ordinary(512)), Ok(1));
        let status = memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap();
        assert_eq!(status, VIRTIO_BLK_S_IOERR as u8);
    }
}

/// Bytes of a raw disk: two blocks.
const RAW: u64 = 8192;

/// A raw disk, sector `n` filled with `n`, and its file.
fn raw_disk() -> (Block, File) {
    let mut file = tempfile::tempfile().unwrap();
    (0..16).for_each(|n| file.write_all(&[n; 512]).unwrap());
    let disk =
        Block::open(0, &DiskSpec::Raw { size: RAW }, file.try_clone().unwrap(), None, silent())
            .unwrap();
    (disk, file)
}

/// Asks for a write of `len` bytes of 0xEE; the status.
#[track_caller]
fn write(disk: &mut Block, sector: u64, len: u32) -> u32 {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_OUT, sector);
    let chain = [(HEADER_AT, 16, 0), (DATA_AT, len, 0), (STATUS_AT, 1, WRITE)];
    assert_eq!(serve(disk, &memory, &chain), Ok(1));
    memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap().into()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 3 * BLOCK];
    let n = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(n);
    bytes
}

#[test]
fn a_raw_disk_keeps_what_is_written_and_gives_it_back() {
    let (mut disk, file) = raw_disk();
    assert_eq!(disk.features() & (1 << VIRTIO_BLK_F_RO), 0);
    assert_ne!(disk.features() & (1 << VIRTIO_BLK_F_FLUSH), 0);
    let mut expected = content(&file);
    // In the first block, across both, and all of the second.
    for (sector, len) in [(1, 1024), (7, 1024), (8, 4096)] {
        assert_eq!(write(&mut disk, sector, len), VIRTIO_BLK_S_OK);
        expected[sector as usize * 512..][..len as usize].fill(0xEE);
        assert!(content(&file) == expected, "{sector}");
    }
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    assert_eq!(serve(&mut disk, &memory, &ordinary(RAW as u32)), Ok(RAW as u32 + 1));
    let mut data = vec![0; RAW as usize];
    memory.read_slice(&mut data, GuestAddress(DATA_AT)).unwrap();
    assert!(data == expected);
    let mut block = [0; 4];
    disk.read_config(20, &mut block);
    assert_eq!(u32::from_le_bytes(block), 512, "as partition tables count");
    put_header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(serve(&mut disk, &memory, &ordinary(0)), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), 0);
}

#[test]
fn a_raw_disk_neither_grows_nor_takes_what_is_no_whole_sector() {
    let (mut disk, file) = raw_disk();
    let before = content(&file);
    for (sector, len) in [(16, 512), (15, 1024), (u64::MAX, 512), (0, 511), (0, 0), (0, 8704)] {
        assert_eq!(write(&mut disk, sector, len), VIRTIO_BLK_S_IOERR, "{sector} {len}");
    }
    assert_eq!(content(&file), before);
}

#[test]
fn a_raw_disk_that_became_shorter_fails_and_gives_nothing() {
    let (mut disk, file) = raw_disk();
    file.set_len(RAW - 512).unwrap();
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 7);
    assert_eq!(serve(&mut disk, &memory, &ordinary(1024)), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), VIRTIO_BLK_S_IOERR as u8);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(DATA_AT)).unwrap(), 0xEE, "nothing of it");
    // Nor is a part of a block written whose rest nobody knows.
    assert_eq!(write(&mut disk, 8, 512), VIRTIO_BLK_S_IOERR);
    assert_eq!(content(&file).len() as u64, RAW - 512);
}

#[test]
fn a_full_host_disk_is_an_error_of_that_write() {
    let mut disk = Block::over(0, Box::new(Counted { full: true, ..Counted::default() }));
    disk.activate(1 << VIRTIO_BLK_F_FLUSH);
    assert_eq!(write(&mut disk, 0, 4096), VIRTIO_BLK_S_IOERR);
}

/// Counts flushes, and writes not flushed yet; has room or not.
#[derive(Default)]
struct Counted {
    counts: Arc<(AtomicU32, AtomicU32)>,
    full: bool,
}

impl BlockDevice for Counted {
    fn blocks(&self) -> u64 {
        2
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        Ok(())
    }
    fn zero(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        self.counts.1.fetch_add(1, Ordering::Relaxed);
        if self.full { Err(DiskError::StorageFull) } else { Ok(()) }
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.counts.0.fetch_add(1, Ordering::Relaxed);
        self.counts.1.store(0, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn what_a_driver_that_never_flushes_writes_is_on_storage_when_answered() {
    let source = Counted::default();
    let counts = source.counts.clone();
    let unflushed = || counts.1.load(Ordering::Relaxed);
    let mut disk = Block::over(0, Box::new(source));
    disk.activate(0);
    assert_eq!(write(&mut disk, 0, 4096), VIRTIO_BLK_S_OK);
    assert_eq!(unflushed(), 0);
    disk.activate(1 << VIRTIO_BLK_F_FLUSH);
    assert_eq!(write(&mut disk, 8, 4096), VIRTIO_BLK_S_OK);
    assert_eq!(unflushed(), 1);
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(serve(&mut disk, &memory, &ordinary(0)), Ok(1));
    assert_eq!((unflushed(), counts.0.load(Ordering::Relaxed)), (0, 2));
}

#[test]
fn refuses_sizes_no_raw_disk_has() {
    for size in [0, 512, RAW - 4096, RAW + 4096] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(if size == 0 { 0 } else { RAW }).unwrap();
        assert!(matches!(
            Block::open(3, &DiskSpec::Raw { size }, file, None, silent()),
            Err(DiskRefused::Size(3, found)) if found == size
        ));
    }
}

#[test]
fn hostile_chains_are_returned_unserved() {
    let hostile: [&[(u64, u32, u16)]; 6] = [
        &[(HEADER_AT, 16, 0)],
        &[(HEADER_AT, 15, 0), (STATUS_AT, 1, WRITE)],
        &[(STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0), (u64::MAX, 512, WRITE), (STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0), (DATA_AT, u32::MAX, WRITE), (STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0), (DATA_AT, 512, WRITE), (STATUS_AT, 0, WRITE)],
    ];
    for chain in hostile {
        let memory = memory();
        put_header(&memory, VIRTIO_BLK_T_IN, 0);
        assert!(request(&memory, SOUND, chain).is_ok_and(|written| written <= 1), "{chain:?}");
    }
}

#[test]
fn capacity_is_in_config_and_reads_beyond_it_are_zero() {
    let block = Block::over(0, Box::new(SOUND));
    let mut capacity = [0; 8];
    block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), BLOCKS * 8);
    let mut beyond = [0; 8];
    block.read_config(usize::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

proptest! {
    #[test]
    fn any_chain_is_served_without_panic_and_within_its_buffers(
        kind in prop_oneof![Just(0u32), Just(1), Just(4), Just(8), any::<u32>()],
        sector in prop_oneof![0u64..80, any::<u64>()],
        descriptors in proptest::collection::vec(
            (prop_oneof![0u64..0x11_0000, any::<u64>()], prop_oneof![0u32..0x2000, any::<u32>()], prop_oneof![Just(0u16), Just(2), any::<u16>().prop_map(|f| f & !4)]),
            1..8,
        ),
    ) {
        let memory = memory();
        put_header(&memory, kind, sector);
        let offered: u64 = descriptors.iter().map(|d| u64::from(d.1)).sum();
        if let Ok(written) = request(&memory, SOUND, &descriptors) {
            prop_assert!(u64::from(written) <= offered);
        }
        let (mut disk, file) = raw_disk();
        let written = serve(&mut disk, &memory, &descriptors).unwrap();
        prop_assert!(u64::from(written) <= offered);
        prop_assert_eq!(content(&file).len() as u64, RAW);
    }
}

/// An encrypted disk of 16 blocks in a file; its id, and its counter.
fn sealed_disk() -> (File, String, DangerousMemoryAnchor) {
    let file = tempfile::tempfile().unwrap();
    let shape = Shape::of(16);
    file.set_len(shape.storage().unwrap()).unwrap();
    let store = FileStore::new(file.try_clone().unwrap()).unwrap();
    let anchor = DangerousMemoryAnchor::default();
    let key = DiskKey::new(&mut [7; 32]);
    let disk = Disk::create(store, anchor.clone(), &key, shape, &mut SystemEntropy).unwrap();
    (file, disk.info().id.to_string(), anchor)
}

/// The device over that disk, its key and counter kept by another thread.
fn opened(file: &File, id: &str, anchor: &DangerousMemoryAnchor) -> Result<Block, DiskRefused> {
    let (ours, keeper) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut anchor = anchor.clone();
    std::thread::spawn(move || {
        coffer_disk::serve(keeper, zeroize::Zeroizing::new([7; 32]), &mut anchor)
    });
    let spec = DiskSpec::Encrypted { id: id.into(), size: 16 * BLOCK as u64 };
    Block::open(2, &spec, file.try_clone().unwrap(), Some(ours.into()), silent())
}

#[track_caller]
fn flushed(disk: &mut Block) {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(serve(disk, &memory, &[(HEADER_AT, 16, 0), (STATUS_AT, 1, WRITE)]), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), VIRTIO_BLK_S_OK as u8);
}

#[track_caller]
fn sector(disk: &mut Block, number: u64) -> Vec<u8> {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, number);
    assert_eq!(serve(disk, &memory, &ordinary(512)), Ok(513));
    let mut data = vec![0; 512];
    memory.read_slice(&mut data, GuestAddress(DATA_AT)).unwrap();
    data
}

#[test]
fn an_encrypted_disk_keeps_what_was_flushed_and_shows_its_storage_nothing() {
    let (file, id, anchor) = sealed_disk();
    let mut disk = opened(&file, &id, &anchor).unwrap();
    assert_eq!(write(&mut disk, 9, 512), VIRTIO_BLK_S_OK);
    flushed(&mut disk);
    drop(disk);
    let mut stored = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut stored, 0).unwrap();
    assert!(!stored.windows(32).any(|window| window == [0xEE; 32]));
    let mut disk = opened(&file, &id, &anchor).unwrap();
    assert_eq!(sector(&mut disk, 9), [0xEE; 512]);
    assert_eq!(sector(&mut disk, 8), [0; 512]);
}

#[test]
fn an_encrypted_disk_put_back_is_refused_and_one_that_was_altered_ends_the_vm() {
    let (file, id, anchor) = sealed_disk();
    let mut old = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut old, 0).unwrap();
    let mut disk = opened(&file, &id, &anchor).unwrap();
    assert_eq!(write(&mut disk, 0, 4096), VIRTIO_BLK_S_OK);
    flushed(&mut disk);
    drop(disk);
    let mut new = old.clone();
    file.read_exact_at(&mut new, 0).unwrap();
    file.write_all_at(&old, 0).unwrap();
    let refused = opened(&file, &id, &anchor).err().unwrap();
    assert!(matches!(refused, DiskRefused::Disk(2, DiskError::Stale { .. })), "{refused}");
    assert_eq!(refused.broken(), None);
    // One bit of the last block that was written.
    file.write_all_at(&new, 0).unwrap();
    let mut disk = opened(&file, &id, &anchor).unwrap();
    for at in (2..new.len() / BLOCK).map(|block| block * BLOCK) {
        file.write_all_at(&[new[at] ^ 1], at as u64).unwrap();
    }
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    let ended = serve(&mut disk, &memory, &ordinary(512));
    assert!(matches!(ended, Err(EndReason::Refused { reject: Reject::DiskIntegrity, .. })));
    drop(disk);
    let refused = opened(&file, &id, &anchor).err().unwrap();
    assert!(refused.broken().is_some(), "{refused}");
}

/// Its keeper is gone: what was written is not acknowledged as durable, and nothing wrong is read.
#[test]
fn an_encrypted_disk_without_its_counter_flushes_nothing() {
    let (file, id, anchor) = sealed_disk();
    let mut other = anchor.clone();
    let mut disk = opened(&file, &id, &anchor).unwrap();
    disk.activate(1 << VIRTIO_BLK_F_FLUSH);
    assert_eq!(write(&mut disk, 0, 512), VIRTIO_BLK_S_OK);
    // Somebody else moves the counter.
    let at = other.read().unwrap();
    other.advance(at).unwrap();
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(serve(&mut disk, &memory, &[(HEADER_AT, 16, 0), (STATUS_AT, 1, WRITE)]), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), VIRTIO_BLK_S_IOERR as u8);
}

fn silent() -> coffer_disk::Tell {
    Box::new(|_| ())
}
