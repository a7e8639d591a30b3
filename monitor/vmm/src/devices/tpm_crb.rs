//! TPM 2.0 command/response buffer interface, locality 0 only (SPEC 6.2; TCG PC Client Platform TPM Profile 1.05, section 6.5).
//!
//! ```text
//!   IDLE --cmdReady--> READY --START--> BUSY --answer--> READY
//!    ^                   |      |          \--backend lost--> FATAL (tpmSts set, START clear)
//!    +------goIdle-------+      +--cancel--> READY (TPM_RC_CANCELED; the answer, when it comes, is nobody's)
//! ```
//!
//! What it trusts: that the backend descriptor is swtpm's data channel and its answers are TPM responses.
//! What it refuses: any buffer that is not one plain TPM 2.0 command. swtpm's data channel understands other
//! things, among them a prefix that changes the locality for good (a guest could then write PCR 17); so a
//! command travels only if its tag is 0x8001 or 0x8002 and its size field is exactly the bytes sent.
//! Everything else is answered here with the error a TPM would give.
//!
//! The buffer is a page of guest memory, which a vCPU may write at any moment. START copies it once, and what is
//! checked and sent is the copy.
//!
//! The vCPU that writes START sends the command and waits for [`GRACE`] at most, in which most commands are done: no other
//! thread need wake up for them, and Linux, which sleeps a millisecond after its first look at START, need not look again.
//! For the rest a thread of its own waits; vCPUs poll START.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use coffer_machine::GuestRam;
use coffer_monitor_wire::Refusal;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress};

use crate::devices::bus::Registers;
use crate::devices::lifecycle::{self, Lifecycle, Quiet, StateRefused};
use crate::layout;
use crate::refusals::Refusals;

/// Bytes of the shared command and response buffer.
pub const BUFFER_SIZE: usize = layout::TPM_BUFFER_SIZE as usize;
/// Bytes of a TPM header: tag, size, code.
pub const HEADER: usize = 10;

/// What answers commands.
pub trait TpmBackend: Send {
    /// Sends one command, checked, without waiting. An error, here as below, ends the TPM for this VM.
    fn send(&mut self, command: &[u8]) -> io::Result<()>;
    /// The response to the command sent, if it is there in time.
    fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>>;
}

/// The device.
pub struct TpmCrb {
    shared: Arc<Shared>,
    queue: Sender<u64>,
    grace: Duration,
    refusals: Refusals,
}

/// The way to the backend, which has one command at most.
struct Link {
    backend: Box<dyn TpmBackend>,
    way: Way,
    /// Commands sent so far.
    sent: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Free,
    /// A command was sent, and its answer has not come.
    Taken,
    /// Whatever the backend says next may be the answer to anything.
    Lost,
}

struct Shared {
    state: Mutex<State>,
    /// Held while somebody waits for an answer. Never waited for by a vCPU.
    link: Mutex<Link>,
    memory: GuestRam,
    /// Signalled whenever BUSY ends.
    done: Condvar,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    phase: Phase,
    /// Guest asked for locality 0 and did not give it back.
    granted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    Idle,
    Ready,
    /// Waits for the answer to the command of this number. Never saved: pausing waited for it, or gave the TPM up.
    #[serde(skip)]
    Busy(u64),
    Fatal,
}

impl TpmCrb {
    /// The device with its worker thread in front of `backend`, and its buffer in `memory` at
    /// [`layout::TPM_BUFFER`]. A backend that is silent for longer than `silence` is lost. The thread does `prepare`
    /// first, and serves nobody if that fails.
    pub fn new(
        backend: Box<dyn TpmBackend>,
        memory: GuestRam,
        silence: Duration,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (mut device, mut worker) = Self::with_worker(backend, memory, silence);
        device.grace = GRACE;
        let (prepared, outcome) = channel();
        thread::Builder::new().name("tpm".into()).spawn(move || {
            let outcome = prepare();
            let good = outcome.is_ok();
            // Nobody listens any more if the device was given up.
            let _ = prepared.send(outcome);
            while good && worker.serve() {}
        })?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(device)
    }

