//! TPML_PCR_SELECTION: what parses is written back byte for byte and names registers that exist.
#![no_main]

use coffer_formats::tpm::pcr::{PCR_COUNT, Selections};
use coffer_formats::tpm::wire::{Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut r = Reader::new(data);
    if let Ok(selections) = Selections::read(&mut r) {
        let read = &data[..data.len() - r.rest().len()];
        assert_eq!(selections.write(Writer::new()).finish(), read);
        assert!(selections.registers().all(|(_, pcr)| pcr < PCR_COUNT));
    }
});
