//! The proof that ends an enrolment: who activated the credential answers for this session (SPEC 7.2).

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::binding::ENROLL_LABEL;
use crate::{Nonce, ObjectName};

/// `HMAC-SHA256(secret, "coffer/enroll/v1\0" | session | nonce | ak name)`: what the host sends and the
/// verifier expects.
pub fn proof(secret: &[u8; 32], session: &str, nonce: &Nonce, ak_name: &ObjectName) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret).expect("an HMAC key may have any length (RFC 2104)");
    for part in [ENROLL_LABEL, session.as_bytes(), nonce.as_bytes(), ak_name.as_bytes()] {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
