//! The attestation channel between a guest and its monitor: vsock, host CID 2, port 49405 (SPEC 6.1).
//!
//! Each message is `u32 length, big-endian | CBOR`. The guest asks, the monitor answers one message for
//! each. The monitor knows which VM asks by the channel; nothing in a request names a VM.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::endorsement::GuestId;
use crate::evidence::HostPart;
use crate::launch::BoxKind;
use crate::{Digest, Nonce};

/// vsock port of the monitor's attestation service ("coffer" has no registered port).
pub const PORT: u32 = 49405;
/// Most bytes of data to be sealed.
pub const SEAL_MAX: usize = 64 << 10;
/// Most bytes of a request: data as sealed, which is little more than the data.
pub const REQUEST_MAX: usize = SEAL_MAX + 4096;
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
    /// Evidence for one challenge: the verifier's nonce, and SHA-256 of the encoded runtime data.
    #[n(0)]
    Attest(#[n(0)] Nonce, #[n(1)] Digest),
    /// Tells how far the guest is, with a reject code or short reason, empty if none; at most 256 bytes.
    #[n(1)]
    Status(#[n(0)] Phase, #[n(1)] String),
    /// Blocks until somebody asks the VM to stop; answered with [`Answer::Stop`]. Own connection.
    #[n(2)]
    AwaitStop,
    /// Who the guest is.
    #[n(3)]
    GetId,
    /// A certificate for a key of the guest's: a P-256 point (SEC 1, uncompressed).
    #[n(4)]
    Endorse(#[n(0)] ByteVec),
    /// Data that only who satisfies a policy (`image:HEX`, `signer:HEX`, `signer:HEX,svn=N` or `open`) shall have again; on
    /// every host of the fleet, or on this one alone; at most [`SEAL_MAX`] bytes.
    #[n(5)]
    Seal(#[n(0)] String, #[n(1)] bool, #[n(2)] ByteVec),
    /// Data that was sealed, as it was answered.
    #[n(6)]
    Unseal(#[n(0)] ByteVec),
    /// A counter that never falls: of whom a policy means, whom the guest has to satisfy, and by its name; moved by one
    /// first, or only read.
    #[n(7)]
    Counter(#[n(0)] String, #[n(1)] String, #[n(2)] bool),
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
    /// Who the guest is, and the certificate (DER) of the CA that endorses on this host.
    #[n(4)]
    Id(#[n(0)] Box<GuestId>, #[n(1)] ByteVec),
    /// The guest's certificate and the CA's, DER.
    #[n(5)]
    Endorsed(#[n(0)] ByteVec, #[n(1)] ByteVec),
    /// Sealed data.
    #[n(6)]
    Sealed(#[n(0)] ByteVec),
    /// Data, and who sealed it, as its monitor knew it then: kind of box, image ID, signer, security version.
    #[n(7)]
    Unsealed(#[n(0)] ByteVec, #[n(1)] BoxKind, #[n(2)] Digest, #[n(3)] Option<Digest>, #[n(4)] u32),
    /// The counter's value.
    #[n(8)]
    Counter(#[n(0)] u64),
}
