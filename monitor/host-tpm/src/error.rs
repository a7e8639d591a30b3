//! What can go wrong with the host's TPM, worded for the person who runs the host.

use std::io;
use std::path::PathBuf;

/// Why the host TPM did not do what was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostTpmError {
    /// A TCTI string that is not spoken here.
    #[error("TCTI `{0}` is not supported")]
    BadTcti(String),
    /// `swtpm:path=`, which the library would silently replace by a port on localhost.
    #[error("TCTI `swtpm:path=...` would be ignored by the TPM library")]
    UnixTcti,
    /// The TPM could not be reached.
    #[error("could not open the host TPM: {0}")]
    Open(String),
    /// The TPM refused an operation: which, and what it answered.
    #[error("the host TPM failed at {0}: {1}")]
    Tpm(String, String),
    /// PCRs changed again and again while being quoted.
    #[error("the host's PCRs kept changing while they were quoted")]
    UnstablePcrs,
    /// The keeper process is gone or talks nonsense.
    #[error("the host TPM keeper failed: {0}")]
    Keeper(String),
    /// The firmware's event log, at this path, cannot be read, and why.
    #[error("the host's event log `{0}` cannot be read: {1}")]
    EventLog(PathBuf, String),
    /// No room to wait; nothing was begun.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// The answer did not come while it was worth waiting for.
    #[error("the host TPM did not answer in time")]
    TooLate,
}

impl HostTpmError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadTcti(_) => "use `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`",
            Self::UnixTcti => {
                "start swtpm with `--server type=tcp,port=2321` and `--ctrl type=tcp,port=2322`, and use `swtpm:host=127.0.0.1,port=2321`"
            }
            Self::Open(_) => "check that the TPM exists and that the monitor may open it",
            Self::EventLog(..) => {
                "boot with UEFI measured boot and mount securityfs, or name the log with --host-event-log"
            }
            Self::Busy(_) => "try again in a few seconds",
            Self::Tpm(..) | Self::UnstablePcrs | Self::Keeper(_) | Self::TooLate => {
                "see the monitor's log; restart the monitor if it persists"
            }
        }
    }

    pub(crate) fn keeper(error: io::Error) -> Self {
        Self::Keeper(error.to_string())
    }
}
