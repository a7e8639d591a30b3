//! What a verifier checks of a host's TPM before it becomes an enrolled host (SPEC 7.2).
//!
//! The order is the caller's: EK chain ([`crate::endorsement`]), [`check_ek`], [`check_ak`], a credential
//! ([`crate::credential`]), and after the host's one answer [`verify_proof`] and [`verify_first_quote`].

use subtle::ConstantTimeEq as _;

use crate::binding;
use crate::claims::HostClaims;
use crate::event_log::{self, EventLog};
use crate::evidence::QuotePart;
pub use crate::proof::proof;
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
pub struct FirstQuote<'a> {
    /// Quoted registers and the TPM's clock.
    pub pcrs: QuotedPcrs,
    /// The log that replays to them.
    pub log: EventLog<'a>,
    /// What the monitor said of the host.
    pub claims: HostClaims,
}

/// Verifies the quote that completes an enrolment: by this AK, for this nonce, over these claims, with a
/// log that replays. Whether the host's build is a known one is appraised later, at each attestation.
pub fn verify_first_quote<'a>(
    ak: &Public,
    nonce: &Nonce,
    host_claims: &[u8],
    quote: &'a QuotePart,
) -> Result<FirstQuote<'a>, Reject> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::public::attributes;
    use crate::tpm::template;
    use crate::tpm::testing::{SoftAk, with_point};

    /// The key of a [`SoftAk`] in another template, with a change.
    fn key(template: Vec<u8>, at: usize, value: &[u8]) -> Public {
        let point = SoftAk::new(1).public;
        let (x, y) = point.as_bytes()[22..].split_at(34);
        let mut bytes = with_point(&template, &x[..32], &y[..32]);
        bytes[at..at + value.len()].copy_from_slice(value);
        Public::parse(&bytes).unwrap()
    }

    #[test]
    fn an_ak_lacking_any_one_attribute_is_refused() {
        assert_eq!(check_ak(&SoftAk::new(1).public), Ok(()));
        for bit in [
            attributes::FIXED_TPM,
            attributes::FIXED_PARENT,
            attributes::SENSITIVE_DATA_ORIGIN,
            attributes::USER_WITH_AUTH,
            attributes::RESTRICTED,
            attributes::SIGN,
            attributes::DECRYPT,
            attributes::ADMIN_WITH_POLICY,
            attributes::ENCRYPTED_DUPLICATION,
        ] {
            let changed = (AK_ATTRIBUTES ^ bit).to_be_bytes();
            let ak = key(template::host_ak(), 4, &changed);
            assert_eq!(check_ak(&ak), Err(Reject::BadAkAttributes), "bit {bit:#x}");
        }
    }

    #[test]
    fn an_ak_of_another_scheme_is_refused() {
        let sha384 = key(template::host_ak(), 14, &[0, 0x0c]);
        assert_eq!(check_ak(&sha384), Err(Reject::BadAkAttributes));
        let ek = key(template::ek_p256(), 0, &[]);
        assert_eq!(check_ak(&ek), Err(Reject::BadAkAttributes));
    }

    #[test]
    fn an_ek_of_another_template_is_refused() {
        assert_eq!(check_ek(&key(template::ek_p256(), 0, &[])), Ok(()));
        let cases: &[(&str, usize, &[u8])] = &[
            ("not restricted", 4, &[0, 2, 0, 0xb2]),
            ("usable with a password", 4, &[0, 3, 0, 0xf2]),
            ("another policy", 12, &[0]),
            ("AES-256", 44, &[1, 0]),
        ];
        for (name, at, value) in cases {
            let ek = key(template::ek_p256(), *at, value);
            assert_eq!(check_ek(&ek), Err(Reject::BadEkTemplate), "{name}");
        }
    }

    #[test]
    fn a_proof_is_for_one_session_one_nonce_one_key_one_secret() {
        let (nonce, name) = (Nonce([1; 32]), SoftAk::new(1).public.name());
        let good = proof(&[2; 32], "session", &nonce, &name);
        let verify =
            |received: &[u8], secret: u8, session: &str, nonce: &Nonce, name: &ObjectName| {
                verify_proof(received, &[secret; 32], session, nonce, name)
            };
        assert_eq!(verify(&good, 2, "session", &nonce, &name), Ok(()));
        let failed = Err(Reject::ActivationFailed);
        assert_eq!(verify(&good, 3, "session", &nonce, &name), failed);
        assert_eq!(verify(&good, 2, "other", &nonce, &name), failed);
        assert_eq!(verify(&good, 2, "session", &Nonce([0; 32]), &name), failed);
        assert_eq!(verify(&good, 2, "session", &nonce, &SoftAk::new(2).public.name()), failed);
        assert_eq!(verify(&good[..31], 2, "session", &nonce, &name), failed);
        assert_eq!(verify(&[], 2, "session", &nonce, &name), failed);
    }
}
