//! The formats that travel: strict decoding, limits, and the release a guest accepts.

use coffer_attestation::appraisal::ReceivedEvidence;
use coffer_attestation::evidence::{
    EVENT_LOG_MAX, EVIDENCE_MAX, Evidence, HostPart, Inclusion, PcrValue, QuotePart, VmPart,
};
use coffer_attestation::launch::{BoxKind, LaunchDisk, LaunchNic, LaunchRecord};
use coffer_attestation::protocol::HexBytes;
use coffer_attestation::release::{Release, SealedSecret, SignedRelease};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::{Digest, InstanceId, Nonce, ObjectName, Reject, Statement as _, cbor};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use proptest::prelude::*;

fn evidence() -> Evidence {
    let quote = QuotePart {
        attest: vec![1; 100],
        signature: vec![2; 72],
        pcrs: vec![PcrValue { index: 0, digest: Digest([3; 32]) }],
        event_log: vec![4; 100],
    };
    Evidence {
        version: 1,
        nonce: Nonce([5; 32]),
        runtime_data: vec![6; 10],
        vm: VmPart { vak_public: vec![7; 90], quote: quote.clone() },
        host: HostPart {
            hak_name: ObjectName([8; 34]),
            host_claims: vec![9; 20],
            quote,
            vm_claims: vec![10; 20],
            inclusion: Inclusion { index: 0, size: 1, path: vec![] },
            launch_record: vec![11; 20],
            descriptor: vec![12; 20],
        },
    }
}

fn receive(bytes: &[u8]) -> Result<(), Reject> {
    ReceivedEvidence::receive(bytes).map(drop)
}

#[test]
fn evidence_comes_back_as_it_was_sent() {
    let bytes = evidence().to_cmw();
    assert_eq!(Evidence::from_cmw(&bytes), Ok(evidence()));
    let received = ReceivedEvidence::receive(&bytes).unwrap();
    assert_eq!(received.nonce(), &Nonce([5; 32]));
    assert_eq!(received.hak_name(), &ObjectName([8; 34]));
    assert_eq!(received.digest(), &Digest::of(&[&bytes]));
}

#[test]
fn evidence_over_a_limit_is_refused() {
    let over = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = evidence();
        change(&mut evidence);
        receive(&evidence.to_cmw())
    };
    let limit = Err(Reject::LimitExceeded);
    assert_eq!(receive(&vec![0; EVIDENCE_MAX + 1]), limit);
    assert_eq!(over(&|e| e.vm.quote.event_log = vec![0; EVENT_LOG_MAX + 1]), limit);
    assert_eq!(over(&|e| e.host.quote.event_log = vec![0; EVENT_LOG_MAX + 1]), limit);
    assert_eq!(over(&|e| e.host.descriptor = vec![0; (64 << 10) + 1]), limit);
    assert_eq!(over(&|e| e.host.inclusion.path = vec![Digest::ZERO; 33]), limit);
    let pcr = PcrValue { index: 0, digest: Digest::ZERO };
    assert_eq!(over(&|e| e.vm.quote.pcrs = vec![pcr.clone(); 25]), limit);
    assert_eq!(over(&|e| e.version = 2), Err(Reject::UnsupportedVersion));
}

#[test]
fn evidence_in_another_encoding_is_refused() {
    let good = evidence().to_cmw();
    assert_eq!(receive(&[good.clone(), vec![0]].concat()), Err(Reject::NotCanonical));
    assert_eq!(receive(&[]), Err(Reject::Malformed));
    // The wrapper as an array of indefinite length.
    let indefinite = [&[0x9f], &good[1..], &[0xff]].concat();
    assert_eq!(receive(&indefinite), Err(Reject::NotCanonical));
    let at = good.windows(7).position(|w| w == b"coffer.").unwrap();
    let mut other = good.clone();
    other[at] = b'k';
    assert_eq!(receive(&other), Err(Reject::UnsupportedVersion), "another media type");
}

#[test]
fn launch_records_are_canonical() {
    let record = LaunchRecord {
        version: 1,
        box_kind: BoxKind::Open,
        image_id: Digest([1; 32]),
        vcpus: 2,
        memory_mib: 512,
        disks: vec![LaunchDisk {
            name: "root".into(),
            kind: "integrity".into(),
            root_hash: Some(Digest([2; 32])),
            size: 4096,
            volume: None,
        }],
        nics: vec![LaunchNic { mac: [2, 0, 0, 0, 0, 1], backend: "passt".into() }],
        instance_id: InstanceId([3; 16]),
        incarnation: 1,
    };
    let bytes = record.encode();
    assert_eq!(LaunchRecord::decode(&bytes), Ok(record.clone()));
    assert_eq!(LaunchRecord::decode(&[bytes, vec![0]].concat()), Err(Reject::NotCanonical));
    let later = LaunchRecord { version: 2, ..record };
    assert_eq!(LaunchRecord::decode(&later.encode()), Err(Reject::UnsupportedVersion));
    assert_eq!(LaunchRecord::decode(&[0; 5000]), Err(Reject::LimitExceeded));
}

