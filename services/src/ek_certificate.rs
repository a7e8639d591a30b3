//! EK certificates of vTPMs: a guest's tools find in NV what they would find in a chip's.
//!
//! They say that this monitor made this vTPM, for as long as this monitor runs: the CA's key is made at
//! start and never stored. A verifier trusts the host quote over the vAK's name, not these (SPEC 3.7).

use coffer_formats::Digest;
use coffer_formats::tpm::made::MadeKey;
use time::Duration;

use crate::certificate::{
    AUTHORITY_KEY_ID, Authority, EXTENDED_KEY_USAGE, KEY_USAGE, SUBJECT_ALT_NAME, der, extension,
    sequence,
};

/// The monitor's own CA.
pub struct VtpmAuthority(Authority);

impl VtpmAuthority {
    /// Makes a key and a name.
    pub fn new() -> Result<Self, String> {
        Authority::new("Coffer monitor vTPM CA").map(Self)
    }

    /// A certificate for a vEK, DER (TCG EK Credential Profile 2.6, 3.2).
    pub fn certify(&self, ek: &MadeKey) -> Result<Vec<u8>, String> {
        // RFC 7093, 2: the first 160 bits of SHA-256.
        let issuer = Digest::of(&[&self.0.spki()]).0;
        let issuer = issuer.first_chunk::<20>().map(|id| der(0x80, id)).unwrap_or_default();
        let extensions = [
            extension(AUTHORITY_KEY_ID, false, &sequence(&[&issuer])),
            // keyAgreement; tcg-kp-EKCertificate.
            extension(KEY_USAGE, true, &[3, 2, 3, 8]),
            extension(EXTENDED_KEY_USAGE, false, &sequence(&[&der(6, &EK_CERTIFICATE_USAGE)])),
            // The subject is empty; the name is in a critical subjectAltName (RFC 5280, 4.1.2.6).
            extension(SUBJECT_ALT_NAME, true, &directory_name()),
        ];
        self.0.certify(&sequence(&[]), ek.point(), Duration::days(365), &extensions)
    }
}

/// tcg-kp-EKCertificate, 2.23.133.8.1; 133 is 0x81 0x05 in base 128.
const EK_CERTIFICATE_USAGE: [u8; 5] = [0x67, 0x81, 0x05, 0x08, 0x01];

/// GeneralNames { directoryName { manufacturer, model, version } } (profile 3.1.2): 2.23.133.2.{1,2,3}.
fn directory_name() -> Vec<u8> {
    let attributes = [(1, "id:49424D00"), (2, "swtpm-coffer"), (3, "id:20191023")];
    let attributes = attributes.map(|(kind, value)| {
        let oid = der(6, &[0x67, 0x81, 0x05, 0x02, kind]);
        der(0x31, &sequence(&[&oid, &der(0x0c, value.as_bytes())]))
    });
    // [4] EXPLICIT directoryName, inside a SEQUENCE OF GeneralName.
    sequence(&[&der(0xa4, &der(0x30, &attributes.concat()))])
}
