//! Answers of a TPM: whatever a vTPM or a hostile bus answers ends in a value or a refusal. As they come, or with
//! a header and sizes that are right.
#![no_main]

use coffer_formats::tpm::response;
use coffer_formats::tpm::wire::Writer;
use libfuzzer_sys::fuzz_target;

/// TPM_ST_NO_SESSIONS and TPM_ST_SESSIONS.
const TAGS: [u16; 2] = [0x8001, 0x8002];

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 4 {
        0 => check(rest),
        1 => check(&answer(TAGS[0], rest)),
        // The size of the parameters stands first, or after a handle.
        2 => check(&answer(TAGS[1], &sized(rest))),
        _ => {
            let (handle, rest) = rest.split_at(rest.len().min(4));
            check(&answer(TAGS[1], &[handle, &sized(rest)].concat()));
        }
    }
});

fn answer(tag: u16, content: &[u8]) -> Vec<u8> {
    Writer::new().u16(tag).u32(content.len() as u32 + 10).u32(0).bytes(content).finish()
}

fn sized(parameters: &[u8]) -> Vec<u8> {
    Writer::new().u32(parameters.len() as u32).bytes(parameters).finish()
}

fn check(data: &[u8]) {
    let _ = response::ok(data);
    let _ = response::get_random(data).map(|bytes| assert!(bytes.len() <= data.len()));
    let _ = response::nv_read(data).map(|bytes| assert!(bytes.len() <= data.len()));
    let _ = response::nv_read_public(data);
    let _ = response::pcr_allocate(data);
    let _ = response::create_primary(data).map(|(_, public)| assert!(public.len() <= data.len()));
    let _ = response::read_public(data).map(|public| assert!(public.len() <= data.len()));
    let _ = response::start_session(data);
    let _ = response::activate_credential(data);
    if let Ok((attest, signature)) = response::quote(data) {
        assert!(attest.len() + signature.len() <= data.len());
    }
    if let Ok(values) = response::pcr_read(data) {
        assert!(values.len() <= 24 && values.is_sorted_by_key(|value| value.index));
    }
}
