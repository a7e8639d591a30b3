//! What can go wrong with a vTPM. Every one of these ends the launch.

use std::io;

use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::response::TpmError;

/// Why a vTPM could not be made or measured into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VtpmError {
    /// The state directory could not be made or removed.
    #[error("vTPM state directory `{path}`: {source}")]
    State {
        /// Directory.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// swtpm could not be started.
    #[error("could not start `{program}`: {source}")]
    Spawn {
        /// Program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A channel to swtpm broke or stayed silent.
    #[error("{channel} channel of swtpm while doing {what}: {source}")]
    Channel {
        /// `control` or `data`.
        channel: &'static str,
        /// Step.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A control command was refused by swtpm.
    #[error("swtpm refused {what} with result {result:#x}")]
    Control {
        /// Command.
        what: &'static str,
        /// TPM_RESULT.
        result: u32,
    },
    /// An answer that does not have the form the protocol gives it.
    #[error("swtpm answered {what} with a malformed message")]
    Malformed {
        /// Command.
        what: &'static str,
    },
    /// A TPM command failed.
    #[error("vTPM refused {what}: {source}")]
    Tpm {
        /// Command.
        what: &'static str,
        /// Response code.
        source: TpmError,
    },
    /// swtpm does not offer something a vTPM needs.
    #[error("swtpm lacks {what}")]
    Lacks {
        /// Capability.
        what: &'static str,
    },
    /// swtpm holds a key nobody gave it.
    #[error("swtpm reports a {what} key that was not given to it")]
    UnexpectedKey {
        /// `state` or `migration`.
        what: &'static str,
    },
    /// A key made by the vTPM is not the one its template asks for.
    #[error("the vTPM made an unusable {what}")]
    BadKey {
        /// `vEK` or `vAK`.
        what: &'static str,
    },
    /// After measuring, a PCR does not hold what it must.
    #[error("PCR {pcr} of the vTPM does not hold the launch in bank {bank}")]
    PcrMismatch {
        /// PCR index.
        pcr: u8,
        /// Bank.
        bank: HashAlg,
    },
    /// A step failed, and swtpm said more about it than its answer does.
    #[error("{step}; swtpm said: {said}")]
    Said {
        /// What failed.
        step: Box<VtpmError>,
        /// A line of its standard error, printable.
        said: String,
    },
    /// A step failed, and there is no room for the state.
    #[error("no space left for the vTPM's state in `{path}`: {step}")]
    NoSpace {
        /// State directory.
        path: String,
        /// What failed.
        step: Box<VtpmError>,
    },
    /// The EK certificate does not fit into NV.
    #[error("the EK certificate is too large for TPM NV")]
    CertificateTooLarge,
}
