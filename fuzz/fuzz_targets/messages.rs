//! Messages between guest, monitor, host and verifier: the channel's CBOR is its own encoding; JSON that is
//! read is written to something that reads as the same, and no message of another kind is taken for it.
#![no_main]

use coffer_attestation::appraisal::HostReference;
use coffer_formats::cbor;
use coffer_formats::channel::{ANSWER_MAX, Answer, REQUEST_MAX, Request};
use coffer_formats::protocol::{
    Challenge, EnrollChallenge, EnrollComplete, EnrollStart, Enrolled, ErrorBody, HostIdentity,
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = cbor::decode::<Request>(data, REQUEST_MAX) {
        assert_eq!(cbor::encode(&request), data);
    }
    if let Ok(answer) = cbor::decode::<Answer>(data, ANSWER_MAX) {
        assert_eq!(cbor::encode(&answer), data);
    }
    let read = [
        json::<HostIdentity>(data),
        json::<EnrollStart>(data),
        json::<EnrollChallenge>(data),
        json::<EnrollComplete>(data),
        json::<Enrolled>(data),
        json::<Challenge>(data),
        json::<ErrorBody>(data),
        json::<HostReference>(data),
    ];
    assert!(read.iter().filter(|read| **read).count() <= 1, "two readings of one message");
});

/// True if the bytes are such a message.
fn json<T: Serialize + DeserializeOwned>(data: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<T>(data) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read is written");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("and written"), written);
    true
}
