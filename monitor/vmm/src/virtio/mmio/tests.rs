//! The status machine and the register file against drivers that keep to no order.

use super::*;
use crate::devices::bus::harness;
use coffer_machine::RamRange;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

const RING: u64 = 0x1000;

/// Counts what the transport does with it.
#[derive(Default)]
struct Counts {
    kicks: AtomicUsize,
    activations: AtomicUsize,
    resets: AtomicUsize,
}

struct Probe(Arc<Counts>);

impl VirtioDevice for Probe {
    fn kind(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.iter_mut()
            .zip([1, 2, 3, 4].iter().skip(offset))
            .for_each(|(slot, byte)| *slot = *byte);
    }
    fn activate(&mut self) {
        self.0.activations.fetch_add(1, Ordering::SeqCst);
    }
    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.0.kicks.fetch_add(1, Ordering::SeqCst);
        io.drain(queue, |_, _| Ok(0))
    }
    fn backend_ready(&mut self, _: &mut Queues<'_>) -> Result<Pace, EndReason> {
        Ok(Pace::More)
    }
    fn reset(&mut self) {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn plugged() -> (VirtioMmio, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let memory = GuestRam::allocate(&[RamRange { start: 0, size: 1 << 20 }]).unwrap();
    let bell = || Doorbell::new().unwrap();
    let (kicks, refusals) = (vec![bell(), bell()], Refusals::default());
    let slot = Slot { memory, line: bell(), kicks, refusals };
    let device = VirtioMmio::new(Box::new(Probe(counts.clone())), slot).unwrap();
    device.start();
    (device, counts)
}

fn read(device: &VirtioMmio, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(device: &VirtioMmio, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

fn agree(device: &VirtioMmio) {
    write(device, 0x70, 1);
    write(device, 0x70, 3);
    write(device, 0x24, 1);
    write(device, 0x20, 1); // VERSION_1
    write(device, 0x70, 11);
    assert_eq!(read(device, 0x70), 11);
}

fn describe(device: &VirtioMmio, queue: u32, base: u64) {
    write(device, 0x30, queue);
    write(device, 0x38, 8);
    for (offset, address) in [(0x80, base), (0x90, base + 0x400), (0xA0, base + 0x800)] {
        write(device, offset, address as u32);
        write(device, offset + 4, (address >> 32) as u32);
    }
    write(device, 0x44, 1);
}

fn run(device: &VirtioMmio) {
    agree(device);
    describe(device, 0, RING);
    describe(device, 1, 2 * RING);
    write(device, 0x70, 15);
    assert_eq!(read(device, 0x70), 15);
}

#[test]
fn a_driver_that_follows_the_rules_gets_a_running_device() {
    let (device, counts) = plugged();
    assert_eq!((read(&device, 0), read(&device, 4), read(&device, 8)), (0x7472_6976, 2, 42));
    run(&device);
    assert_eq!(counts.activations.load(Ordering::SeqCst), 1);
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 1);
}

#[test]
fn features_not_offered_are_not_agreed() {
    let (device, _) = plugged();
    write(&device, 0x70, 1);
    write(&device, 0x70, 3);
    write(&device, 0x24, 1);
    write(&device, 0x20, 1 | (1 << 2));
    write(&device, 0x70, 11);
    assert_eq!(read(&device, 0x70), 3);
}

#[test]
fn a_legacy_driver_is_refused() {
    let (device, _) = plugged();
    write(&device, 0x70, 1);
    write(&device, 0x70, 3);
    write(&device, 0x70, 11);
    assert_eq!(read(&device, 0x70), 3, "no VERSION_1");
}

#[test]
fn queues_outside_memory_need_a_reset() {
    let (device, counts) = plugged();
    agree(&device);
    describe(&device, 0, 0xFFFF_FFFF_FFFF_F000);
    write(&device, 0x70, 15);
    assert_eq!(read(&device, 0x70), 11 | status::NEEDS_RESET);
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(
        (counts.activations.load(Ordering::SeqCst), counts.kicks.load(Ordering::SeqCst)),
        (0, 0)
    );
    write(&device, 0x70, 0);
    run(&device);
}

#[test]
fn a_running_queue_cannot_be_changed() {
    let (device, _) = plugged();
    run(&device);
    let before = format!("{:?}", live(&device));
    describe(&device, 0, 0x4000);
    write(&device, 0x44, 0);
    assert_eq!(format!("{:?}", live(&device)), before);
    assert_eq!(read(&device, 0x44), 1);
}

fn live(device: &VirtioMmio) -> Vec<(u16, u64)> {
    match &device.lock().queues {
        QueueState::Active(queues) => {
            queues.iter().flatten().map(|q| (q.size(), q.desc_table())).collect()
        }
        QueueState::Configuring(_) => panic!("not active"),
    }
}

#[test]
fn queues_are_described_only_between_features_and_start() {
    let (device, _) = plugged();
    describe(&device, 0, RING);
    assert_eq!(read(&device, 0x44), 0);
}

#[test]
fn a_ring_full_of_lies_ends_the_turn() {
    let (device, counts) = plugged();
    run(&device);
    use vm_memory::{Bytes, GuestAddress};
    // Available index far ahead of anything described.
    device.memory.view().write_obj(0xFFFFu16, GuestAddress(RING + 0x400 + 2)).unwrap();
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 1);
}

#[test]
fn a_paused_device_serves_nothing() {
    let (device, counts) = plugged();
    run(&device);
    device.pause();
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 0);
    device.start();
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 1);
}

