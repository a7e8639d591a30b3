//! EK certificates under roots that are fixed: nobody but their authority makes one that is accepted.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::endorsement::{Roots, verify_chain};
use coffer_formats::tpm::public::Public;
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

static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
    let mut roots = Roots::new();
    roots.add_hardware(original!("root-0.der")).unwrap();
    roots
});
static EK: LazyLock<Public> = LazyLock::new(|| Public::parse(original!("ek.pub")).unwrap());

fuzz_target!(init: {
    let chain = [ISSUER.to_vec()];
    verify_chain(LEAF, &chain, &EK, &ROOTS, NOW).expect("the original is accepted");
}, |data: &[u8]| {
    // As a leaf, and as the certificate above the true leaf.
    for (leaf, issuer) in [(data, ISSUER), (LEAF, data)] {
        let chain = [issuer.to_vec()];
        if verify_chain(leaf, &chain, &EK, &ROOTS, NOW).is_ok() {
            // Two encodings of an ECDSA signature hold: r, s and r, -s. What they sign is the same.
            let (found, original) = if leaf == LEAF { (issuer, ISSUER) } else { (leaf, LEAF) };
            assert_eq!(found.get(signed(original)), original.get(signed(original)), "forged");
        }
    }
});

/// Where the signed part stands: after the outer header, with its own; both have lengths of two bytes.
fn signed(der: &[u8]) -> std::ops::Range<usize> {
    assert_eq!((der[..2].to_vec(), der[4..6].to_vec()), (vec![0x30, 0x82], vec![0x30, 0x82]));
    4..8 + usize::from(u16::from_be_bytes([der[6], der[7]]))
}