    /// The device, and what serves its commands when told to; START waits for nothing.
    pub fn with_worker(
        backend: Box<dyn TpmBackend>,
        memory: GuestRam,
        silence: Duration,
    ) -> (Self, Worker) {
        let (state, done) = (Mutex::new(State::AFTER_RESET), Condvar::new());
        let link = Mutex::new(Link { backend, way: Way::Free, sent: 0 });
        let shared = Arc::new(Shared { state, link, memory, done });
        let (sender, queue) = channel();
        let worker = Worker { shared: shared.clone(), queue, silence };
        (
            Self { shared, queue: sender, grace: Duration::ZERO, refusals: Refusals::default() },
            worker,
        )
    }

    /// The same, with what it refuses counted here.
    pub fn counting(self, refusals: Refusals) -> Self {
        Self { refusals, ..self }
    }

    fn start_command(&self, state: &mut State) {
        let mut buffer = [0; BUFFER_SIZE];
        if self.shared.memory.view().read_slice(&mut buffer, BUFFER).is_err() {
            state.phase = Phase::Fatal;
            return;
        }
        let command = match checked_command(&buffer) {
            Ok(command) => command,
            Err(code) => {
                self.refusals.count(Refusal::TpmCommand);
                return self.shared.answer(state, &error_response(code));
            }
        };
        // Taken by a command that was cancelled, or was there before a reset.
        let link = self.shared.link.try_lock().ok().filter(|link| link.way != Way::Taken);
        let Some(mut link) = link else {
            return self.shared.answer(state, &error_response(RETRY));
        };
        match link.send(command).and_then(|()| link.receive(self.grace)) {
            Ok(Some(response)) => self.shared.answer(state, &response),
            Ok(None) if self.queue.send(link.sent).is_ok() => state.phase = Phase::Busy(link.sent),
            Ok(None) | Err(_) => state.phase = Phase::Fatal,
        }
    }
}

/// The command in the buffer, or the TPM response code for what is there instead.
fn checked_command(buffer: &[u8; BUFFER_SIZE]) -> Result<&[u8], u32> {
    const TAG_NO_SESSIONS: [u8; 2] = [0x80, 0x01];
    const TAG_SESSIONS: [u8; 2] = [0x80, 0x02];
    const RC_BAD_TAG: u32 = 0x01E;
    const RC_COMMAND_SIZE: u32 = 0x142;
    let [t0, t1, s0, s1, s2, s3, ..] = *buffer;
    if ![TAG_NO_SESSIONS, TAG_SESSIONS].contains(&[t0, t1]) {
        return Err(RC_BAD_TAG);
    }
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    if size < HEADER {
        return Err(RC_COMMAND_SIZE);
    }
    buffer.get(..size).ok_or(RC_COMMAND_SIZE)
}

fn error_response(code: u32) -> [u8; HEADER] {
    let [a, b, c, d] = code.to_be_bytes();
    [0x80, 0x01, 0, 0, 0, HEADER as u8, a, b, c, d]
}

impl Link {
    fn send(&mut self, command: &[u8]) -> io::Result<()> {
        if self.way == Way::Lost {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.sent += 1;
        let sent = self.backend.send(command);
        self.way = if sent.is_ok() { Way::Taken } else { Way::Lost };
        sent
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        let answer = self.backend.receive(within);
        self.way = match answer {
            Ok(Some(_)) => Way::Free,
            Ok(None) => Way::Taken,
            Err(_) => Way::Lost,
        };
        answer
    }
}

/// What waits for answers that take long.
pub struct Worker {
    shared: Arc<Shared>,
    queue: Receiver<u64>,
    silence: Duration,
}

impl Worker {
    /// Waits until a command was sent, and for its answer. False once the device is gone or the backend failed.
    pub fn serve(&mut self) -> bool {
        let Ok(number) = self.queue.recv() else { return false };
        let mut link = self.shared.link.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = link.receive(self.silence);
        if link.way == Way::Taken {
            link.way = Way::Lost;
        }
        drop(link);
        let mut state = self.shared.lock();
        match answer {
            Ok(None) | Err(_) => state.phase = Phase::Fatal,
            Ok(Some(response)) if state.phase == Phase::Busy(number) => {
                self.shared.answer(&mut state, &response);
            }
            // Cancelled, or reset, and maybe at another command by now.
            Ok(Some(_)) => {}
        }
        self.shared.done.notify_all();
        state.phase != Phase::Fatal
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a response where the command was. One that does not fit is none.
    fn answer(&self, state: &mut State, response: &[u8]) {
        let fits = response.len() <= BUFFER_SIZE;
        let written = fits && self.memory.view().write_slice(response, BUFFER).is_ok();
        state.phase = if written { Phase::Ready } else { Phase::Fatal };
    }
}

impl State {
    const AFTER_RESET: Self = Self { phase: Phase::Idle, granted: false };

