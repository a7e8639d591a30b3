//! X.509 certificates of this monitor's own CAs (RFC 5280): vTPMs' keys, and guests'.
//!
//! Written out by hand: what is signed is a few fixed fields, and an OID made of a UUID is one that `rcgen` cannot say. Each
//! CA's key is made at start, kept in memory and never stored.

use coffer_formats::Digest;
use coffer_formats::endorsement::P256_SPKI;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use time::{Duration, OffsetDateTime, macros::format_description};

/// A CA: its key, and its name.
pub struct Authority {
    key: KeyPair,
    name: Vec<u8>,
}

impl Authority {
    /// Makes a key. The name holds its digest, so that certificates of several hosts find their issuer.
    pub fn new(what: &str) -> Result<Self, String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
        let name = name(&format!("{what} {}", Digest::of(&[key.der_bytes()])));
        Ok(Self { key, name })
    }

    /// SubjectPublicKeyInfo of the CA.
    pub fn spki(&self) -> Vec<u8> {
        spki(self.key.der_bytes())
    }

    /// A certificate of the CA by itself. It ends with the monitor, which nobody can date (RFC 5280, 4.1.2.5).
    pub fn certify_self(&self, extensions: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        let validity = [&*date(OffsetDateTime::now_utc() - SKEW)?, &der(0x18, b"99991231235959Z")];
        self.sign(&self.name, &self.spki(), validity, extensions)
    }

    /// A certificate for a P-256 point, DER.
    pub fn certify(
        &self,
        subject: &[u8],
        point: &[u8],
        validity: Duration,
        extensions: &[Vec<u8>],
    ) -> Result<Vec<u8>, String> {
        // One look at the clock: between two a second may pass.
        let now = OffsetDateTime::now_utc();
        let validity = [&*date(now - SKEW)?, &date(now + validity)?];
        self.sign(subject, &spki(point), validity, extensions)
    }

    fn sign(
        &self,
        subject: &[u8],
        spki: &[u8],
        validity: [&[u8]; 2],
        extensions: &[Vec<u8>],
    ) -> Result<Vec<u8>, String> {
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|e| e.to_string())?;
        let tbs = sequence(&[
            // Version 3; a serial number that is positive whatever its bits.
            &[0xa0, 3, 2, 1, 2],
            &der(2, &[&[1], &serial[..]].concat()),
            ECDSA_WITH_SHA256,
            &self.name,
            &sequence(&validity),
            subject,
            spki,
            &der(0xa3, &der(0x30, &extensions.concat())),
        ]);
        let signature = self.key.sign(&tbs).map_err(|e| e.to_string())?;
        Ok(sequence(&[&tbs, ECDSA_WITH_SHA256, &der(3, &[&[0], &signature[..]].concat())]))
    }
}

/// A Name of one common name.
pub fn name(common: &str) -> Vec<u8> {
    let attribute = sequence(&[&[6, 3, 0x55, 4, 3], &der(0x0c, common.as_bytes())]);
    sequence(&[&der(0x31, &attribute)])
}

/// An extension, by the contents of its OID.
pub fn extension(oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    sequence(&[&der(6, oid), flag, &der(4, content)])
}

/// A SEQUENCE.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

/// Tag, length, content. Nothing of ours is as long as 64 KiB.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let head: &[u8] = match length {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

fn spki(point: &[u8]) -> Vec<u8> {
    [P256_SPKI, point].concat()
}

/// UTCTime, which holds until 2049 (RFC 5280, 4.1.2.5.1).
fn date(at: OffsetDateTime) -> Result<Vec<u8>, String> {
    let form = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
    Ok(der(0x17, at.format(form).map_err(|e| e.to_string())?.as_bytes()))
}

/// How far a guest's clock may be behind the host's.
const SKEW: Duration = Duration::minutes(5);
/// AlgorithmIdentifier { ecdsa-with-SHA256 }.
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// id-ce-keyUsage.
pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
/// id-ce-subjectAltName.
pub const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// id-ce-basicConstraints.
pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// id-ce-authorityKeyIdentifier.
pub const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
/// id-ce-extKeyUsage.
pub const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
