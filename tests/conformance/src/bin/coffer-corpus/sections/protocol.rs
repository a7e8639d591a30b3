//! D31 to D38, E1 to E10: what a verifier has to remember.

use base64::Engine as _;
use coffer_conformance::case::{Files, Surface};
use serde_json::{Value, json};

use super::altered;
use crate::book::{About, Book};
use crate::certificates::{Chain, Signer};
use crate::keys::Key;

pub const RELEASE: &str = "protocol-release";

pub fn originals(book: &mut Book) {
    let (mut a, mut b) = (Chain::ecc(), Chain::ecc());
    a.leaf.signer = Signer::new(Key::p256(13));
    b.leaf.signer = Signer::new(Key::p256(14));
    b.leaf.params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x42, 0x18]));
    let (root, issuers) = a.authorities();
    let base64 = base64::engine::general_purpose::STANDARD.encode(root);
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    let files: Files = [
        ("root.pem", pem.into_bytes()),
        ("issuer.der", issuers[0].clone()),
        ("ek-a.der", a.leaf()),
        ("ek-b.der", b.leaf()),
        ("script.json", script(&[enrolled(), attest()].concat())),
    ]
    .map(|(name, file)| (name.to_owned(), file))
    .into();
    book.derive(RELEASE, "fixed keys", files);
}

/// One step a line.
fn script(steps: &[Value]) -> Vec<u8> {
    let steps: Vec<String> = steps.iter().map(|step| format!("  {step}")).collect();
    format!("{{\"steps\": [\n{}\n]}}\n", steps.join(",\n")).into_bytes()
}

/// Host `rack-7` with TPM `a` is enrolled.
fn enrolled() -> Vec<Value> {
    vec![
        json!({"do": "token", "host": "rack-7", "as": "t1"}),
        json!({"do": "enroll-start", "token": "t1", "host": "rack-7", "tpm": "a", "as": "s1"}),
        json!({"do": "enroll-complete", "session": "s1", "tpm": "a"}),
    ]
}

/// A VM on it gets its secret.
fn attest() -> Vec<Value> {
    vec![
        json!({"do": "challenge", "as": "n1"}),
        json!({"do": "evidence", "challenge": "n1", "tpm": "a", "as": "e1"}),
        json!({"do": "release", "evidence": "e1"}),
    ]
}

#[track_caller]
fn refuse(book: &mut Book, code: &str, about: &About<'_>, steps: &[Value]) {
    book.refuse(Surface::Protocol, RELEASE, code, about, |files| {
        files.insert("script.json".into(), script(steps));
    });
}

#[track_caller]
fn accept(book: &mut Book, about: &About<'_>, steps: &[Value]) {
    book.accept(Surface::Protocol, RELEASE, about, |files| {
        files.insert("script.json".into(), script(steps));
    });
}

pub fn cases(book: &mut Book) {
    freshness(book);
    sessions(book);
    identities(book);
}