    fn busy(&self) -> bool {
        matches!(self.phase, Phase::Busy(_))
    }

    /// The aligned 32-bit register at `offset`, as the guest sees it.
    fn register(&self, offset: u64) -> u32 {
        /// tpmRegValidSts; tpmEstablished stays 0, the value after a cold reset.
        const LOC_STATE_VALID: u32 = 1 << 7;
        const LOC_ASSIGNED: u32 = 1 << 1;
        const FATAL: u32 = 1;
        const TPM_IDLE: u32 = 1 << 1;
        match offset {
            0x00 => LOC_STATE_VALID | if self.granted { LOC_ASSIGNED } else { 0 },
            0x0C => u32::from(self.granted),
            0x30 => INTERFACE_ID,
            0x34 => VENDOR_DEVICE,
            0x44 => match self.phase {
                Phase::Idle => TPM_IDLE,
                Phase::Fatal => FATAL,
                Phase::Ready | Phase::Busy(_) => 0,
            },
            0x4C => u32::from(self.busy()),
            0x58 | 0x64 => BUFFER_SIZE as u32,
            0x5C | 0x68 => layout::TPM_BUFFER as u32,
            _ => 0,
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        let bytes = self.register(offset & !3).to_le_bytes();
        bytes.get((offset & 3) as usize).copied().unwrap_or_default()
    }
}

impl Registers for TpmCrb {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.shared.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = state.byte(at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.shared.lock();
        // All control bits sit in the first byte of their register, so width does not matter; addresses
        // and sizes of the buffers are not the guest's to change.
        let Some(bits) = data.first().copied() else { return };
        match (offset, state.phase) {
            (0x08, _) if bits & REQUEST_ACCESS != 0 => state.granted = true,
            (0x08, _) if bits & RELINQUISH != 0 => state.granted = false,
            (0x40, Phase::Idle) if bits & CMD_READY != 0 => state.phase = Phase::Ready,
            (0x40, Phase::Ready) if bits & GO_IDLE != 0 => state.phase = Phase::Idle,
            // swtpm runs the command to its end.
            (0x48, Phase::Busy(_)) if bits & CANCEL != 0 => {
                self.shared.answer(&mut state, &error_response(CANCELED));
            }
            (0x4C, Phase::Ready) if bits & START != 0 => self.start_command(&mut state),
            // Asked for what is so, or nothing to cancel.
            (0x08 | 0x40 | 0x48, _) => {}
            _ => self.refusals.count(Refusal::TpmControl),
        }
    }
}

impl Lifecycle for TpmCrb {
    fn start(&self) {}

    /// Waits for the command in flight, so that none is half done. A TPM that does not answer is given up.
    fn pause(&self) {
        let state = self.shared.lock();
        let waited = self.shared.done.wait_timeout_while(state, PATIENCE, |state| state.busy());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.busy() {
            state.phase = Phase::Fatal;
        }
    }

    fn reset(&self) {
        let mut state = self.shared.lock();
        *state = State::AFTER_RESET;
        // Where it cannot be written, START finds that out.
        let _ = self.shared.memory.view().write_slice(&[0; BUFFER_SIZE], BUFFER);
    }

    fn save(&self, _: Quiet) -> Vec<u8> {
        lifecycle::State::encode(&*self.shared.lock())
    }

