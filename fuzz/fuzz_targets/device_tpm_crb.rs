//! The TPM's command buffer: every register reads as it should, whatever is written; what reaches swtpm is one whole
//! TPM 2.0 command (SPEC 6.2); START falls when the answer is there, and the answer is that command's.
#![no_main]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use coffer_fuzz::bus::{Place, Program, STEPS_MAX, WIDTHS, ignore_broken_pipes};
use coffer_machine::{Bus, GuestRam, RamRange};
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::lifecycle::{Lifecycle, Paused};
use coffer_vmm::devices::swtpm::SwtpmChannel;
use coffer_vmm::devices::tpm_crb::{SILENCE, TpmCrb, Worker};
use coffer_vmm::layout;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const BUFFER: usize = 0x1000;
const PLACE: GuestAddress = GuestAddress(layout::TPM_BUFFER);

thread_local! {
    /// The buffer's page, mapped once: it is zeroed for each execution.
    static MEMORY: GuestRam = {
        let page = RamRange { start: layout::TPM_BUFFER, size: layout::TPM_BUFFER_SIZE };
        GuestRam::allocate(&[page]).expect("a page")
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ready,
    /// The number of the command it waits for.
    Busy(usize),
    Fatal,
}

struct Tpm {
    bus: DeviceBus,
    device: Arc<TpmCrb>,
    place: Arc<Place<TpmCrb>>,
    /// None once the backend failed.
    worker: Option<Worker>,
    swtpm: Option<UnixStream>,
    /// What swtpm sent and nobody read; no more comes once it hung up.
    unread: Vec<u8>,
    hung_up: bool,
    /// Commands on their way, by number.
    commands: VecDeque<(usize, Vec<u8>)>,
    count: usize,
    phase: Phase,
    granted: bool,
    memory: GuestRam,
    /// What is in its page.
    buffer: Vec<u8>,
}

fuzz_target!(|data: &[u8]| {
    ignore_broken_pipes();
    let mut program = Program::new(data);
    let mut tpm = Tpm::new();
    for _ in 0..STEPS_MAX {
        let Some((what, how)) = program.step() else { break };
        tpm.step(what, how, &mut program);
    }
    (0..0x100).step_by(8).for_each(|offset| tpm.read(offset, 8));
});

impl Tpm {
    fn new() -> Self {
        let memory = MEMORY.with(GuestRam::clone);
        memory.view().write_slice(&[0; BUFFER], PLACE).expect("a page");
        let (device, worker, swtpm) = device(&memory);
        let place = Place::new(device.clone());
        let mut bus = DeviceBus::default();
        bus.map_memory(layout::TPM, layout::TPM_WINDOW, place.clone());
        device.start();
        Self {
            bus,
            device,
            place,
            worker: Some(worker),
            swtpm: Some(swtpm),
            unread: Vec::new(),
            hung_up: false,
            commands: VecDeque::new(),
            count: 0,
            phase: Phase::Idle,
            granted: false,
            memory,
            buffer: vec![0; BUFFER],
        }
    }

    fn step(&mut self, what: u8, how: u8, program: &mut Program<'_>) {
        match what {
            0 | 1 => self.read(u64::from(program.half() & 0x1FFF), WIDTHS[usize::from(how & 7)]),
            2 => {
                let bytes = [program.word().to_le_bytes(), program.word().to_le_bytes()].concat();
                let offset = u64::from(program.half() & 0x1FFF);
                self.write(offset, &bytes[..WIDTHS[usize::from(how & 7)]]);
            }
            3 | 4 => {
                let register = [0x08, 0x40, 0x48, 0x4C, 0x00, 0x58, 0x5C, 0x68];
                let value = u32::from(program.byte()).to_le_bytes();
                self.write(register[usize::from(how & 7)], &value);
            }
            5 => {
                // At any moment, while a command runs too.
                let at = usize::from(program.half()) % BUFFER;
                let bytes = program.bytes(8);
                self.fill(at, &bytes[..bytes.len().min(BUFFER - at)]);
            }
            6..=8 => self.command(how, program),
            9..=11 => self.answer(how, program),
            12 => {
                // Nobody waits for a TPM that never answers.
                if !matches!(self.phase, Phase::Busy(_)) {
                    self.device.pause();
                }
                match (how & 3, self.phase) {
                    (0, _) | (2, Phase::Busy(_)) => {}
                    (2, _) => self.replace(),
                    _ => {
                        self.device.reset();
                        (self.phase, self.granted) = (Phase::Idle, false);
                        self.buffer.fill(0);
                    }
                }
                self.device.start();
            }
            _ => (0x00..0x80).step_by(4).for_each(|offset| self.read(offset, 4)),
        }
    }

    /// Another device goes on from the state of this one, with another channel to swtpm.
    fn replace(&mut self) {
        let state = Paused::new(&*self.device).save();
        let (device, worker, swtpm) = device(&self.memory);
        let paused = Paused::new(&*device);
        paused.restore(&state).expect("what was saved");
        assert!(paused.save() == state, "what was saved is what was restored");
        self.place.put(device.clone());
        (self.device, self.worker, self.swtpm) = (device, Some(worker), Some(swtpm));
        self.unread.clear();
        self.commands.clear();
        (self.hung_up, self.count) = (false, 0);
        self.compare();
    }

    /// A command as a driver sends it, or nearly.
    fn command(&mut self, how: u8, program: &mut Program<'_>) {
        let tag: [u8; 2] =
            program.one_of(&[[0x80, 1], [0x80, 2], [0x80, 1], [0, 0], [0, 0xC1], [0x80, 3]]);
        let body = program.bytes(usize::from(how) * 2);
        let size = match program.byte() {
            0..=0xBF => 10 + body.len() as u32,
            0xC0..=0xC7 => 9,
            0xC8..=0xCF => BUFFER as u32,
            0xD0..=0xD7 => BUFFER as u32 + 1,
            // A change of locality, to swtpm.
            0xD8..=0xDF => 8,
            _ => program.word(),
        };
        let command = [&tag[..], &size.to_be_bytes(), &[0, 0, 1, 0x7B], body].concat();
        self.write(0x40, &1u32.to_le_bytes());
        self.fill(0, &command);
        self.write(0x4C, &1u32.to_le_bytes());
        if how & 8 != 0 {
            self.answer(how, program);
        }
    }

    /// swtpm says something, and what waits is served.
    fn answer(&mut self, how: u8, program: &mut Program<'_>) {
        let body = program.bytes(usize::from(how & 7) * 4);
        let size = match program.byte() {
            0..=0xBF => 10 + body.len() as u32,
            0xC0..=0xC7 => BUFFER as u32,
            0xC8..=0xCF => BUFFER as u32 + 1,
            0xD0..=0xD7 => 9,
            0xD8..=0xEF => 10 + program.byte() as u32,
            _ => program.word(),
        };
        let mut answer = [&[0x80, 1][..], &size.to_be_bytes(), &[0; 4], body].concat();
        if size as usize == BUFFER {
            answer.resize(BUFFER, how);
        }
        let gone = program.byte();
        if let Some(swtpm) = self.swtpm.as_mut().filter(|_| !self.hung_up) {
            answer.truncate(if gone & 0xE0 == 0xE0 { usize::from(gone & 0x1F) } else { BUFFER });
            // Nobody reads any more once the backend failed.
            if swtpm.write_all(&answer).is_ok() {
                self.unread.extend(answer);
            }
        }
        if gone & 0xF8 == 0xD8 {
            (self.swtpm, self.hung_up) = (None, true);
            // Whatever was on its way to it is lost; what it sent is not.
        }
        self.serve();
    }

    /// What the worker's thread does with one command.
    fn serve(&mut self) {
        let Some((number, command)) = self.commands.pop_front() else { return };
        let Some(worker) = &mut self.worker else { return };
        if self.unread.is_empty() && !self.hung_up {
            // Never waits for what does not come.
            self.hung_up = true;
            let swtpm = self.swtpm.as_ref().expect("it did not hang up");
            swtpm.shutdown(Shutdown::Write).expect("a socket");
        }
        let answer = response(&mut self.unread);
        let goes_on = worker.serve();
        if let Some(swtpm) = &mut self.swtpm {
            let mut seen = vec![0; BUFFER + 1];
            let count = swtpm.read(&mut seen).unwrap_or(0);
            seen.truncate(count);
            let size = seen.get(2..6).map(|s| u32::from_be_bytes(s.try_into().unwrap()) as usize);
            assert!(matches!(seen[..], [0x80, 1 | 2, ..]), "no command of a TPM 2.0");
            assert!(size == Some(count) && (10..=BUFFER).contains(&count), "another size");
            assert_eq!(seen, command, "not what the guest wrote");
        }
        let expected = self.phase == Phase::Busy(number);
        match answer {
            Some(answer) if expected => {
                self.buffer[..answer.len()].copy_from_slice(&answer);
                self.phase = Phase::Ready;
            }
            Some(_) => {}
            None => self.phase = Phase::Fatal,
        }
        assert_eq!(goes_on, self.phase != Phase::Fatal, "whether the worker goes on");
        if !goes_on {
            self.worker = None;
        }
        [0x4C, 0x44].into_iter().for_each(|offset| self.read(offset, 4));
        self.compare();
    }

    fn read(&self, offset: u64, width: usize) {
        let mut said = [0xAA; 8];
        self.bus.memory_read(layout::TPM + offset, &mut said[..width]);
        let expected = |at: u64| match at {
            _ if offset + width as u64 > layout::TPM_WINDOW => 0xFF,
            _ => self.register(at & !3).to_le_bytes()[(at & 3) as usize],
        };
        for (byte, at) in said[..width].iter().zip(offset..) {
            assert_eq!(*byte, expected(at), "byte {at:#x} of an access at {offset:#x}");
        }
    }

    /// TCG PC Client Platform TPM Profile 1.05, table 21 and after.
    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => 0x80 | u32::from(self.granted) << 1,
            0x0C => self.granted.into(),
            0x30 => 0x0002_5811,
            0x34 => 0x0001_1014,
            0x44 => {
                u32::from(self.phase == Phase::Fatal) | u32::from(self.phase == Phase::Idle) << 1
            }
            0x4C => matches!(self.phase, Phase::Busy(_)).into(),
            0x58 | 0x64 => BUFFER as u32,
            0x5C | 0x68 => 0xFED4_1000,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.bus.memory_write(layout::TPM + offset, data);
        if offset + data.len() as u64 > layout::TPM_WINDOW {
            return;
        }
        let Some(bits) = data.first() else { return };
        match (offset, self.phase) {
            (0x08, _) if bits & 1 != 0 => self.granted = true,
            (0x08, _) if bits & 2 != 0 => self.granted = false,
            (0x40, Phase::Idle) if bits & 1 != 0 => self.phase = Phase::Ready,
            (0x40, Phase::Ready) if bits & 2 != 0 => self.phase = Phase::Idle,
            (0x48, Phase::Busy(_)) if bits & 1 != 0 => {
                self.error(0x909);
                self.phase = Phase::Ready;
            }
            (0x4C, Phase::Ready) if bits & 1 != 0 => self.start(),
            _ => {}
        }
        self.read(0x4C, 4);
    }

    /// The guest writes its memory.
    fn fill(&mut self, at: usize, bytes: &[u8]) {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
        let place = GuestAddress(layout::TPM_BUFFER + at as u64);
        self.memory.view().write_slice(bytes, place).expect("a page");
    }

    /// What is in the page is what the guest and the TPM put there.
    fn compare(&self) {
        let mut seen = vec![0; BUFFER];
        self.memory.view().read_slice(&mut seen, PLACE).expect("a page");
        assert_eq!(seen, self.buffer, "another buffer");
    }

    fn start(&mut self) {
        let size = u32::from_be_bytes(self.buffer[2..6].try_into().unwrap()) as usize;
        let refused: u32 = match self.buffer[..2] {
            [0x80, 1 | 2] if (10..=BUFFER).contains(&size) => 0,
            [0x80, 1 | 2] => 0x142,
            _ => 0x01E,
        };
        if refused != 0 {
            self.error(refused);
        } else if !self.commands.is_empty() {
            self.error(0x922);
        } else if self.worker.is_none() || self.swtpm.is_none() {
            (self.phase, self.worker) = (Phase::Fatal, None);
        } else {
            self.count += 1;
            self.phase = Phase::Busy(self.count);
            self.commands.push_back((self.count, self.buffer[..size].to_vec()));
        }
    }

    /// A response without parameters.
    fn error(&mut self, code: u32) {
        self.buffer[..6].copy_from_slice(&[0x80, 1, 0, 0, 0, 10]);
        self.buffer[6..10].copy_from_slice(&code.to_be_bytes());
    }
}

/// The device, what serves its commands, and swtpm's end of its channel.
fn device(memory: &GuestRam) -> (Arc<TpmCrb>, Worker, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("a socket");
    let channel = SwtpmChannel::new(ours.into(), None);
    let (device, worker) = TpmCrb::with_worker(Box::new(channel), memory.clone(), SILENCE);
    (Arc::new(device), worker, theirs)
}

/// What is read from the channel at once, if it is one response.
fn response(unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    let read: Vec<u8> = unread.drain(..unread.len().min(BUFFER)).collect();
    let size = u32::from_be_bytes(read.get(2..6)?.try_into().ok()?) as usize;
    (size == read.len() && size >= 10).then_some(read)
}
