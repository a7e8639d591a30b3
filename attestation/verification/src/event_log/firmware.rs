//! What has to be true of firmware's log beside its registers: one list for appraisal, enrolment and whoever shows a
//! log (SPEC 7.3.1). It says something once the log replays to quoted registers.

use super::Log;
use super::secure_boot::{SECURE_BOOT_PCR, SecureBoot};
use crate::Reject;

impl Log<'_> {
    /// Checks the separators, then that data is what its type says and configuration what was measured, then
    /// that one Secure Boot state can be read: of two no reference is to choose. Names the register at fault.
    pub fn check_firmware(&self) -> Result<(), (u8, Reject)> {
        self.separators()?;
        self.check_data()?;
        SecureBoot::unauthenticated(self).map(drop).map_err(|reject| (SECURE_BOOT_PCR, reject))
    }
}
