//! The TPM's registers and its buffer (SPEC 6.2): what is no command, what changes while it is read, and PCR 17.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::noise::Noise;
use crate::raw::{PAGE, Window};
use crate::report;

const REGISTERS: u64 = 0xFED4_0000;
const BUFFER: u64 = 0xFED4_1000;
const LOCALITY_CONTROL: usize = 0x08;
const REQUEST: usize = 0x40;
const STATUS: usize = 0x44;
const START: usize = 0x4C;
/// Longest a command of ours takes on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(10);
const RACES: usize = 100;
const ACCESSES: usize = 200;

const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8];
/// What swtpm takes for a change of locality, to 3, with a command behind it.
const PREFIX: [u8; 9] = [0, 0, 0, 8, 3, 0, 0, 0, 12];
const RC_SUCCESS: u32 = 0;
const RC_LOCALITY: u32 = 0x907;

/// The device.
#[derive(Clone, Copy)]
pub struct Tpm {
    registers: Window,
    buffer: Window,
}

impl Tpm {
    pub fn open() -> Result<Self> {
        Ok(Self { registers: Window::open(REGISTERS)?, buffer: Window::open(BUFFER)? })
    }

    /// All of it. PCR 17 is said before and after: it must be what the launch made it.
    pub fn attack(self) -> Result<()> {
        println!("PCR17 before {}", self.register_17()?);
        report("tpm", "frames", self.frames()?);
        report("tpm", "register 17", self.write_register_17()?);
        report("tpm", "control", self.control()?);
        report("tpm", "races", self.races()?);
        report("tpm", "registers", self.accesses());
        self.ready()?;
        println!("PCR17 after {}", self.register_17()?);
        ensure!(self.command(&GET_RANDOM)?.1 == RC_SUCCESS, "no random bytes any more");
        println!("ALIVE tpm");
        Ok(())
    }

    /// Takes the locality and makes it ready, whatever it was.
    fn ready(self) -> Result<()> {
        self.registers.write(LOCALITY_CONTROL, 4, 1);
        self.wait()?;
        self.registers.write(REQUEST, 4, 1);
        ensure!(self.registers.read(STATUS, 4) == 0, "the TPM is not ready");
        Ok(())
    }

