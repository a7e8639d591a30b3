//! Replays a log and holds it against quoted registers.

use super::{EventLog, EventType, SEPARATOR};
use crate::quote::QuotedPcrs;
use crate::{Digest, Reject};

impl EventLog {
    /// The value a register has after this log. PCR 0 starts with the startup locality; 17 to 22 start at
    /// zero, as a DRTM hash sequence leaves them (Part 1, 17.3; PTP 1.05, 6.6).
    pub fn replay(&self, pcr: u8) -> Digest {
        let mut start = Digest::ZERO;
        if pcr == 0 {
            start.0[Digest::LEN - 1] = self.startup_locality;
        }
        self.of_pcr(pcr).fold(start, |value, event| value.extend(&event.digest))
    }

    /// Checks that every quoted register is what this log replays to, and names the first that is not.
    pub fn check_replay(&self, quoted: &QuotedPcrs) -> Result<(), (u8, Reject)> {
        match quoted.iter().find(|(pcr, value)| self.replay(*pcr) != **value) {
            Some((pcr, _)) => Err((pcr, Reject::ReplayMismatch)),
            None => Ok(()),
        }
    }

    /// Checks that each of PCR 0 to 7 has exactly one separator, of four zero bytes. Firmware that met an
    /// error measures another value; firmware that never handed over measures none (PFP 1.06, 3.3.2.2).
    pub fn check_separators(&self) -> Result<(), (u8, Reject)> {
        for pcr in 0..8 {
            let mut separators = self.of_pcr(pcr).filter(|e| e.kind == EventType::SEPARATOR);
            let valid =
                separators.next().is_some_and(|e| e.data == SEPARATOR && e.data_is_measured());
            if !valid || separators.next().is_some() {
                return Err((pcr, Reject::SeparatorInvalid));
            }
        }
        Ok(())
    }
}
