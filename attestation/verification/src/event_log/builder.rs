//! Logs as firmware would write them, for those who try out what reads them. A monitor's own log is
//! [`super::vm_launch_log`]'s.

use coffer_exchange::event_log::writer;

use super::EventType;
use crate::Digest;
use crate::tpm::hash::HashAlg;

/// A log of the SHA-256 bank alone, being written.
pub struct LogBuilder(Vec<u8>);

impl LogBuilder {
    /// Starts with the Spec ID event.
    pub fn new() -> Self {
        Self(writer::begin(&[HashAlg::Sha256]))
    }

    /// Appends one event.
    #[must_use]
    pub fn event(
        mut self,
        pcr: u8,
        kind: impl Into<EventType>,
        digest: Digest,
        data: &[u8],
    ) -> Self {
        writer::append(&mut self.0, pcr, kind.into().0, &[digest.into()], data);
        self
    }

    /// The log.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl Default for LogBuilder {
    fn default() -> Self {
        Self::new()
    }
}