    fn restore(&self, _: Quiet, state: &[u8]) -> Result<(), StateRefused> {
        // The buffer is guest memory and has come back with it.
        *self.shared.lock() = lifecycle::State::decode(state)?;
        Ok(())
    }
}

/// The TPM's own state is swtpm's, and the supervisor's to move.
impl lifecycle::State for State {
    const FORMAT: &'static str = "tpm-crb/1";
}

const BUFFER: GuestAddress = GuestAddress(layout::TPM_BUFFER);
/// Longer than any command swtpm knows; prime generation takes seconds on a slow host.
const PATIENCE: Duration = Duration::from_secs(10);
/// CRB interface, version 1, locality 0 only, 64-byte transfers, CRB supported and selected.
const INTERFACE_ID: u32 = 1 | (1 << 4) | (3 << 11) | (1 << 14) | (1 << 17);
/// Vendor and device, as QEMU and Cloud Hypervisor report them (IBM, 1).
const VENDOR_DEVICE: u32 = 0x1014 | (1 << 16);
const REQUEST_ACCESS: u8 = 1;
const RELINQUISH: u8 = 2;
const CMD_READY: u8 = 1;
const GO_IDLE: u8 = 2;
const CANCEL: u8 = 1;
const START: u8 = 1;
/// TPM_RC_CANCELED and TPM_RC_RETRY.
const CANCELED: u32 = 0x909;
const RETRY: u32 = 0x922;
/// As long as Linux waits for a command whose duration it does not know (TPM2_DURATION_DEFAULT): key generation takes
/// seconds.
pub const SILENCE: Duration = Duration::from_secs(120);
/// Longest that START takes: what Linux sleeps before it looks again (TPM_TIMEOUT_POLL).
const GRACE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::bus::harness;
    use crate::devices::lifecycle::Paused;
    use crate::devices::lifecycle::harness::{altered, takes_only_its_own_state};
    use coffer_machine::RamRange;
    use proptest::prelude::*;

    const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 4];

    /// Echoes commands, and remembers them.
    struct Echo(Arc<Mutex<Vec<Vec<u8>>>>);
    impl TpmBackend for Echo {
        fn send(&mut self, command: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().push(command.to_vec());
            Ok(())
        }
        fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
            let last = self.0.lock().unwrap().last().cloned();
            Ok(last.filter(|_| !within.is_zero()))
        }
    }

    struct Dead;
    impl TpmBackend for Dead {
        fn send(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
            if within.is_zero() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }
    }

    fn memory() -> GuestRam {
        let buffer = RamRange { start: layout::TPM_BUFFER, size: layout::TPM_BUFFER_SIZE };
        GuestRam::allocate(&[buffer]).unwrap()
    }

    fn crb(backend: impl TpmBackend + 'static) -> TpmCrb {
        TpmCrb::new(Box::new(backend), memory(), SILENCE, || Ok(())).unwrap()
    }

    fn echo() -> (TpmCrb, Arc<Mutex<Vec<Vec<u8>>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        (crb(Echo(seen.clone())), seen)
    }

    fn fill(crb: &TpmCrb, bytes: &[u8]) {
        crb.shared.memory.view().write_slice(bytes, BUFFER).unwrap();
    }

    fn read32(crb: &TpmCrb, offset: u64) -> u32 {
        let mut data = [0; 4];
        crb.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(crb: &TpmCrb, offset: u64, value: u32) {
        crb.write(offset, &value.to_le_bytes());
    }

    /// Starts a command that ends with `last`.
    fn start(crb: &TpmCrb, last: u8) {
        write32(crb, 0x40, 1);
        let mut command = GET_RANDOM;
        command[11] = last;
        fill(crb, &command);
        write32(crb, 0x4C, 1);
    }

    /// Sends a buffer as Linux does and returns the first ten bytes of the answer.
    fn send(crb: &TpmCrb, buffer: &[u8]) -> [u8; HEADER] {
        write32(crb, 0x40, 1);
        fill(crb, buffer);
        write32(crb, 0x4C, 1);
        crb.pause();
        assert_eq!(read32(crb, 0x4C), 0);
        first_bytes(crb)
    }

    fn first_bytes(crb: &TpmCrb) -> [u8; HEADER] {
        let mut answer = [0; HEADER];
        crb.shared.memory.view().read_slice(&mut answer, BUFFER).unwrap();
        answer
    }

    #[test]
    fn a_command_reaches_the_backend_whole() {
        let (crb, seen) = echo();
        assert_eq!(send(&crb, &GET_RANDOM), GET_RANDOM[..10]);
        assert_eq!(*seen.lock().unwrap(), [GET_RANDOM.to_vec()]);
    }

    #[test]
    fn the_locality_prefix_never_reaches_the_backend() {
        let (crb, seen) = echo();
        let mut hostile = vec![0, 0, 0, 8, 3, 0, 0, 0, 12];
        hostile.extend(GET_RANDOM);
        assert_eq!(send(&crb, &hostile), error_response(0x01E));
        assert!(seen.lock().unwrap().is_empty());
    }

    #[test]
    fn sizes_outside_the_buffer_are_refused() {
        let (crb, seen) = echo();
        for size in [0u32, 9, BUFFER_SIZE as u32 + 1, u32::MAX] {
            let mut command = GET_RANDOM;
            command[2..6].copy_from_slice(&size.to_be_bytes());
            assert_eq!(send(&crb, &command), error_response(0x142), "{size}");
        }
        assert!(seen.lock().unwrap().is_empty());
    }

    /// Waits with each answer until it is told to go on.
    struct Slow(Receiver<()>, Echo);
    impl TpmBackend for Slow {
        fn send(&mut self, command: &[u8]) -> io::Result<()> {
            self.1.send(command)
        }
        fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
            match self.0.recv_timeout(within) {
                Ok(()) => self.1.receive(within),
                Err(_) => Ok(None),
            }
        }
    }

