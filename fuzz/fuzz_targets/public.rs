//! TPMT_PUBLIC: what parses keeps its bytes and names itself, again and again alike.
#![no_main]

use coffer_attestation::tpm::name::Name;
use coffer_attestation::tpm::public::Public;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(public) = Public::parse(data) {
        assert_eq!(public.as_bytes(), data);
        assert!(data.len() <= 1024);
        let name = public.name();
        assert_eq!(Name::parse(&name.to_bytes()), Ok(name));
        assert_eq!(Public::parse(data), Ok(public));
    }
});
