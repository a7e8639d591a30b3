//! EK certificates under roots that are fixed, as they come or the true ones with edits: nobody but their
//! authority makes one that is accepted, and no other key is endorsed by it.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::endorsement::device::{DeviceRoots, verify_iak_chain};
use coffer_attestation::endorsement::{Endorsed, Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use coffer_fuzz::{edited, one_in, signed_part};
use libfuzzer_sys::fuzz_target;

macro_rules! original {
    ($file:literal) => {
        include_bytes!(concat!("../../tests/conformance/corpus/originals/endorsement-ecc/", $file))
    };
}

const LEAF: &[u8] = original!("ek.der");
const ISSUER: &[u8] = original!("chain-0.der");
/// When the original is valid (`context.json`).
const NOW: u64 = 1_780_272_000;

static EK: LazyLock<Public> = LazyLock::new(|| Public::parse(original!("ek.pub")).unwrap());
static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
    let mut roots = Roots::new();
    roots.add_hardware(original!("root-0.der")).unwrap();
    roots
});

fn endorsed(leaf: &[u8], chain: &[Vec<u8>]) -> Option<Endorsed> {
    verify_chain(leaf, chain, &EK, &ROOTS, NOW).ok()
}

static TRUE: LazyLock<Endorsed> =
    LazyLock::new(|| endorsed(LEAF, &[ISSUER.to_vec()]).expect("the original is accepted"));

fuzz_target!(init: {
    assert!(!TRUE.software);
}, |data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let raw = *which == 0x30;
    // As the leaf, as the certificate above the true leaf, or beside the true one.
    let (leaf, chain) = match (which % 4, raw) {
        (_, true) => (data.to_vec(), vec![ISSUER.to_vec()]),
        (0, _) => (edited(LEAF, rest), vec![ISSUER.to_vec()]),
        (1, _) => (LEAF.to_vec(), vec![edited(ISSUER, rest)]),
        (2, _) => (LEAF.to_vec(), vec![rest.to_vec()]),
        _ => (LEAF.to_vec(), vec![rest.to_vec(), ISSUER.to_vec()]),
    };
    // A signature that cannot hold takes most of the time: it is tried for one in four. What is judged of a leaf
    // before is `certificate`'s matter.
    let holds = signed_part(&leaf) == signed_part(LEAF);
    if !holds && !one_in(4, data) {
        return;
    }
    // No TPM maker's certificate is a device's.
    assert!(verify_iak_chain(&leaf, &[], &EK, &DeviceRoots::default(), NOW).is_err());
    let Some(endorsed) = endorsed(&leaf, &chain) else { return };
    // Two encodings of an ECDSA signature hold: r, s and r, -s. What they sign is the same.
    assert!(holds, "a forged leaf");
    assert!(
        chain.iter().any(|issuer| signed_part(issuer) == signed_part(ISSUER)),
        "a forged issuer"
    );
    assert_eq!((&endorsed.manufacturer, &endorsed.model), (&TRUE.manufacturer, &TRUE.model));
    assert_eq!(endorsed.software, TRUE.software);
});
