//! Messages between guest, monitor, host and verifier: the channel's CBOR is its own encoding; JSON that is
//! read is written to something that reads as the same, and no message of another kind is taken for it.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::appraisal::HostReference;
use coffer_exchange::evidence::Evidence;
use coffer_exchange::protocol::{
    Challenge, EnrollChallenge, EnrollComplete, EnrollStart, Enrolled, ErrorBody, HostIdentity,
};
use coffer_formats::channel::{ANSWER_MAX, Answer, Phase, REQUEST_MAX, Request};
use coffer_formats::endorsement::GuestId;
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId, Nonce, ObjectName, cbor};
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Each kind of message on the channel, evidence as it was recorded with its long parts cut off.
static MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let recorded =
        include_bytes!("../../tests/conformance/corpus/originals/evidence-batch-7/evidence.cmw");
    let mut host = Evidence::from_cmw(recorded).expect("a recorded evidence").host;
    host.quote.event_log.truncate(30);
    host.descriptor.truncate(30);
    let attest = Request::Attest(Nonce([1; 32]), Digest([2; 32]));
    let status = Request::Status(Phase::Failed, "why".into());
    let id = GuestId {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest([3; 32]),
        signer: None,
        svn: 5,
        launch_digest: Digest([4; 32]),
        instance_id: InstanceId([5; 16]),
        incarnation: 1,
        hak_name: Some(ObjectName([6; 34])),
    };
    vec![
        cbor::encode(&attest),
        cbor::encode(&status),
        cbor::encode(&Request::AwaitStop),
        cbor::encode(&Answer::Evidence(Box::new(host))),
        cbor::encode(&Answer::Refused("no".into())),
        cbor::encode(&Answer::Noted),
        cbor::encode(&Request::GetId),
        cbor::encode(&Request::Endorse(vec![4; 65].into())),
        cbor::encode(&Request::Seal("open".into(), false, b"data".to_vec().into())),
        cbor::encode(&Request::Unseal(b"blob".to_vec().into())),
        cbor::encode(&Request::Counter("open".into(), "name".into(), true)),
        cbor::encode(&Answer::Unsealed(
            b"data".to_vec().into(),
            BoxKind::Closed,
            Digest([3; 32]),
            Some(Digest([4; 32])),
            5,
        )),
        cbor::encode(&Answer::Id(Box::new(id), b"CA".to_vec().into())),
        cbor::encode(&Answer::Counter(6)),
    ]
});

fuzz_target!(init: {
    assert!(MESSAGES.iter().all(|message| channel(message)), "the originals are read");
}, |data: &[u8]| {
    let Some((which, edits)) = data.split_first() else { return };
    match which {
        b'{' => check_json(data),
        // CBOR arrays.
        0x80..0xa0 => {
            channel(data);
        }
        _ => {
            let message = &MESSAGES[usize::from(*which) % MESSAGES.len()];
            channel(&edited(message, edits));
        }
    }
});

/// True if the bytes are a message of the channel.
fn channel(data: &[u8]) -> bool {
    let request = cbor::decode::<Request>(data, REQUEST_MAX).map(|read| cbor::encode(&read));
    let answer = cbor::decode::<Answer>(data, ANSWER_MAX).map(|read| cbor::encode(&read));
    let read = [&request, &answer].map(Result::is_ok).contains(&true);
    for written in [request, answer].into_iter().flatten() {
        assert_eq!(written, data);
    }
    read
}

fn check_json(data: &[u8]) {
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
}

/// True if the bytes are such a message.
fn json<T: Serialize + DeserializeOwned>(data: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<T>(data) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read is written");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("and written"), written);
    true
}
