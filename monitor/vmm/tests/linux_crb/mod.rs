//! The TPM device as Linux 6.1 drives it (`drivers/char/tpm/tpm_crb.c`, `tpm-interface.c`): registers over the bus,
//! commands and answers in guest memory.
#![allow(dead_code, reason = "each program uses its part")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffer_machine::{Bus as _, GuestRam, RamRange};
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::swtpm::SwtpmChannel;
use coffer_vmm::devices::tpm_crb::TpmCrb;
use coffer_vmm::layout;
use vm_memory::{Bytes as _, GuestAddress};

const LOC_STATE: u64 = 0x00;
const LOC_CTRL: u64 = 0x08;
const CTRL_REQ: u64 = 0x40;
const CTRL_STS: u64 = 0x44;
const CTRL_CANCEL: u64 = 0x48;
const CTRL_START: u64 = 0x4C;
const BUFFER: GuestAddress = GuestAddress(layout::TPM_BUFFER);
/// TPM_TIMEOUT_POLL: Linux sleeps 0.7 to 1 ms before it looks again.
const POLL: Duration = Duration::from_millis(1);

/// A driver and its device.
pub struct LinuxCrb {
    bus: DeviceBus,
    ram: GuestRam,
    /// Register accesses so far: each is an exit of the guest.
    pub accesses: u32,
    /// Longest that one took, so long a vCPU was held; none if that is not measured.
    pub longest: Option<Duration>,
}

/// What the kernel's driver gives its caller instead of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// -EIO: the TPM says that it failed.
    Broken,
    /// -ETIME: it did not answer in time, and was told to cancel.
    TimedOut,
}

impl LinuxCrb {
    /// A driver of the real device in front of this channel.
    pub fn new(channel: OwnedFd, silence: Duration) -> io::Result<Self> {
        let page = RamRange { start: layout::TPM_BUFFER, size: layout::TPM_BUFFER_SIZE };
        let ram = GuestRam::allocate(&[page]).map_err(io::Error::other)?;
        let swtpm = Box::new(SwtpmChannel::new(channel, None));
        let device = TpmCrb::new(swtpm, ram.clone(), silence, || Ok(()))?;
        let mut bus = DeviceBus::default();
        bus.map_memory(layout::TPM, layout::TPM_WINDOW, Arc::new(device));
        Ok(Self { bus, ram, accesses: 0, longest: None })
    }

    /// tpm_transmit of one command, which may take `limit`.
    pub fn transmit(&mut self, command: &[u8], limit: Duration) -> Result<Vec<u8>, Failed> {
        self.begin();
        self.start(command);
        let answer = self.wait(limit).and_then(|()| self.answer());
        self.end();
        answer
    }

    /// tpm_chip_start: the locality, and out of idle.
    pub fn begin(&mut self) {
        self.write(LOC_CTRL, 1);
        self.expect(LOC_STATE, 0x82, 0x82);
        self.write(CTRL_REQ, 1);
        self.expect(CTRL_REQ, 1, 0);
    }

    /// crb_send.
    pub fn start(&mut self, command: &[u8]) {
        self.write(CTRL_CANCEL, 0);
        self.ram.view().write_slice(command, BUFFER).expect("a command fits the buffer");
        self.write(CTRL_START, 1);
    }

    /// True while the device is at a command.
    pub fn busy(&mut self) -> bool {
        self.read(CTRL_START) & 1 != 0
    }

    /// The loop of tpm_try_transmit.
    pub fn wait(&mut self, limit: Duration) -> Result<(), Failed> {
        let started = Instant::now();
        while self.busy() {
            // Somebody else may have cancelled.
            self.read(CTRL_CANCEL);
            if started.elapsed() > limit {
                self.write(CTRL_CANCEL, 1);
                return Err(Failed::TimedOut);
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// crb_recv.
    pub fn answer(&mut self) -> Result<Vec<u8>, Failed> {
        if self.read(CTRL_STS) & 1 != 0 {
            return Err(Failed::Broken);
        }
        let mut header = [0; 6];
        self.ram.view().read_slice(&mut header, BUFFER).expect("the buffer is there");
        let [_, _, size @ ..] = header;
        let mut answer =
            vec![0; u32::from_be_bytes(size).min(layout::TPM_BUFFER_SIZE as u32) as usize];
        self.ram.view().read_slice(&mut answer, BUFFER).expect("the buffer is there");
        Ok(answer)
    }

    /// tpm_chip_stop.
    pub fn end(&mut self) {
        self.write(CTRL_REQ, 2);
        self.expect(CTRL_REQ, 2, 0);
        self.write(LOC_CTRL, 2);
        self.expect(LOC_STATE, 0x82, 0x80);
    }

    /// crb_wait_for_reg_32; the device is always at once where it should be.
    fn expect(&mut self, register: u64, mask: u32, value: u32) {
        let found = self.read(register) & mask;
        assert_eq!(found, value, "register {register:#x}");
    }

    fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.counted(|bus| bus.memory_read(layout::TPM + register, &mut data));
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) {
        self.counted(|bus| bus.memory_write(layout::TPM + register, &value.to_le_bytes()));
    }

    fn counted(&mut self, access: impl FnOnce(&DeviceBus)) {
        let started = self.longest.map(|_| Instant::now());
        access(&self.bus);
        self.accesses += 1;
        self.longest = self.longest.max(started.map(|started| started.elapsed()));
    }
}
