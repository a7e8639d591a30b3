//! `pcrs.json`: register values as sent, `[{"bank": "sha256", "pcr": 0, "value": "…"}, …]`.

use coffer_attestation::evidence::PcrValue;
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

/// The values, as evidence would carry them.
pub(super) fn read(files: &Files) -> Result<Vec<PcrValue>, Reject> {
    let values: Vec<Value> =
        serde_json::from_slice(file(files, "pcrs.json")).map_err(|_| Reject::Malformed)?;
    let value = |value: Value| match value.bank.as_str() {
        "sha256" => {
            let digest = Digest::from_slice(&value.value).ok_or(Reject::Malformed)?;
            Ok(PcrValue { index: value.pcr, digest })
        }
        _ => Err(Reject::BankNotAllowed),
    };
    values.into_iter().map(value).collect()
}
