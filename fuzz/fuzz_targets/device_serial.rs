//! The serial port: what comes out is what the guest transmitted, in order and nothing else; nothing comes in but what the
//! guest sends itself; at most a line is held back.
#![no_main]

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use coffer_fuzz::bus::{Place, Program, STEPS_MAX};
use coffer_machine::{Bus, Doorbell};
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::lifecycle::{Lifecycle, Paused};
use coffer_vmm::devices::serial::{PORTS, SerialPort};
use coffer_vmm::layout;
use libfuzzer_sys::fuzz_target;

/// A 16550's receive buffer in loopback, as vm-superio has it.
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
    /// All that was transmitted while there was a reader, and what of it may be held back.
    sent: Vec<u8>,
    held: usize,
}

fuzz_target!(|data: &[u8]| {
    let mut program = Program::new(data);
    let mut port = Port::new();
    for _ in 0..STEPS_MAX {
        let Some((what, how)) = program.step() else { break };
        port.step(what, u16::from(how & 7), &mut program);
    }
    port.device.pause();
    port.held = 0;
    port.check();
});

impl Port {
    fn new() -> Self {
        let reader = Reader::default();
        let device = port(&reader);
        let place = Place::new(device.clone());
        let mut bus = DeviceBus::default();
        bus.map_ports(layout::COM1_PORT, PORTS, place.clone());
        device.start();
        Self { bus, device, place, reader, uart: fresh(), sent: Vec::new(), held: 0 }
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
                self.device.pause();
                self.held = 0;
                match offset & 3 {
                    0 => {}
                    2 => self.replace(),
                    _ => {
                        self.device.reset();
                        self.uart = fresh();
                    }
                }
                self.device.start();
            }
            13 => {
                // What is held when the reader goes or comes is lost, or not: no longer asked.
                self.device.pause();
                self.held = 0;
                self.check();
                self.reader.0.lock().unwrap().gone = offset & 1 != 0;
            }
            // Beyond the ports.
            14 => {
                let mut said = [0; 4];
                self.bus.port_read(layout::COM1_PORT.wrapping_add(8 + offset), &mut said);
                assert_eq!(said, [0xFF; 4]);
            }
            _ => self.read(5, 1),
        }
        self.check();
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
    }

    /// Another port goes on from the state of this one.
    fn replace(&mut self) {
        let state = Paused::new(&*self.device).save();
        self.device = port(&self.reader);
        let paused = Paused::new(&*self.device);
        paused.restore(&state).expect("what was saved");
        assert!(paused.save() == state, "what was saved is what was restored");
        self.place.put(self.device.clone());
    }

    fn transmitted(&mut self, byte: u8) {
        if !self.reader.0.lock().unwrap().gone {
            self.sent.push(byte);
            self.held = if byte == b'\n' { 0 } else { self.held + 1 };
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
    }

    fn check(&mut self) {
        self.held %= LINE_MAX;
        let heard = self.reader.0.lock().unwrap();
        assert!(self.sent.starts_with(&heard.bytes), "not what was transmitted");
        let missing = self.sent.len() - heard.bytes.len();
        assert_eq!(missing, self.held, "held back");
    }
}

impl Uart {
    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < FIFO {
            self.received.push_back(byte);
        }
    }
}

fn port(reader: &Reader) -> Arc<SerialPort> {
    let line = Doorbell::new().expect("an eventfd");
    Arc::new(SerialPort::new(line, Box::new(reader.clone())))
}

/// After a reset: 9600 baud, 8 bits, and the outputs a PC connects.
fn fresh() -> Uart {
    Uart { divisor: [12, 0], line: 3, modem: 8, ..Uart::default() }
}
