//! Writes a crypto-agile log, as the monitor hands it to a guest: little-endian, as PFP 1.06 section 10 has it.

use super::{EventKind, SPEC_ID};
use crate::tpm::hash::{Ha, HashAlg};

/// A log that holds the Spec ID event alone, which lists these banks.
pub fn begin(banks: &[HashAlg]) -> Vec<u8> {
    // TCG_EfiSpecIDEventStruct: platform class client, version 2.00 errata 0, 64-bit UINTN.
    let mut spec_id = [SPEC_ID, &[0; 4][..], &[0, 2, 0, 2], &length(banks)].concat();
    for bank in banks {
        spec_id.extend_from_slice(&bank.id().to_le_bytes());
        // No digest has more than 64 bytes.
        spec_id.extend_from_slice(&[bank.size() as u8, 0]);
    }
    spec_id.push(0);
    // TCG_PCR_EVENT, the old layout: PCR 0, EV_NO_ACTION, a zero SHA-1 digest.
    let no_action = EventKind::NO_ACTION.0.to_le_bytes();
    [&[0; 4][..], &no_action, &[0; 20], &length(&spec_id), &spec_id].concat()
}

/// Appends one event (TCG_PCR_EVENT2) with a digest of each bank, in the order of the banks.
pub fn append(log: &mut Vec<u8>, pcr: u8, kind: u32, digests: &[Ha], data: &[u8]) {
    log.extend_from_slice(&u32::from(pcr).to_le_bytes());
    log.extend_from_slice(&kind.to_le_bytes());
    log.extend_from_slice(&length(digests));
    for digest in digests {
        log.extend_from_slice(&digest.hash().id().to_le_bytes());
        log.extend_from_slice(digest.as_bytes());
    }
    log.extend_from_slice(&length(data));
    log.extend_from_slice(data);
}

/// Data beyond 4 GiB cannot be said in this format; the reader refuses far less.
fn length<T>(items: &[T]) -> [u8; 4] {
    u32::try_from(items.len()).unwrap_or(u32::MAX).to_le_bytes()
}
