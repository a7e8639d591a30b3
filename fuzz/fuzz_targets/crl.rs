//! Revocation lists, as they come or genuine ones with edits: a list that the authority did not sign neither
//! revokes a certificate nor counts as a current one, and nobody is endorsed otherwise for it.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{CrlPolicy, Endorsed, Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use coffer_fuzz::{edited, one_in, signed_part};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

macro_rules! original {
    ($file:literal) => {
        include_bytes!(concat!("../../tests/conformance/corpus/originals/endorsement-ecc/", $file))
    };
}

const LEAF: &[u8] = original!("ek.der");
/// When chain and lists are valid (`context.json`).
const NOW: u64 = 1_780_272_000;

static EK: LazyLock<Public> = LazyLock::new(|| Public::parse(original!("ek.pub")).unwrap());
/// The leaf's issuer, trusted itself: its lists alone decide.
static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
    let mut roots = Roots::new();
    roots.add_hardware(original!("chain-0.der")).unwrap();
    roots
});
/// Lists by that issuer: one names nobody, one the leaf, one is out of date.
static GENUINE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let cases = [
        include_str!("../../tests/conformance/corpus/D/D25-current-lists/case.json"),
        include_str!("../../tests/conformance/corpus/D/D24-leaf-revoked/case.json"),
        include_str!("../../tests/conformance/corpus/D/D25-stale-list/case.json"),
    ];
    cases.map(list).to_vec()
});

fn list(case: &str) -> Vec<u8> {
    let case: Value = serde_json::from_str(case).unwrap();
    let edits = case["edits"].as_array().unwrap();
    let edit = edits.iter().find(|edit| edit["file"] == "crl-0.der").unwrap();
    hex::decode(edit["insert"].as_str().unwrap()).unwrap()
}

fn judge(list: &[u8], policy: CrlPolicy) -> Result<Endorsed, Reject> {
    let mut roots = ROOTS.clone();
    roots.set_crl_policy(policy);
    roots.add_crl(list)?;
    verify_chain(LEAF, &[], &EK, &roots, NOW)
}

fuzz_target!(init: {
    let verdicts = GENUINE.iter().map(|list| judge(list, CrlPolicy::Required).map(drop));
    let expected = [Ok(()), Err(Reject::Revoked), Err(Reject::CrlUnusable)];
    assert_eq!(verdicts.collect::<Vec<_>>(), expected);
}, |data: &[u8]| {
    let edits;
    let list: &[u8] = match data.split_first() {
        Some((0x30, _)) | None => data,
        Some((which, rest)) => {
            edits = edited(&GENUINE[usize::from(*which) % GENUINE.len()], rest);
            &edits
        }
    };
    let read = Roots::new().add_crl(list);
    assert!(read.is_err() || list.len() <= 8 << 20);
    // Signatures take a hundred times as long as reading.
    if read.is_err() || !one_in(16, data) {
        return;
    }
    let signed = GENUINE.iter().any(|genuine| signed_part(genuine) == signed_part(list));
    let (present, required) = (judge(list, CrlPolicy::IfPresent), judge(list, CrlPolicy::Required));
    if !signed {
        assert_eq!(required, Err(Reject::CrlUnusable));
        assert!(present.is_ok(), "revoked by a stranger");
    }
    assert_eq!(present == Err(Reject::Revoked), required == Err(Reject::Revoked));
});
