//! Monotonic counters of guests (SPEC 11.16.4): numbers that no reboot, and no copy of the storage, takes back.

use std::collections::BTreeMap;

use coffer_formats::cbor;
use coffer_formats::launch::BoxKind;
use minicbor::{Decode, Encode};

use crate::error::VaultError;
use crate::identity::Identity;
use crate::vault::{Vault, panicked};

/// Counters a guest may have.
pub const COUNTERS_MAX: usize = 256;
/// Most bytes of a counter's name.
const NAME_MAX: usize = 64;
/// Most bytes of a record: 256 names with their values, and more.
const RECORD_MAX: usize = 32 << 10;
const VERSION: u8 = 1;

#[derive(Encode, Decode)]
#[cbor(map)]
pub(crate) struct Counters {
    #[n(0)]
    version: u8,
    /// By name, ascending.
    #[n(1)]
    pub values: BTreeMap<String, u64>,
}

impl Counters {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let counters = cbor::decode(bytes, RECORD_MAX).ok();
        counters.filter(|counters: &Self| counters.version == VERSION)
    }
}

impl Vault {
    /// A counter of the guest's signer (of its image, if nobody signed it), moved by one first if `advance`. A name never
    /// used is at 0. What is returned is never taken back.
    pub fn counter(&self, by: &Identity, name: &str, advance: bool) -> Result<u64, VaultError> {
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(VaultError::BadName(name.to_owned()));
        }
        let record = record(by);
        let _one = self.0.counting.lock().map_err(|_| panicked())?;
        let mut counters = match self.0.records.get(&record)? {
            None => Counters { version: VERSION, values: BTreeMap::new() },
            Some(bytes) => {
                Counters::decode(&bytes).ok_or_else(|| VaultError::Record(record.clone()))?
            }
        };
        let value = counters.values.get(name).copied().unwrap_or(0);
        if !advance {
            return Ok(value);
        }
        if !counters.values.contains_key(name) && counters.values.len() >= COUNTERS_MAX {
            return Err(VaultError::TooManyCounters(counters.values.len()));
        }
        let next = value.checked_add(1).ok_or(VaultError::Full)?;
        counters.values.insert(name.to_owned(), next);
        self.0.records.put(&record, &cbor::encode(&counters))?;
        Ok(next)
    }
}

/// Open boxes have theirs apart, so that none moves a closed one's.
fn record(by: &Identity) -> String {
    let kind = match by.box_kind {
        BoxKind::Closed => "closed",
        BoxKind::Open => "open",
    };
    match by.signer {
        Some(signer) => format!("counter/{kind}/signer/{signer}"),
        None => format!("counter/{kind}/image/{}", by.image_id),
    }
}