    #[test]
    fn what_a_vcpu_writes_after_start_is_not_sent() {
        let (go, wait) = channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let crb = crb(Slow(wait, Echo(seen.clone())));
        write32(&crb, 0x40, 1);
        fill(&crb, &GET_RANDOM);
        write32(&crb, 0x4C, 1);
        assert_eq!(read32(&crb, 0x4C), 1);
        fill(&crb, &[0, 0, 0, 8, 3, 0, 0, 0, 12]);
        go.send(()).unwrap();
        crb.pause();
        assert_eq!(*seen.lock().unwrap(), [GET_RANDOM.to_vec()]);
    }

    #[test]
    fn an_answer_after_a_reset_is_not_the_next_commands() {
        let (go, wait) = channel();
        let crb = crb(Slow(wait, Echo(Arc::default())));
        start(&crb, 1);
        assert_eq!(read32(&crb, 0x4C), 1);
        crb.reset();
        // The backend has the first until it answers; until then there is no room for the second.
        start(&crb, 2);
        assert_eq!(first_bytes(&crb), error_response(0x922));
        go.send(()).unwrap();
        while read32(&crb, 0x4C) == 0 {
            start(&crb, 2);
        }
        go.send(()).unwrap();
        crb.pause();
        let mut answer = [0; GET_RANDOM.len()];
        crb.shared.memory.view().read_slice(&mut answer, BUFFER).unwrap();
        assert_eq!(answer[11], 2);
    }

