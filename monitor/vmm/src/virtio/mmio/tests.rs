//! The status machine and the register file against drivers that keep to no order.

use super::*;
use crate::devices::bus::harness;
use crate::devices::lifecycle::harness::{altered, takes_only_its_own_state};
use coffer_machine::RamRange;
use proptest::prelude::*;
use std::sync::Arc;
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
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4]
    }
    fn activate(&mut self, _features: u64) {
        self.0.activations.fetch_add(1, Ordering::SeqCst);
    }
    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.0.kicks.fetch_add(1, Ordering::SeqCst);
        io.drain(queue, self, |_| true, |_, _, _| Ok(0))
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
    device.interrupt.raise(Interrupt::USED_BUFFER);
    assert_eq!(read(&device, 0x60), 1);
    write(&device, 0x64, 1);
    assert_eq!(read(&device, 0x60), 0);
}

#[test]
fn a_state_is_taken_as_it_was_written_and_not_otherwise() {
    let (device, _) = plugged();
    takes_only_its_own_state(&device);
    run(&device);
    takes_only_its_own_state(&device);
}

#[test]
fn no_state_leads_where_no_driver_could() {
    let (running, _) = plugged();
    run(&running);
    let refused = |from: &str, to: &str, what| {
        let (into, counts) = plugged();
        let outcome = altered(&running, &into, from, to);
        assert_eq!(outcome, Err(StateRefused::Impossible(what)), "{from} -> {to}");
        assert_eq!(counts.activations.load(Ordering::SeqCst), 0);
        assert_eq!((read(&into, 0x70), read(&into, 0x44)), (0, 0), "as after a reset");
        run(&into);
    };
    refused("\"kind\":42", "\"kind\":2", "kind");
    for status in ["7", "14", "16", "31", "79", "256", "4294967295"] {
        refused("\"status\":15", &format!("\"status\":{status}"), "status");
    }
    // Queues that are begun, and nobody who has begun them.
    let begun = "\"next_avail\":7";
    let (used, _) = plugged();
    run(&used);
    let text = String::from_utf8(used.lock().saved(0).encode()).unwrap();
    let state =
        text.replacen("\"status\":15", "\"status\":11", 1).replacen("\"next_avail\":0", begun, 1);
    let refusal = crate::devices::lifecycle::Paused::new(&plugged().0).restore(state.as_bytes());
    assert_eq!(refusal, Err(StateRefused::Impossible("queue")));
    for features in ["0", "4294967300", "18446744073709551615"] {
        let to = format!("\"driver_features\":{features}");
        refused("\"driver_features\":4294967296", &to, "driver_features");
    }
    refused("\"interrupt\":0", "\"interrupt\":4", "interrupt");
    refused("\"queues\":[", "\"queues\":[null,", "queues");
    refused("\"ready\":true", "\"ready\":false", "queue");
    for size in ["0", "3", "32", "65535"] {
        refused("\"size\":8", &format!("\"size\":{size}"), "queue");
    }
    refused("\"desc_table\":4096", "\"desc_table\":4097", "queue");
    for ring in ["desc_table\":4096", "avail_ring\":5120", "used_ring\":6144"] {
        let (name, _) = ring.split_once(':').unwrap();
        // At the end of memory, beyond it, and around the end of addresses.
        for place in [(1u64 << 20) - 16, 1 << 20, u64::MAX - 15] {
            refused(ring, &format!("{name}:{place}"), "place of a queue");
        }
    }
}

#[test]
fn a_restored_queue_is_as_frozen_as_the_one_that_was_saved() {
    let (device, counts) = plugged();
    let (old, _) = plugged();
    run(&old);
    altered(&old, &device, "", "").unwrap();
    assert_eq!(counts.activations.load(Ordering::SeqCst), 1);
    let before = format!("{:?}", live(&device));
    describe(&device, 0, 0x4000);
    assert_eq!(format!("{:?}", live(&device)), before);
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 0, "not before it is started");
    device.start();
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 1);
}

#[test]
fn a_device_its_driver_gave_up_on_stays_given_up() {
    let (old, _) = plugged();
    run(&old);
    write(&old, 0x70, 15 | status::FAILED);
    let (device, counts) = plugged();
    altered(&old, &device, "", "").unwrap();
    device.start();
    device.serve(Signal::Kick(0)).unwrap();
    assert_eq!(
        (counts.activations.load(Ordering::SeqCst), counts.kicks.load(Ordering::SeqCst)),
        (0, 0)
    );
    assert_eq!(read(&device, 0x70), 15 | status::FAILED);
}

proptest! {
    /// Whatever is taken, the device that took it answers and serves, and writes the same again.
    #[test]
    fn any_state_that_is_taken_is_one_to_go_on_from(
        status in prop_oneof![Just(0u32), Just(3), Just(11), Just(15), Just(15 | 128), any::<u32>()],
        features in prop_oneof![Just(1u64 << 32), Just(1 << 32 | 1 << 29), any::<u64>()],
        queues in proptest::collection::vec(proptest::option::of((
            any::<bool>(),
            prop_oneof![Just(8u16), any::<u16>()],
            (any::<u16>(), any::<u16>()),
            [prop_oneof![0u64..0x11_0000, any::<u64>()], prop_oneof![0u64..0x11_0000, any::<u64>()], prop_oneof![0u64..0x11_0000, any::<u64>()]],
        )), 0..4),
        ring in proptest::collection::vec(any::<u8>(), 0x900),
    ) {
        use crate::devices::lifecycle::Paused;
        use vm_memory::{Bytes, GuestAddress};
        let queues = queues.into_iter().map(|queue| queue.map(|(ready, size, (next_avail, next_used), [desc_table, avail_ring, used_ring])| {
            let (desc_table, avail_ring, used_ring) = (desc_table & !15, avail_ring & !1, used_ring & !3);
            let (max_size, event_idx_enabled) = (0, false);
            SavedQueue(virtio_queue::QueueState { max_size, event_idx_enabled, ready, size, next_avail, next_used, desc_table, avail_ring, used_ring })
        })).collect();
        let saved = Saved { kind: 42, status, device_features_select: 7, driver_features_select: 1, driver_features: features, queue_select: 1, interrupt: 1, queues };
        let (device, _) = plugged();
        device.memory.view().write_slice(&ring, GuestAddress(RING)).unwrap();
        let paused = Paused::new(&device);
        let state = saved.encode();
        if paused.restore(&state).is_ok() {
            prop_assert_eq!(paused.save(), state);
        }
        paused.start();
        for signal in [Signal::Kick(0), Signal::Kick(1), Signal::Backend] {
            device.serve(signal).unwrap();
        }
    }

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
