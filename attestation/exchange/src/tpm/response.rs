//! Answers to the commands that guests and tests send (Part 3), checked like any other input.

pub use coffer_formats::tpm::response::*;

use super::hash::{Ha, HashAlg};
use super::wire::Reader;
use crate::evidence::PcrValue;

/// Contents of an NV index's public area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvPublic {
    /// The index.
    pub index: u32,
    /// TPMA_NV.
    pub attributes: u32,
    /// Bytes it holds.
    pub size: u16,
}

/// TPM2_Quote: TPMS_ATTEST and TPMT_SIGNATURE.
pub fn quote(answer: &[u8]) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
    let mut r = parameters(header(answer)?)?;
    let attest = r.tpm2b(BUFFER_MAX)?.to_vec();
    Ok((attest, r.rest().to_vec()))
}

/// TPM2_PCR_Read of the SHA-256 bank.
pub fn pcr_read(answer: &[u8]) -> Result<Vec<PcrValue>, TpmError> {
    let values = pcr_read_in(HashAlg::Sha256, answer)?.into_iter();
    let value = |(index, value): (u8, Ha)| Some(PcrValue { index, digest: value.sha256()? });
    values.map(value).collect::<Option<_>>().ok_or(TpmError::Malformed)
}

/// TPM2_NV_ReadPublic.
pub fn nv_read_public(answer: &[u8]) -> Result<NvPublic, TpmError> {
    let mut r = Reader::new(header(answer)?.tpm2b(BUFFER_MAX)?);
    let index = r.u32()?;
    let _name_alg = r.u16()?;
    let attributes = r.u32()?;
    let _policy = r.tpm2b(64)?;
    let public = NvPublic { index, attributes, size: r.u16()? };
    r.finish()?;
    Ok(public)
}

/// TPM2_NV_Read.
pub fn nv_read(answer: &[u8]) -> Result<Vec<u8>, TpmError> {
    single(parameters(header(answer)?)?)
}

/// TPM2_GetRandom.
pub fn get_random(answer: &[u8]) -> Result<Vec<u8>, TpmError> {
    single(header(answer)?)
}

/// TPM2_ReadPublic: the TPMT_PUBLIC.
pub fn read_public(answer: &[u8]) -> Result<Vec<u8>, TpmError> {
    Ok(header(answer)?.tpm2b(BUFFER_MAX)?.to_vec())
}

/// TPM2_StartAuthSession: the session's handle.
pub fn start_session(answer: &[u8]) -> Result<u32, TpmError> {
    Ok(header(answer)?.u32()?)
}

/// TPM2_ActivateCredential: the secret.
pub fn activate_credential(answer: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, TpmError> {
    single(parameters(header(answer)?)?).map(zeroize::Zeroizing::new)
}

/// An answer that is one TPM2B.
fn single(mut r: Reader<'_>) -> Result<Vec<u8>, TpmError> {
    let bytes = r.tpm2b(BUFFER_MAX)?.to_vec();
    r.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tells_a_code_from_an_answer_that_does_not_parse() {
        let answer = |hex: &str| hex::decode(hex).unwrap();
        assert_eq!(ok(&answer("80010000000a00000000")), Ok(()));
        assert_eq!(ok(&answer("80010000000a00000907")), Err(TpmError::Code(0x907)));
        assert_eq!(ok(&answer("80010000000b00000000")), Err(TpmError::Malformed));
        assert_eq!(ok(&answer("00c40000000a00000000")), Err(TpmError::Malformed));
        assert_eq!(ok(&answer("8001000000")), Err(TpmError::Malformed));
        assert_eq!(get_random(&answer("80010000000e00000000000201ff")), Ok(vec![1, 0xff]));
        assert_eq!(get_random(&answer("80010000000e00000000000301ff")), Err(TpmError::Malformed));
        assert_eq!(get_random(&answer("80010000000f00000000000201ff00")), Err(TpmError::Malformed));
    }

    proptest! {
        #[test]
        fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let size = u32::try_from(body.len() + 10).unwrap();
            let answer =
                [&0x8002u16.to_be_bytes()[..], &size.to_be_bytes(), &[0; 4], &body].concat();
            let _ = (ok(&answer), create_primary(&answer), quote(&answer), pcr_read(&answer));
            let _ = (pcr_allocate(&answer), nv_read_public(&answer), nv_read(&answer));
            let _ = (get_random(&answer), read_public(&answer), start_session(&answer));
            let _ = activate_credential(&answer);
        }
    }
}
