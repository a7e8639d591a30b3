//! The closed list of reject codes (SPEC section 9).
//!
//! A code is at once the reason in a log, the label of a metric, the field of an audit record and the
//! anchor in SPEC.md. Adding one is a change of the specification.

use serde::{Deserialize, Serialize};
use thiserror::Error;

macro_rules! rejects {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal : $message:literal ),* $(,)?) => {
        /// Why something was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error, Serialize, Deserialize)]
        pub enum Reject {
            $( $(#[$doc])* #[error($message)] #[serde(rename = $code)] $variant, )*
        }

        impl Reject {
            /// Every code, in the order of the specification.
            pub const ALL: &'static [Reject] = &[$( Reject::$variant, )*];

            /// Stable kebab-case code.
            pub fn code(self) -> &'static str {
                match self { $( Reject::$variant => $code, )* }
            }

            /// One clause for people.
            pub fn message(self) -> &'static str {
                match self { $( Reject::$variant => $message, )* }
            }

            /// The reject with this code.
            pub fn from_code(code: &str) -> Option<Reject> {
                match code { $( $code => Some(Reject::$variant), )* _ => None }
            }
        }
    };
}

rejects! {
    // Malformed: the bytes are not what they claim to be.
    /// A structure does not parse.
    Malformed = "malformed": "a structure does not parse",
    /// CBOR that is not in deterministic encoding.
    NotCanonical = "not-canonical": "the encoding is not deterministic CBOR",
    /// A size, count or depth limit was passed.
    LimitExceeded = "limit-exceeded": "a size or count limit was exceeded",
    /// Bytes after the end of a structure.
    TrailingData = "trailing-data": "bytes follow the end of a structure",
    /// A version this build does not speak.
    UnsupportedVersion = "unsupported-version": "the format version is not supported",

    // Quotes: TPMS_ATTEST and its signature.
    /// TPMS_ATTEST.magic is not TPM_GENERATED_VALUE.
    BadMagic = "bad-magic": "the attested structure was not made by a TPM",
    /// TPMS_ATTEST.type is not TPM_ST_ATTEST_QUOTE.
    WrongAttestType = "wrong-attest-type": "the attested structure is not a quote",
    /// The signature does not verify.
    BadSignature = "bad-signature": "the signature does not verify",
    /// Signature algorithm or hash differ from the key's scheme.
    SchemeMismatch = "scheme-mismatch": "the signature scheme is not the key's",
    /// The signature structure says there is no signature.
    NoSignature = "no-signature": "the structure carries no signature",
    /// A hash that is too weak.
    WeakHash = "weak-hash": "the hash algorithm is not allowed",
    /// A key that is too weak or not on an allowed curve.
    WeakKey = "weak-key": "the key is too weak or its curve is not allowed",
    /// A public key that is not valid.
    BadKey = "bad-key": "the public key is not valid",
    /// qualifiedSigner is not the qualified name of the key.
    SignerNameMismatch = "signer-name-mismatch": "the quote was signed under another key name",
    /// The quote's selection is not the required one.
    SelectionMismatch = "selection-mismatch": "the quoted PCR selection is not the required one",
    /// A bank listed twice in a selection.
    DuplicateBank = "duplicate-bank": "a PCR bank is selected twice",
    /// A PCR index that no PC Client TPM has.
    PcrOutOfRange = "pcr-out-of-range": "a PCR index is out of range",
    /// The quoted PCR digest does not match the values sent.
    PcrDigestMismatch = "pcr-digest-mismatch": "the PCR values are not the quoted ones",
    /// A PCR was asked for that the quote does not cover.
    PcrNotQuoted = "pcr-not-quoted": "a needed PCR is not covered by the quote",
    /// A PCR that anybody on the machine can reset.
    PcrResettable = "pcr-resettable": "a PCR that can be reset at will is relied on",
    /// A firmware PCR that nothing was measured into.
    PcrUninitialised = "pcr-uninitialised": "a firmware PCR was never extended",
    /// A bank that is not allowed.
    BankNotAllowed = "bank-not-allowed": "the PCR bank is not allowed",
    /// clockInfo went backwards for this key.
    ClockRegress = "clock-regress": "the TPM clock or reset counter went backwards",
    /// clockInfo.safe is NO where a safe clock is asked for.
    UnsafeClock = "unsafe-clock": "the TPM clock is not safe",
    /// A TPM firmware or monitor version that is revoked.
    TcbRevoked = "tcb-revoked": "the TPM firmware version is revoked",

    // Binding: statements that do not belong together.
    /// extraData does not bind this nonce and this data.
    NonceMismatch = "nonce-mismatch": "the quote does not answer this challenge",
    /// The host quote does not bind the claims and tree sent.
    HostBindingMismatch = "host-binding-mismatch": "the host quote does not cover these claims",
    /// The inclusion proof fails.
    BadInclusion = "bad-inclusion": "the VM is not in the quoted batch",
    /// vm_claims answer for other runtime data.
    ReportDataMismatch = "report-data-mismatch": "the claims answer for other runtime data",
    /// The vTPM key is not the one the host vouches for.
    VmNotVouched = "vm-not-vouched": "the host does not vouch for this vTPM key",
    /// The evidence's host key is not the one in the claims.
    HostMismatch = "host-mismatch": "the host claims name another host key",
    /// Launch record, claims and PCR 17 disagree.
    LaunchMismatch = "launch-mismatch": "the launch record is not the one measured",
    /// Another VM answers with this vTPM key.
    DuplicateVmIdentity = "duplicate-vm-identity": "another VM has the same vTPM identity",
    /// An incarnation older than the last seen.
    IncarnationRollback = "incarnation-rollback": "the incarnation is older than the last seen",
    /// The VM was moved to another host.
    VmMoved = "vm-moved": "the VM has moved to another host",
    /// The descriptor is not the image in the claims.
    ImageMismatch = "image-mismatch": "the descriptor is not the claimed image",
    /// The evidence is for another verifier.
    AudienceMismatch = "audience-mismatch": "the evidence is meant for another verifier",

    // Event logs.
    /// A log does not replay to the quoted PCRs.
    ReplayMismatch = "replay-mismatch": "the event log does not replay to the quoted PCRs",
    /// An event's data does not hash to its digest.
    EventDataMismatch = "event-data-mismatch": "an event's data is not what was measured",
    /// Separators missing, repeated or wrong.
    SeparatorInvalid = "separator-invalid": "a separator is missing, repeated or wrong",
    /// A pre-boot event after the separator of its register.
    SeparatorOrder = "separator-order": "a pre-boot event follows the separator",
    /// An IMA list with a violation, a weak template or another boot aggregate.
    ImaInvalid = "ima-invalid": "the IMA measurement list is not acceptable",

    // Freshness.
    /// The nonce was used or never given out.
    NonceConsumed = "nonce-consumed": "the challenge is unknown or already used",
    /// The nonce is too old.
    NonceExpired = "nonce-expired": "the challenge has expired",

    // Enrolment.
    /// No enrolled host has this key.
    NotEnrolled = "not-enrolled": "the host is not enrolled",
    /// The enrolment token is unknown, used or expired.
    TokenInvalid = "token-invalid": "the enrolment token is not valid",
    /// The enrolment session is gone.
    SessionGone = "session-gone": "the enrolment session is unknown or already used",
    /// The credential was not activated by the right TPM.
    ActivationFailed = "activation-failed": "the credential was not activated by this TPM",
    /// The EK certificate chain does not end in a trusted root.
    UntrustedRoot = "untrusted-root": "the EK certificate has no path to a trusted root",
    /// A certificate in the EK chain is not acceptable.
    BadEkCert = "bad-ek-cert": "the EK certificate is not acceptable",
    /// A certificate above the EK certificate is not acceptable.
    BadEkChain = "bad-ek-chain": "the chain of the EK certificate is not acceptable",
    /// A certificate of the chain is revoked by its issuer.
    Revoked = "revoked": "a certificate of the EK chain is revoked",
    /// A CRL is missing, expired or not its issuer's, where one is required.
    CrlUnusable = "crl-unusable": "a required CRL is missing, expired or not valid",
    /// The EK certificate is for another key.
    EkMismatch = "ek-mismatch": "the EK certificate is for another key",
    /// The EK public area is not a TCG template.
    BadEkTemplate = "bad-ek-template": "the EK is not made from a TCG template",
    /// The AK's attributes or scheme are not acceptable.
    BadAkAttributes = "bad-ak-attributes": "the attestation key's attributes are not acceptable",
    /// The EK belongs to an enrolled host.
    EkInUse = "ek-in-use": "the EK is already enrolled",
    /// The host name is taken by another identity.
    IdentityImmutable = "identity-immutable": "the host name is enrolled with another identity",

    // Appraisal and policy.
    /// The host's boot does not match a reference value.
    HostNotRecognised = "host-not-recognised": "the host's measured boot matches no reference value",
    /// The image is not known to the verifier.
    ImageNotRecognised = "image-not-recognised": "the image matches no reference value",
    /// No policy permits it.
    PolicyDenied = "policy-denied": "no policy permits this release",
    /// The secret does not exist or may not be seen.
    SecretNotFound = "secret-not-found": "the secret does not exist",
    /// The secret is not declared by the image.
    SecretNotDeclared = "secret-not-declared": "the image does not declare this secret",
    /// A resource id that is not well-formed.
    BadResource = "bad-resource": "the resource id is not well-formed",
    /// The decision could not be written to the log.
    LogUnavailable = "log-unavailable": "the decision could not be logged, so nothing is released",

    // Release, as judged by the guest.
    /// The release is not signed by the pinned key.
    ReleaseSignature = "release-signature": "the release is not signed by the pinned key",
    /// The release answers another challenge.
    ReleaseMismatch = "release-mismatch": "the release answers another challenge",

    // Launch, as judged by the monitor.
    /// The descriptor is not acceptable.
    BadDescriptor = "bad-descriptor": "the descriptor is not acceptable",
    /// A blob is missing from the image.
    BlobMissing = "blob-missing": "a blob of the image is missing",
    /// The kernel is not the one the descriptor names.
    KernelDigest = "kernel-digest": "the kernel is not the one the descriptor names",
    /// The initrd is not the one the descriptor names.
    InitrdDigest = "initrd-digest": "the initrd is not the one the descriptor names",
    /// The command line is not the one the descriptor names.
    CmdlineDigest = "cmdline-digest": "the command line is not the one the descriptor names",
    /// A block of an integrity disk does not match its Merkle root.
    DiskIntegrity = "disk-integrity": "a disk block does not match the disk's Merkle root",
    /// The shape asked for is outside the descriptor's range.
    ShapeNotAllowed = "shape-not-allowed": "the shape is outside the range the image allows",
    /// The vTPM failed while being manufactured or measured into.
    VtpmFailed = "vtpm-failed": "the vTPM failed",
    /// The host TPM failed.
    HostTpmFailed = "host-tpm-failed": "the host TPM failed",
}
