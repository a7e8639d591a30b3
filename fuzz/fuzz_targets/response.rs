//! Answers of a TPM: whatever a vTPM or a hostile bus answers ends in a value or a refusal.
#![no_main]

use coffer_formats::tpm::response;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = response::ok(data);
    let _ = response::get_random(data).map(|bytes| assert!(bytes.len() <= data.len()));
    let _ = response::nv_read(data).map(|bytes| assert!(bytes.len() <= data.len()));
    let _ = response::nv_read_public(data);
    let _ = response::pcr_allocate(data);
    let _ = response::create_primary(data);
    let _ = response::read_public(data);
    let _ = response::start_session(data);
    let _ = response::activate_credential(data);
    if let Ok((attest, signature)) = response::quote(data) {
        assert!(attest.len() + signature.len() <= data.len());
    }
    if let Ok(values) = response::pcr_read(data) {
        assert!(values.len() <= 24 && values.is_sorted_by_key(|value| value.index));
    }
});
