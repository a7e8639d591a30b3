//! What the monitor measures into a VM's vTPM before its first instruction (SPEC 3.6).
//!
//! This is the only place that knows the order. The monitor extends what it says; the verifier predicts
//! from it and accepts nothing else.

use super::{EventType, LogBuilder, SEPARATOR};
use crate::Digest;

/// The measurements of one launch and the log that tells of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmLog {
    /// Register, type, digest and data of each event, in order. PCR 17's is made by the TPM's hash
    /// sequence over the launch record, not by an extend.
    pub events: Vec<(u8, EventType, Digest, Vec<u8>)>,
    /// The crypto-agile log handed to the guest.
    pub log: Vec<u8>,
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
    let ipl = |pcr, digest: &Digest, name: &[u8]| (pcr, EventType::IPL, *digest, name.to_vec());
    let backed = |pcr, kind, data: Vec<u8>| (pcr, kind, Digest::of(&[&data]), data);

    let mut events = vec![backed(0, EventType::S_CRTM_VERSION, utf16_nul(monitor_version))];
    events.extend((0..8).map(|pcr| backed(pcr, EventType::SEPARATOR, SEPARATOR.to_vec())));
    events.push(ipl(4, kernel, b"coffer:kernel\0"));
    events.push(ipl(9, initrd, b"coffer:initrd\0"));
    events.push(ipl(9, cmdline, b"coffer:cmdline\0"));
    events.push(ipl(11, descriptor, b"coffer:descriptor\0"));
    events.push(backed(12, EventType::EVENT_TAG, launch_record.to_vec()));
    events.push(ipl(17, &Digest::of(&[launch_record]), b"coffer:launch\0"));

    let log = events
        .iter()
        .fold(LogBuilder::new(), |log, (pcr, kind, digest, data)| {
            log.event(*pcr, *kind, *digest, data)
        })
        .finish();
    VmLog { events, log }
}

/// UTF-16LE with a terminating NUL, as UEFI writes strings.
fn utf16_nul(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}
