//! Answers of a TPM: whatever a vTPM or a hostile bus answers ends in a value or a refusal. As they come, or with
//! a header and sizes that are right, or true ones with edits.
#![no_main]

use std::sync::LazyLock;

use coffer_exchange::tpm::response;
use coffer_formats::tpm::wire::Writer;
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

macro_rules! original {
    ($file:literal) => {
        include_bytes!(concat!(
            "../../tests/conformance/corpus/originals/quote-p256-sha256/",
            $file
        ))
    };
}

/// TPM_ST_NO_SESSIONS and TPM_ST_SESSIONS.
const TAGS: [u16; 2] = [0x8001, 0x8002];

fuzz_target!(init: {
    let read = response::pcr_read(&answer(TAGS[0], &PCR_READ)).expect("the original is read");
    assert_eq!(read.len(), 2);
    assert!(response::quote(&answer(TAGS[1], &sized(&QUOTE))).is_ok(), "the original is read");
}, |data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 6 {
        0 => check(rest),
        1 => check(&answer(TAGS[0], rest)),
        // The size of the parameters stands first, or after a handle.
        2 => check(&answer(TAGS[1], &sized(rest))),
        3 => check(&answer(TAGS[0], &edited(&PCR_READ, rest))),
        4 => check(&answer(TAGS[1], &sized(&edited(&QUOTE, rest)))),
        _ => {
            let (handle, rest) = rest.split_at(rest.len().min(4));
            check(&answer(TAGS[1], &[handle, &sized(rest)].concat()));
        }
    }
});

/// TPM2_PCR_Read of PCR 0 and 9 of the SHA-256 bank: updateCounter, selection, digests.
static PCR_READ: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let selection = Writer::new().u32(7).u32(1).u16(0x0b).u8(3).bytes(&[1, 2, 0]);
    selection.u32(2).tpm2b(&[1; 32]).tpm2b(&[2; 32]).finish()
});
/// TPM2_Quote, as recorded.
static QUOTE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    Writer::new().tpm2b(original!("quote.msg")).bytes(original!("quote.sig")).finish()
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
