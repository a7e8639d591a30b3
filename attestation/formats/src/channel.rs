//! The attestation channel between a guest and its monitor: vsock, host CID 2, port 49405 (SPEC 6.1).
//!
//! Each message is `u32 length, big-endian | CBOR`. The guest asks, the monitor answers one message for
//! each. The monitor knows which VM asks by the channel; nothing in a request names a VM.

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
    /// Who the guest is.
    #[n(3)]
    GetId,
    /// A certificate for a key of the guest's.
    #[n(4)]
    Endorse {
        /// P-256 point (SEC 1, uncompressed).
        #[cbor(n(0), with = "minicbor::bytes")]
        public_key: [u8; 65],
    },
    /// Data that only who satisfies a policy shall have again.
    #[n(5)]
    Seal {
        /// The policy: `image:HEX`, `signer:HEX`, `signer:HEX,svn=N` or `open`.
        #[n(0)]
        to: String,
        /// On every host of the fleet, not on this one alone.
        #[n(1)]
        fleet: bool,
        /// At most [`SEAL_MAX`] bytes.
        #[cbor(n(2), with = "minicbor::bytes")]
        data: Vec<u8>,
    },
    /// Data that was sealed.
    #[n(6)]
    Unseal {
        /// As it was answered.
        #[cbor(n(0), with = "minicbor::bytes")]
        blob: Vec<u8>,
    },
    /// A counter of this appliance's that never falls.
    #[n(7)]
    Counter {
        /// Name.
        #[n(0)]
        name: String,
        /// Moves it by one first.
        #[n(1)]
        advance: bool,
    },
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
    Id(#[n(0)] Box<GuestId>, #[cbor(n(1), with = "minicbor::bytes")] Vec<u8>),
    /// The guest's certificate and the CA's, DER.
    #[n(5)]
    Endorsed(
        #[cbor(n(0), with = "minicbor::bytes")] Vec<u8>,
        #[cbor(n(1), with = "minicbor::bytes")] Vec<u8>,
    ),
    /// Sealed data.
    #[n(6)]
    Sealed(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// Data, and who sealed it.
    #[n(7)]
    Unsealed(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>, #[n(1)] Sealer),
    /// The counter's value.
    #[n(8)]
    Counter(#[n(0)] u64),
}

/// Who sealed data, as its monitor knew it then.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sealer {
    /// Open or closed.
    #[n(0)]
    pub box_kind: BoxKind,
    /// SHA-256 of the descriptor bytes.
    #[n(1)]
    pub image_id: Digest,
    /// SHA-256 of the SEC 1 point of the key that signed the image, if one did.
    #[n(2)]
    pub signer: Option<Digest>,
    /// Security version of the image.
    #[n(3)]
    pub svn: u32,
}
