//! Quotes under a key that is fixed: two bytes of length, TPMS_ATTEST, TPMT_SIGNATURE. What is authentic is what
//! the TPM signed.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_formats::tpm::public::Public;
use libfuzzer_sys::fuzz_target;

macro_rules! original {
    ($file:literal) => {
        include_bytes!(concat!("../../tests/conformance/corpus/originals/quote-p256-sha256/", $file))
    };
}

const ATTEST: &[u8] = original!("quote.msg");
static KEY: LazyLock<Public> = LazyLock::new(|| Public::parse(original!("ak.pub")).unwrap());

fn is_authentic(attest: &[u8], signature: &[u8]) -> bool {
    let key = QuoteKey::endorsement_primary(&KEY);
    ReceivedQuote::new(attest, signature).authenticate(&key).is_ok()
}

fuzz_target!(init: {
    assert!(is_authentic(ATTEST, original!("quote.sig")), "the original is authentic");
}, |data: &[u8]| {
    if let Some((length, rest)) = data.split_first_chunk()
        && let Some((attest, signature)) =
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
    {
        assert!(!is_authentic(attest, signature) || attest == ATTEST, "a forged quote");
    }
    // The fuzzer's bytes as either half of a true whole.
    assert!(!is_authentic(data, original!("quote.sig")) || data == ATTEST, "a forged quote");
    is_authentic(ATTEST, data);
});
