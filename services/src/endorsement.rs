//! ENDORSE: certificates for keys of guests (SPEC 6.9.2, 6.9.3).
//!
//! It trusts the monitor for who asks, and for what ties the CA to the host's TPM; of the guest it takes a point, and puts it where a key goes.

use std::sync::{Mutex, PoisonError};

use coffer_formats::endorsement::{GUEST_ID_OID, GuestId, HOST_LINK_OID, HostLink};
use coffer_formats::{Digest, binding, cbor};
use time::Duration;

use crate::certificate::{
    Authority, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE, KEY_USAGE, SUBJECT_ALT_NAME, der, extension,
    name, sequence,
};

/// Has the host's TPM say of a leaf that it is its monitor's ([`binding::endorse_leaf`]).
pub type Link = Box<dyn Fn(Digest) -> Result<HostLink, String> + Send + Sync>;

/// The monitor's endorsement CA.
pub struct Endorsements {
    authority: Authority,
    link: Option<Link>,
    certificate: Mutex<Option<Vec<u8>>>,
}

impl Endorsements {
    /// Makes the key; without a link on a host without a TPM.
    pub fn new(link: Option<Link>) -> Result<Self, String> {
        let authority = Authority::new("Coffer endorsements")?;
        Ok(Self { authority, link, certificate: Mutex::default() })
    }

    /// The CA's certificate, DER. Made when it is first asked for: a quote takes a while.
    pub fn certificate(&self) -> Result<Vec<u8>, String> {
        // Guests that ask together wait for one quote. It is there whole or not at all, whoever panicked.
        let mut made = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(certificate) => Ok(certificate.clone()),
            None => Ok(made.insert(self.certify_self()?).clone()),
        }
    }

    fn certify_self(&self) -> Result<Vec<u8>, String> {
        let mut extensions = vec![
            // CA, pathLenConstraint 0; keyCertSign.
            extension(BASIC_CONSTRAINTS, true, &sequence(&[&[1, 1, 0xff], &[2, 1, 0]])),
            extension(KEY_USAGE, true, &[3, 2, 2, 4]),
        ];
        if let Some(link) = &self.link {
            let link = link(binding::endorse_leaf(&self.authority.spki()))?;
            extensions.push(extension(HOST_LINK_OID, false, &cbor::encode(&link)));
        }
        self.authority.certify_self(&extensions)
    }

    /// A certificate for a guest's key, DER: what the guest is stands in a critical extension, so that nobody takes it for
    /// less than it says.
    pub fn endorse(&self, id: &GuestId, point: &[u8]) -> Result<Vec<u8>, String> {
        let uri = format!("coffer://image/{}", id.image_id);
        let usages = [1, 2].map(|purpose| der(6, &[KEY_PURPOSE, &[purpose]].concat())).concat();
        let extensions = [
            // digitalSignature; serverAuth and clientAuth; a URI.
            extension(KEY_USAGE, true, &[3, 2, 7, 0x80]),
            extension(EXTENDED_KEY_USAGE, false, &der(0x30, &usages)),
            extension(SUBJECT_ALT_NAME, false, &sequence(&[&der(0x86, uri.as_bytes())])),
            extension(GUEST_ID_OID, true, &cbor::encode(id)),
        ];
        self.authority.certify(&name(&id.instance_id.to_hex()), point, VALIDITY, &extensions)
    }
}

/// How long a guest's certificate holds.
const VALIDITY: Duration = Duration::hours(24);
/// id-kp, 1.3.6.1.5.5.7.3.
const KEY_PURPOSE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3];
