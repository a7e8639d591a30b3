//! What a quote signs (TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE; Part 2, 10.12).
//!
//! Read strictly and only after the signature over the same bytes was verified. A structure without
//! the magic (an unrestricted key can sign anything), of another type, with an ill-formed flag or with
//! bytes left over is refused (tpm2-tools CVE-2024-29038 and GHSA-gwfg-w3jr-xh66 are why).

use super::pcr::Selection;
use super::wire::Reader;
use crate::{Digest, ObjectName, Reject};

/// TPM_GENERATED_VALUE: `\xffTCG` (Part 2, 6.2).
const MAGIC: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE (Part 2, 6.9).
const ATTEST_QUOTE: u16 = 0x8018;
/// Most bytes of extraData: TPM2B_DATA holds a TPMT_HA, 2 bytes and a SHA-512 digest (Part 2, 10.4.3).
const EXTRA_DATA_MAX: usize = 66;
/// Most bytes of a digest (SHA-512).
const DIGEST_MAX: usize = 64;

/// TPMS_CLOCK_INFO (Part 2, 10.11.1): signed by the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds the TPM was powered; does not run backwards.
    pub clock: u64,
    /// TPM Resets since the last TPM2_Clear.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last TPM Reset.
    pub restart_count: u32,
    /// False if the clock may repeat values after an unorderly shutdown.
    pub safe: bool,
}

/// A quote's TPMS_ATTEST. Every field is signed by the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    /// Qualified name of the signing key.
    pub qualified_signer: ObjectName,
    /// What the caller gave as qualifying data.
    pub extra_data: Vec<u8>,
    /// Clock and reset counters.
    pub clock_info: ClockInfo,
    /// Vendor's firmware version.
    pub firmware_version: u64,
    /// Registers the digest covers.
    pub selection: Selection,
    /// SHA-256 over the concatenated values of the selected registers.
    pub pcr_digest: Digest,
}

impl Attest {
    /// Reads a TPMS_ATTEST with nothing before and nothing after it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC {
            return Err(Reject::BadMagic);
        }
        if r.u16()? != ATTEST_QUOTE {
            return Err(Reject::WrongAttestType);
        }
        let attest = Self {
            qualified_signer: ObjectName::from_slice(r.tpm2b(2 + DIGEST_MAX)?)
                .ok_or(Reject::Malformed)?,
            extra_data: r.tpm2b(EXTRA_DATA_MAX)?.to_vec(),
            clock_info: clock_info(&mut r)?,
            firmware_version: r.u64()?,
            selection: Selection::read(&mut r)?,
            pcr_digest: Digest::from_slice(r.tpm2b(DIGEST_MAX)?).ok_or(Reject::Malformed)?,
        };
        r.finish()?;
        Ok(attest)
    }
}

fn clock_info(r: &mut Reader<'_>) -> Result<ClockInfo, Reject> {
    Ok(ClockInfo {
        clock: r.u64()?,
        reset_count: r.u32()?,
        restart_count: r.u32()?,
        // TPMI_YES_NO has two values.
        safe: match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Reject::Malformed),
        },
    })
}
