//! Image descriptors, as they come or a true one with edits: what is accepted is within the limits of SPEC 3.2,
//! keeps every rule, and reads the same when it is written again.
#![no_main]

use coffer_fuzz::edited;
use coffer_image::descriptor::Descriptor;
use libfuzzer_sys::fuzz_target;

const TRUE: &[u8] =
    include_bytes!("../../tests/conformance/corpus/originals/encoding-descriptor/input.bin");

fn check(data: &[u8]) {
    if let Ok(descriptor) = Descriptor::parse(data) {
        assert!(data.len() <= 64 << 10);
        assert!(descriptor.disks.len() <= 8 && descriptor.secrets.len() <= 32);
        assert!(!descriptor.name.is_empty() && descriptor.name.len() <= 63);
        assert_eq!(descriptor.check(), Ok(()));
        let written = serde_json::to_vec(&descriptor).expect("what was read is written");
        assert_eq!(Descriptor::parse(&written), Ok(descriptor));
    }
}

fuzz_target!(init: {
    assert_eq!(Descriptor::parse(TRUE).map(drop), Ok(()), "the original is accepted");
}, |data: &[u8]| {
    if data.first() == Some(&b'{') {
        check(data);
    } else {
        check(&edited(TRUE, data));
    }
});
