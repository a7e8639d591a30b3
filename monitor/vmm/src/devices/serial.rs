//! The first serial port. A closed box has a voice but no ears: whether there is input at all is whether a descriptor for
//! it came with the spec.
//!
//! ```text
//!   guest -> 16550 -> lines -> allowance -> standard output, never waited for
//!   input pipe -> (only when the guest has read all before) -> 16550 -> interrupt
//! ```
//! What it refuses: input beyond the 16550's 64 bytes, which stays in the pipe until the guest reads; and output beyond
//! [`RATE`], or what a reader that is behind leaves no room for: it is dropped and counted, and a mark tells how much.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coffer_machine::Doorbell;
use coffer_monitor_wire::Refusal;
use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, Serial};
use vm_superio::{SerialState, Trigger};

use crate::devices::bus::Registers;
use crate::devices::lifecycle::{Lifecycle, Quiet, State, StateRefused};
use crate::refusals::Refusals;
use crate::virtio::watch::Watch;

/// Registers of a 16550.
pub const PORTS: u16 = 8;
/// Bytes of output a second, and at once: more than any kernel prints, less than fills a host's log.
pub const RATE: u64 = 256 << 10;
/// See [`RATE`].
pub const BURST: u64 = 1 << 20;
/// What has to be allowed again before output goes on, so that a flood is not a flood of marks.
const RESUME: u64 = BURST / 16;
/// Longest line held back until its newline.
const LINE_MAX: usize = 1024;
/// The 16550's receive buffer, as vm-superio has it.
const FIFO: usize = 64;
/// Data received and to be sent.
const DATA: u64 = 0;
/// Interrupt enable: written by drivers when they have sent all they had, so that a prompt needs no newline to be seen.
const IER: u64 = 1;

type Uart = Serial<Line, NoEvents, LineBuffer>;

/// Tells the time since some moment.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// A 16550 whose output goes to a writer line by line.
pub struct SerialPort {
    uart: Mutex<Uart>,
    /// Listened to whenever the guest has read all there was.
    input: Option<(OwnedFd, Watch)>,
}

impl SerialPort {
    /// A port that writes to `output`, rings `line`, and hears what comes through `input`.
    pub fn new(
        line: Doorbell,
        output: Box<dyn Write + Send>,
        clock: Clock,
        input: Option<OwnedFd>,
        refusals: Refusals,
    ) -> io::Result<Self> {
        let line = Line(Arc::new(line));
        let filled = clock();
        let output = Output { to: output, clock, allowed: BURST, filled, dropped: 0, refusals };
        let output = Arc::new(Mutex::new(output));
        let uart = Serial::new(line, LineBuffer { pending: Vec::new(), output });
        let watch = Watch::new()?;
        Ok(Self { uart: Mutex::new(uart), input: input.map(|pipe| (pipe, watch)) })
    }

