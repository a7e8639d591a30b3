//! The kernel's list of files, in both forms: what is read is no longer than what came, and is covered by the
//! register it leads to and by no other.
#![no_main]

use coffer_attestation::event_log::Registers;
use coffer_attestation::event_log::ima::{ImaList, boot_aggregate};
use coffer_formats::tpm::hash::HashAlg;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for list in [ImaList::binary(data), ImaList::ascii(data)] {
        let Ok(list) = list else { continue };
        let paths: usize = list.entries().iter().map(|entry| entry.path().len()).sum();
        assert!(paths <= data.len());
        let firmware = Registers::reset(HashAlg::Sha256, 0);
        let mut value = HashAlg::Sha256.zero();
        for entry in list.entries() {
            value = value.extend(entry.extended(HashAlg::Sha256).as_bytes());
        }
        if let Ok(covered) = list.covered(&firmware, &value) {
            assert_eq!(covered.len(), list.entries().len());
            assert_eq!(Some(covered[0].digest), boot_aggregate(&firmware));
        }
        let other = value.extend(&[0; 32]);
        assert!(list.covered(&firmware, &other).is_err());
    }
});
