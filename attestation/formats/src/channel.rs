//! The attestation channel between a guest and its monitor: vsock, host CID 2, port 49405 (SPEC 6.1).
//!
//! Each message is `u32 length, big-endian | CBOR`. The guest asks, the monitor answers one message for
//! each. The monitor knows which VM asks by the channel; nothing in a request names a VM.

use minicbor::{Decode, Encode};

use crate::evidence::HostPart;
use crate::{Digest, Nonce};

/// vsock port of the monitor's attestation service ("coffer" has no registered port).
pub const PORT: u32 = 49405;
/// Most bytes of a request.
pub const REQUEST_MAX: usize = 4096;
/// Most bytes of an answer: a host part with its event log.
pub const ANSWER_MAX: usize = 1 << 20;

/// How far the guest has come; shown by `coffer ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Phase {
    /// coffer-init runs.
    #[n(0)]
    Started,
    /// The root file system is mounted.
    #[n(1)]
    Mounted,
    /// The verifier accepted the evidence and the secrets are in place.
    #[n(2)]
    Attested,
    /// The workload was started.
    #[n(3)]
    Running,
    /// The guest gives up and powers off; the detail carries a reject code or a reason.
    #[n(4)]
    Failed,
    /// The workload ended by itself.
    #[n(5)]
    Exited,
}

/// What a guest may ask.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Evidence for one challenge.
    #[n(0)]
    Attest {
        /// The verifier's nonce.
        #[n(0)]
        nonce: Nonce,
        /// SHA-256 of the encoded runtime data.
        #[n(1)]
        report_data: Digest,
    },
    /// Tells how far the guest is.
    #[n(1)]
    Status {
        /// Phase reached.
        #[n(0)]
        phase: Phase,
        /// Reject code or short reason, empty if none; at most 256 bytes.
        #[n(1)]
        detail: String,
    },
    /// Blocks until somebody asks the VM to stop; answered with [`Answer::Stop`]. Own connection.
    #[n(2)]
    AwaitStop,
}

/// What the monitor answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// The host's half of the evidence.
    #[n(0)]
    Evidence(#[n(0)] Box<HostPart>),
    /// The status was noted.
    #[n(1)]
    Noted,
    /// The monitor will not or cannot; one line.
    #[n(2)]
    Refused(#[n(0)] String),
    /// The VM is asked to stop in an orderly way.
    #[n(3)]
    Stop,
}
