//! A recorded evidence with edits, of its bytes or of one of its parts: from whatever is still accepted the same is
//! concluded, and it differs only in what nothing measures: types of events, data that no digest backs, events
//! of no quoted register, digests of other banks, and how the integers of a signature are written.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, HostReference, ImageFacts, ReceivedEvidence, appraise,
};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::signature::Signature;
use coffer_attestation::{Digest, Nonce, Reject, event_log};
use coffer_exchange::evidence::Evidence;
use coffer_fuzz::edited;
use coffer_image::descriptor::{BootDigests, Descriptor};
use libfuzzer_sys::fuzz_target;
use p256::elliptic_curve::PrimeField as _;
use serde_json::Value;

macro_rules! recorded {
    ($file:literal) => {
        include_bytes!(concat!(
            "../../attestation/verification/tests/vectors/evidence/lab-ovmf-sealed/",
            $file
        ))
    };
}

const RECORDED: &[u8] = recorded!("evidence.cmw");

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

fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let image = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let BootDigests { kernel, initrd, cmdline } = image.digests();
    Ok(ImageFacts { kernel, initrd, cmdline, vtpm_lasts: !image.vtpm.is_fresh() })
}

fn accepted(cmw: &[u8]) -> Option<Appraisal> {
    let known = &*KNOWN;
    let references = std::slice::from_ref(&known.reference);
    let received = ReceivedEvidence::receive(cmw).ok()?;
    let nonce = ConsumedNonce::assert_consumed(known.nonce);
    appraise(received, nonce, &known.host, &known.audience, references, &image_facts).ok()
}

/// What is concluded. The digest of the evidence says nothing of what it proves.
fn concluded(appraisal: &Appraisal) -> String {
    let mut facts = appraisal.facts().clone();
    facts.evidence = Digest::ZERO;
    format!("{facts:?} {:?}", appraisal.host_clock())
}

static TRUE: LazyLock<(Evidence, String)> = LazyLock::new(|| {
    let appraisal = accepted(RECORDED).expect("the recorded evidence is accepted");
    (Evidence::from_cmw(RECORDED).expect("it was accepted"), concluded(&appraisal))
});

fuzz_target!(init: {
    assert!(TRUE.1.contains("Closed"), "{}", TRUE.1);
}, |data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let cmw = match which {
        0..0x40 => edited(RECORDED, rest),
        _ => with_edited_part(*which, rest).to_cmw(),
    };
    let Some(appraisal) = accepted(&cmw) else { return };
    assert_eq!(concluded(&appraisal), TRUE.1, "a forged evidence");
    let found = Evidence::from_cmw(&cmw).expect("it was accepted");
    assert_eq!(measured(&found), measured(&TRUE.0), "differs where it must not");
});

/// The recorded evidence with edits of one of its byte strings, so that the CBOR around them holds.
fn with_edited_part(which: u8, edits: &[u8]) -> Evidence {
    let mut evidence = TRUE.0.clone();
    let Evidence { runtime_data, vm, host, .. } = &mut evidence;
    let part = match which % 12 {
        0 => runtime_data,
        1 => &mut vm.vak_public,
        2 => &mut vm.quote.attest,
        3 => &mut vm.quote.signature,
        4 => &mut vm.quote.event_log,
        5 => &mut host.host_claims,
        6 => &mut host.vm_claims,
        7 => &mut host.launch_record,
        8 => &mut host.descriptor,
        9 => &mut host.quote.attest,
        10 => &mut host.quote.signature,
        _ => &mut host.quote.event_log,
    };
    *part = edited(part, edits);
    evidence
}

/// What may not differ: all but the logs and the signatures; of logs the digests that each quoted register was
/// extended by, in their order; of signatures the integers, s or its negative.
fn measured(evidence: &Evidence) -> impl PartialEq + std::fmt::Debug {
    let mut rest = evidence.clone();
    let quotes = [&mut rest.vm.quote, &mut rest.host.quote];
    let parts = quotes.map(|quote| {
        let log = std::mem::take(&mut quote.event_log);
        let log = event_log::parse(&log).expect("it was accepted");
        let quoted = quote.pcrs.iter().flat_map(|value| log.of_pcr(value.index));
        let measured = quoted.filter(|event| event.is_measured());
        let extended: Vec<_> = measured.map(|event| (event.pcr, event.digest)).collect();
        (extended, integers(&std::mem::take(&mut quote.signature)))
    });
    (parts, rest)
}

/// r, and the lesser of s and -s.
fn integers(signature: &[u8]) -> [[u8; 32]; 2] {
    let Ok(Signature::Ecdsa { r, s, .. }) = Signature::parse(signature) else {
        panic!("it was accepted")
    };
    let padded = |bytes: &[u8]| {
        let mut out = [0; 32];
        out[32 - bytes.len()..].copy_from_slice(bytes);
        out
    };
    let negative = -p256::Scalar::from_repr(padded(&s).into()).expect("it was accepted");
    [padded(&r), padded(&s).min(negative.to_repr().into())]
}
