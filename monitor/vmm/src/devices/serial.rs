//! The first serial port, output only: a closed box has a voice but no ears.
//!
//! What it refuses: input of any kind. An interactive console (open boxes) would enqueue bytes into the same
//! 16550 through `vm-superio`'s `enqueue_raw_bytes`; nothing here calls it.
//! A reader that stalls slows this guest's own vCPU and nobody else.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use coffer_machine::Doorbell;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, Serial};
use vm_superio::{SerialState, Trigger};

use crate::devices::bus::Registers;
use crate::devices::lifecycle::{Lifecycle, Quiet, State, StateRefused};

/// Registers of a 16550.
pub const PORTS: u16 = 8;
/// Longest line held back until its newline.
const LINE_MAX: usize = 1024;

type Uart = Serial<Line, NoEvents, LineBuffer>;

/// A 16550 whose output goes to a writer line by line.
pub struct SerialPort {
    uart: Mutex<Uart>,
    make: Box<dyn Fn() -> Uart + Send + Sync>,
}

impl SerialPort {
    /// A port that writes to `output` and rings `line`.
    pub fn new(line: Doorbell, output: Box<dyn Write + Send>) -> Self {
        let line = Line(Arc::new(line));
        let output = Arc::new(Mutex::new(output));
        let make = Box::new(move || {
            Serial::new(line.clone(), LineBuffer { pending: Vec::new(), output: output.clone() })
        });
        Self { uart: Mutex::new(make()), make }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Uart) -> T) -> T {
        // A panic while holding the lock ends the process (no thread of ours outlives one).
        act(&mut self.uart.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Registers for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.with(|uart| data.iter_mut().for_each(|byte| *byte = uart.read(offset as u8)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // A lost reader must not stop the guest: its output is dropped, as a pulled cable would.
        self.with(|uart| data.iter().for_each(|byte| drop(uart.write(offset as u8, *byte))));
    }
}

impl Lifecycle for SerialPort {
    fn start(&self) {}

    fn pause(&self) {
        self.with(|uart| uart.writer_mut().send());
    }

    fn reset(&self) {
        self.with(|uart| {
            uart.writer_mut().send();
            *uart = (self.make)();
        });
    }

    fn save(&self, _: Quiet) -> Vec<u8> {
        self.with(|uart| Saved(uart.state()).encode())
    }

    fn restore(&self, _: Quiet, state: &[u8]) -> Result<(), StateRefused> {
        let Saved(state) = Saved::decode(state)?;
        self.with(|uart| {
            let (line, output) = (uart.interrupt_evt().clone(), uart.writer().empty());
            let refused = StateRefused::Impossible("in_buffer");
            *uart = Serial::from_state(&state, line, NoEvents, output).map_err(|_| refused)?;
            Ok(())
        })
    }
}

/// The interrupt of the port.
#[derive(Clone)]
struct Line(Arc<Doorbell>);

impl Trigger for Line {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.ring();
        Ok(())
    }
}

/// Gathers a line before it is written: one system call for each line instead of each byte.
struct LineBuffer {
    pending: Vec<u8>,
    output: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl LineBuffer {
    /// The same output, with nothing held for it.
    fn empty(&self) -> Self {
        Self { pending: Vec::new(), output: self.output.clone() }
    }

    fn send(&mut self) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = output.write_all(&self.pending).and_then(|()| output.flush());
        self.pending.clear();
    }
}

impl Write for LineBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.ends_with(b"\n") || self.pending.len() >= LINE_MAX {
            self.send();
        }
        Ok(bytes.len())
    }

    /// Called after each byte by the 16550; lines are flushed by [`LineBuffer::send`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Saved(#[serde(with = "Uart16550")] SerialState);

impl State for Saved {
    const FORMAT: &'static str = "serial/1";
}

/// What there is to write down. Any byte is one that a guest can have written or the port have shown; only what was
/// received has a limit.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState", deny_unknown_fields)]
struct Uart16550 {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::bus::harness;
    use crate::devices::lifecycle::Paused;
    use crate::devices::lifecycle::harness::{altered, takes_only_its_own_state};
    use proptest::prelude::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);
    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Seen) {
        let seen = Seen::default();
        (SerialPort::new(Doorbell::new().unwrap(), Box::new(seen.clone())), seen)
    }

    #[test]
    fn writes_whole_lines_and_the_rest_when_paused() {
        let (port, seen) = port();
        port.write(0, b"one");
        assert!(seen.0.lock().unwrap().is_empty());
        port.write(0, b"\ntwo");
        assert_eq!(*seen.0.lock().unwrap(), b"one\n");
        port.pause();
        assert_eq!(*seen.0.lock().unwrap(), b"one\ntwo");
    }

    #[test]
    fn another_port_goes_on_in_the_middle_of_a_line() {
        let ((old, said), (new, heard)) = (port(), port());
        for (register, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (7, 0x5A), (4, 0x1B)] {
            old.write(register, &[value]);
        }
        // Looped back, and not read yet.
        old.write(0, b"loop");
        old.write(4, &[8]);
        old.write(0, b"half a l");
        Paused::new(&new).restore(&Paused::new(&old).save()).unwrap();
        new.start();
        for register in 1..8 {
            let (mut before, mut after) = ([0], [0]);
            old.read(register, &mut before);
            new.read(register, &mut after);
            assert_eq!(after, before, "{register}");
        }
        let mut received = [0; 5];
        new.read(0, &mut received);
        assert_eq!(&received, b"loop\0");
        new.write(0, b"ine\n");
        assert_eq!(*said.0.lock().unwrap(), b"half a l");
        assert_eq!(*heard.0.lock().unwrap(), b"ine\n");
    }

    #[test]
    fn an_interrupt_nobody_took_is_rung_again() {
        let (old, _) = port();
        old.write(1, &[2]);
        let line = Doorbell::new().unwrap();
        let rung = line.try_clone().unwrap();
        let new = SerialPort::new(line, Box::new(io::sink()));
        Paused::new(&new).restore(&Paused::new(&old).save()).unwrap();
        assert!(rung.clear());
    }

    #[test]
    fn a_state_is_taken_as_it_was_written_and_not_otherwise() {
        let (port, _) = port();
        takes_only_its_own_state(&port);
        port.write(4, &[0x10]);
        port.write(0, b"loop");
        takes_only_its_own_state(&port);
        let long = format!("\"in_buffer\":[{}108,", "0,".repeat(61));
        let refused = altered(&port, &port, "\"in_buffer\":[108,", &long);
        assert_eq!(refused, Err(StateRefused::Impossible("in_buffer")));
        let byte = altered(&port, &port, "\"scratch\":0", "\"scratch\":256");
        assert!(matches!(byte, Err(StateRefused::Form(_))));
    }

    proptest! {
        #[test]
        fn any_access_is_answered(accesses in harness::accesses(u64::from(PORTS))) {
            harness::perform(&port().0, &accesses);
        }

        #[test]
        fn any_registers_are_answered_from(
            registers in any::<[u8; 9]>(),
            in_buffer in proptest::collection::vec(any::<u8>(), 0..70),
            accesses in harness::accesses(u64::from(PORTS)),
        ) {
            let [baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch] = registers;
            let fits = in_buffer.len() <= 64;
            let state = SerialState { baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch, in_buffer };
            let (port, _) = port();
            prop_assert_eq!(Paused::new(&port).restore(&Saved(state).encode()).is_ok(), fits);
            harness::perform(&port, &accesses);
        }
    }
}