    /// Readable when [`SerialPort::hear`] has something to do; nothing for a port without input.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|(_, watch)| watch.as_fd())
    }

    /// Takes what fits from the input; the rest waits until the guest has read it.
    pub fn hear(&self) {
        let Some((pipe, _)) = &self.input else { return };
        self.with(|uart| {
            self.listen(false);
            // A guest that talks to itself (loopback) may have filled it meanwhile.
            let mut bytes = [0; FIFO];
            let room = bytes.get_mut(..uart.fifo_capacity()).unwrap_or_default();
            if let Ok(n @ 1..) = rustix::io::read(pipe, room) {
                let _ = uart.enqueue_raw_bytes(bytes.get(..n).unwrap_or_default());
            }
        });
    }

    fn listen(&self, wanted: bool) {
        if let Some((pipe, watch)) = &self.input {
            watch.want(pipe, if wanted { EventFlags::IN } else { EventFlags::empty() });
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Uart) -> T) -> T {
        // A panic while holding the lock ends the process (no thread of ours outlives one).
        act(&mut self.uart.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Registers for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.with(|uart| {
            data.iter_mut().for_each(|byte| *byte = uart.read(offset as u8));
            if offset == DATA && uart.fifo_capacity() == FIFO {
                self.listen(true);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.with(|uart| {
            // A lost reader must not stop the guest: its output is dropped, as a pulled cable would.
            data.iter().for_each(|byte| drop(uart.write(offset as u8, *byte)));
            if offset == IER {
                uart.writer_mut().send();
            }
        });
    }
}

impl Lifecycle for SerialPort {
    fn start(&self) {
        self.listen(true);
    }

    fn pause(&self) {
        self.with(|uart| uart.writer_mut().send());
    }

    fn reset(&self) {
        self.with(|uart| {
            uart.writer_mut().send();
            // A port that nothing was done to is one that fits.
            let _ = become_port(uart, &SerialState::default());
        });
    }

    fn save(&self, _: Quiet) -> Vec<u8> {
        self.with(|uart| {
            let dropped = uart.writer().output().dropped;
            Saved { uart: uart.state(), dropped }.encode()
        })
    }

    fn restore(&self, _: Quiet, state: &[u8]) -> Result<(), StateRefused> {
        let Saved { uart: state, dropped } = Saved::decode(state)?;
        self.with(|uart| {
            become_port(uart, &state)?;
            uart.writer().output().dropped = dropped;
            Ok(())
        })
    }
}

fn become_port(uart: &mut Uart, state: &SerialState) -> Result<(), StateRefused> {
    let (line, output) = (uart.interrupt_evt().clone(), uart.writer().empty());
    let refused = StateRefused::Impossible("in_buffer");
    *uart = Serial::from_state(state, line, NoEvents, output).map_err(|_| refused)?;
    Ok(())
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
    output: Arc<Mutex<Output>>,
}

impl LineBuffer {
    /// The same output, with nothing held for it.
    fn empty(&self) -> Self {
        Self { pending: Vec::new(), output: self.output.clone() }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&mut self) {
        if !self.pending.is_empty() {
            self.output().write(&self.pending);
            self.pending.clear();
        }
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

/// Where lines go, and how much may still go there: a token bucket.
struct Output {
    to: Box<dyn Write + Send>,
    clock: Clock,
    /// Bytes allowed, as of `filled`.
    allowed: u64,
    filled: Duration,
    dropped: u64,
    refusals: Refusals,
}

impl Output {
    /// Writes all of it, behind a mark of what was dropped before, or counts it as dropped.
    fn write(&mut self, bytes: &[u8]) {
        let now = (self.clock)();
        let more = now.saturating_sub(self.filled).as_millis() as u64 * RATE / 1000;
        // Less than a byte's worth of time is kept for the next.
        if more > 0 {
            (self.allowed, self.filled) = (self.allowed.saturating_add(more).min(BURST), now);
        }
        let (mark, needed) = match self.dropped {
            0 => (String::new(), bytes.len() as u64),
            n => (format!("\n[coffer: {n} bytes of output dropped]\n"), RESUME),
        };
        let all = [mark.as_bytes(), bytes].concat();
        // One write: into a pipe it goes as a whole or not at all (PIPE_BUF, pipe(7)).
        let written =
            needed <= self.allowed && matches!(self.to.write(&all), Ok(n) if n == all.len());
        if written {
            (self.allowed, self.dropped) = (self.allowed - all.len() as u64, 0);
        } else {
            self.dropped = self.dropped.saturating_add(bytes.len() as u64);
            self.refusals.count(Refusal::ConsoleOutput);
        }
    }
}

/// The 16550, and what the next mark has to tell. What the host allows begins anew; what was typed and not heard is in
/// the pipe.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    #[serde(with = "Uart16550")]
    uart: SerialState,
    dropped: u64,
}

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
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::fs::File;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<(Vec<u8>, bool)>>);
    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut seen = self.0.lock().unwrap();
            if seen.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            seen.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seen {
        fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().0.clone()
        }
        fn text(&self) -> String {
            String::from_utf8(self.bytes()).unwrap()
        }
    }

    /// A port, what it wrote, its clock in milliseconds, and what to speak into.
    fn whole_port() -> (SerialPort, Seen, Arc<AtomicU64>, File) {
        let (seen, now) = (Seen::default(), Arc::new(AtomicU64::new(0)));
        let (input, mouth) = rustix::pipe::pipe().unwrap();
        let time = now.clone();
        let clock = Box::new(move || Duration::from_millis(time.load(Ordering::Relaxed)));
        let line = Doorbell::new().unwrap();
        let (out, refusals) = (Box::new(seen.clone()), Refusals::default());
        let port = SerialPort::new(line, out, clock, Some(input), refusals).unwrap();
        port.start();
        (port, seen, now, mouth.into())
    }

    fn port() -> (SerialPort, Seen) {
        let (port, seen, ..) = whole_port();
        (port, seen)
    }

    fn is_called(port: &SerialPort) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(port.input().unwrap(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    /// All the guest has to read.
    fn heard(port: &SerialPort) -> Vec<u8> {
        let register = |offset| {
            let mut byte = [0];
            port.read(offset, &mut byte);
            byte[0]
        };
        let mut all = Vec::new();
        while register(5) & 1 == 1 {
            all.push(register(0));
        }
        all
    }

    #[test]
    fn writes_whole_lines_and_the_rest_when_paused() {
        let (port, seen) = port();
        port.write(0, b"one");
        assert!(seen.bytes().is_empty());
        port.write(0, b"\ntwo");
        assert_eq!(seen.text(), "one\n");
        port.pause();
        assert_eq!(seen.text(), "one\ntwo");
    }

    #[test]
    fn a_prompt_is_seen_when_the_driver_has_sent_it() {
        let (port, seen) = port();
        port.write(1, &[7]);
        port.write(0, b"login: ");
        assert_eq!(seen.text(), "");
        port.write(1, &[5]);
        assert_eq!(seen.text(), "login: ");
    }

    #[test]
    fn output_beyond_the_rate_is_dropped_counted_and_marked() {
        let (port, seen, now, _) = whole_port();
        let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
        let lines = 2 * BURST as usize / line.len();
        (0..lines).for_each(|_| port.write(0, &line));
        assert_eq!(seen.bytes().len() as u64, BURST, "the burst and no more");
        // Too early: nothing yet, not even a mark.
        now.store(100, Ordering::Relaxed);
        port.write(0, b"early\n");
        assert_eq!(seen.bytes().len() as u64, BURST);
        now.store(1100, Ordering::Relaxed);
        port.write(0, b"again\n");
        let said = seen.text().split_off(BURST as usize);
        let dropped = BURST + 6;
        assert_eq!(said, format!("\n[coffer: {dropped} bytes of output dropped]\nagain\n"));
        // A second later there is a second's worth, not more.
        (0..lines).for_each(|_| port.write(0, &line));
        let later = seen.bytes().len() as u64 - BURST;
        assert!((RATE - 2048..=RATE * 11 / 10 + 2048).contains(&later), "{later}");
    }

    #[test]
    fn a_reader_that_is_behind_costs_output_and_no_time() {
        let (port, seen, now, _) = whole_port();
        seen.0.lock().unwrap().1 = true;
        port.write(0, b"lost\n");
        seen.0.lock().unwrap().1 = false;
        now.store(1, Ordering::Relaxed);
        port.write(0, b"heard\n");
        assert_eq!(seen.text(), "\n[coffer: 5 bytes of output dropped]\nheard\n");
    }

    #[test]
    fn input_waits_in_the_pipe_until_the_guest_has_read() {
        let (port, _, _, mut mouth) = whole_port();
        assert!(!is_called(&port));
        let words: Vec<u8> = (0..200).collect();
        mouth.write_all(&words).unwrap();
        assert!(is_called(&port));
        port.hear();
        assert!(!is_called(&port), "the guest has not read: nobody may call");
        let mut all = Vec::new();
        while all.len() < words.len() {
            let some = heard(&port);
            assert_eq!(some.len(), (words.len() - all.len()).min(FIFO));
            all.extend(some);
            if is_called(&port) {
                port.hear();
            }
        }
        assert_eq!(all, words);
        // Nobody speaks any more: the guest may read as it likes, and nothing is heard.
        drop(mouth);
        port.hear();
        assert!(heard(&port).is_empty());
        assert!(!is_called(&port));
    }

    #[test]
    fn a_port_without_input_hears_nothing() {
        let clock = Box::new(|| Duration::ZERO);
        let (line, sink) = (Doorbell::new().unwrap(), Box::new(io::sink()));
        let port = SerialPort::new(line, sink, clock, None, Refusals::default()).unwrap();
        port.start();
        port.hear();
        assert!(port.input().is_none() && heard(&port).is_empty());
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
        assert_eq!(said.text(), "half a l");
        assert_eq!(heard.text(), "ine\n");
    }

    #[test]
    fn another_port_tells_what_was_dropped_before_it() {
        let ((old, said), (new, heard)) = (port(), port());
        said.0.lock().unwrap().1 = true;
        old.write(0, b"lost\n");
        Paused::new(&new).restore(&Paused::new(&old).save()).unwrap();
        new.write(0, b"heard\n");
        assert_eq!(heard.text(), "\n[coffer: 5 bytes of output dropped]\nheard\n");
        let counted = |port: &SerialPort| port.with(|uart| uart.writer().output().refusals.sums());
        assert_eq!(counted(&old), [(Refusal::ConsoleOutput, 1)].into());
        assert!(counted(&new).is_empty());
    }

    #[test]
    fn an_interrupt_nobody_took_is_rung_again() {
        let (old, _) = port();
        old.write(1, &[2]);
        let line = Doorbell::new().unwrap();
        let rung = line.try_clone().unwrap();
        let (sink, clock) = (Box::new(io::sink()), Box::new(|| Duration::ZERO));
        let new = SerialPort::new(line, sink, clock, None, Refusals::default()).unwrap();
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
            let (port, _, _, mut mouth) = whole_port();
            mouth.write_all(&[0xAA; 100]).unwrap();
            for access in accesses.chunks(3) {
                if is_called(&port) {
                    port.hear();
                }
                harness::perform(&port, access);
            }
        }

        #[test]
        fn any_registers_are_answered_from(
            registers in any::<[u8; 9]>(),
            in_buffer in proptest::collection::vec(any::<u8>(), 0..70),
            dropped: u64,
            accesses in harness::accesses(u64::from(PORTS)),
        ) {
            let [baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch] = registers;
            let fits = in_buffer.len() <= 64;
            let state = SerialState { baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch, in_buffer };
            let (port, _) = port();
            prop_assert_eq!(Paused::new(&port).restore(&Saved { uart: state, dropped }.encode()).is_ok(), fits);
            harness::perform(&port, &accesses);
        }
    }
}
