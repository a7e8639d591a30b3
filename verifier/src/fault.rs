//! What a request can end in but success: two messages, a spare one for the peer and a full one for the log.

use coffer_attestation::Reject;
use coffer_attestation::appraisal::Refusal;

use crate::keys::KeyError;
use crate::store::StoreError;

/// A refusal or a failure.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// For the log and the operator: what was found and what was expected. Never a secret.
    pub(crate) explanation: String,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Judged and refused.
    Reject(Reject),
    /// The request makes no sense; the message is safe to show, it speaks of the request's form only.
    BadRequest,
    /// No host showed such a vault.
    UnknownVault,
    /// A host showed it too long ago, or nobody knows when.
    StaleVault,
    /// No valid admin token.
    Unauthorized,
    /// There is no such thing.
    NotFound,
    /// Too much at once; may pass later.
    Busy,
    /// Our own trouble.
    Internal,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, explanation: impl Into<String>) -> Self {
        Self { kind, explanation: explanation.into() }
    }

    pub(crate) fn reject(reject: Reject, explanation: impl Into<String>) -> Self {
        Self::new(FaultKind::Reject(reject), explanation)
    }

    pub(crate) fn bad_request(explanation: impl Into<String>) -> Self {
        Self::new(FaultKind::BadRequest, explanation)
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(FaultKind::NotFound, format!("there is no {what}"))
    }

    /// Stable code, as in the answer and in the log.
    pub(crate) fn code(&self) -> &'static str {
        match self.kind {
            FaultKind::Reject(reject) => reject.code(),
            FaultKind::BadRequest => "bad-request",
            FaultKind::UnknownVault | FaultKind::StaleVault => "unknown-vault",
            FaultKind::Unauthorized => "unauthorized",
            FaultKind::NotFound => "not-found",
            FaultKind::Busy => "busy",
            FaultKind::Internal => "internal",
        }
    }

    /// What the peer is told.
    pub(crate) fn message(&self) -> String {
        match self.kind {
            FaultKind::Reject(reject) => reject.message().to_owned(),
            FaultKind::BadRequest
            | FaultKind::NotFound
            | FaultKind::UnknownVault
            | FaultKind::StaleVault => self.explanation.clone(),
            FaultKind::Unauthorized => "the admin token is missing or wrong".to_owned(),
            FaultKind::Busy => "the verifier has too much to do".to_owned(),
            FaultKind::Internal => "the verifier could not do this".to_owned(),
        }
    }

    /// What the peer may try.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self.kind {
            FaultKind::Reject(Reject::NonceConsumed | Reject::NonceExpired) => {
                Some("ask for a new challenge")
            }
            FaultKind::Reject(
                Reject::TokenInvalid | Reject::SessionGone | Reject::ActivationFailed,
            ) => Some("enrol again with a new token from the verifier's operator"),
            FaultKind::Reject(Reject::NotEnrolled) => {
                Some("enrol the host with `coffer host enroll`")
            }
            FaultKind::Reject(Reject::IdentityImmutable | Reject::EkInUse) => {
                Some("the verifier's operator can remove the old identity")
            }
            FaultKind::Reject(Reject::UntrustedRoot) => {
                Some("the verifier's operator can add the maker's root to `ek-roots`")
            }
            FaultKind::Reject(Reject::LogUnavailable) => {
                Some("check free space on the verifier, then try again")
            }
            FaultKind::Busy => Some("try again later"),
            FaultKind::Reject(_) | FaultKind::Internal => {
                Some("the verifier's log has the full reason under this request id")
            }
            FaultKind::Unauthorized => {
                Some("send `Authorization: Bearer` with the token made at `init`")
            }
            FaultKind::UnknownVault => Some(
                "have an appliance on that host attest here, or take the risk: `--dangerously-unattested`",
            ),
            FaultKind::StaleVault => Some(
                "have an appliance on that host attest here again, or take the risk: `--dangerously-unattested`",
            ),
            FaultKind::BadRequest | FaultKind::NotFound => None,
        }
    }
}

impl From<Reject> for Fault {
    fn from(reject: Reject) -> Self {
        Self::reject(reject, reject.message())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::reject(refusal.reject, refusal.explanation)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(reject) => reject.into(),
            StoreError::Unlogged(_) => Self::reject(Reject::LogUnavailable, error.to_string()),
            StoreError::Full => Self::new(FaultKind::Busy, error.to_string()),
            other => Self::new(FaultKind::Internal, other.to_string()),
        }
    }
}

impl From<KeyError> for Fault {
    fn from(error: KeyError) -> Self {
        Self::new(FaultKind::Internal, error.to_string())
    }
}