/// E1, E2, E4, E9 to E11.
fn freshness(book: &mut Book) {
    let about =
        altered("E1", "exact-replay", "the same evidence is sent again", "after it was answered");
    let again = vec![json!({"do": "release", "evidence": "e1"})];
    refuse(book, "nonce-consumed", &about, &[enrolled(), attest(), again].concat());
    let about = altered(
        "C16",
        "high-s-again",
        "evidence that was answered is sent with n - s for s",
        "as good a signature over the same nonce, in other bytes",
    );
    let again = vec![
        json!({"do": "mirror", "evidence": "e1", "as": "e2"}),
        json!({"do": "release", "evidence": "e2"}),
    ];
    refuse(book, "nonce-consumed", &about, &[enrolled(), attest(), again].concat());
    let about = altered(
        "C16",
        "high-s-first",
        "evidence is sent with n - s for s",
        "accepted: it is as good",
    );
    let mut steps = [enrolled(), attest()].concat();
    let last = steps.pop().unwrap();
    steps.extend([
        json!({"do": "mirror", "evidence": "e1", "as": "e2"}),
        json!({"do": "release", "evidence": "e2"}),
    ]);
    assert_eq!(last, json!({"do": "release", "evidence": "e1"}));
    accept(book, &about, &steps);
    let about = altered(
        "E2",
        "four-at-once",
        "the same evidence is sent four times at once",
        "one is answered, this is what the others get",
    );
    let mut steps = [enrolled(), attest()].concat();
    steps.last_mut().unwrap()["times"] = 4.into();
    refuse(book, "nonce-consumed", &about, &steps);
    for (id, slug, seconds, expired) in
        [("E4", "expired-by-a-second", 121, true), ("E4", "in-its-last-seconds", 115, false)]
    {
        let title =
            if expired { "the challenge has expired" } else { "the challenge is about to expire" };
        let mutation = format!("{seconds} s between challenge and evidence; 120 are given");
        let about = altered(id, slug, title, &mutation);
        let mut steps = [enrolled(), attest()].concat();
        let last = steps.pop().unwrap();
        steps.extend([json!({"do": "wait", "seconds": seconds}), last]);
        match expired {
            true => refuse(book, "nonce-expired", &about, &steps),
            false => accept(book, &about, &steps),
        }
    }
    let about = altered(
        "E9",
        "after-a-refusal",
        "a challenge is used again after a refusal",
        "first evidence that asks for what is not declared, then good evidence",
    );
    let steps = vec![
        json!({"do": "challenge", "as": "n1"}),
        json!({"do": "evidence", "challenge": "n1", "tpm": "a", "as": "e0", "asks": ["site/other"]}),
        json!({"do": "release", "evidence": "e0", "refused": "secret-not-declared"}),
        json!({"do": "evidence", "challenge": "n1", "tpm": "a", "as": "e1"}),
        json!({"do": "release", "evidence": "e1"}),
    ];
    refuse(book, "nonce-consumed", &about, &[enrolled(), steps].concat());
    let about = altered("E10", "all-distinct", "challenges are all different", "2,000 of them")
        .source(&["CVE-2026-6420"]);
    accept(book, &about, &[json!({"do": "challenges", "count": 2000})]);
    set_back(book);
}

/// E11: challenges age by a clock that nobody can set.
fn set_back(book: &mut Book) {
    for (slug, seconds, passed, expired) in [
        ("expired-clock-set-back", 3600, 121, true),
        ("expired-clock-set-back-a-minute", 60, 121, true),
        ("clock-set-back-at-once", 3600, 1, false),
    ] {
        let title = if expired {
            "the clock is set back under an expired challenge"
        } else {
            "the clock is set back under a good challenge"
        };
        let mutation = format!(
            "{passed} s between challenge and evidence, the wall clock back by {seconds} s"
        );
        let about = altered("E11", slug, title, &mutation);
        let mut steps = [enrolled(), attest()].concat();
        let last = steps.pop().unwrap();
        steps.extend([
            json!({"do": "wait", "seconds": passed}),
            json!({"do": "set-back", "seconds": seconds}),
            last,
        ]);
        match expired {
            true => refuse(book, "nonce-expired", &about, &steps),
            false => accept(book, &about, &steps),
        }
    }
}

