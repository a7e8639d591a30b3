//! The TPM device before a real swtpm that dies or hangs: the guest's driver sees a failure in bounded time, never an
//! answer to another command, and no access to a register takes long (SPEC 6.2).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod linux_crb;

use std::time::{Duration, Instant};

use coffer_exchange::tpm::command::{self, Hierarchy};
use coffer_exchange::tpm::response::{self, TpmError};
use coffer_formats::Digest;
use coffer_formats::event_log::vm_launch_log;
use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::template;
use coffer_vmm::devices::tpm_crb::SILENCE;
use coffer_vtpm::{Swtpm, SwtpmConfig, Vtpm, Walls};
use linux_crb::{Failed, LinuxCrb};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than any command here takes.
const LONG: Duration = Duration::from_secs(60);
/// Shorter than a driver would ever wait.
const SHORT: Duration = Duration::from_millis(50);
/// No vCPU may be held for longer, on a machine that does other things too.
const HELD: Duration = Duration::from_millis(250);
const RC_RETRY: u32 = 0x922;
/// A register of no launch.
const DEBUG_PCR: u8 = 16;

struct Guest {
    driver: LinuxCrb,
    /// swtpm and its state end with it.
    _vtpm: Vtpm,
    swtpm: Pid,
}

impl Guest {
    fn new(name: &str, silence: Duration) -> Self {
        let state = std::env::temp_dir().join(format!("coffer-crb-{}-{name}", std::process::id()));
        let program = "/usr/bin/swtpm".into();
        let config = SwtpmConfig { program, state, restored: None, walls: Walls::DangerouslyNone };
        let keyed = Swtpm::spawn(&config).unwrap().initialise().unwrap().make_keys().unwrap();
        let certified = keyed.certify(&[0x30; 600]).unwrap();
        let swtpm = Pid::from_raw(certified.pid() as i32).unwrap();
        let d = Digest::ZERO;
        let events = vm_launch_log("test", &d, &d, &d, &d, b"record").events;
        let (vtpm, channel) = certified.measure(&events, b"record").unwrap().seal().unwrap();
        let mut driver = LinuxCrb::new(channel, silence).unwrap();
        driver.longest = Some(Duration::ZERO);
        Self { driver, _vtpm: vtpm, swtpm }
    }

    fn send(&self, signal: Signal) {
        kill_process(self.swtpm, signal).unwrap();
    }

    fn was_never_held(&self) {
        assert!(self.driver.longest.unwrap() < HELD, "{:?}", self.driver.longest);
    }

    /// The answer, once what was cancelled has run to its end.
    fn until_there_is_room(&mut self, command: &[u8]) -> Vec<u8> {
        let until = Instant::now() + LONG;
        loop {
            let answer = self.driver.transmit(command, LONG).unwrap();
            if response::ok(&answer) != Err(TpmError::Code(RC_RETRY)) {
                return answer;
            }
            assert!(Instant::now() < until, "there is never room again");
        }
    }

    /// The value of [`DEBUG_PCR`], from the TPM.
    fn register(&mut self) -> Vec<u8> {
        let read = command::pcr_read(HashAlg::Sha256, &[DEBUG_PCR]);
        let answer = self.driver.transmit(&read, LONG).unwrap();
        response::pcr_read(&answer).unwrap()[0].digest.as_bytes().to_vec()
    }
}

fn random(length: u16) -> Vec<u8> {
    command::get_random(length)
}

fn extend(digest: Digest) -> Vec<u8> {
    command::pcr_extend(DEBUG_PCR, &[digest.into()])
}

/// Seconds of work for swtpm: an RSA key.
fn long_work() -> Vec<u8> {
    command::create_primary(Hierarchy::Endorsement, &template::ek_rsa2048())
}

#[test]
fn commands_are_answered_and_no_access_takes_long() {
    let mut guest = Guest::new("good", SILENCE);
    for length in [8, 16, 32] {
        let answer = guest.driver.transmit(&random(length), LONG).unwrap();
        assert_eq!(response::get_random(&answer).unwrap().len(), usize::from(length));
    }
    let answer = guest.driver.transmit(&long_work(), LONG).unwrap();
    assert!(response::create_primary(&answer).is_ok());
    guest.was_never_held();
}

