//! The first serial port, output only: a closed box has a voice but no ears.
//!
//! What it refuses: input of any kind. An interactive console (open boxes) would enqueue bytes into the same
//! 16550 through `vm-superio`'s `enqueue_raw_bytes`; nothing here calls it.
//! A reader that stalls slows this guest's own vCPU and nobody else.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use coffer_machine::Doorbell;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::devices::bus::Registers;
use crate::devices::lifecycle::Lifecycle;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::bus::harness;
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

    proptest! {
        #[test]
        fn any_access_is_answered(accesses in harness::accesses(u64::from(PORTS))) {
            harness::perform(&port().0, &accesses);
        }
    }
}
