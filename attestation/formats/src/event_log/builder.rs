//! Writes a crypto-agile log, as the monitor hands it to a guest.

use super::{EventType, SPEC_ID};
use crate::Digest;
use crate::tpm::hash::{Ha, HashAlg};

/// A log being written, little-endian as PFP 1.06 section 10 has it.
pub struct LogBuilder {
    out: Vec<u8>,
}

impl LogBuilder {
    /// A log of the SHA-256 bank alone.
    pub fn new() -> Self {
        Self::of(&[HashAlg::Sha256])
    }

    /// Starts with the Spec ID event, which lists these banks.
    pub fn of(banks: &[HashAlg]) -> Self {
        let mut out = Vec::new();
        // TCG_EfiSpecIDEventStruct: platform class client, version 2.00 errata 0, 64-bit UINTN.
        let mut spec_id = SPEC_ID.to_vec();
        spec_id.extend_from_slice(&0u32.to_le_bytes());
        spec_id.extend_from_slice(&[0, 2, 0, 2]);
        spec_id.extend_from_slice(&length(banks).to_le_bytes());
        for bank in banks {
            spec_id.extend_from_slice(&bank.id().to_le_bytes());
            // No digest has more than 64 bytes.
            spec_id.extend_from_slice(&[bank.size() as u8, 0]);
        }
        spec_id.push(0);
        // TCG_PCR_EVENT, the old layout: PCR 0, EV_NO_ACTION, a zero SHA-1 digest.
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&EventType::NO_ACTION.0.to_le_bytes());
        out.extend_from_slice(&[0; 20]);
        append_sized(&mut out, &spec_id);
        Self { out }
    }

    /// Appends an event of the SHA-256 bank alone.
    #[must_use]
    pub fn event(self, pcr: u8, kind: EventType, digest: Digest, data: &[u8]) -> Self {
        self.event_in(pcr, kind, &[digest.into()], data)
    }

    /// Appends one event (TCG_PCR_EVENT2) with a digest of each bank, in the order of the banks.
    #[must_use]
    pub fn event_in(mut self, pcr: u8, kind: EventType, digests: &[Ha], data: &[u8]) -> Self {
        self.out.extend_from_slice(&u32::from(pcr).to_le_bytes());
        self.out.extend_from_slice(&kind.0.to_le_bytes());
        self.out.extend_from_slice(&length(digests).to_le_bytes());
        for digest in digests {
            self.out.extend_from_slice(&digest.hash().id().to_le_bytes());
            self.out.extend_from_slice(digest.as_bytes());
        }
        append_sized(&mut self.out, data);
        self
    }

    /// The log.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

impl Default for LogBuilder {
    fn default() -> Self {
        Self::new()
    }
}

fn append_sized(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(&length(data).to_le_bytes());
    out.extend_from_slice(data);
}

/// Data beyond 4 GiB cannot be said in this format; the reader refuses far less.
fn length<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
