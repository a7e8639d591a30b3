//! Revocation lists: read or refused, and alike each time.
#![no_main]

use coffer_attestation::endorsement::Roots;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let read = || Roots::new().add_crl(data);
    assert_eq!(read(), read());
});
