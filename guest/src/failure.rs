//! Why an appliance gives up: a code for the monitor and `coffer ps`, a line for the console.

use coffer_exchange::Reject;

/// Every way to fail, grouped by whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    // The image.
    /// A step of the machine's own set-up failed.
    #[error(transparent)]
    Step(#[from] coffer_pid1::Error),
    /// `appliance.json` is missing or not acceptable.
    #[error("{0}")]
    Appliance(String),
    /// A volume cannot be formatted or mounted.
    #[error("volume `{disk}`: {reason}")]
    Volume {
        /// Its name.
        disk: String,
        /// What went wrong.
        reason: String,
    },
    /// The workload cannot be started as the image describes it.
    #[error("workload: {0}")]
    Workload(String),

    // The host.
    /// The attestation channel is broken.
    #[error("the monitor cannot be reached: {0}")]
    Channel(std::io::Error),
    /// The monitor answered out of turn.
    #[error("the monitor's answer is not acceptable: {0}")]
    ChannelProtocol(Reject),
    /// The monitor will not or cannot give evidence.
    #[error("the monitor refused: {0}")]
    MonitorRefused(String),
    /// The workload's local API cannot be offered.
    #[error("cannot offer the local API: {0}")]
    Api(std::io::Error),
    /// The vTPM does not answer as it must.
    #[error("vTPM: {step}: {reason}")]
    Tpm {
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        reason: String,
    },

    // The way to the verifier.
    /// No connection, or it broke. The only failure that is tried again.
    #[error("cannot reach the verifier at {address}: {source}")]
    Unreachable {
        /// Address.
        address: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The other end is not the pinned verifier.
    #[error("the server at {address} is not the pinned verifier: {source}")]
    Untrusted {
        /// Address.
        address: String,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The verifier's answer is not HTTP or JSON as agreed.
    #[error("the verifier's answer is not acceptable: {0}")]
    BadAnswer(&'static str),

    // The verifier's decision.
    /// The verifier refused.
    #[error("the verifier refused with `{code}`: {message}")]
    Refused {
        /// Reject code or service code.
        code: String,
        /// Its message.
        message: String,
    },

    // The release, as judged here.
    /// Signature, challenge or form.
    #[error("the release is not acceptable: {0}")]
    Release(Reject),
    /// A secret that was asked for is not in the release.
    #[error("the release lacks `{0}`")]
    SecretMissing(String),
    /// A secret that was not asked for, or came twice, is in the release.
    #[error("the release carries `{0}`, which was not asked for")]
    SecretUnexpected(String),
    /// A secret cannot be opened with this attestation's key.
    #[error("`{0}` is not sealed to this attestation's key")]
    SecretUnsealable(String),
    /// A secret cannot be written.
    #[error("cannot write secret file `{file}`: {source}")]
    SecretStore {
        /// File name.
        file: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Failure {
    /// The code reported to the monitor: the verifier's own where there is one (SPEC 9), else one of ours.
    pub fn code(&self) -> &str {
        match self {
            Self::Step(_) | Self::Api(_) => "boot-failed",
            Self::Appliance(_) => "bad-appliance",
            Self::Volume { .. } => "volume-failed",
            Self::Workload(_) => "workload-failed",
            Self::Channel(_) | Self::ChannelProtocol(_) => "channel-failed",
            Self::MonitorRefused(line) => reject_in(line).unwrap_or("monitor-refused"),
            Self::Tpm { .. } => Reject::VtpmFailed.code(),
            Self::Unreachable { .. } => "verifier-unreachable",
            Self::Untrusted { .. } => "verifier-untrusted",
            Self::BadAnswer(_) => "verifier-bad-answer",
            Self::Refused { code, .. } => code,
            Self::Release(reject) => reject.code(),
            Self::SecretMissing(_) => "secret-missing",
            Self::SecretUnexpected(_) => "secret-unexpected",
            Self::SecretUnsealable(_) => "secret-unsealable",
            Self::SecretStore { .. } => "secret-store",
        }
    }

    /// True for the one kind that time may heal. A refusal is never asked for again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The reject code a monitor's line begins with, as in `host-tpm-failed: the quote timed out`.
fn reject_in(line: &str) -> Option<&'static str> {
    let word = line.split([':', ' ']).next()?;
    Reject::from_code(word).map(Reject::code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_refusal_is_the_verifiers() {
        let refused = Failure::Refused { code: "policy-denied".into(), message: "no".into() };
        assert_eq!(refused.code(), "policy-denied");
        assert!(!refused.is_transient());
    }

    #[test]
    fn a_monitor_may_name_a_reject() {
        let named = Failure::MonitorRefused("host-tpm-failed: no answer".into());
        assert_eq!(named.code(), "host-tpm-failed");
        assert_eq!(Failure::MonitorRefused("no idea".into()).code(), "monitor-refused");
    }
}
