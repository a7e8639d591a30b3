//! What a verifier checks of a host's TPM before it becomes an enrolled host (SPEC 7.2).
//!
//! The order is the caller's: EK chain ([`crate::endorsement`]), [`check_ek`], [`check_ak`], a credential
//! ([`crate::credential`]), and after the host's one answer [`verify_proof`] and [`verify_first_quote`].

use rsa::traits::PublicKeyParts as _;
use subtle::ConstantTimeEq as _;

use crate::binding;
use crate::claims::HostClaims;
use crate::event_log::{self, EventLog};
use crate::evidence::QuotePart;
pub use crate::proof::proof;
use crate::quote::{QuoteKey, QuotedPcrs, ReceivedQuote};
use crate::tpm::hash::HashAlg;
use crate::tpm::pcr::HOST_SELECTION;
use crate::tpm::public::{Key, Public, Scheme, Symmetric, attributes};
use crate::tpm::template::{AK_ATTRIBUTES, EK_ATTRIBUTES, EK_POLICY};
use crate::{Nonce, ObjectName, Reject, Statement as _};

/// Checks that an EK is made from a TCG template: L-1 or L-2 of the low range, H-1, H-2, H-3, H-6 or H-7 of
/// the high range (EK Credential Profile 2.6, annex B). A key of other attributes could activate credentials
/// without being the TPM's endorsement key.
pub fn check_ek(ek: &Public) -> Result<(), Reject> {
    let (name_alg, aes) = match ek.key() {
        Key::Rsa(key) if key.size() == RSA_2048_BYTES => (HashAlg::Sha256, 128),
        Key::P256(_) => (HashAlg::Sha256, 128),
        Key::Rsa(_) | Key::P384(_) => (HashAlg::Sha384, 256),
    };
    let low = ek.attributes() == EK_ATTRIBUTES && ek.auth_policy() == EK_POLICY;
    let high = ek.attributes() == EK_HIGH_ATTRIBUTES
        && match name_alg {
            HashAlg::Sha256 => ek.auth_policy() == EK_HIGH_POLICY_SHA256,
            _ => ek.auth_policy() == EK_HIGH_POLICY_SHA384,
        };
    let template = (low || high)
        && ek.name_alg() == name_alg
        && ek.symmetric() == Symmetric::AesCfb(aes)
        && ek.scheme() == Scheme::Null;
    if template { Ok(()) } else { Err(Reject::BadEkTemplate) }
}

/// Checks that an AK is a restricted signing key that was made in its TPM and cannot leave it, with scheme
/// and hash fixed. An unrestricted key would sign a forged quote for anyone who may use it. How its use is
/// authorised, and whether failures count, is its owner's affair.
pub fn check_ak(ak: &Public) -> Result<(), Reject> {
    let has = |bits: u32| ak.attributes() & bits == bits;
    let right = has(AK_REQUIRED)
        && ak.attributes() & AK_FORBIDDEN == 0
        && ak.symmetric() == Symmetric::Null
        && ak.scheme().hash().is_some();
    if right { Ok(()) } else { Err(Reject::BadAkAttributes) }
}

/// Checks that a vTPM's AK is made from the template every Coffer VM uses, ECDSA P-256 with SHA-256.
pub fn check_vak(vak: &Public) -> Result<(), Reject> {
    let right = vak.attributes() == AK_ATTRIBUTES
        && vak.name_alg() == HashAlg::Sha256
        && vak.auth_policy().is_empty()
        && vak.symmetric() == Symmetric::Null
        && vak.scheme() == Scheme::Ecdsa(HashAlg::Sha256)
        && matches!(vak.key(), Key::P256(_));
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
    let pcrs = ReceivedQuote::of(quote)
        .authenticate(&QuoteKey::endorsement_primary(ak))?
        .bind(binding::host_quote(1, &root, host_claims).as_bytes(), Reject::NonceMismatch)?
        .pcrs(HOST_SELECTION, &quote.pcrs)?;
    pcrs.check_reliable()?;
    let claims = HostClaims::decode(host_claims)?;
    if claims.hak_name != ak.object_name()? {
        return Err(Reject::HostMismatch);
    }
    let log = event_log::parse(&quote.event_log)?;
    log.check_replay(&pcrs).and_then(|()| log.check_firmware()).map_err(|(_, reject)| reject)?;
    Ok(FirstQuote { pcrs, log, claims })
}

