//! The VM quote, made with the vTPM through the kernel's character device (SPEC 5.1).
//!
//! The attestation key is derived anew from the endorsement seed by a fixed template, never taken from a
//! persistent handle; the monitor derived the same key before the guest ran and vouches for its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_exchange::evidence::{EVENT_LOG_MAX, PcrValue, QuotePart, VmPart};
use coffer_exchange::tpm::hash::HashAlg;
use coffer_exchange::tpm::response::TpmError;
use coffer_exchange::tpm::{command, pcr, response, template};
use coffer_exchange::{Digest, Nonce, binding};
use coffer_pid1::wait;

use crate::Failure;

/// The measured-boot log of the first TPM (Linux `tpm_eventlog`).
pub const EVENT_LOG_PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Most bytes of a TPM answer (TPM2_PT_MAX_RESPONSE_SIZE of the kernel's buffer).
const ANSWER_MAX: usize = 4096;
/// How long the driver may take to show the device; it is there before PID 1 starts.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(2);
/// TPM2_PCR_Read answers at most eight values (TPM 2.0 Part 2, TPML_DIGEST).
const PCRS_PER_READ: usize = 8;

/// One command out, one answer back.
pub trait Transmit: Send {
    /// Sends a whole command and returns the whole answer.
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// `/dev/tpmrm0`, or `/dev/tpm0` where the kernel has no resource manager.
pub struct Device(File);

impl Device {
    /// Opens the first one there is.
    pub fn open() -> Result<Self, Failure> {
        let paths = [Path::new("/dev/tpmrm0"), Path::new("/dev/tpm0")];
        let path = wait::wait_for_any(&paths, DEVICE_TIMEOUT)?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map(Self).map_err(|error| failed("open the device", error))
    }
}

impl Transmit for Device {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        // The driver takes a command in one write and gives its answer in one read.
        let written = self.0.write(command)?;
        if written != command.len() {
            return Err(io::Error::other("the driver took half a command"));
        }
        let mut answer = vec![0; ANSWER_MAX];
        let length = self.0.read(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }
}

/// The vTPM of this VM: how to talk to it and where its log is.
pub struct VirtualTpm<T> {
    transmit: T,
    event_log: PathBuf,
    key: Option<AttestationKey>,
}

/// The VM's attestation key, loaded.
#[derive(Clone)]
struct AttestationKey {
    handle: u32,
    public: Vec<u8>,
}

impl<T: Transmit> VirtualTpm<T> {
    /// A vTPM whose measured-boot log is the file `event_log`.
    pub fn new(transmit: T, event_log: impl Into<PathBuf>) -> Self {
        Self { transmit, event_log: event_log.into(), key: None }
    }

    /// Derives and loads the vAK, unless it is loaded. Needs no challenge, so it may run while one is fetched.
    pub fn load_key(&mut self) -> Result<(), Failure> {
        self.key().map(|_| ())
    }

    /// Quotes for one challenge and runtime data.
    pub fn quote(&mut self, nonce: &Nonce, report_data: &Digest) -> Result<VmPart, Failure> {
        let key = self.key()?;
        let extra = binding::vm_quote(nonce, report_data);
        let command = command::quote(key.handle, extra.as_bytes(), pcr::VM_SELECTION);
        let answer = self.send("quote", &command)?;
        let (attest, signature) = checked("quote", response::quote(&answer))?;
        let pcrs = self.read_pcrs()?;
        let event_log = self.read_log()?;
        let quote = QuotePart { attest, signature, pcrs, event_log };
        Ok(VmPart { vak_public: key.public, quote })
    }

    /// Unloads the vAK, so that the workload finds every slot of its vTPM free.
    pub fn unload_key(&mut self) -> Result<(), Failure> {
        let Some(key) = self.key.take() else { return Ok(()) };
        let answer = self.send("unload the key", &command::flush_context(key.handle))?;
        checked("unload the key", response::ok(&answer))
    }

    fn key(&mut self) -> Result<AttestationKey, Failure> {
        const STEP: &str = "derive the attestation key";
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        let template = template::vm_ak();
        let answer =
            self.send(STEP, &command::create_primary(command::Hierarchy::Endorsement, &template))?;
        let (handle, public) = checked(STEP, response::create_primary(&answer))?;
        let key = AttestationKey { handle, public };
        self.key = Some(key.clone());
        Ok(key)
    }

    fn read_pcrs(&mut self) -> Result<Vec<PcrValue>, Failure> {
        let mut values: Vec<PcrValue> = Vec::new();
        for indices in pcr::VM_SELECTION.chunks(PCRS_PER_READ) {
            let answer = self.send("read PCRs", &command::pcr_read(HashAlg::Sha256, indices))?;
            values.extend(checked("read PCRs", response::pcr_read(&answer))?);
        }
        if values.iter().map(|value| value.index).ne(pcr::VM_SELECTION.iter().copied()) {
            return Err(failed("read PCRs", "a PCR is missing"));
        }
        Ok(values)
    }

    fn read_log(&self) -> Result<Vec<u8>, Failure> {
        let fail = |error| failed("read the event log", error);
        let mut log = Vec::new();
        let file = File::open(&self.event_log).map_err(fail)?;
        file.take(EVENT_LOG_MAX as u64 + 1).read_to_end(&mut log).map_err(fail)?;
        if log.len() > EVENT_LOG_MAX {
            return Err(failed("read the event log", "it is too long"));
        }
        Ok(log)
    }

    fn send(&mut self, step: &'static str, command: &[u8]) -> Result<Vec<u8>, Failure> {
        self.transmit.transmit(command).map_err(|error| failed(step, error))
    }
}

fn checked<T>(step: &'static str, result: Result<T, TpmError>) -> Result<T, Failure> {
    result.map_err(|error| failed(step, error))
}

fn failed(step: &'static str, reason: impl std::fmt::Display) -> Failure {
    Failure::Tpm { step, reason: reason.to_string() }
}