#[test]
fn a_swtpm_killed_in_the_middle_of_a_command_is_a_failure_for_good() {
    let mut guest = Guest::new("killed", SILENCE);
    guest.driver.begin();
    guest.driver.start(&long_work());
    assert!(guest.driver.busy(), "the work was too short for this test");
    guest.send(Signal::KILL);
    assert_eq!(guest.driver.wait(LONG).and_then(|()| guest.driver.answer()), Err(Failed::Broken));
    guest.driver.end();
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(guest.driver.transmit(&random(8), LONG), Err(Failed::Broken));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "a dead TPM fails at once");
    guest.was_never_held();
}

#[test]
fn a_swtpm_killed_between_commands_is_a_failure_for_good() {
    let mut guest = Guest::new("killed-idle", SILENCE);
    assert!(guest.driver.transmit(&random(8), LONG).is_ok());
    guest.send(Signal::KILL);
    for _ in 0..3 {
        assert_eq!(guest.driver.transmit(&random(8), LONG), Err(Failed::Broken));
    }
}

#[test]
fn a_stopped_swtpm_times_out_and_its_late_answer_is_nobodys() {
    let mut guest = Guest::new("stopped", SILENCE);
    let (first, second) = (Digest([1; 32]), Digest([2; 32]));
    guest.send(Signal::STOP);
    assert_eq!(guest.driver.transmit(&extend(first), SHORT), Err(Failed::TimedOut));
    // swtpm still has it, so another finds no room, and is told to come again.
    let answer = guest.driver.transmit(&random(32), SHORT).unwrap();
    assert_eq!(response::ok(&answer), Err(TpmError::Code(RC_RETRY)));
    guest.was_never_held();
    guest.send(Signal::CONT);
    // What was cancelled was done all the same, and its answers have gone. Each command has its own.
    let one = Digest::ZERO.extend(&first);
    let read = command::pcr_read(HashAlg::Sha256, &[DEBUG_PCR]);
    let answer = guest.until_there_is_room(&read);
    assert_eq!(response::pcr_read(&answer).unwrap()[0].digest, one);
    let answer = guest.driver.transmit(&extend(second), LONG).unwrap();
    assert_eq!(response::ok(&answer), Ok(()));
    assert_eq!(guest.register(), one.extend(&second).as_bytes());
}

#[test]
fn a_swtpm_stopped_for_a_moment_answers_late_and_right() {
    let mut guest = Guest::new("moment", SILENCE);
    guest.send(Signal::STOP);
    guest.driver.begin();
    guest.driver.start(&extend(Digest([3; 32])));
    assert_eq!(guest.driver.wait(SHORT).map_err(|_| guest.driver.busy()), Err(false));
    guest.send(Signal::CONT);
    guest.driver.end();
    let answer = guest.until_there_is_room(&random(8));
    assert_eq!(response::get_random(&answer).unwrap().len(), 8);

    guest.send(Signal::STOP);
    guest.driver.begin();
    guest.driver.start(&random(24));
    std::thread::sleep(SHORT);
    assert!(guest.driver.busy());
    guest.send(Signal::CONT);
    let answer = guest.driver.wait(LONG).and_then(|()| guest.driver.answer()).unwrap();
    assert_eq!(response::get_random(&answer).unwrap().len(), 24);
}

#[test]
fn a_swtpm_that_stays_silent_is_given_up() {
    let mut guest = Guest::new("silent", Duration::from_millis(300));
    assert!(guest.driver.transmit(&random(8), LONG).is_ok());
    guest.send(Signal::STOP);
    assert_eq!(guest.driver.transmit(&random(8), LONG), Err(Failed::Broken));
    // It speaks again, and is not listened to: its answer may be to anything.
    guest.send(Signal::CONT);
    std::thread::sleep(SHORT);
    assert_eq!(guest.driver.transmit(&random(8), LONG), Err(Failed::Broken));
}
