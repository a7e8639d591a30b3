//! States of devices that somebody edited: refused, or taken by a device that then answers every access and serves every
//! signal, and writes down a state that is taken again and is the same.
#![no_main]

use std::time::Duration;

use coffer_fuzz::bus::{
    BlockPeer, HIGH, Kind, Memory, NetPeer, Program, RngPeer, VsockPeer, ignore_broken_pipes,
    with_memory,
};
use coffer_fuzz::edited;
use coffer_machine::{Doorbell, GuestRam};
use coffer_vmm::devices::bus::Registers;
use coffer_vmm::devices::lifecycle::{Lifecycle, Paused};
use coffer_vmm::devices::serial::SerialPort;
use coffer_vmm::devices::tpm_crb::{TpmBackend, TpmCrb};
use coffer_vmm::refusals::Refusals;
use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::mmio::{Signal, Slot, VirtioMmio};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    ignore_broken_pipes();
    let mut program = Program::new(data);
    let which = program.byte() % 6;
    with_memory(|memory| match which {
        0 => virtio(&|| BlockPeer::new(Kind::Raw).device(), &mut program, memory),
        1 => virtio(&|| NetPeer::new(0).device(), &mut program, memory),
        2 => virtio(&|| VsockPeer::default().device(), &mut program, memory),
        3 => virtio(&|| RngPeer.device(), &mut program, memory),
        4 => drop(go_on(&|| tpm(memory.ram()), 0x1000, &mut program)),
        _ => {
            let mut from = serial();
            // Something that was received.
            from.write(4, &[0x10]);
            from.write(0, program.bytes(8));
            let state = Paused::new(&from).save();
            from = serial();
            Paused::new(&from).restore(&state).expect("what was saved");
            drop(go_on_from(from, &serial, 8, &mut program));
        }
    });
});

/// A virtio device as its driver left it in one of several states, and signals to the one that goes on.
fn virtio(
    device: &dyn Fn() -> Box<dyn VirtioDevice>,
    program: &mut Program<'_>,
    memory: &mut Memory,
) {
    let ram = memory.ram();
    let fresh = || plug(device(), ram.clone());
    let saved = fresh();
    let steps = program.byte();
    set_up(&saved, steps);
    let rings = program.bytes(16);
    (0..3).for_each(|queue| memory.put(HIGH + queue * 0x200 + 0x100, rings));
    let Some(device) = go_on_from(saved, &fresh, 0x200, program) else { return };
    device.start();
    let queues = 0..device.kicks().len();
    for signal in queues.map(Signal::Kick).chain([Signal::Backend]) {
        // Any end of the VM is one; that it is the right one is other targets' to say.
        let _ = device.serve(signal);
    }
}

fn set_up(device: &VirtioMmio, steps: u8) {
    let mut writes = vec![(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
    for queue in 0..3 {
        let base = HIGH as u32 + queue * 0x200;
        writes.extend([(0x30, queue), (0x38, 16), (0x80, base), (0x90, base + 0x100)]);
        let high = (HIGH >> 32) as u32;
        writes.extend([(0xA0, base + 0x140), (0x84, high), (0x94, high), (0xA4, high), (0x44, 1)]);
    }
    writes.extend([(0x70, 15), (0x70, 128)]);
    for (register, value) in writes.into_iter().take(usize::from(steps & 0x3F)) {
        device.write(register, &u32::to_le_bytes(value));
    }
}

fn plug(device: Box<dyn VirtioDevice>, memory: GuestRam) -> VirtioMmio {
    let bell = || Doorbell::new().expect("an eventfd");
    let kicks = device.queue_sizes().iter().map(|_| bell()).collect();
    VirtioMmio::new(device, Slot { memory, line: bell(), kicks, refusals: Refusals::default() })
        .expect("a device")
}

struct Silent;

impl TpmBackend for Silent {
    fn send(&mut self, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }

    fn receive(&mut self, _: Duration) -> std::io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

fn tpm(memory: GuestRam) -> TpmCrb {
    TpmCrb::with_worker(Box::new(Silent), memory, Duration::ZERO).0
}

fn serial() -> SerialPort {
    let (line, sink) = (Doorbell::new().expect("an eventfd"), Box::new(std::io::sink()));
    let clock = Box::new(|| Duration::ZERO);
    SerialPort::new(line, sink, clock, None, Refusals::default()).expect("a port")
}

fn go_on<T: Lifecycle + Registers>(
    fresh: &dyn Fn() -> T,
    window: u64,
    program: &mut Program<'_>,
) -> Option<T> {
    go_on_from(fresh(), fresh, window, program)
}

/// The device that took the edited state of `saved`, after accesses to all its registers.
fn go_on_from<T: Lifecycle + Registers>(
    saved: T,
    fresh: &dyn Fn() -> T,
    window: u64,
    program: &mut Program<'_>,
) -> Option<T> {
    let state = renumbered(&Paused::new(&saved).save(), program);
    let state = edited(&state, program.bytes(12));
    let device = fresh();
    let paused = Paused::new(&device);
    if paused.restore(&state).is_err() {
        let untouched = Paused::new(&fresh()).save();
        assert!(paused.save() == untouched, "a refusal leaves something");
        return None;
    }
    let written = paused.save();
    let again = fresh();
    Paused::new(&again).restore(&written).expect("what was taken once");
    assert!(Paused::new(&again).save() == written, "another state");
    (0..window).step_by(4).for_each(|at| device.read(at, &mut [0; 4][..window.min(4) as usize]));
    Some(device)
}

/// Some of the numbers of a state, replaced by others.
fn renumbered(state: &[u8], program: &mut Program<'_>) -> Vec<u8> {
    let mut text = String::from_utf8(state.to_vec()).expect("JSON");
    for _ in 0..program.byte() & 3 {
        let ends = |text: &str| -> Vec<(usize, usize)> {
            let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
            let start = text.as_ptr() as usize;
            digits.map(|part| (part.as_ptr() as usize - start, part.len())).collect()
        };
        let (at, len) = program.one_of(&ends(&text));
        let number = match program.byte() {
            0 => u64::MAX,
            1 => 1 << 32,
            2 => HIGH + 0x2000,
            3 => HIGH + u64::from(program.half()),
            small => u64::from(small) - 4 << (small & 7),
        };
        text.replace_range(at..at + len, &number.to_string());
    }
    text.into_bytes()
}
