//! Quotes under keys that are fixed, with edits of each part: authentic is what the TPM signed and nothing else,
//! and register values are those it signed.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::Reject;
use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::attest::Attest;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::signature::Signature;
use coffer_exchange::evidence::PcrValue;
use coffer_formats::Digest;
use coffer_fuzz::{edited, one_in};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

macro_rules! original {
    ($name:literal) => {
        Original::read(
            include_bytes!(concat!("../../tests/conformance/corpus/originals/", $name, "/ak.pub")),
            include_bytes!(concat!(
                "../../tests/conformance/corpus/originals/",
                $name,
                "/quote.msg"
            )),
            include_bytes!(concat!(
                "../../tests/conformance/corpus/originals/",
                $name,
                "/quote.sig"
            )),
            include_str!(concat!("../../tests/conformance/corpus/originals/", $name, "/pcrs.json")),
        )
    };
}

struct Original {
    key: Public,
    attest: &'static [u8],
    signature: &'static [u8],
    required: Vec<u8>,
    pcrs: Vec<PcrValue>,
}

impl Original {
    fn read(key: &[u8], attest: &'static [u8], signature: &'static [u8], pcrs: &str) -> Self {
        let pcrs: Value = serde_json::from_str(pcrs).unwrap();
        let value = |entry: &Value| PcrValue {
            index: entry["pcr"].as_u64().unwrap().try_into().unwrap(),
            digest: Digest::from_hex(entry["value"].as_str().unwrap()).unwrap(),
        };
        let pcrs: Vec<PcrValue> = pcrs.as_array().unwrap().iter().map(value).collect();
        let required = pcrs.iter().map(|value| value.index).collect();
        Self { key: Public::parse(key).unwrap(), attest, signature, required, pcrs }
    }

    fn judge(&self, attest: &[u8], signature: &[u8], pcrs: &[PcrValue]) -> Result<(), Reject> {
        let extra = Attest::parse(self.attest)?.extra_data;
        let quoted = ReceivedQuote::new(attest, signature)
            .authenticate(&QuoteKey::endorsement_primary(&self.key))?
            .bind(&extra, Reject::NonceMismatch)?
            .pcrs(&self.required, pcrs)?;
        for value in &self.pcrs {
            assert_eq!(quoted.get(value.index), Ok(&value.digest), "a forged register");
        }
        Ok(())
    }
}

/// ECDSA and RSASSA; three of four tries at the first, which is much the faster.
static ORIGINALS: LazyLock<[Original; 2]> =
    LazyLock::new(|| [original!("quote-p256-sha256"), original!("quote-rsa2048-sha256")]);

fuzz_target!(init: {
    for original in &*ORIGINALS {
        let verdict = original.judge(original.attest, original.signature, &original.pcrs);
        assert_eq!(verdict, Ok(()), "the original is accepted");
    }
}, |data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let original = &ORIGINALS[usize::from(which >> 6 == 3)];
    let (mut attest, mut signature) = (original.attest.to_vec(), original.signature.to_vec());
    let mut pcrs = original.pcrs.clone();
    match which % 4 {
        0 => attest = edited(&attest, rest),
        1 => signature = edited(&signature, rest),
        2 => pcrs = edited_pcrs(&pcrs, rest),
        _ => {
            let (first, second) = rest.split_at(rest.len() / 2);
            (attest, signature) = (edited(&attest, first), edited(&signature, second));
        }
    }
    // A signature that cannot hold takes a hundred times as long as all the rest: it is tried for one in four, and
    // for one in 16 where the quote would be refused after it too.
    let parses = Attest::parse_quote(&attest).is_ok() && Signature::parse(&signature).is_ok();
    if attest != original.attest && !one_in(if parses { 4 } else { 16 }, data) {
        return;
    }
    if original.judge(&attest, &signature, &pcrs).is_ok() {
        assert_eq!(attest, original.attest, "a forged quote");
        assert_eq!(pcrs, original.pcrs, "forged registers");
    }
});

/// Values changed, dropped, doubled or exchanged: three bytes an edit.
fn edited_pcrs(pcrs: &[PcrValue], edits: &[u8]) -> Vec<PcrValue> {
    let mut pcrs = pcrs.to_vec();
    for edit in edits.chunks_exact(3).take(8) {
        let at = usize::from(edit[1]) % (pcrs.len() + 1);
        match edit[0] % 5 {
            0 if at < pcrs.len() => drop(pcrs.remove(at)),
            1 if at < pcrs.len() => pcrs.insert(at, pcrs[at].clone()),
            2 if at < pcrs.len() => pcrs[at].index = edit[2],
            3 if at < pcrs.len() => {
                pcrs[at].digest.0[usize::from(edit[2]) % 32] ^= 1 << (edit[2] >> 5)
            }
            4 if at < pcrs.len() => {
                let other = usize::from(edit[2]) % pcrs.len();
                pcrs.swap(at, other);
            }
            _ => {}
        }
    }
    pcrs
}
