//! Writes a crypto-agile log with the SHA-256 bank alone, as the monitor hands it to a guest.

use super::{EventType, SPEC_ID};
use crate::Digest;
use crate::tpm::alg;

/// A log being written, little-endian as PFP 1.06 section 10 has it.
pub struct LogBuilder {
    out: Vec<u8>,
}

impl LogBuilder {
    /// Starts with the Spec ID event.
    pub fn new() -> Self {
        let mut out = Vec::new();
        // TCG_EfiSpecIDEventStruct: platform class client, version 2.00 errata 0, 64-bit UINTN, one bank.
        let mut spec_id = SPEC_ID.to_vec();
        spec_id.extend_from_slice(&0u32.to_le_bytes());
        spec_id.extend_from_slice(&[0, 2, 0, 2]);
        spec_id.extend_from_slice(&1u32.to_le_bytes());
        spec_id.extend_from_slice(&alg::SHA256.to_le_bytes());
        spec_id.extend_from_slice(&DIGEST_SIZE.to_le_bytes());
        spec_id.push(0);
        // TCG_PCR_EVENT, the old layout: PCR 0, EV_NO_ACTION, a zero SHA-1 digest.
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&EventType::NO_ACTION.0.to_le_bytes());
        out.extend_from_slice(&[0; 20]);
        append_sized(&mut out, &spec_id);
        Self { out }
    }

    /// Appends one event (TCG_PCR_EVENT2).
    #[must_use]
    pub fn event(mut self, pcr: u8, kind: EventType, digest: Digest, data: &[u8]) -> Self {
        self.out.extend_from_slice(&u32::from(pcr).to_le_bytes());
        self.out.extend_from_slice(&kind.0.to_le_bytes());
        self.out.extend_from_slice(&1u32.to_le_bytes());
        self.out.extend_from_slice(&alg::SHA256.to_le_bytes());
        self.out.extend_from_slice(digest.as_bytes());
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
    // Data beyond 4 GiB cannot be said in this format; the reader refuses far less.
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(data);
}

/// Bytes of a SHA-256 digest, as the header states it.
const DIGEST_SIZE: u16 = 32;