    #[test]
    fn an_answer_after_a_cancel_is_not_the_next_commands() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let echo = Box::new(Echo(seen.clone()));
        let (crb, mut worker) = TpmCrb::with_worker(echo, memory(), SILENCE);
        start(&crb, 1);
        write32(&crb, 0x48, 1);
        assert_eq!((read32(&crb, 0x4C), first_bytes(&crb)), (0, error_response(0x909)));
        // The backend still has the cancelled one, so there is no room for another.
        start(&crb, 2);
        assert_eq!((read32(&crb, 0x4C), first_bytes(&crb)), (0, error_response(0x922)));
        assert!(worker.serve());
        assert_eq!(first_bytes(&crb), error_response(0x922));
        start(&crb, 3);
        assert_eq!(read32(&crb, 0x4C), 1);
        assert!(worker.serve());
        assert_eq!(read32(&crb, 0x4C), 0);
        write32(&crb, 0x48, 1);
        assert_eq!(first_bytes(&crb), GET_RANDOM[..10], "nothing runs, nothing is cancelled");
        let seen: Vec<u8> = seen.lock().unwrap().iter().map(|command| command[11]).collect();
        assert_eq!(seen, [1, 3]);
    }

    #[test]
    fn a_backend_that_failed_a_cancelled_command_is_not_asked_again() {
        let (crb, mut worker) = TpmCrb::with_worker(Box::new(Dead), memory(), SILENCE);
        write32(&crb, 0x40, 1);
        fill(&crb, &GET_RANDOM);
        write32(&crb, 0x4C, 1);
        write32(&crb, 0x48, 1);
        assert_eq!(read32(&crb, 0x44), 0);
        assert!(!worker.serve());
        assert_eq!(read32(&crb, 0x44), 1);
        crb.reset();
        start(&crb, 2);
        assert_eq!((read32(&crb, 0x44), read32(&crb, 0x4C)), (1, 0));
    }

    #[test]
    fn a_command_in_flight_is_finished_before_the_state_is_written() {
        let (go, wait) = channel();
        let crb = crb(Slow(wait, Echo(Arc::default())));
        write32(&crb, 0x08, 1);
        write32(&crb, 0x40, 1);
        fill(&crb, &GET_RANDOM);
        write32(&crb, 0x4C, 1);
        let state = thread::scope(|scope| {
            let paused = scope.spawn(|| Paused::new(&crb).save());
            go.send(()).unwrap();
            paused.join().unwrap()
        });
        // Over the same memory, and a TPM that goes on elsewhere.
        let memory = crb.shared.memory.clone();
        let echo = Box::new(Echo(Arc::default()));
        let after = TpmCrb::new(echo, memory, SILENCE, || Ok(())).unwrap();
        Paused::new(&after).restore(&state).unwrap();
        for register in (0..0x70).step_by(4) {
            assert_eq!(read32(&after, register), read32(&crb, register), "{register:#x}");
        }
        let mut answer = [0; GET_RANDOM.len()];
        after.shared.memory.view().read_slice(&mut answer, BUFFER).unwrap();
        assert_eq!(answer, GET_RANDOM);
        assert_eq!(send(&after, &GET_RANDOM), GET_RANDOM[..10]);
    }

    #[test]
    fn a_state_is_taken_as_it_was_written_and_not_otherwise() {
        let (crb, _) = echo();
        takes_only_its_own_state(&crb);
        write32(&crb, 0x08, 1);
        write32(&crb, 0x40, 1);
        takes_only_its_own_state(&crb);
        // Nobody would ever answer.
        for busy in ["{\"busy\":1}", "\"busy\"", "{\"Busy\":1}", "7"] {
            let refused = altered(&crb, &echo().0, "\"ready\"", busy);
            assert!(matches!(refused, Err(StateRefused::Form(_))), "{refused:?}");
        }
    }

    #[test]
    fn a_tpm_that_was_given_up_stays_so_until_the_guest_resets() {
        let (gone, back) = (crb(Dead), echo().0);
        send(&gone, &GET_RANDOM);
        altered(&gone, &back, "", "").unwrap();
        assert_eq!((read32(&back, 0x44), read32(&back, 0x4C)), (1, 0));
        back.reset();
        assert_eq!(send(&back, &GET_RANDOM), GET_RANDOM[..10]);
    }

    #[test]
    fn start_without_ready_does_nothing() {
        let (crb, seen) = echo();
        fill(&crb, &GET_RANDOM);
        write32(&crb, 0x4C, 1);
        assert_eq!(read32(&crb, 0x4C), 0);
        assert!(seen.lock().unwrap().is_empty());
    }

    #[test]
    fn a_lost_backend_is_fatal_and_clears_start() {
        let crb = crb(Dead);
        send(&crb, &GET_RANDOM);
        assert_eq!(read32(&crb, 0x44), 1);
        write32(&crb, 0x40, 1);
        write32(&crb, 0x4C, 1);
        assert_eq!((read32(&crb, 0x44), read32(&crb, 0x4C)), (1, 0));
    }

    #[test]
    fn registers_are_what_linux_expects() {
        let (crb, _) = echo();
        assert_eq!(read32(&crb, 0x44), 2, "idle after reset");
        write32(&crb, 0x08, 1);
        assert_eq!(read32(&crb, 0x00), 0x82);
        let mut address = [0; 8];
        crb.read(0x68, &mut address);
        assert_eq!(u64::from_le_bytes(address), 0xFED4_1000);
        assert_eq!((read32(&crb, 0x58), read32(&crb, 0x64)), (0x1000, 0x1000));
        let mut last = [0; 4];
        crb.read(0xFFC, &mut last);
    }

    proptest! {
        #[test]
        fn any_access_is_answered_and_only_tpm_commands_pass(
            accesses in harness::accesses(layout::TPM_WINDOW),
            start in proptest::sample::select(vec![vec![0x80, 1, 0, 0], vec![0x80, 2, 0, 0], vec![0, 0, 0, 8], vec![]]),
            rest in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (crb, seen) = echo();
            fill(&crb, &[start, rest].concat());
            write32(&crb, 0x40, 1);
            write32(&crb, 0x4C, 1);
            harness::perform(&crb, &accesses);
            crb.pause();
            for command in seen.lock().unwrap().iter() {
                prop_assert!(command.len() >= HEADER && command.len() <= BUFFER_SIZE);
                prop_assert!(command[..2] == [0x80, 1] || command[..2] == [0x80, 2]);
            }
        }
    }
}
