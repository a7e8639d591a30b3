//! One evidence as a lab host, its appliance and its guest's agent made it (`coffer-lab record-evidence`), judged
//! again by what its verifier knew; and near misses of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, HostReference, ImageFacts, ReceivedEvidence, appraise,
};
use coffer_attestation::evidence::Evidence;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, Nonce, Reject};
use serde_json::Value;

const CMW: &[u8] = include_bytes!("vectors/evidence/lab-ovmf-sealed/evidence.cmw");
const CASE: &str = include_str!("vectors/evidence/lab-ovmf-sealed/case.json");

fn judge(cmw: &[u8], change: impl FnOnce(&mut Value)) -> Result<Appraisal, Reject> {
    let mut case: Value = serde_json::from_str(CASE).unwrap();
    change(&mut case);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let host = EnrolledHost {
        name: text(&case["host"]["name"]),
        ak_public: Public::parse(&hex::decode(text(&case["host"]["ak_public"])).unwrap()).unwrap(),
        software_tpm: true,
        last_reset_count: case["host"]["reset_count"].as_u64().unwrap().try_into().unwrap(),
        last_restart_count: 0,
        last_clock: 0,
        revoked_firmware: vec![],
    };
    let nonce = ConsumedNonce::assert_consumed(Nonce::from_hex(&text(&case["nonce"])).unwrap());
    let reference: HostReference = serde_json::from_value(case["reference"].clone()).unwrap();
    let audience = text(&case["audience"]);
    appraise(ReceivedEvidence::receive(cmw)?, nonce, &host, &audience, &[reference], &image_facts)
        .map_err(|refusal| refusal.reject)
}

/// The image crate's part.
fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let json: Value = serde_json::from_slice(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let digest = |blob: &str| {
        let text = json[blob]["digest"].as_str().and_then(|text| text.strip_prefix("sha256:"));
        text.and_then(Digest::from_hex).ok_or(Reject::BadDescriptor)
    };
    Ok(ImageFacts {
        kernel: digest("kernel")?,
        initrd: digest("initrd")?,
        cmdline: digest("cmdline")?,
        vtpm_lasts: json["vtpm"] == "persistent",
    })
}

#[test]
fn is_accepted_with_every_row_in_order() {
    let appraisal = judge(CMW, |_| {}).unwrap();
    assert_eq!(appraisal.facts().evidence, Digest::of(&[CMW]));
    let report = appraisal.report();
    assert!(report.host.iter().chain(&report.vm).all(|row| row.ok));
    assert!(report.host.len() > 10 && report.vm.len() > 8, "real logs");
}

#[test]
fn is_refused_by_who_knows_otherwise() {
    let refused = |change: fn(&mut Value)| judge(CMW, change).err();
    assert_eq!(refused(|case| case["nonce"] = "00".repeat(32).into()), Some(Reject::NonceMismatch));
    let elsewhere = |case: &mut Value| case["audience"] = "https://10.0.2.101".into();
    assert_eq!(refused(elsewhere), Some(Reject::AudienceMismatch));
    let later = |case: &mut Value| {
        case["host"]["reset_count"] = (case["host"]["reset_count"].as_u64().unwrap() + 1).into();
    };
    assert_eq!(refused(later), Some(Reject::ClockRegress));
    for part in ["kernel", "initrd", "cmdline"] {
        let mut case: Value = serde_json::from_str(CASE).unwrap();
        case["reference"][part] = "00".repeat(32).into();
        let refused = judge(CMW, |original| *original = case).err();
        assert_eq!(refused, Some(Reject::HostNotRecognised), "{part}");
    }
    let developer = |case: &mut Value| case["reference"]["profile"] = "developer".into();
    assert_eq!(refused(developer), Some(Reject::HostNotRecognised));
}

#[test]
fn no_flipped_bit_is_accepted() {
    let accepted: Vec<usize> = (0..CMW.len())
        .filter(|at| {
            let mut cmw = CMW.to_vec();
            cmw[*at] ^= 1 << (at % 8);
            judge(&cmw, |_| {}).is_ok_and(|appraisal| differs_in_meaning(&cmw, &appraisal))
        })
        .collect();
    assert_eq!(accepted, Vec::<usize>::new());
}

/// False for a change in what nothing measures and nothing relies on: types and data of events in the host's log,
/// where no digest backs them.
fn differs_in_meaning(cmw: &[u8], appraisal: &Appraisal) -> bool {
    let original = judge(CMW, |_| {}).unwrap();
    let (was, is) = (Evidence::from_cmw(CMW).unwrap(), Evidence::from_cmw(cmw).unwrap());
    let facts = |appraisal: &Appraisal| {
        let facts = appraisal.facts();
        (facts.vm_claims.clone(), facts.host_claims.clone(), facts.runtime.clone())
    };
    let rest = |evidence: &Evidence| {
        let mut evidence = evidence.clone();
        evidence.host.quote.event_log.clear();
        evidence.vm.quote.event_log.clear();
        evidence
    };
    rest(&was) != rest(&is) || facts(&original) != facts(appraisal)
}
