//! The proof that ends an enrolment: who activated the credential answers for this session (SPEC 7.2).

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::binding::ENROLL_LABEL;
use crate::{Nonce, ObjectName};

/// `HMAC-SHA256(secret, "coffer/enroll/v1\0" | session | nonce | ak name)`: what the host sends and the
/// verifier expects.
pub fn proof(secret: &[u8; 32], session: &str, nonce: &Nonce, ak_name: &ObjectName) -> [u8; 32] {
    *hmac(secret, &[ENROLL_LABEL, session.as_bytes(), nonce.as_bytes(), ak_name.as_bytes()])
}

/// HMAC-SHA256 over the concatenation of `parts`.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).expect("an HMAC key may have any length (RFC 2104)");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}
