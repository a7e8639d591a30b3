//! Monotonic counters of guests (SPEC 11.16.4): numbers that no reboot, and no copy of the storage, takes back.
//!
//! Whose they are the guest says, with a policy it has to satisfy: whoever stores its image can take the signature away, or put
//! another in its place, and may not move it to counters at zero by that.

use std::collections::BTreeMap;

use coffer_formats::cbor;
use minicbor::{Decode, Encode};

use crate::error::VaultError;
use crate::identity::{Identity, Owner};
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
    /// A counter of whom `of` means, `by` among them; moved by one first if `advance`. A name never used is at 0. What is
    /// returned is never taken back.
    pub fn counter(
        &self,
        by: &Identity,
        of: &Owner,
        name: &str,
        advance: bool,
    ) -> Result<u64, VaultError> {
        of.admit(by, 0)?;
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(VaultError::BadName(name.to_owned()));
        }
        let record = record(of, by);
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

/// Open boxes have theirs apart, by image, so that none moves a closed one's or another's. Of a signer's there is one set,
/// whatever the lowest security version.
fn record(of: &Owner, by: &Identity) -> String {
    match of {
        Owner::Image(image) => format!("counter/closed/image/{image}"),
        Owner::Signer { key, .. } => format!("counter/closed/signer/{key}"),
        Owner::Open => format!("counter/open/image/{}", by.image_id),
    }
}
