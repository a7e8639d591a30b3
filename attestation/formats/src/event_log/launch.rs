//! What the monitor measures into a VM's vTPM before its first instruction (SPEC 3.6).
//!
//! This is the only place that knows the order. The monitor extends what it says; the verifier predicts
//! from it and accepts nothing else, in either bank. What a descriptor names, it names by SHA-256: the other bank
//! then has the digest of that name, so that whoever knows the name can predict it, and nothing is hashed twice.

use super::{EventKind, SEPARATOR, writer};
use crate::Digest;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::pcr::VM_BANKS;

/// The measurements of one launch and the log that tells of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmLog {
    /// The events, in order. PCR 17's is made by the TPM's hash sequence over the launch record, not by an extend.
    pub events: Vec<VmEvent>,
    /// The crypto-agile log handed to the guest.
    pub log: Vec<u8>,
}

impl VmLog {
    /// These events, and their log.
    pub fn of(events: Vec<VmEvent>) -> Self {
        let mut log = writer::begin(&VM_BANKS);
        for event in &events {
            writer::append(&mut log, event.pcr, event.kind.0, &event.digests(), &event.data);
        }
        Self { events, log }
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEvent {
    /// Register.
    pub pcr: u8,
    /// Type.
    pub kind: EventKind,
    /// Digest in the SHA-256 bank, which quotes cover.
    pub digest: Digest,
    /// Digest in the SHA-384 bank.
    pub sha384: Ha,
    /// Data.
    pub data: Vec<u8>,
}

impl VmEvent {
    /// Of its own data.
    fn backed(pcr: u8, kind: EventKind, data: Vec<u8>) -> Self {
        let digest = Digest::of(&[&data]);
        Self { pcr, kind, digest, sha384: HashAlg::Sha384.digest(&[&data]), data }
    }

    /// Of what is known by its SHA-256 digest.
    fn named(pcr: u8, digest: &Digest, name: &[u8]) -> Self {
        let sha384 = HashAlg::Sha384.digest(&[digest.as_bytes()]);
        Self { pcr, kind: EventKind::IPL, digest: *digest, sha384, data: name.to_vec() }
    }

    /// Its digest in each of [`VM_BANKS`].
    pub fn digests(&self) -> [Ha; VM_BANKS.len()] {
        [self.digest.into(), self.sha384]
    }
}

/// The events of a launch, from the digests of the bytes loaded and the encoded launch record.
pub fn vm_launch_log(
    monitor_version: &str,
    kernel: &Digest,
    initrd: &Digest,
    cmdline: &Digest,
    descriptor: &Digest,
    launch_record: &[u8],
) -> VmLog {
    let mut events =
        vec![VmEvent::backed(0, EventKind::S_CRTM_VERSION, utf16_nul(monitor_version))];
    events.extend((0..8).map(|pcr| VmEvent::backed(pcr, EventKind::SEPARATOR, SEPARATOR.to_vec())));
    events.push(VmEvent::named(4, kernel, b"coffer:kernel\0"));
    events.push(VmEvent::named(9, initrd, b"coffer:initrd\0"));
    events.push(VmEvent::named(9, cmdline, b"coffer:cmdline\0"));
    events.push(VmEvent::named(11, descriptor, b"coffer:descriptor\0"));
    let record = VmEvent::backed(12, EventKind::EVENT_TAG, launch_record.to_vec());
    // The sequence hashes the record itself, in every bank.
    let launch = VmEvent { pcr: 17, kind: EventKind::IPL, data: LAUNCH.to_vec(), ..record };
    events.extend([record, launch]);
    VmLog::of(events)
}

/// Data of PCR 17's event.
const LAUNCH: &[u8] = b"coffer:launch\0";

/// UTF-16LE with a terminating NUL, as UEFI writes strings.
fn utf16_nul(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}