    fn wait(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.registers.read(START, 4) != 0 {
            ensure!(Instant::now() < deadline, "the TPM does not answer");
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn put(self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().take(PAGE).enumerate() {
            self.buffer.write(at, 1, u64::from(*byte));
        }
    }

    /// Sends what may be a command; the response and its code.
    fn command(self, bytes: &[u8]) -> Result<(Vec<u8>, u32)> {
        self.ready()?;
        self.put(bytes);
        self.registers.write(START, 4, 1);
        self.wait()?;
        let response: Vec<u8> = (0..64).map(|at| self.buffer.read(at, 1) as u8).collect();
        let code = response.get(6..10).and_then(|code| code.try_into().ok());
        let code = u32::from_be_bytes(code.context("a short response")?);
        Ok((response, code))
    }

    fn register_17(self) -> Result<String> {
        // TPM2_PCR_Read of register 17 in the SHA-256 bank.
        let read = [0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7E, 0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 2];
        let (response, code) = self.command(&read)?;
        ensure!(code == RC_SUCCESS, "PCR 17 cannot be read: {code:#x}");
        // Header, update counter, selection, count, size.
        let digest = response.get(10 + 4 + 10 + 4 + 2..).and_then(|rest| rest.get(..32));
        Ok(hex::encode(digest.context("a short answer")?))
    }

    /// Extends and resets PCR 17, with and without the prefix.
    fn write_register_17(self) -> Result<usize> {
        let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
        let command = |code: u32, body: &[u8]| {
            let rest = [&code.to_be_bytes()[..], &[0, 0, 0, 17], &password, body].concat();
            [&[0x80, 2][..], &(rest.len() as u32 + 6).to_be_bytes(), &rest].concat()
        };
        let extend = command(0x182, &[&[0, 0, 0, 1, 0, 0x0B][..], &[0xAA; 32]].concat());
        let reset = command(0x13D, &[]);
        for one in [&extend, &reset] {
            let (_, code) = self.command(one)?;
            ensure!(code & 0xFFF == RC_LOCALITY, "PCR 17: {code:#x} instead of a wrong locality");
            let prefixed = [&PREFIX[..], one].concat();
            ensure!(self.command(&prefixed)?.1 != RC_SUCCESS, "the prefix was taken");
            let (_, code) = self.command(one)?;
            ensure!(code & 0xFFF == RC_LOCALITY, "PCR 17 after the prefix: {code:#x}");
        }
        Ok(6)
    }

    /// Frames that are no command.
    fn frames(self) -> Result<usize> {
        let mut frames = vec![[&PREFIX[..], &GET_RANDOM].concat(), PREFIX.to_vec(), vec![0; 4096]];
        for tag in [0u16, 0x8000, 0x8003, 0x00C4, 0xFFFF, 0x0180] {
            let mut frame = GET_RANDOM.to_vec();
            drop(frame.splice(..2, tag.to_be_bytes()));
            frames.push(frame);
        }
        for size in [0u32, 1, 9, 4097, 0x8000_0000, u32::MAX] {
            let mut frame = GET_RANDOM.to_vec();
            drop(frame.splice(2..6, size.to_be_bytes()));
            frames.push(frame);
        }
        for frame in &frames {
            ensure!(self.command(frame)?.1 != RC_SUCCESS, "taken for a command: {frame:02x?}");
        }
        // Those a TPM gets to see, and refuses: longer or shorter than what they say, codes there are not, noise.
        let mut noise = Noise::new(3);
        for size in [10u32, 11, 13, 4096] {
            let mut frame = GET_RANDOM.to_vec();
            drop(frame.splice(2..6, size.to_be_bytes()));
            self.command(&frame)?;
        }
        for _ in 0..20 {
            let body: Vec<u8> = (0..54).map(|_| noise.any() as u8).collect();
            self.command(&[&[0x80, 1, 0, 0, 0, 64, 0x20, 0, 1, 0xFF], &body[..]].concat())?;
        }
        Ok(frames.len() + 24)
    }

    /// START where there is nothing to start, twice, in the middle; cancel; other localities.
    fn control(self) -> Result<usize> {
        self.ready()?;
        self.registers.write(REQUEST, 4, 2);
        self.registers.write(START, 4, 1);
        self.ready()?;
        self.put(&GET_RANDOM);
        for _ in 0..5 {
            self.registers.write(START, 4, 1);
            self.registers.write(0x48, 4, 1);
            self.registers.write(REQUEST, 4, 3);
        }
        self.wait()?;
        // Where the buffer is and how large is not the guest's to say.
        for register in [0x58, 0x5C, 0x60, 0x64, 0x68, 0x6C, 0x30, 0x34] {
            self.registers.write(register, 4, u64::MAX);
        }
        let (size, address) = (self.registers.read(0x58, 4), self.registers.read(0x5C, 4));
        if (size, address) != (PAGE as u64, BUFFER) {
            bail!("the buffer moved to {address:#x}, {size} bytes");
        }
        Ok(25)
    }

    /// Another CPU makes a command of what is none, and back, while START copies it.
    fn races(self) -> Result<usize> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    self.put(&PREFIX);
                    self.put(&GET_RANDOM);
                    self.buffer.write(2, 4, u64::MAX);
                }
            });
            let raced = (0..RACES).try_for_each(|_| {
                self.ready()?;
                self.registers.write(START, 4, 1);
                self.wait()
            });
            over.store(true, Ordering::SeqCst);
            raced
        })?;
        Ok(RACES)
    }

    /// Any width at any place.
    fn accesses(self) -> usize {
        let mut noise = Noise::new(11);
        for _ in 0..ACCESSES {
            let (offset, width, value) = (noise.below(0x1000), noise.width(), noise.value());
            let offset = if noise.below(2) == 0 { offset % 0x80 } else { offset };
            match noise.below(2) {
                0 => {
                    self.registers.read(offset, width);
                }
                _ => self.registers.write(offset, width, value),
            }
        }
        ACCESSES
    }
}
