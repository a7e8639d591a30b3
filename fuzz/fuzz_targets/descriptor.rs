//! Image descriptors: what is accepted is within the limits of SPEC 3.2.
#![no_main]

use coffer_image::descriptor::Descriptor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(descriptor) = Descriptor::parse(data) {
        assert!(data.len() <= 64 << 10);
        assert!(descriptor.disks.len() <= 8 && descriptor.secrets.len() <= 32);
        assert!(!descriptor.name.is_empty() && descriptor.name.len() <= 63);
    }
});
