//! TPMS_ATTEST: what parses is written back byte for byte, and is a quote for both readers or for none.
#![no_main]

use coffer_attestation::tpm::attest::{Attest, Attested};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let parsed = Attest::parse(data);
    if let Ok(attest) = &parsed {
        assert_eq!(attest.write(), data);
        assert!(attest.extra_data.len() <= 66);
    }
    let quote = matches!(&parsed, Ok(attest) if matches!(attest.attested, Attested::Quote(_)));
    assert_eq!(Attest::parse_quote(data).is_ok(), quote);
});
