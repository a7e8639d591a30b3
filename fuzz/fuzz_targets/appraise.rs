//! A recorded evidence, altered: from whatever is still accepted the same facts are concluded. Bytes that nothing
//! measures may differ: types of events, data that is claimed, digests of other banks, encodings of signatures.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::appraisal::{
    ConsumedNonce, EnrolledHost, HostReference, ImageDigests, ReceivedEvidence, appraise,
};
use coffer_attestation::{Digest, Nonce, Reject};
use coffer_formats::tpm::public::Public;
use coffer_image::descriptor::Descriptor;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

macro_rules! recorded {
    ($file:literal) => {
        include_bytes!(concat!(
            "../../attestation/verification/tests/vectors/evidence/lab-ovmf-sealed/",
            $file
        ))
    };
}

const EVIDENCE: &[u8] = recorded!("evidence.cmw");

struct Known {
    nonce: Nonce,
    audience: String,
    host: EnrolledHost,
    reference: HostReference,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let case: Value = serde_json::from_slice(recorded!("case.json")).unwrap();
    let key = hex::decode(case["host"]["ak_public"].as_str().unwrap()).unwrap();
    Known {
        nonce: serde_json::from_value(case["nonce"].clone()).unwrap(),
        audience: case["audience"].as_str().unwrap().into(),
        host: EnrolledHost {
            name: "recorded".into(),
            ak_public: Public::parse(&key).unwrap(),
            software_tpm: true,
            last_reset_count: 0,
            last_restart_count: 0,
            last_clock: 0,
            revoked_firmware: vec![],
        },
        reference: serde_json::from_value(case["reference"].clone()).unwrap(),
    }
});

fn digests(descriptor: &[u8]) -> Result<ImageDigests, Reject> {
    let digests = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?.digests();
    Ok(ImageDigests { kernel: digests.kernel, initrd: digests.initrd, cmdline: digests.cmdline })
}

/// What is concluded from evidence; none if it is refused. Its own digest says nothing of what it proves.
fn concluded(cmw: &[u8]) -> Option<String> {
    let known = &*KNOWN;
    let references = std::slice::from_ref(&known.reference);
    let received = ReceivedEvidence::receive(cmw).ok()?;
    let nonce = ConsumedNonce::assert_consumed(known.nonce);
    let accepted =
        appraise(received, nonce, &known.host, &known.audience, references, &digests).ok()?;
    let mut facts = accepted.facts().clone();
    facts.evidence = Digest::ZERO;
    Some(format!("{facts:?}"))
}

static TRUE: LazyLock<String> =
    LazyLock::new(|| concluded(EVIDENCE).expect("the recorded evidence is accepted"));

fuzz_target!(init: {
    assert!(TRUE.contains("Closed"), "{}", *TRUE);
}, |data: &[u8]| {
    if let Some(facts) = concluded(data) {
        assert_eq!(facts, *TRUE, "a forged evidence");
    }
    // Edits of a few bytes in a whole that is else true: place, then the byte to put there.
    let mut edited = EVIDENCE.to_vec();
    for edit in data.chunks_exact(3).take(4) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % edited.len();
        edited[at] = edit[2];
    }
    if let Some(facts) = concluded(&edited) {
        assert_eq!(facts, *TRUE, "a forged evidence");
    }
});