/// D31 to D34, D38: sessions and tokens are good once.
fn sessions(book: &mut Book) {
    let cve: &[&str] = &["CVE-2023-38201"];
    let start = |host: &str, tpm: &str, n: u8| {
        vec![
            json!({"do": "token", "host": host, "as": format!("t{n}")}),
            json!({"do": "enroll-start", "token": format!("t{n}"), "host": host, "tpm": tpm, "as": format!("s{n}")}),
        ]
    };
    let complete =
        |session: &str, tpm: &str| json!({"do": "enroll-complete", "session": session, "tpm": tpm});
    let about = altered(
        "D32",
        "second-attempt",
        "a second answer after a wrong one",
        "first another TPM's guess, then the right one",
    )
    .source(cve);
    let mut wrong = complete("s1", "b");
    wrong["refused"] = "activation-failed".into();
    refuse(
        book,
        "session-gone",
        &about,
        &[start("rack-7", "a", 1), vec![wrong, complete("s1", "a")]].concat(),
    );
    let about = altered(
        "D32",
        "completed-twice",
        "the same answer again after it was accepted",
        "the session is used up",
    );
    refuse(book, "session-gone", &about, &[enrolled(), vec![complete("s1", "a")]].concat());
    let about = altered(
        "D32",
        "session-expired",
        "an answer after the session's time",
        "301 s; 300 are given",
    );
    refuse(
        book,
        "session-gone",
        &about,
        &[
            start("rack-7", "a", 1),
            vec![json!({"do": "wait", "seconds": 301}), complete("s1", "a")],
        ]
        .concat(),
    );
    let about = altered(
        "D33",
        "secret-of-another-session",
        "an answer with what another session's credential held",
        "two sessions of one host",
    );
    let mut crossed = complete("s2", "a");
    crossed["secret_of"] = "s1".into();
    refuse(
        book,
        "activation-failed",
        &about,
        &[start("rack-7", "a", 1), start("rack-7", "a", 2), vec![crossed]].concat(),
    );
    let about = altered(
        "D34",
        "other-tpm-answers",
        "the credential is answered by the machine that holds another EK",
        "TPM b cannot activate what was made for TPM a",
    );
    refuse(
        book,
        "activation-failed",
        &about,
        &[start("rack-7", "a", 1), vec![complete("s1", "b")]].concat(),
    );
    let again = |host: &str, tpm: &str| json!({"do": "enroll-start", "token": "t1", "host": host, "tpm": tpm, "as": "s9"});
    let about = altered(
        "D38",
        "token-twice",
        "a token is used a second time",
        "after an enrolment was started with it",
    );
    refuse(
        book,
        "token-invalid",
        &about,
        &[start("rack-7", "a", 1), vec![again("rack-7", "a")]].concat(),
    );
    let about = altered(
        "D38",
        "token-of-another-host",
        "a token is used for another host",
        "made for rack-7, used for rack-8",
    );
    refuse(
        book,
        "token-invalid",
        &about,
        &[vec![start("rack-7", "a", 1).remove(0)], vec![again("rack-8", "a")]].concat(),
    );
    let about = altered(
        "D38",
        "token-expired",
        "a token is used after its time",
        "3601 s; an hour is given",
    );
    refuse(
        book,
        "token-invalid",
        &about,
        &[
            vec![start("rack-7", "a", 1).remove(0)],
            vec![json!({"do": "wait", "seconds": 3601}), again("rack-7", "a")],
        ]
        .concat(),
    );
}

/// D35 to D37, H18.
fn identities(book: &mut Book) {
    let start = |host: &str, tpm: &str| {
        vec![
            json!({"do": "token", "host": host, "as": "t2"}),
            json!({"do": "enroll-start", "token": "t2", "host": host, "tpm": tpm, "as": "s2"}),
        ]
    };
    let about = altered(
        "D35",
        "name-with-another-tpm",
        "a name is enrolled again with another TPM",
        "rack-7 with TPM b, after it was enrolled with TPM a",
    )
    .source(&["CVE-2025-13609"]);
    refuse(book, "identity-immutable", &about, &[enrolled(), start("rack-7", "b")].concat());
    let about = altered(
        "D36",
        "tpm-under-another-name",
        "an enrolled TPM is enrolled under another name",
        "TPM a as rack-8",
    );
    refuse(book, "ek-in-use", &about, &[enrolled(), start("rack-8", "a")].concat());
    let about = altered(
        "D36",
        "tpm-under-its-own-name",
        "an enrolled TPM is enrolled once more",
        "TPM a as rack-7",
    );
    refuse(book, "ek-in-use", &about, &[enrolled(), start("rack-7", "a")].concat());
    let about = altered(
        "D37",
        "genuine-and-not-enrolled",
        "a genuine TPM that nobody enrolled (cuckoo)",
        "evidence of TPM b, certified by the same maker",
    )
    .source(&["Parno, HotSec 2008"]);
    let mut steps = attest();
    steps[1]["tpm"] = "b".into();
    refuse(book, "not-enrolled", &about, &[enrolled(), steps].concat());
    let about = altered(
        "H18",
        "host-removed-meanwhile",
        "the host is removed between challenge and evidence",
        "an operator removes rack-7",
    );
    let mut steps = attest();
    steps.insert(2, json!({"do": "remove-host", "host": "rack-7"}));
    refuse(book, "not-enrolled", &about, &[enrolled(), steps].concat());
    let about = altered(
        "D36",
        "after-removal",
        "a TPM comes back after an operator removed it",
        "accepted: a new row, and the removal is in the log",
    );
    let mut steps = enrolled();
    steps.push(json!({"do": "remove-host", "host": "rack-7"}));
    steps.extend(start("rack-8", "a"));
    steps.push(json!({"do": "enroll-complete", "session": "s2", "tpm": "a"}));
    accept(book, &about, &steps);
}