#[test]
fn runtime_data_has_limits() {
    let good = RuntimeData {
        version: 1,
        hpke_key: [1; 32],
        audience: "https://v".into(),
        resources: vec!["a/b".into()],
        user_data: Some(vec![0; 1024]),
    };
    let decode = |data: &RuntimeData| RuntimeData::decode(&cbor::encode(data)).map(drop);
    assert_eq!(decode(&good), Ok(()));
    let long = RuntimeData { user_data: Some(vec![0; 1025]), ..good.clone() };
    assert_eq!(decode(&long), Err(Reject::LimitExceeded));
    let many = RuntimeData { resources: vec!["a/b".into(); 33], ..good };
    assert_eq!(decode(&many), Err(Reject::LimitExceeded));
}

#[test]
fn a_guest_opens_only_the_release_made_for_it() {
    let key = SigningKey::from_slice(&[1; 32]).unwrap();
    let verifying = VerifyingKey::from(&key);
    let release = Release {
        version: 1,
        nonce: Nonce([2; 32]),
        evidence: Digest([3; 32]),
        instance_id: InstanceId([4; 16]),
        secrets: vec![SealedSecret {
            id: "site/tls-key".into(),
            version: 1,
            encapsulated: vec![5; 32],
            ciphertext: vec![6; 64],
        }],
    };
    let sign = |key: &SigningKey, message: &[u8], payload: Vec<u8>| {
        let signature: Signature = key.sign(message);
        cbor::encode(&SignedRelease { payload, signature: signature.to_bytes().to_vec() })
    };
    let payload = cbor::encode(&release);
    let good = sign(&key, &SignedRelease::signed_bytes(&payload), payload.clone());
    let open = |bytes: &[u8], nonce: u8, evidence: u8| {
        SignedRelease::open(bytes, &verifying, &Nonce([nonce; 32]), &Digest([evidence; 32]))
    };
    assert_eq!(open(&good, 2, 3), Ok(release.clone()));
    assert_eq!(open(&good, 0, 3), Err(Reject::ReleaseMismatch));
    assert_eq!(open(&good, 2, 0), Err(Reject::ReleaseMismatch));
    let other = SigningKey::from_slice(&[9; 32]).unwrap();
    let forged = sign(&other, &SignedRelease::signed_bytes(&payload), payload.clone());
    assert_eq!(open(&forged, 2, 3), Err(Reject::ReleaseSignature));
    let unlabelled = sign(&key, &payload, payload.clone());
    assert_eq!(open(&unlabelled, 2, 3), Err(Reject::ReleaseSignature));
    let later = cbor::encode(&Release { version: 2, ..release });
    let later = sign(&key, &SignedRelease::signed_bytes(&later), later.clone());
    assert_eq!(open(&later, 2, 3), Err(Reject::UnsupportedVersion));
    assert_eq!(open(&[good, vec![0]].concat(), 2, 3), Err(Reject::NotCanonical));
}

#[test]
fn every_reject_code_finds_its_reject() {
    for reject in Reject::ALL {
        assert_eq!(Reject::from_code(reject.code()), Some(*reject));
        assert!(reject.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
    }
    assert_eq!(Reject::from_code("nonsense"), None);
}

proptest! {
    #[test]
    fn altered_evidence_never_panics_and_what_is_accepted_is_canonical(
        at in 0usize..900,
        value: u8,
        cut in 0usize..900,
    ) {
        let mut bytes = evidence().to_cmw();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(back) = Evidence::from_cmw(&bytes) {
            prop_assert_eq!(back.to_cmw(), bytes.clone());
        }
        bytes.truncate(cut);
        prop_assert!(Evidence::from_cmw(&bytes).is_err());
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Evidence::from_cmw(&bytes), LaunchRecord::decode(&bytes));
        let _ = RuntimeData::decode(&bytes);
        let _ = coffer_attestation::claims::VmClaims::decode(&bytes);
        let _ = coffer_attestation::claims::HostClaims::decode(&bytes);
    }
}

#[test]
fn takes_hex_in_lower_case_only() {
    let read = |text: &str| serde_json::from_str::<HexBytes>(text);
    assert_eq!(read(r#""00ab""#).unwrap().0, [0, 0xab]);
    for wrong in [r#""00AB""#, r#""0""#, r#""zz""#, "[0]"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
