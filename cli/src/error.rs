//! What went wrong, in two lines: what is wrong, and what to try.
//!
//! One enum for the whole command line, grouped by whose fault it is. Messages from a service, an image or
//! a guest are untrusted text: they are flattened to one printable line before anyone sees them.

use std::io;
use std::path::{Path, PathBuf};

use coffer_attestation::protocol::ErrorBody;

/// Which service answered, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The monitor on the host.
    Monitor,
    /// The verifier.
    Verifier,
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Monitor => "monitor",
            Self::Verifier => "verifier",
        })
    }
}

/// Why a command ended in failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The caller.
    /// A flag or argument is not usable. Exit code 2.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to try.
        hint: String,
    },
    /// A file given is there but is not what it should be.
    #[error("`{}` is not {expected}: {detail}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// How it fails to be.
        detail: String,
        /// What to try.
        hint: String,
    },

    // This machine.
    /// The operating system refused something about a file.
    #[error("cannot {action} `{}`: {}", path.display(), io_reason(source))]
    File {
        /// What was tried: `read`, `write`, `create`, ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("cannot write to standard output: {}", io_reason(.0))]
    Output(io::Error),
    /// The operating system refused something else.
    #[error("cannot {action}: {}", io_reason(source))]
    System {
        /// What was tried.
        action: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// `coffer doctor` found that a closed box cannot run here.
    #[error("a closed box cannot run on this machine: {missing} missing")]
    NotReady {
        /// Names of the checks that failed.
        missing: String,
    },

    /// Cases of the corpus did not end as expected.
    #[error("{deviations} cases of the corpus did not end as expected")]
    NotConforming {
        /// How many.
        deviations: usize,
    },

    // A service.
    /// The service does not answer.
    #[error("the {service} at `{endpoint}` does not answer: {reason}")]
    Down {
        /// Which.
        service: Service,
        /// Where.
        endpoint: String,
        /// The reason.
        reason: String,
        /// What to try.
        hint: String,
    },
    /// The verifier's certificate is not acceptable.
    #[error("the certificate of the verifier at `{url}` is not acceptable: {reason}")]
    Certificate {
        /// Where.
        url: String,
        /// Why.
        reason: String,
        /// What to try.
        hint: String,
    },
    /// The service refused.
    #[error("the {service} refused: {} ({})", .body.message, .body.code)]
    Refused {
        /// Which.
        service: Service,
        /// Its answer.
        body: Box<ErrorBody>,
    },
    /// The service's answer makes no sense.
    #[error("the {service} gave an answer that makes no sense: {detail}")]
    BadAnswer {
        /// Which.
        service: Service,
        /// What about it.
        detail: String,
    },
    /// The monitor's answer ends before its end.
    #[error("the monitor's answer broke off")]
    BrokenOff,
    /// A VM ended with a failure.
    #[error("`{vm}` failed: {detail} ({reason})")]
    VmFailed {
        /// Its name.
        vm: String,
        /// Reject code or failure code.
        reason: String,
        /// One clause.
        detail: String,
    },

    /// Parts of a volume are not what was written there.
    #[error("the volume `{volume}` is damaged in {places} places")]
    DamagedVolume {
        /// Its name.
        volume: String,
        /// How many.
        places: u64,
    },

    /// Blocks of a volume were given up.
    #[error("{blocks} blocks of the volume `{volume}` were given up, and not written since")]
    LostBlocks {
        /// Its name.
        volume: String,
        /// How many.
        blocks: u64,
    },

    // Evidence in files.
    /// A quote, a log, a certificate or evidence is refused.
    #[error("{what} is refused: {reject} ({}){}", .reject.code(), in_clause(.detail))]
    Rejected {
        /// What.
        what: &'static str,
        /// Why.
        reject: coffer_attestation::Reject,
        /// Where, and what was found and expected; may be empty.
        detail: String,
    },

    // Images.
    /// The image is not acceptable.
    #[error("{message}")]
    Image {
        /// What is wrong.
        message: String,
        /// What to try.
        hint: String,
    },
    /// Our own verifier could not be set up or run.
    #[error("{message}")]
    Verifier {
        /// What is wrong.
        message: String,
        /// What to try.
        hint: String,
    },
}

fn in_clause(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {}", one_line(detail)) }
}

impl Error {
    /// A usage error.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// For `map_err` on operations on a file.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    /// 2 for usage, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }

    /// What to try.
    pub fn hint(&self) -> String {
        match self {
            Self::Usage { hint, .. }
            | Self::BadFile { hint, .. }
            | Self::Down { hint, .. }
            | Self::Certificate { hint, .. }
            | Self::Image { hint, .. }
            | Self::Verifier { hint, .. } => hint.clone(),
            Self::File { action, source, .. } => file_hint(action, source).to_owned(),
            Self::Output(source) | Self::System { source, .. } => io_hint(source).to_owned(),
            Self::Rejected { reject, .. } => code_hint(reject.code()).map_or_else(
                || format!("SPEC.md#{} says what it means", reject.code()),
                str::to_owned,
            ),
            Self::NotConforming { .. } => "the report above names each, with what was found".into(),
            Self::DamagedVolume { .. } => {
                "what is damaged is never given to a guest; restore a backup under another name, or give up \
                 what is damaged with `coffer disk repair`"
                    .into()
            }
            Self::LostBlocks { .. } => {
                "they are errors to the guest until it writes them; restore a backup under another name".into()
            }
            Self::BrokenOff => {
                "no file was left; the monitor's log says why, if it still runs".into()
            }
            Self::NotReady { .. } => "the lines marked `missing` above say what each needs".into(),
            Self::Refused { service, body } => {
                // Ours first: it speaks of commands, a service's of requests.
                let hint = code_hint(&body.code).map(str::to_owned).or_else(|| body.hint.clone());
                hint.unwrap_or_else(|| log_hint(*service, &body.request_id))
            }
            Self::BadAnswer { service, .. } => {
                format!(
                    "check that the address is a Coffer {service}'s and that both are of one version"
                )
            }
            Self::VmFailed { vm, reason, .. } => code_hint(reason)
                .map_or_else(|| format!("`coffer logs {vm}` shows what it printed"), str::to_owned),
        }
    }

    /// The two lines, as people see them.
    pub fn two_lines(&self) -> String {
        format!(
            "error: {}\nhint: {}",
            one_line(&without_os_numbers(&self.to_string())),
            one_line(&self.hint())
        )
    }
}

fn log_hint(service: Service, request_id: &str) -> String {
    match request_id {
        "" => format!("the {service}'s log has the details"),
        id => format!("the {service}'s log has the details under request `{id}`"),
    }
}

/// What to try for a reject or service code; none where the log says more than we could.
fn code_hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "disk-integrity" | "kernel-digest" | "initrd-digest" | "cmdline-digest"
        | "blob-missing" | "image-mismatch" => {
            "the image on the host was changed or damaged; run `coffer image verify` and copy or build it again"
        }
        "bad-descriptor" | "unsupported-version" => {
            "run `coffer image verify` on it and build it again with this version of coffer"
        }
        "shape-not-allowed" => "`coffer image inspect` shows the vCPUs and memory the image allows",
        "not-enrolled" => "enrol the host first with `coffer host enroll`",
        "host-not-recognised" => {
            "predict the host's boot with `coffer host reference`, then `coffer verifier trust-host` it"
        }
        "policy-denied" => {
            "`coffer verifier decisions` on the verifier shows which rule was missing"
        }
        "secret-not-found" => "put the secret into the verifier with `coffer secret put`",
        "secret-not-declared" => "name the secret in the image's recipe and build the image again",
        "bad-resource" => "resource ids look like `site/tls-key`",
        "token-invalid" => "ask for a new one with `coffer verifier token NAME`; each works once",
        "session-gone" => "start the enrolment again",
        "activation-failed" => "start the enrolment again, on the host whose TPM it is",
        "ek-in-use" => {
            "this TPM is enrolled under another name; `coffer verifier hosts` lists them"
        }
        "identity-immutable" => "choose another --name; a name stays with its TPM for good",
        "untrusted-root" | "bad-ek-cert" | "ek-mismatch" => {
            "give the verifier the root certificate of this TPM's maker"
        }
        "host-tpm-failed" => "check that the host has a TPM 2.0 that answers: `coffer doctor`",
        "unauthorized" => "check the admin token file; `coffer verifier init` made it",
        "not-running" => "`coffer ps -a` shows how far it is",
        "monitor-ended" => "`coffer reset` launches it again",
        "kvm-unusable" => "`coffer doctor` says what KVM needs here",
        _ => return None,
    })
}

