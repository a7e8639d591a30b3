//! A TPM's answers (Part 3). A vTPM is a separate process and a host TPM a separate chip: what they answer
//! is checked like any other input.

use thiserror::Error;

use super::command::{ST_NO_SESSIONS, ST_SESSIONS};
use super::hash::{Ha, HashAlg};
use super::pcr::Selections;
use super::wire::Reader;
use crate::Reject;

/// Why an answer was not the one hoped for.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TpmError {
    /// TPM_RC other than success.
    #[error("the tpm answered 0x{0:03x}")]
    Code(u32),
    /// The answer does not parse.
    #[error("the tpm's answer does not parse")]
    Malformed,
}

impl From<Reject> for TpmError {
    fn from(_: Reject) -> Self {
        Self::Malformed
    }
}

/// Checks that a command succeeded; its answer holds nothing else of interest.
pub fn ok(answer: &[u8]) -> Result<(), TpmError> {
    header(answer).map(drop)
}

/// TPM2_CreatePrimary: the transient handle and the TPMT_PUBLIC made.
pub fn create_primary(answer: &[u8]) -> Result<(u32, Vec<u8>), TpmError> {
    let mut r = header(answer)?;
    let handle = r.u32()?;
    let mut r = parameters(r)?;
    Ok((handle, r.tpm2b(BUFFER_MAX)?.to_vec()))
}

/// TPM2_PCR_Read of one bank: the registers the TPM answered, which may be fewer than asked for.
pub fn pcr_read_in(bank: HashAlg, answer: &[u8]) -> Result<Vec<(u8, Ha)>, TpmError> {
    let mut r = header(answer)?;
    let _update_counter = r.u32()?;
    let selections = Selections::read(&mut r)?;
    if !selections.is_only_of(bank)
        || usize::try_from(r.u32()?) != Ok(selections.registers().count())
    {
        return Err(TpmError::Malformed);
    }
    let mut values = Vec::new();
    for (_, index) in selections.registers() {
        let value = Ha::new(bank, r.tpm2b(bank.size())?).ok_or(TpmError::Malformed)?;
        values.push((index, value));
    }
    r.finish()?;
    Ok(values)
}

/// TPM2_PCR_Allocate: true if the allocation will be in force after the next TPM Reset.
pub fn pcr_allocate(answer: &[u8]) -> Result<bool, TpmError> {
    Ok(parameters(header(answer)?)?.u8()? == 1)
}

/// Checks tag, size and response code; what follows is still unread.
pub fn header(answer: &[u8]) -> Result<Reader<'_>, TpmError> {
    let mut r = Reader::new(answer);
    let tag = r.u16()?;
    let size = r.u32()?;
    let code = r.u32()?;
    // A TPM 2.0 that failed answers without sessions; 0x00c4 is a TPM 1.2 (Part 1, 18.3).
    let known = matches!(tag, ST_NO_SESSIONS | ST_SESSIONS);
    match code {
        _ if !known || usize::try_from(size) != Ok(answer.len()) => Err(TpmError::Malformed),
        0 => Ok(r),
        code => Err(TpmError::Code(code)),
    }
}

/// With sessions, the parameters are preceded by their size and followed by the session areas.
pub fn parameters(mut r: Reader<'_>) -> Result<Reader<'_>, TpmError> {
    let size = usize::try_from(r.u32()?).map_err(|_| TpmError::Malformed)?;
    Ok(Reader::new(r.bytes(size)?))
}

/// Largest buffer a PC Client TPM answers with (TPM2_MAX_RESPONSE_SIZE is 4096).
pub const BUFFER_MAX: usize = 4096;
