//! What a verifier checks of a host's TPM before it becomes an enrolled host (SPEC 7.1).
//!
//! The order is the caller's: EK chain ([`crate::endorsement`]), [`check_ek`], [`check_ak`], a credential
//! ([`crate::credential`]), and after the host's one answer [`verify_proof`] and [`verify_first_quote`].

use subtle::ConstantTimeEq as _;

use crate::binding::{self, ENROLL_LABEL};
use crate::claims::HostClaims;
use crate::credential::hmac;
use crate::event_log::{self, EventLog};
use crate::evidence::QuotePart;
use crate::quote::{QuotedPcrs, ReceivedQuote};
use crate::tpm::pcr::HOST_SELECTION;
use crate::tpm::public::{Hash, Key, Public, Scheme, Symmetric};
use crate::tpm::template::{AK_ATTRIBUTES, EK_ATTRIBUTES, EK_POLICY};
use crate::{Nonce, ObjectName, Reject};

/// Checks that an EK is made from TCG template L-1 (RSA-2048) or L-2 (ECC P-256): a key of other attributes
/// could activate credentials without being the TPM's endorsement key.
pub fn check_ek(ek: &Public) -> Result<(), Reject> {
    let key = match ek.key() {
        Key::Rsa(_) => ek.as_bytes().len() == RSA_2048_PUBLIC_SIZE,
        Key::P256(_) => true,
        Key::P384(_) => false,
    };
    let template = ek.attributes() == EK_ATTRIBUTES
        && ek.auth_policy() == EK_POLICY
        && ek.symmetric() == Symmetric::AesCfb(128)
        && ek.scheme() == Scheme::Null;
    if key && template { Ok(()) } else { Err(Reject::BadEkTemplate) }
}

/// Checks that an AK is a restricted signing key that was made in its TPM and cannot leave it, ECDSA P-256
/// with SHA-256. An unrestricted key would sign a forged quote for anyone who may use it.
pub fn check_ak(ak: &Public) -> Result<(), Reject> {
    let right = ak.attributes() == AK_ATTRIBUTES
        && ak.auth_policy().is_empty()
        && ak.symmetric() == Symmetric::Null
        && ak.scheme() == Scheme::Ecdsa(Hash::Sha256)
        && matches!(ak.key(), Key::P256(_));
    if right { Ok(()) } else { Err(Reject::BadAkAttributes) }
}

/// `HMAC-SHA256(secret, "coffer/enroll/v1\0" | session | nonce | ak name)`: what the host sends and the
/// verifier expects.
pub fn proof(secret: &[u8; 32], session: &str, nonce: &Nonce, ak_name: &ObjectName) -> [u8; 32] {
    *hmac(secret, &[ENROLL_LABEL, session.as_bytes(), nonce.as_bytes(), ak_name.as_bytes()])
}

/// Compares a host's proof in constant time. The caller has removed the session before it asks: one attempt.
pub fn verify_proof(
    received: &[u8],
    secret: &[u8; 32],
    session: &str,
    nonce: &Nonce,
    ak_name: &ObjectName,
) -> Result<(), Reject> {
    if received.ct_eq(&proof(secret, session, nonce, ak_name)).into() {
        Ok(())
    } else {
        Err(Reject::ActivationFailed)
    }
}

/// The first quote of a host, verified: source of the clock values an enrolled host starts with.
#[derive(Debug)]
pub struct FirstQuote {
    /// Quoted registers and the TPM's clock.
    pub pcrs: QuotedPcrs,
    /// The log that replays to them.
    pub log: EventLog,
    /// What the monitor said of the host.
    pub claims: HostClaims,
}

/// Verifies the quote that completes an enrolment: by this AK, for this nonce, over these claims, with a
/// log that replays. Whether the host's build is a known one is appraised later, at each attestation.
pub fn verify_first_quote(
    ak: &Public,
    nonce: &Nonce,
    host_claims: &[u8],
    quote: &QuotePart,
) -> Result<FirstQuote, Reject> {
    let root = binding::enroll_leaf(nonce);
    let pcrs = ReceivedQuote::new(quote)
        .authenticate(ak)?
        .bind(&binding::host_quote(1, &root, host_claims), Reject::NonceMismatch)?
        .pcrs(HOST_SELECTION)?;
    let claims = HostClaims::decode(host_claims)?;
    if claims.hak_name != ak.name() {
        return Err(Reject::HostMismatch);
    }
    let log = event_log::parse(&quote.event_log)?;
    log.check_replay(&pcrs).and_then(|()| log.check_separators()).map_err(|(_, reject)| reject)?;
    Ok(FirstQuote { pcrs, log, claims })
}

/// TPMT_PUBLIC of template L-1: 8 fixed bytes, policy 34, AES-128-CFB 6, scheme 2, bits 2, exponent 4, modulus 258.
const RSA_2048_PUBLIC_SIZE: usize = 314;
