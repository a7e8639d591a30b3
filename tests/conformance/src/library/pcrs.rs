//! `pcrs.json`: register values as sent, `[{"bank": "sha256", "pcr": 0, "value": "…"}, …]`.

use coffer_attestation::evidence::PcrValue;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::{Digest, Reject};
use serde::Deserialize;

use super::file;
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    bank: String,
    pcr: u8,
    #[serde(with = "hex::serde")]
    value: Vec<u8>,
}

/// The values, each of its bank's length.
pub(super) fn of_any_bank(files: &Files) -> Result<Vec<(HashAlg, u8, Ha)>, Reject> {
    let value = |sent: Value| {
        let bank = HashAlg::from_name(&sent.bank).ok_or(Reject::BankNotAllowed)?;
        Ok((bank, sent.pcr, Ha::new(bank, &sent.value).ok_or(Reject::Malformed)?))
    };
    read(files)?.into_iter().map(value).collect()
}

/// The values as evidence carries them, SHA-256 alone.
pub(super) fn of_sha256(files: &Files) -> Result<Vec<PcrValue>, Reject> {
    let value = |sent: Value| {
        if sent.bank != "sha256" {
            return Err(Reject::BankNotAllowed);
        }
        let digest = Digest::from_slice(&sent.value).ok_or(Reject::Malformed)?;
        Ok(PcrValue { index: sent.pcr, digest })
    };
    read(files)?.into_iter().map(value).collect()
}

fn read(files: &Files) -> Result<Vec<Value>, Reject> {
    serde_json::from_slice(file(files, "pcrs.json")).map_err(|_| Reject::Malformed)
}
