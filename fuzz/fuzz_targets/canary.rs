//! Not a parser of ours: a reader with a defect planted in it, which a run that is worth anything finds at once.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A length that is believed.
    if let [0x54, 0x50, 0x4d, length, rest @ ..] = data {
        assert!(usize::from(*length) <= rest.len() || *length < 0xf0, "the planted defect");
    }
});
