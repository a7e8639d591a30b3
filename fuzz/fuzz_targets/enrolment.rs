//! The first quote of a host with edits of one of its parts: what is concluded is what was recorded, or nothing.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::enroll::verify_first_quote;
use coffer_attestation::tpm::public::Public;
use coffer_exchange::evidence::{PcrValue, QuotePart};
use coffer_formats::{Digest, Nonce};
use coffer_fuzz::{edited, one_in};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

macro_rules! original {
    ($file:literal) => {
        include_bytes!(concat!(
            "../../tests/conformance/corpus/originals/enrolment-p256-ek/",
            $file
        ))
    };
}

struct Original {
    ak: Public,
    nonce: Nonce,
    quote: QuotePart,
}

static ORIGINAL: LazyLock<Original> = LazyLock::new(|| {
    let context: Value = serde_json::from_slice(original!("context.json")).unwrap();
    let pcrs: Value = serde_json::from_slice(original!("pcrs.json")).unwrap();
    let value = |entry: &Value| PcrValue {
        index: entry["pcr"].as_u64().unwrap().try_into().unwrap(),
        digest: Digest::from_hex(entry["value"].as_str().unwrap()).unwrap(),
    };
    Original {
        ak: Public::parse(original!("ak.pub")).unwrap(),
        nonce: serde_json::from_value(context["nonce"].clone()).unwrap(),
        quote: QuotePart {
            attest: original!("quote.msg").to_vec(),
            signature: original!("quote.sig").to_vec(),
            pcrs: pcrs.as_array().unwrap().iter().map(value).collect(),
            event_log: original!("log.bin").to_vec(),
        },
    }
});

/// What is concluded; none if it is refused.
fn concluded(claims: &[u8], quote: &QuotePart) -> Option<String> {
    let Original { ak, nonce, .. } = &*ORIGINAL;
    let first = verify_first_quote(ak, nonce, claims, quote).ok()?;
    Some(format!("{:?} {:?}", first.claims, first.pcrs))
}

static TRUE: LazyLock<String> = LazyLock::new(|| {
    concluded(original!("host-claims.cbor"), &ORIGINAL.quote).expect("the original is accepted")
});

fuzz_target!(init: {
    assert!(TRUE.contains("HostClaims"), "{}", *TRUE);
}, |data: &[u8]| {
    let Some((which, edits)) = data.split_first() else { return };
    let mut claims = original!("host-claims.cbor").to_vec();
    let mut quote = ORIGINAL.quote.clone();
    // Half of the tries at the log, which is looked at last and most.
    match which % 8 {
        0 => quote.attest = edited(&quote.attest, edits),
        1 => quote.signature = edited(&quote.signature, edits),
        2 => claims = edited(&claims, edits),
        3 => {
            let at = usize::from(which >> 3) % quote.pcrs.len();
            let changed = edited(quote.pcrs[at].digest.as_bytes(), edits);
            if let Some(digest) = Digest::from_slice(&changed) {
                quote.pcrs[at].digest = digest;
            }
        }
        _ => quote.event_log = edited(&quote.event_log, edits),
    }
    // A signature that cannot hold takes a hundred times as long as all the rest.
    if quote.attest != ORIGINAL.quote.attest && !one_in(16, data) {
        return;
    }
    if let Some(concluded) = concluded(&claims, &quote) {
        assert_eq!(concluded, *TRUE, "a forged enrolment");
        assert_eq!(quote.attest, ORIGINAL.quote.attest, "a forged quote");
    }
});
