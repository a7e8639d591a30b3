//! Permits for backups (SPEC 11.17.1): the vault reads what the verifier's crate reads, and it is written alike; with edits, only what
//! the verifier signed permits anything, until it expires.
#![no_main]

use std::sync::LazyLock;

use coffer_exchange::permit::{PERMIT_LABEL, VolumePermit};
use coffer_formats::{InstanceId, cbor};
use coffer_fuzz::{edited, one_in};
use coffer_vault::fuzzing::{claimed, permitted};
use coffer_vault::{PERMIT_MAX, Permit};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};

const EXPIRY: u64 = 1_795_865_452;

static SIGNER: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_slice(&[3; 32]).expect("a scalar"));
static POINT: LazyLock<[u8; 65]> = LazyLock::new(|| {
    let point = SIGNER.verifying_key().to_sec1_point(false);
    point.as_bytes().try_into().expect("an uncompressed point")
});
static ORIGINAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let permit = VolumePermit {
        version: 1,
        volume: InstanceId([1; 16]),
        sender: [4; 65],
        recipient: [5; 65],
        serial: InstanceId([2; 16]),
        expiry: EXPIRY,
    };
    permit.signed(|bytes| {
        let signature: Signature = SIGNER.sign(bytes);
        signature.to_bytes().to_vec()
    })
});
static PAYLOAD: LazyLock<Vec<u8>> =
    LazyLock::new(|| claimed(&ORIGINAL).expect("the original").0.payload);

/// An array of two byte strings, as it travels.
fn travelling(payload: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    let length = match payload.len() {
        short @ 0..24 => vec![0x40 + short as u8],
        byte @ 24..256 => vec![0x58, byte as u8],
        long => [&[0x59][..], &(long as u16).to_be_bytes()].concat(),
    };
    [&[0x82][..], &length, payload, &[0x58, 64], signature].concat()
}

fuzz_target!(init: {
    assert_eq!(claimed(&ORIGINAL).expect("the original").0.payload, *PAYLOAD);
    assert!(permitted(&ORIGINAL, &POINT, EXPIRY).is_ok());
    assert!(permitted(&ORIGINAL, &POINT, EXPIRY + 1).is_err());
}, |data: &[u8]| {
    let Some((what, edits)) = data.split_first() else { return };
    let bytes = match what % 4 {
        0 => edited(&ORIGINAL, edits),
        1 => travelling(edits, &[9; 64]),
        _ => travelling(&edited(&PAYLOAD, edits), &[9; 64]),
    };
    two_readers(&bytes);
    // A signature takes a hundred times as long as all the rest.
    if what % 4 == 0 && claimed(&bytes).is_ok() && one_in(4, data) {
        let now = EXPIRY - u64::from(what >> 4 & 1) + u64::from(what >> 5);
        let Ok(permit) = permitted(&bytes, &POINT, now) else {
            assert!(bytes != *ORIGINAL || now > EXPIRY, "the original permits");
            return;
        };
        assert_eq!(cbor::encode(&permit), *PAYLOAD, "a forged permit");
        assert!(now <= EXPIRY, "an expired permit");
    }
});

fn two_readers(bytes: &[u8]) {
    let read = claimed(bytes);
    if let Ok((signed, permit)) = &read {
        assert_eq!(signed.encode(), bytes);
        assert_eq!(cbor::encode(permit), signed.payload);
    }
    // What is outside is the vault's alone to read: the verifier writes it.
    let (payload, signature) = outside(bytes).unwrap_or_default();
    let theirs = cbor::decode::<VolumePermit>(&payload, PERMIT_MAX);
    let theirs = theirs.ok().filter(|permit| permit.version == 1 && bytes.len() <= PERMIT_MAX);
    let same = |permit: &VolumePermit| {
        let VolumePermit { version, volume, sender, recipient, serial, expiry } = permit.clone();
        Permit { version, volume, sender, recipient, serial, expiry }
    };
    assert_eq!(read.ok().map(|(_, permit)| permit), theirs.as_ref().map(same));
    if let Some(permit) = theirs {
        let written = permit.signed(|signed| {
            assert_eq!(signed, [PERMIT_LABEL, &payload].concat());
            signature.clone()
        });
        assert_eq!(written, bytes);
    }
}

/// Payload and signature of an array of two byte strings in their shortest form, the second of 64 bytes.
fn outside(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (rest, signature) = bytes.split_last_chunk::<64>()?;
    let rest = rest.strip_prefix(&[0x82])?.strip_suffix(&[0x58, 64])?;
    let header = match rest {
        [0x59, ..] => 3,
        [0x58, ..] => 2,
        _ => 1,
    };
    let payload = rest.get(header..)?;
    (travelling(payload, signature) == bytes).then(|| (payload.to_vec(), signature.to_vec()))
}
