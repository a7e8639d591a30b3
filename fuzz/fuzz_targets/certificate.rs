//! EK certificates: nothing that the fuzzer makes up is endorsed, and looking into it harms nobody.
#![no_main]

use coffer_attestation::endorsement::inspect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let first = inspect(data);
    assert_eq!(first, inspect(data));
});
