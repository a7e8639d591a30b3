//! Claims, launch records, runtime data and releases: deterministic CBOR is read back to itself or refused.
#![no_main]

use coffer_attestation::Statement as _;
use coffer_exchange::release::{Release, SignedRelease};
use coffer_exchange::runtime::RuntimeData;
use coffer_formats::cbor;
use coffer_formats::claims::{HostClaims, VmClaims};
use coffer_formats::launch::LaunchRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let written = match kind % 6 {
        0 => HostClaims::decode(data).map(|claims| claims.encode()),
        1 => VmClaims::decode(data).map(|claims| claims.encode()),
        2 => LaunchRecord::decode(data).map(|record| record.encode()),
        3 => RuntimeData::decode(data).map(|runtime| cbor::encode(&runtime)),
        4 => return check_release(data),
        _ => cbor::decode::<SignedRelease>(data, 1 << 20).map(|signed| {
            check_release(&signed.payload);
            cbor::encode(&signed)
        }),
    };
    if let Ok(written) = written {
        assert_eq!(written, data);
    }
});

fn check_release(data: &[u8]) {
    if let Ok(release) = cbor::decode::<Release>(data, 1 << 20) {
        assert_eq!(cbor::encode(&release), data);
    }
}