/// One lower-case clause for an operating system error, without its number.
pub fn io_reason(error: &io::Error) -> String {
    use io::ErrorKind as K;
    let text = match error.kind() {
        K::NotFound => "it does not exist",
        K::PermissionDenied => "permission denied",
        K::AlreadyExists => "it exists already",
        K::StorageFull | K::QuotaExceeded => "no space left",
        K::ReadOnlyFilesystem => "the file system is read-only",
        K::AddrInUse => "the address is in use",
        K::AddrNotAvailable => "the address is not on this machine",
        K::ConnectionRefused => "connection refused",
        K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => "the connection was closed",
        K::TimedOut | K::WouldBlock => "it took too long",
        K::UnexpectedEof => "it ends too early",
        K::IsADirectory => "it is a folder",
        K::NotADirectory => "a part of the path is not a folder",
        _ => return lower_first(&error.to_string()),
    };
    text.to_owned()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn file_hint(action: &str, error: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match (action, error.kind()) {
        ("create" | "write", K::NotFound) => "make the folder it goes into first",
        ("create" | "write", K::AlreadyExists) => "choose another path or remove what is there",
        _ => io_hint(error),
    }
}

/// What to try for an operating system error.
pub fn io_hint(error: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "check the path",
        K::PermissionDenied => "check who owns it, or run as a user who may",
        K::StorageFull | K::QuotaExceeded => "free some space there, or choose another place",
        K::ReadOnlyFilesystem => "choose a place that can be written",
        K::AddrInUse => "stop what listens there, or choose another port",
        K::AddrNotAvailable => "choose an address of this machine; `ip address` lists them",
        K::IsADirectory => "name a file, not a folder",
        K::NotADirectory => "check the path",
        K::UnexpectedEof => "the file is cut short; copy it again",
        _ => "try again; if it stays, `dmesg` may say more",
    }
}

/// Numbers of the operating system say nothing to people: `(os error 2)` goes.
fn without_os_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| match part.split_once(')') {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => text + rest,
        _ => text + " (os error " + part,
    })
}

/// Untrusted text as one printable line.
pub fn one_line(text: &str) -> String {
    let spaced = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_two_lines_whatever_a_service_says() {
        let body = ErrorBody {
            code: "odd".into(),
            message: "first\nsecond \u{1b}[31mred".into(),
            hint: Some("a\r\nb".into()),
            request_id: String::new(),
        };
        let error = Error::Refused { service: Service::Verifier, body: Box::new(body) };
        assert_eq!(
            error.two_lines(),
            "error: the verifier refused: first second [31mred (odd)\nhint: a b"
        );
    }

    #[test]
    fn os_errors_lose_their_number() {
        assert_eq!(
            without_os_numbers("a: text file busy (os error 26) in b"),
            "a: text file busy in b"
        );
        assert_eq!(without_os_numbers("odd (os error x)"), "odd (os error x)");
    }
}
