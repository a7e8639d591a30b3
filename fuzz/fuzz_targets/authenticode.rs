//! PE images: the Authenticode hash of anything is a digest or a refusal.
#![no_main]

use coffer_attestation::predict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let first = predict::authenticode_sha256(data);
    assert_eq!(first, predict::authenticode_sha256(data));
});
