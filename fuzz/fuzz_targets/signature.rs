//! TPMT_SIGNATURE: what parses is written back byte for byte; the scheme read first is the scheme read.
#![no_main]

use coffer_attestation::tpm::signature::Signature;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signature) = Signature::parse(data) {
        assert_eq!(signature.write(), data);
        assert_eq!(Signature::parse_under(signature.scheme(), data), Ok(signature));
    }
});
