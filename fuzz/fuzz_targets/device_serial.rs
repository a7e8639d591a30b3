//! The serial port: what comes out is what the guest transmitted, in order and nothing else but the mark where a reader was
//! gone; what comes in is what was typed, when the guest has read all before, or what it sends itself; at most a line is
//! held back.
#![no_main]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coffer_fuzz::bus::{Place, Program, STEPS_MAX};
use coffer_machine::{Bus, Doorbell};
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::lifecycle::{Lifecycle, Paused};
use coffer_vmm::devices::serial::{PORTS, SerialPort};
use coffer_vmm::layout;
use coffer_vmm::refusals::Refusals;
use libfuzzer_sys::fuzz_target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A 16550's receive buffer, as vm-superio has it.
const FIFO: usize = 64;
const LINE_MAX: usize = 1024;

/// The reader of the console, who may go away.
#[derive(Clone, Default)]
struct Reader(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    gone: bool,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut heard = self.0.lock().unwrap();
        if heard.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        heard.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The registers as National Semiconductor's data sheet has them (PC16550D, section 8), with a transmitter that is
/// always empty.
#[derive(Default)]
struct Uart {
    divisor: [u8; 2],
    interrupts: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    received: VecDeque<u8>,
}

struct Port {
    bus: DeviceBus,
    device: Arc<SerialPort>,
    place: Arc<Place<SerialPort>>,
    reader: Reader,
    uart: Uart,
    /// Who types, what of it the device has not heard, and whether it listens.
    input: OwnedFd,
    mouth: File,
    typed: VecDeque<u8>,
    listens: bool,
    /// All that has to have come out, what is held back, and what was lost since a reader went.
    sent: Vec<u8>,
    held: Vec<u8>,
    lost: usize,
}

fuzz_target!(|data: &[u8]| {
    let mut program = Program::new(data);
    let mut port = Port::new();
    for _ in 0..STEPS_MAX {
        let Some((what, how)) = program.step() else { break };
        port.step(what, u16::from(how & 7), &mut program);
    }
    port.pause();
    port.check();
});

impl Port {
    fn new() -> Self {
        let reader = Reader::default();
        let (input, mouth) = rustix::pipe::pipe().expect("a pipe");
        let device = port(&reader, &input);
        let place = Place::new(device.clone());
        let mut bus = DeviceBus::default();
        bus.map_ports(layout::COM1_PORT, PORTS, place.clone());
        device.start();
        Self {
            bus,
            device,
            place,
            reader,
            uart: fresh(),
            input,
            mouth: mouth.into(),
            typed: VecDeque::new(),
            listens: true,
            sent: Vec::new(),
            held: Vec::new(),
            lost: 0,
        }
    }

    fn step(&mut self, what: u8, offset: u16, program: &mut Program<'_>) {
        match what {
            0..=3 => {
                let bytes = program.bytes(1 + usize::from(what) * 3).to_vec();
                self.write(offset, &bytes);
            }
            4 => self.write(0, program.bytes(32)),
            // A string instruction, as long as KVM makes them.
            5 => {
                let bytes = program.bytes(4).repeat(1 + usize::from(program.byte()) * 4);
                self.write(0, &bytes);
            }
            6 | 7 => self.read(offset, 1 + usize::from(program.byte() & 7)),
            8 => self.write(3, &[0x80]),
            9 => self.write(3, &[3]),
            10 => self.write(4, &[program.byte() & 0x1F]),
            11 => self.write(0, b"\n"),
            12 => {
                self.pause();
                match offset & 3 {
                    0 => {}
                    2 => self.replace(),
                    _ => {
                        self.device.reset();
                        self.uart = fresh();
                    }
                }
                self.device.start();
                self.listens = true;
            }
            13 => {
                self.reader.0.lock().unwrap().gone = offset & 1 != 0;
            }
            // Beyond the ports.
            14 => {
                let mut said = [0; 4];
                self.bus.port_read(layout::COM1_PORT.wrapping_add(8 + offset), &mut said);
                assert_eq!(said, [0xFF; 4]);
            }
            15 => {
                let count = 1 + usize::from(program.byte() & 0x7F);
                let bytes = program.bytes(count).to_vec();
                self.mouth.write_all(&bytes).expect("room in the pipe");
                self.typed.extend(bytes);
            }
            _ => self.read(5, 1),
        }
        self.hear();
        self.check();
    }

    /// What the device loop does.
    fn hear(&mut self) {
        let input = self.device.input().expect("an input");
        let mut fds = [PollFd::from_borrowed_fd(input, PollFlags::IN)];
        let called =
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll") == 1;
        assert_eq!(called, self.listens && !self.typed.is_empty(), "called");
        if !called {
            return;
        }
        self.device.hear();
        self.listens = false;
        let room = FIFO - self.uart.received.len();
        for byte in self.typed.drain(..room.min(self.typed.len())) {
            // A guest that talks to itself does not hear others.
            if self.uart.modem & 0x10 == 0 {
                self.uart.received.push_back(byte);
            }
        }
    }

    fn pause(&mut self) {
        self.device.pause();
        self.flush();
    }

    /// What was held goes out, or is lost.
    fn flush(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if self.reader.0.lock().unwrap().gone {
            self.lost += self.held.len();
        } else {
            if self.lost > 0 {
                let mark = format!("\n[coffer: {} bytes of output dropped]\n", self.lost);
                self.sent.extend(mark.as_bytes());
            }
            self.lost = 0;
            self.sent.append(&mut self.held);
        }
        self.held.clear();
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        self.bus.port_write(layout::COM1_PORT + offset, data);
        for byte in data {
            let latch = self.uart.line & 0x80 != 0;
            match offset {
                0 | 1 if latch => self.uart.divisor[usize::from(offset)] = *byte,
                0 if self.uart.modem & 0x10 != 0 => self.uart.loop_back(*byte),
                0 => self.transmitted(*byte),
                1 => self.uart.interrupts = byte & 0x0F,
                3 => self.uart.line = *byte,
                4 => self.uart.modem = *byte,
                7 => self.uart.scratch = *byte,
                _ => {}
            }
        }
        // Whoever writes to it has sent all it had.
        if offset == 1 {
            self.flush();
        }
    }

    /// Another port goes on from the state of this one.
    fn replace(&mut self) {
        let state = Paused::new(&*self.device).save();
        self.device = port(&self.reader, &self.input);
        // What it owes its reader is part of the state.
        let paused = Paused::new(&*self.device);
        paused.restore(&state).expect("what was saved");
        assert!(paused.save() == state, "what was saved is what was restored");
        self.place.put(self.device.clone());
    }

    fn transmitted(&mut self, byte: u8) {
        self.held.push(byte);
        if byte == b'\n' || self.held.len() == LINE_MAX {
            self.flush();
        }
    }

    fn read(&mut self, offset: u16, count: usize) {
        let mut said = [0; 8];
        self.bus.port_read(layout::COM1_PORT + offset, &mut said[..count]);
        let latch = self.uart.line & 0x80 != 0;
        for byte in &said[..count] {
            let expected = match offset {
                0 | 1 if latch => self.uart.divisor[usize::from(offset)],
                0 => self.uart.received.pop_front().unwrap_or(0),
                1 => self.uart.interrupts,
                3 => self.uart.line,
                4 => self.uart.modem,
                5 => 0x60 | u8::from(!self.uart.received.is_empty()),
                7 => self.uart.scratch,
                // Which interrupt is pending, and the modem's lines: any.
                _ => *byte,
            };
            assert_eq!(*byte, expected, "register {offset}");
        }
        self.listens |= offset == 0 && self.uart.received.is_empty();
    }

    fn check(&self) {
        assert!(self.reader.0.lock().unwrap().bytes == self.sent, "not what was transmitted");
    }
}

impl Uart {
    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < FIFO {
            self.received.push_back(byte);
        }
    }
}

fn port(reader: &Reader, input: &OwnedFd) -> Arc<SerialPort> {
    let line = Doorbell::new().expect("an eventfd");
    let input = input.try_clone().expect("a descriptor");
    let (out, clock) = (Box::new(reader.clone()), Box::new(|| Duration::ZERO));
    let port = SerialPort::new(line, out, clock, Some(input), Refusals::default());
    Arc::new(port.expect("a port"))
}

/// After a reset: 9600 baud, 8 bits, and the outputs a PC connects.
fn fresh() -> Uart {
    Uart { divisor: [12, 0], line: 3, modem: 8, ..Uart::default() }
}
