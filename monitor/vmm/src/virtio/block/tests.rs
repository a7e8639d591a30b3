//! Hostile guests against the block device: what they may ask and what they never get.

use super::*;
use proptest::prelude::*;
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

impl BlockSource for Numbered {
    fn size(&self) -> u64 {
        BLOCKS * BLOCK as u64
    }
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        for (number, block) in (first..).zip(buffer.chunks_mut(BLOCK)) {
            assert!(number < BLOCKS);
            if self.forged == Some(number) {
                return Err(Fault::Integrity(format!("block {number}")));
            }
            if self.broken == Some(number) {
                return Err(Fault::Storage);
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
    let descriptors: Vec<RawDescriptor> = descriptors
        .iter()
        .map(|(addr, len, flags)| RawDescriptor::from(Descriptor::new(*addr, *len, *flags, 0)))
        .collect();
    let queue = MockSplitQueue::new(memory, 16);
    let chain = queue.build_desc_chain(&descriptors).unwrap();
    Block::over(0, Box::new(disk)).serve(chain, memory, refusals)
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
fn failing_storage_is_an_error_of_that_request() {
    let memory = memory();
    put_header(&memory, VIRTIO_BLK_T_IN, 0);
    assert_eq!(request(&memory, Numbered { forged: None, broken: Some(0) }, &ordinary(512)), Ok(1));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), VIRTIO_BLK_S_IOERR as u8);
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
    }
}
