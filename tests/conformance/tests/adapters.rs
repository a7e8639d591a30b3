//! Other verifiers through the adapter protocol: the corpus lets good quotes through, and it bites.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::path::Path;

use coffer_conformance::adapter::Adapter;
use coffer_conformance::case::{Expect, Files, Surface};
use coffer_conformance::corpus::Corpus;
use coffer_conformance::judge::{Input, Judge, Verdict};
use coffer_conformance::run::{Outcome, one};

fn corpus() -> Corpus {
    Corpus::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap()
}

fn adapter(name: &str) -> Adapter {
    Adapter::new(format!("'{}/adapters/{name}'", env!("CARGO_MANIFEST_DIR")))
}

#[test]
fn tpm2_checkquote_accepts_every_valid_quote() {
    let (corpus, tool) = (corpus(), adapter("tpm2_checkquote"));
    let mut accepted = 0;
    for located in corpus.cases() {
        if located.section == "valid" && located.case.surface == Surface::Quote {
            let outcome = one(&corpus, &tool, located).unwrap().outcome;
            assert_eq!(outcome, Outcome::AcceptedAsExpected, "{}", located.name);
            accepted += 1;
        }
    }
    assert_eq!(accepted, 11);
}

/// Whoever checks signature and nonce alone takes what a trusted key signed: the corpus shows each.
#[test]
fn a_verifier_of_signature_and_nonce_alone_is_found_out() {
    let (corpus, careless) = (corpus(), adapter("signature_and_nonce"));
    let mut accepted = BTreeSet::new();
    for located in corpus.cases() {
        let forged = located.case.surface == Surface::Quote
            && matches!(located.case.expect, Expect::Reject(_))
            && located.case.sweep.is_none();
        if forged && one(&corpus, &careless, located).unwrap().outcome == Outcome::AcceptedWrongly {
            accepted.insert(located.case.id.clone());
        }
    }
    for id in
        ["A1", "A2", "A3", "A4", "A5", "A6", "A7", "A10", "A13", "B1", "B2", "B4", "B6", "B13"]
    {
        assert!(accepted.contains(id), "{id} is refused: {accepted:?}");
    }
    // What the signature covers it does refuse.
    for id in ["C5", "C11", "C15", "E3", "E5"] {
        assert!(!accepted.contains(id), "{id} is accepted");
    }
}

#[test]
fn whatever_is_no_answer_is_no_verdict() {
    let input = Input { surface: Surface::Quote, files: Files::new() };
    let judge = |command: &str| Adapter::new(command).judge(&input);
    assert_eq!(judge(r#"echo '{"verdict":"accept"}'"#), Verdict::Accept);
    assert_eq!(
        judge(r#"cat >/dev/null; echo '{"verdict":"reject","reason":"so"}'"#),
        Verdict::Reject("so".into())
    );
    assert_eq!(judge(r#"echo '{"verdict":"unsupported"}'"#), Verdict::Unsupported);
    for command in [
        "true",
        "false",
        "echo accept",
        r#"echo '{"verdict":"maybe"}'"#,
        r#"echo '{"verdict":"accept"}{"verdict":"reject"}'"#,
        r#"echo '{"verdict":"reject"}'; exit 1"#,
        r#"echo '{"verdict":"accept"}'; kill -9 $$"#,
    ] {
        assert!(matches!(judge(command), Verdict::Broken(_)), "{command}");
    }
}

#[test]
fn the_question_holds_no_answer() {
    let corpus = corpus();
    let located = corpus.cases().iter().find(|located| located.case.id == "A1").unwrap();
    let asks = Adapter::new(
        r#"python3 -c '
import json, sys
case = json.load(sys.stdin)
files = sorted(case.pop("files"))
ok = case == {"version": 1, "surface": "quote"} and "case.json" not in files
print(json.dumps({"verdict": "accept" if ok else "reject"}))'"#,
    );
    let outcome = one(&corpus, &asks, located).unwrap().outcome;
    assert_eq!(outcome, Outcome::AcceptedWrongly);
}
