//! Which PCRs a key is sealed to, and the policy that this makes (TPM 2.0 Part 3, 23.7).

use coffer_formats::Digest;
use coffer_formats::evidence::PcrValue;
use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::pcr::{PCR_COUNT, Selections};
use coffer_formats::tpm::wire::Writer;

use crate::error::SealError;

/// Registers of the SHA-256 bank: one at least, each once, ascending.
///
/// Not 16 and 23, which anything on a host can reset, nor 21 and 22: of these four a TPM does not count the
/// changes (TPM_PT_PCR_NO_INCREMENT), so one that moves between a policy and its use would not be noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers(Vec<u8>);

impl Registers {
    /// Takes register numbers in any order.
    pub fn of(pcrs: &[u8]) -> Result<Self, SealError> {
        let mut sorted = pcrs.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let good = !sorted.is_empty()
            && sorted.len() == pcrs.len()
            && sorted.iter().all(|pcr| *pcr < PCR_COUNT && !NOT_COUNTED.contains(pcr));
        good.then_some(Self(sorted)).ok_or(SealError::BadRegisters)
    }

    /// Their numbers.
    pub fn numbers(&self) -> &[u8] {
        &self.0
    }

    /// As a bitmap: bit n % 8 of byte n / 8.
    pub(crate) fn bitmap(&self) -> [u8; 3] {
        let bits = self.0.iter().fold(0u32, |bits, pcr| bits | 1 << pcr);
        let [a, b, c, _] = bits.to_le_bytes();
        [a, b, c]
    }

    pub(crate) fn from_bitmap([a, b, c]: [u8; 3]) -> Result<Self, SealError> {
        let bits = u32::from_le_bytes([a, b, c, 0]);
        Self::of(&(0..PCR_COUNT).filter(|pcr| bits >> pcr & 1 == 1).collect::<Vec<_>>())
    }

    /// TPML_PCR_SELECTION.
    pub(crate) fn selection(&self) -> Vec<u8> {
        Selections::of(&[(HashAlg::Sha256, &self.0)]).write(Writer::new()).finish()
    }

    /// The policy that these registers have these values; they are told ascending, all of them.
    pub fn policy(&self, values: &[PcrValue]) -> Result<Digest, SealError> {
        if !self.0.iter().eq(values.iter().map(|value| &value.index)) {
            return Err(SealError::BadRegisters);
        }
        let all: Vec<&[u8]> = values.iter().map(|value| value.digest.as_bytes()).collect();
        let composite = Digest::of(&all);
        Ok(Digest::of(&[
            Digest::ZERO.as_bytes(),
            &POLICY_PCR.to_be_bytes(),
            &self.selection(),
            composite.as_bytes(),
        ]))
    }
}

/// Changes of these are not counted.
const NOT_COUNTED: [u8; 4] = [16, 21, 22, 23];
/// TPM_CC_PolicyPCR.
pub(crate) const POLICY_PCR: u32 = 0x017f;
