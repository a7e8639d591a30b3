//! What can go wrong with a vTPM. Every one of these ends the launch.

use std::io;
use std::path::PathBuf;

use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::response::TpmError;

/// Why a vTPM could not be made or measured into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VtpmError {
    /// The state directory could not be made or removed: which, and what the kernel said.
    #[error("vTPM state directory `{0}`: {1}")]
    State(PathBuf, #[source] io::Error),
    /// swtpm could not be started: which program, and what the kernel said.
    #[error("could not start `{0}`: {1}")]
    Spawn(PathBuf, #[source] io::Error),
    /// A channel to swtpm, `control` or `data`, broke or stayed silent: at which step, and what the kernel said.
    #[error("{0} channel of swtpm while doing {1}: {2}")]
    Channel(&'static str, &'static str, #[source] io::Error),
    /// A control command was refused by swtpm, with this TPM_RESULT.
    #[error("swtpm refused {0} with result {1:#x}")]
    Control(&'static str, u32),
    /// An answer to a control command that does not have the form the protocol gives it.
    #[error("swtpm answered {0} with a malformed message")]
    Malformed(&'static str),
    /// A TPM command failed.
    #[error("vTPM refused {0}: {1}")]
    Tpm(&'static str, #[source] TpmError),
    /// swtpm does not offer something a vTPM needs.
    #[error("swtpm lacks {0}")]
    Lacks(&'static str),
    /// swtpm holds a key nobody gave it: `state` or `migration`.
    #[error("swtpm reports a {0} key that was not given to it")]
    UnexpectedKey(&'static str),
    /// A key made by the vTPM, `vEK` or `vAK`, is not the one its template asks for.
    #[error("the vTPM made an unusable {0}")]
    BadKey(&'static str),
    /// After measuring, a PCR does not hold what it must in this bank.
    #[error("PCR {0} of the vTPM does not hold the launch in bank {1}")]
    PcrMismatch(u8, HashAlg),
    /// A step failed, and swtpm said more about it than its answer does: a line of its standard error, printable.
    #[error("{0}; swtpm said: {1}")]
    Said(Box<VtpmError>, String),
    /// A step failed, and there is no room for the state in its directory.
    #[error("no space left for the vTPM's state in `{1}`: {0}")]
    NoSpace(Box<VtpmError>, PathBuf),
    /// The EK certificate does not fit into NV.
    #[error("the EK certificate is too large for TPM NV")]
    CertificateTooLarge,
}
