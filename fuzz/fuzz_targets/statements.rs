//! Claims, launch records, runtime data and releases: deterministic CBOR is read back to itself or refused.
#![no_main]

use coffer_formats::cbor;
use coffer_formats::claims::{HostClaims, VmClaims};
use coffer_formats::launch::LaunchRecord;
use coffer_formats::release::{Release, SignedRelease};
use coffer_formats::runtime::RuntimeData;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 6 {
        0 => drop(HostClaims::decode(data).map(|claims| assert_eq!(claims.encode(), data))),
        1 => drop(VmClaims::decode(data).map(|claims| assert_eq!(claims.encode(), data))),
        2 => drop(LaunchRecord::decode(data).map(|record| assert_eq!(record.encode(), data))),
        3 => drop(RuntimeData::decode(data).map(|runtime| assert_eq!(cbor::encode(&runtime), data))),
        4 => drop(
            cbor::decode::<Release>(data, 1 << 20).map(|r| assert_eq!(cbor::encode(&r), data)),
        ),
        _ => drop(
            cbor::decode::<SignedRelease>(data, 1 << 20)
                .map(|r| assert_eq!(cbor::encode(&r), data)),
        ),
    }
});