#[test]
fn more_from_the_backend_is_served_though_it_calls_no_more() {
    let (device, _) = plugged();
    run(&device);
    device.kicks().iter().for_each(|bell| assert!(bell.clear()));
    device.serve(Signal::Backend).unwrap();
    assert!(device.kicks().iter().all(Doorbell::clear));
}

#[test]
fn a_device_the_driver_gave_up_on_forgets_it() {
    let (device, counts) = plugged();
    run(&device);
    write(&device, 0x70, 15 | status::FAILED);
    assert_eq!(counts.resets.load(Ordering::SeqCst), 1);
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 0);
}

#[test]
fn interrupt_reasons_stay_until_acknowledged() {
    let (device, _) = plugged();
    device.interrupt.used_buffer();
    assert_eq!(read(&device, 0x60), 1);
    write(&device, 0x64, 1);
    assert_eq!(read(&device, 0x60), 0);
}

proptest! {
    #[test]
    fn any_access_is_answered(accesses in harness::accesses(0x1000)) {
        let (device, _) = plugged();
        harness::perform(&device, &accesses);
        for signal in [Signal::Kick(0), Signal::Kick(1), Signal::Kick(9), Signal::Backend] {
            device.serve(signal).unwrap();
        }
    }

    /// The same from a running device, with aligned writes to the registers that matter.
    #[test]
    fn a_running_device_survives_any_writes(
        writes in proptest::collection::vec((0u64..0x40, any::<u32>()), 0..40),
        ring in proptest::collection::vec(any::<u8>(), 0x900),
    ) {
        use vm_memory::{Bytes, GuestAddress};
        let (device, _) = plugged();
        run(&device);
        device.memory.view().write_slice(&ring, GuestAddress(RING)).unwrap();
        for (register, value) in writes {
            write(&device, register * 4, value);
            device.serve(Signal::Kick(0)).unwrap();
        }
    }
}

#[test]
fn what_is_refused_is_counted_as_what_it_is() {
    use Refusal::{ConfigWrite, QueueFrozen, QueueShape, RegisterAccess, Status};
    let (device, _) = plugged();
    run(&device);
    read(&device, 0x70);
    device.read(CONFIG + 1, &mut [0]);
    assert_eq!(device.refusals.take_news(), None, "a polite driver was refused something");
    #[track_caller]
    fn check(device: &VirtioMmio, act: impl FnOnce(&VirtioMmio), expected: Refusal) {
        let before = device.refusals.sums().get(&expected).copied().unwrap_or_default();
        act(device);
        let counts = device.refusals.take_news().unwrap_or_default();
        assert_eq!(counts.get(&expected), Some(&(before + 1)), "{counts:?}");
    }
    check(&device, |d| write(d, 0x80, 0), QueueFrozen);
    check(&device, |d| write(d, 0x70, 3), Status);
    check(&device, |d| write(d, CONFIG, 1), ConfigWrite);
    check(&device, |d| d.write(CONFIG + 7, &[1]), ConfigWrite);
    check(&device, |d| d.read(0x70, &mut [0; 8]), RegisterAccess);
    check(&device, |d| d.read(0x71, &mut [0; 4]), RegisterAccess);
    check(&device, |d| d.write(0x70, &[0]), RegisterAccess);
    check(&device, |d| write(d, 0x08, 1), RegisterAccess);
    write(&device, 0x70, 0);
    check(&device, |d| write(d, 0x44, 1), QueueFrozen);
    agree(&device);
    for size in [0, 3, 0x8000, 0x1_0000] {
        check(&device, |d| write(d, 0x38, size), QueueShape);
    }
    write(&device, 0x30, 2);
    check(&device, |d| write(d, 0x44, 1), QueueShape);
    describe(&device, 0, 0xFFFF_FFFF_FFFF_F000);
    check(&device, |d| write(d, 0x70, 15), QueueShape);
    check(&device, |d| write(d, 0x70, 15), Status);
}

#[test]
fn rings_and_chains_that_lie_are_counted() {
    use vm_memory::{Bytes, GuestAddress};
    let (device, _) = plugged();
    let offer = |next: u16, index: u16| {
        write(&device, 0x70, 0);
        run(&device);
        let memory = device.memory.view();
        // One readable descriptor that says another follows, or not.
        let descriptor = [&RING.to_le_bytes()[..], &[16, 0, 0, 0, 1, 0], &next.to_le_bytes()];
        let flags: u16 = if next == u16::MAX { 0 } else { 1 };
        memory.write_slice(&descriptor.concat(), GuestAddress(RING)).unwrap();
        memory.write_obj(flags, GuestAddress(RING + 12)).unwrap();
        memory.write_obj(0u16, GuestAddress(RING + 0x400 + 4)).unwrap();
        memory.write_obj(index, GuestAddress(RING + 0x400 + 2)).unwrap();
        memory.write_obj(0u16, GuestAddress(RING + 0x800 + 2)).unwrap();
        device.serve(Signal::Kick(0)).unwrap();
        device.refusals.take_news().unwrap_or_default()
    };
    assert!(offer(u16::MAX, 1).is_empty());
    assert_eq!(offer(0, 1), [(Refusal::Chain, 1)].into());
    assert_eq!(offer(9, 1), [(Refusal::Chain, 2)].into());
    assert_eq!(offer(u16::MAX, 9).get(&Refusal::Ring), Some(&1));
}
