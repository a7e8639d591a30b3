//! A real TPM 2.0 for tests: an swtpm process of our own, spoken to in raw commands.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffer_attestation::Digest;
use coffer_attestation::event_log::VmEvent;
use coffer_attestation::evidence::PcrValue;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::{command, response};
use tempfile::TempDir;

pub struct Swtpm {
    child: Child,
    data: UnixStream,
    control: UnixStream,
    _state: TempDir,
}

impl Swtpm {
    /// A fresh TPM with the SHA-256 bank alone, started.
    pub fn fresh() -> Self {
        Self::with_banks(&[HashAlg::Sha256])
    }

    /// A fresh TPM with these banks alone, started.
    pub fn with_banks(banks: &[HashAlg]) -> Self {
        let mut tpm = Self::start(TempDir::new().unwrap());
        assert_eq!(response::pcr_allocate(&tpm.send(&command::pcr_allocate(banks))), Ok(true));
        tpm.reset();
        tpm
    }

    /// A TPM with the state that swtpm_setup left in `dir`.
    pub fn start(dir: TempDir) -> Self {
        let socket = dir.path().join("s");
        let control = dir.path().join("c");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .arg("--tpmstate")
            .arg(format!("dir={}", dir.path().display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need Debian's `swtpm`");
        let (data, control) = (connect(&socket), connect(&control));
        Self { child, data, control, _state: dir }
    }

    /// One command, one answer.
    pub fn send(&mut self, command: &[u8]) -> Vec<u8> {
        self.data.write_all(command).unwrap();
        let mut answer = vec![0; 10];
        self.data.read_exact(&mut answer).unwrap();
        let size = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
        answer.resize(size, 0);
        self.data.read_exact(&mut answer[10..]).unwrap();
        answer
    }

    /// CMD_INIT and TPM2_Startup(CLEAR): a TPM Reset.
    pub fn reset(&mut self) {
        response::ok(&self.send(&command::shutdown_clear())).unwrap();
        self.control(2, &0u32.to_be_bytes());
        response::ok(&self.send(&command::startup_clear())).unwrap();
    }

    /// The DRTM hash sequence: CMD_HASH_START, CMD_HASH_DATA, CMD_HASH_END.
    pub fn hash_sequence(&mut self, data: &[u8]) {
        self.control(6, &[]);
        self.control(7, &[&(data.len() as u32).to_be_bytes(), data].concat());
        self.control(8, &[]);
    }

    pub fn extend(&mut self, pcr: u8, digest: &Digest) {
        response::ok(&self.send(&command::pcr_extend(pcr, &[(*digest).into()]))).unwrap();
    }

    /// Measures a launch as the monitor does: PCR 17 by the hash sequence over `record`, the rest by extends.
    pub fn measure(&mut self, events: &[VmEvent], record: &[u8]) {
        for event in events {
            match event.pcr {
                17 => self.hash_sequence(record),
                pcr => {
                    response::ok(&self.send(&command::pcr_extend(pcr, &event.digests()))).unwrap()
                }
            }
        }
    }

    /// Reads registers in the portions the TPM answers.
    pub fn pcrs(&mut self, pcrs: &[u8]) -> Vec<PcrValue> {
        let read = |(index, value): (u8, Ha)| PcrValue { index, digest: value.sha256().unwrap() };
        self.pcrs_in(HashAlg::Sha256, pcrs).into_iter().map(read).collect()
    }

    /// The same of any bank.
    pub fn pcrs_in(&mut self, bank: HashAlg, pcrs: &[u8]) -> Vec<(u8, Ha)> {
        let read = |part: &[u8]| {
            response::pcr_read_in(bank, &self.send(&command::pcr_read(bank, part))).unwrap()
        };
        pcrs.chunks(8).flat_map(read).collect()
    }

    pub fn create_primary(&mut self, template: &[u8]) -> (u32, Vec<u8>) {
        let command = command::create_primary(command::Hierarchy::Endorsement, template);
        response::create_primary(&self.send(&command)).unwrap()
    }

    fn control(&mut self, code: u32, body: &[u8]) {
        self.control.write_all(&[&code.to_be_bytes(), body].concat()).unwrap();
        let mut result = [0; 4];
        self.control.read_exact(&mut result).unwrap();
        assert_eq!(u32::from_be_bytes(result), 0, "control command {code}");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > deadline => panic!("swtpm does not answer: {error}"),
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}
