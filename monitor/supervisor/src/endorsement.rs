//! ENDORSE: certificates for keys of guests, by a key that this monitor makes at its start and keeps in memory alone
//! (SPEC 6.9.2, 6.9.3).
//!
//! Written out by hand: what is signed is a dozen fixed fields, and a UUID makes an OID that `rcgen` cannot say. It trusts the
//! supervisor for who asks; of the guest it takes a point, and puts it where a key goes.

use std::sync::{Mutex, PoisonError};

use coffer_formats::endorsement::{GUEST_ID_OID, GuestId, HOST_LINK_OID, HostLink, P256_SPKI};
use coffer_formats::{Digest, binding, cbor};
use coffer_host_tpm::HostTpm;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use time::{Duration, OffsetDateTime, macros::format_description};

use crate::ek_certificate::der;
use crate::uid;

/// The monitor's endorsement CA.
pub struct Endorsements {
    key: KeyPair,
    certificate: Mutex<Option<Vec<u8>>>,
}

impl Endorsements {
    /// Makes the key.
    pub fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { key, certificate: Mutex::default() })
    }

    /// The CA's certificate, DER. Made when it is first asked for: a quote takes a while.
    pub fn certificate(&self, tpm: Option<&HostTpm>) -> Result<Vec<u8>, String> {
        // Guests that ask together wait for one quote.
        let mut made = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(certificate) => Ok(certificate.clone()),
            None => Ok(made.insert(self.certify_self(tpm)?).clone()),
        }
    }

    fn certify_self(&self, tpm: Option<&HostTpm>) -> Result<Vec<u8>, String> {
        let spki = spki(self.key.der_bytes());
        let mut extensions = vec![
            // CA, pathLenConstraint 0; keyCertSign.
            extension(&[0x55, 0x1d, 0x13], true, &sequence(&[&[1, 1, 0xff], &[2, 1, 0]])),
            extension(&[0x55, 0x1d, 0x0f], true, &[3, 2, 2, 4]),
        ];
        if let Some(tpm) = tpm {
            let share =
                tpm.attest_alone(binding::endorse_leaf(&spki)).map_err(|e| e.to_string())?;
            let link = HostLink {
                version: 1,
                hak_public: tpm.ak_public().to_vec(),
                attest: share.quote.attest.clone(),
                signature: share.quote.signature.clone(),
                host_claims: Digest::of(&[&share.host_claims]),
            };
            extensions.push(extension(HOST_LINK_OID, false, &cbor::encode(&link)));
        }
        // It ends with the monitor, which nobody can date (RFC 5280, 4.1.2.5).
        self.sign(&self.name(), &spki, &der(0x18, b"99991231235959Z"), &extensions)
    }

    /// A certificate for a guest's key, DER: what the guest is stands in a critical extension, so that nobody takes it for
    /// less than it says.
    pub fn endorse(&self, id: &GuestId, point: &[u8; 65]) -> Result<Vec<u8>, String> {
        let uri = format!("coffer://image/{}", id.image_id);
        let usages = [1, 2].map(|purpose| der(6, &[KEY_PURPOSE, &[purpose]].concat())).concat();
        let extensions = [
            // digitalSignature; serverAuth and clientAuth; a URI.
            extension(&[0x55, 0x1d, 0x0f], true, &[3, 2, 7, 0x80]),
            extension(&[0x55, 0x1d, 0x25], false, &der(0x30, &usages)),
            extension(&[0x55, 0x1d, 0x11], false, &sequence(&[&der(0x86, uri.as_bytes())])),
            extension(GUEST_ID_OID, true, &cbor::encode(id)),
        ];
        let until = date(OffsetDateTime::now_utc() + VALIDITY)?;
        self.sign(&id.instance_id.to_hex(), &spki(point), &until, &extensions)
    }

    /// So that certificates of several hosts in one folder find their issuer.
    fn name(&self) -> String {
        format!("Coffer endorsements {}", Digest::of(&[self.key.der_bytes()]))
    }

    fn sign(
        &self,
        subject: &str,
        spki: &[u8],
        until: &[u8],
        extensions: &[Vec<u8>],
    ) -> Result<Vec<u8>, String> {
        let serial = uid::instance_id().map_err(|e| e.to_string())?.0;
        let tbs = sequence(&[
            // Version 3; a serial number that is positive whatever its bits.
            &[0xa0, 3, 2, 1, 2],
            &der(2, &[&[1], &serial[..]].concat()),
            ECDSA_WITH_SHA256,
            &name(&self.name()),
            &sequence(&[&date(OffsetDateTime::now_utc() - SKEW)?, until]),
            &name(subject),
            spki,
            &der(0xa3, &der(0x30, &extensions.concat())),
        ]);
        let signature = self.key.sign(&tbs).map_err(|e| e.to_string())?;
        Ok(sequence(&[&tbs, ECDSA_WITH_SHA256, &der(3, &[&[0], &signature[..]].concat())]))
    }
}

fn spki(point: &[u8]) -> Vec<u8> {
    [P256_SPKI, point].concat()
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

/// A Name of one common name.
fn name(common: &str) -> Vec<u8> {
    let attribute = sequence(&[&[6, 3, 0x55, 4, 3], &der(0x0c, common.as_bytes())]);
    sequence(&[&der(0x31, &attribute)])
}

fn extension(oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    sequence(&[&der(6, oid), flag, &der(4, content)])
}

/// UTCTime, which holds until 2049 (RFC 5280, 4.1.2.5.1).
fn date(at: OffsetDateTime) -> Result<Vec<u8>, String> {
    let form = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
    Ok(der(0x17, at.format(form).map_err(|e| e.to_string())?.as_bytes()))
}

/// How long a guest's certificate holds.
const VALIDITY: Duration = Duration::hours(24);
/// How far a guest's clock may be behind the host's.
const SKEW: Duration = Duration::minutes(5);
/// AlgorithmIdentifier { ecdsa-with-SHA256 }.
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// id-kp, 1.3.6.1.5.5.7.3.
const KEY_PURPOSE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3];
