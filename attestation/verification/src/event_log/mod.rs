//! TCG event logs: the story a TPM's registers were extended by (TCG PC Client Platform Firmware Profile
//! 1.06, section 10, "crypto-agile" format; SPEC section 3.6).
//!
//! A log is unsigned. What replays to quoted registers is authentic in three things only: the order, the
//! register, and the digests. Event types are always claimed; event data is authentic only where its
//! SHA-256 is the digest measured ([`Event::data_is_measured`]). Logs without SHA-256 are refused, and so
//! is anything after the last event: Linux exports logs without padding.

mod parse;
mod replay;

pub use coffer_formats::event_log::{EventType, LogBuilder, SEPARATOR, VmLog, vm_launch_log};
pub use parse::{EventLog, parse};

use crate::Digest;

/// One event of a log, reduced to the SHA-256 bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Register extended; authentic once the log replays.
    pub pcr: u8,
    /// Claimed by whoever wrote the log; nothing measures it.
    pub kind: EventType,
    /// SHA-256 bank digest; authentic once the log replays.
    pub digest: Digest,
    /// Claimed, unless [`Self::data_is_measured`].
    pub data: Vec<u8>,
}

impl Event {
    /// True if the data hashes to the digest, so that a replaying log makes the data authentic too.
    pub fn data_is_measured(&self) -> bool {
        Digest::of(&[&self.data]) == self.digest
    }

    /// True for events that extend their register; EV_NO_ACTION does not.
    pub fn is_measured(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }
}

/// Event data that gives PCR 0 its first value (PFP 1.06, 10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