/// Attributes of the high-range EK templates: as the low range, and userWithAuth (B.4).
pub const EK_HIGH_ATTRIBUTES: u32 = 0x0003_00f2;

/// authPolicy of the high-range EK templates under SHA-256: PolicyB, PolicyA or PolicyAuthorizeNV (B.6.2).
pub const EK_HIGH_POLICY_SHA256: [u8; 32] = [
    0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3,
    0xa3, 0x85, 0xd4, 0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
];

/// PolicyB under SHA-384 (B.6.3).
pub const EK_HIGH_POLICY_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
    0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
    0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// Bytes of an RSA-2048 modulus.
const RSA_2048_BYTES: usize = 256;
/// Made in the TPM, bound to it, and signing nothing but what the TPM itself says.
const AK_REQUIRED: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::RESTRICTED
    | attributes::SIGN;
/// A decrypting key is for storage; one that may be duplicated is nobody's identity.
const AK_FORBIDDEN: u32 = attributes::DECRYPT | attributes::ENCRYPTED_DUPLICATION;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::testing::{SoftAk, with_point};
    use crate::tpm::wire::Writer;
    use crate::tpm::{alg, template};

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
            attributes::RESTRICTED,
            attributes::SIGN,
            attributes::DECRYPT,
            attributes::ENCRYPTED_DUPLICATION,
        ] {
            let changed = (AK_ATTRIBUTES ^ bit).to_be_bytes();
            let ak = key(template::host_ak(), 4, &changed);
            assert_eq!(check_ak(&ak), Err(Reject::BadAkAttributes), "bit {bit:#x}");
            assert_eq!(check_vak(&ak), Err(Reject::BadAkAttributes), "bit {bit:#x}");
        }
        // What its owner may choose; a vTPM's key has no owner but the monitor.
        for bit in [attributes::USER_WITH_AUTH, attributes::ADMIN_WITH_POLICY, attributes::NO_DA] {
            let changed = (AK_ATTRIBUTES ^ bit).to_be_bytes();
            let ak = key(template::host_ak(), 4, &changed);
            assert_eq!(check_ak(&ak), Ok(()), "bit {bit:#x}");
            assert_eq!(check_vak(&ak), Err(Reject::BadAkAttributes), "bit {bit:#x}");
        }
    }

    #[test]
    fn an_ak_of_another_scheme_is_refused() {
        let sha384 = key(template::host_ak(), 14, &[0, 0x0c]);
        assert_eq!(check_ak(&sha384), Ok(()));
        assert_eq!(check_vak(&sha384), Err(Reject::BadAkAttributes));
        let wide_name = key(template::host_ak(), 2, &[0, 0x0c]);
        assert_eq!(check_vak(&wide_name), Err(Reject::BadAkAttributes));
        assert_eq!(check_vak(&SoftAk::new(1).public), Ok(()));
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

    /// The parts of an EK's template.
    #[derive(Clone, Copy)]
    struct Template {
        kind: Kind,
        name_alg: HashAlg,
        attributes: u32,
        policy: &'static [u8],
        aes: u16,
    }

    #[derive(Clone, Copy)]
    enum Kind {
        P256,
        P384,
        Rsa(u16),
    }

    impl Template {
        const fn low(kind: Kind) -> Self {
            let (attributes, policy) = (EK_ATTRIBUTES, &EK_POLICY);
            Self { kind, name_alg: HashAlg::Sha256, attributes, policy, aes: 128 }
        }

        const fn high(kind: Kind) -> Self {
            Self {
                attributes: EK_HIGH_ATTRIBUTES,
                policy: &EK_HIGH_POLICY_SHA256,
                ..Self::low(kind)
            }
        }

        const fn high_384(kind: Kind) -> Self {
            let policy = &EK_HIGH_POLICY_SHA384;
            Self { name_alg: HashAlg::Sha384, policy, aes: 256, ..Self::high(kind) }
        }

        fn check(self) -> Result<(), Reject> {
            let head = Writer::new()
                .u16(if matches!(self.kind, Kind::Rsa(_)) { alg::RSA } else { alg::ECC })
                .u16(self.name_alg.id())
                .u32(self.attributes)
                .tpm2b(self.policy)
                .u16(alg::AES)
                .u16(self.aes)
                .u16(alg::CFB)
                .u16(alg::NULL);
            let ecc = |head: Writer, curve: u16, point: &[u8]| {
                let (x, y) = point[1..].split_at(point.len() / 2);
                head.u16(curve).u16(alg::NULL).tpm2b(x).tpm2b(y)
            };
            let public = match self.kind {
                Kind::P256 => {
                    let key = p256::ecdsa::SigningKey::from_slice(&[1; 32]).unwrap();
                    ecc(head, 3, key.verifying_key().to_sec1_point(false).as_bytes())
                }
                Kind::P384 => {
                    let key = p384::ecdsa::SigningKey::from_slice(&[1; 48]).unwrap();
                    ecc(head, 4, key.verifying_key().to_sec1_point(false).as_bytes())
                }
                Kind::Rsa(bits) => head.u16(bits).u32(0).tpm2b(&vec![0xff; usize::from(bits) / 8]),
            };
            check_ek(&Public::parse(&public.finish()).unwrap())
        }
    }

    #[test]
    fn an_ek_is_of_one_template_in_all_its_parts() {
        use Kind::{P256, P384, Rsa};
        let (low, high) = (Template::low(P256), Template::high(P256));
        for (name, template) in [
            ("L-1", Template::low(Rsa(2048))),
            ("L-2", low),
            ("H-1", Template::high(Rsa(2048))),
            ("H-2", high),
            ("H-3", Template::high_384(P384)),
            ("H-6", Template::high_384(Rsa(3072))),
            ("H-7", Template::high_384(Rsa(4096))),
        ] {
            assert_eq!(template.check(), Ok(()), "{name}");
        }
        let wide = Template::high_384(P384);
        for (what, template) in [
            ("low, with the policy of high", Template { policy: high.policy, ..low }),
            ("high, with the policy of low", Template { policy: low.policy, ..high }),
            ("H-3, without a policy", Template { policy: &[], ..wide }),
            ("H-2, without a policy", Template { policy: &[], ..high }),
            ("H-3, with AES-128", Template { aes: 128, ..wide }),
            ("H-2, with AES-256", Template { aes: 256, ..high }),
            ("H-3, with attributes of low", Template { attributes: low.attributes, ..wide }),
            ("P-256 as H-3", Template::high_384(P256)),
            ("P-384 as H-2", Template::high(P384)),
            ("P-384 as L-2", Template::low(P384)),
            ("RSA-2048 as H-6", Template::high_384(Rsa(2048))),
            ("RSA-3072 as L-1", Template::low(Rsa(3072))),
        ] {
            assert_eq!(template.check(), Err(Reject::BadEkTemplate), "{what}");
        }
    }

    #[test]
    fn a_proof_is_for_one_session_one_nonce_one_key_one_secret() {
        let (nonce, name) = (Nonce([1; 32]), SoftAk::new(1).public.object_name().unwrap());
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
        assert_eq!(
            verify(&good, 2, "session", &nonce, &SoftAk::new(2).public.object_name().unwrap()),
            failed
        );
        assert_eq!(verify(&good[..31], 2, "session", &nonce, &name), failed);
        assert_eq!(verify(&[], 2, "session", &nonce, &name), failed);
    }
}
