//! The guest's attestation end to end: a real vTPM, real TLS, real HPKE; and every way the other ends can lie
//! (SPEC 2.5, 8.3).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coffer_exchange::channel::Phase;
use coffer_init::Failure;
use coffer_init::appliance::SecretPlan;
use coffer_init::attest::{Patience, fetch_secrets};
use coffer_init::secrets::OpenedSecrets;
use support::monitor::{Manner, Monitor};
use support::verifier::{Deceit, SECRETS, Verifier};
use support::vtpm::Swtpm;

const QUICK: Patience = Patience {
    first: Duration::from_millis(5),
    longest: Duration::from_millis(20),
    total: Duration::from_secs(5),
};

fn attest(plan: &SecretPlan, manner: Manner) -> Result<OpenedSecrets, Failure> {
    let (vtpm, monitor) = (Swtpm::start(), Monitor::start(manner));
    fetch_secrets(plan, &monitor.channel(), &mut vtpm.virtual_tpm(), QUICK)
}

/// The code with which the guest gives up on this lie, and how often it connected.
fn outcome(deceit: Deceit) -> (String, usize) {
    let verifier = Verifier::start(deceit);
    let code = match attest(&verifier.plan(), Manner::Honest) {
        Ok(_) => "ok".to_owned(),
        Err(failure) => failure.code().to_owned(),
    };
    (code, verifier.connections.load(Ordering::SeqCst))
}

#[test]
fn secrets_arrive_as_private_files() {
    let verifier = Verifier::start(Deceit::None);
    let opened = attest(&verifier.plan(), Manner::Honest).map_err(|f| f.to_string()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coffer/secrets");
    let placed = opened.place(&path).unwrap();
    assert_eq!(placed.directory(), path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), SECRETS.len());
    for (id, plain) in SECRETS {
        let file = path.join(id.rsplit('/').next().unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), plain);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o400);
    }
    assert_eq!(verifier.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn secrets_never_go_into_a_directory_that_is_there() {
    let verifier = Verifier::start(Deceit::None);
    let opened = attest(&verifier.plan(), Manner::Honest).map_err(|f| f.to_string()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(opened.place(directory.path()).err().unwrap().code(), "secret-store");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn every_lie_of_a_release_is_seen_and_not_asked_about_again() {
    let cases = [
        (Deceit::None, "ok"),
        (Deceit::SignsWithAnotherKey, "release-signature"),
        (Deceit::TampersAfterSigning, "release-signature"),
        (Deceit::AnswersAnotherNonce, "release-mismatch"),
        (Deceit::AnswersOtherEvidence, "release-mismatch"),
        (Deceit::ReleasesJunk, "malformed"),
        (Deceit::OmitsASecret, "secret-missing"),
        (Deceit::AddsASecret, "secret-unexpected"),
        (Deceit::RepeatsASecret, "secret-unexpected"),
        (Deceit::SealsToAnotherKey, "secret-unsealable"),
        (Deceit::SwapsCiphertexts, "secret-unsealable"),
        (Deceit::ClaimsAnotherVersion, "secret-unsealable"),
        (Deceit::Refuses, "policy-denied"),
        (Deceit::RefusesInHtml, "verifier-bad-answer"),
        (Deceit::AnswersTooMuch, "verifier-bad-answer"),
    ];
    for (deceit, code) in cases {
        assert_eq!(outcome(deceit), (code.to_owned(), 1), "{deceit:?}");
    }
}

#[test]
fn only_the_pinned_verifier_over_tls_1_3_is_spoken_to() {
    let cases = [
        Deceit::ShowsAnotherCa,
        Deceit::ShowsAnotherAddress,
        Deceit::ShowsAnExpiredCertificate,
        Deceit::SpeaksTls12,
        Deceit::SpeaksPlainHttp,
    ];
    for deceit in cases {
        assert_eq!(outcome(deceit), ("verifier-untrusted".to_owned(), 1), "{deceit:?}");
    }
}

#[test]
fn broken_connections_are_tried_again_with_a_new_challenge() {
    assert_eq!(outcome(Deceit::Drops(3)), ("ok".to_owned(), 4));
    // The fake verifier gives each connection its own nonce and checks the evidence against it.
    assert_eq!(outcome(Deceit::DropsTheFirstRelease), ("ok".to_owned(), 2));
}

#[test]
fn a_verifier_that_is_down_is_given_up_in_bounded_time() {
    let mut plan = Verifier::start(Deceit::None).plan();
    // A port that was just free: nobody listens.
    plan.verifier.port =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (vtpm, monitor) = (Swtpm::start(), Monitor::start(Manner::Honest));
    let patience = Patience { total: Duration::from_millis(200), ..QUICK };
    let start = Instant::now();
    let failure =
        fetch_secrets(&plan, &monitor.channel(), &mut vtpm.virtual_tpm(), patience).err().unwrap();
    assert_eq!(failure.code(), "verifier-unreachable");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_monitor_that_will_not_or_cannot_is_named() {
    let plan = Verifier::start(Deceit::None).plan();
    let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let cases = [
        (Manner::Refuses("host-tpm-failed: the quote timed out"), "host-tpm-failed"),
        (Manner::Refuses("busy"), "monitor-refused"),
        (Manner::AnswersNoted, "channel-failed"),
        (Manner::Sends(frame(b"junk")), "channel-failed"),
        (Manner::Sends(vec![0xff; 4]), "channel-failed"),
        (Manner::Sends(vec![]), "channel-failed"),
    ];
    for (manner, code) in cases {
        assert_eq!(attest(&plan, manner).err().unwrap().code(), code);
    }
}

#[test]
fn a_dead_vtpm_is_named() {
    let plan = Verifier::start(Deceit::None).plan();
    let (vtpm, monitor) = (Swtpm::start(), Monitor::start(Manner::Honest));
    let mut tpm = vtpm.virtual_tpm();
    drop(vtpm);
    let failure = fetch_secrets(&plan, &monitor.channel(), &mut tpm, QUICK).err().unwrap();
    assert_eq!(failure.code(), "vtpm-failed");
}

#[test]
fn many_attestations_fit_into_one_vtpm() {
    let verifier = Verifier::start(Deceit::None);
    let (vtpm, monitor) = (Swtpm::start(), Monitor::start(Manner::Honest));
    let mut tpm = vtpm.virtual_tpm();
    // swtpm holds three loaded keys; a fourth would fail if one were left behind.
    for _ in 0..5 {
        fetch_secrets(&verifier.plan(), &monitor.channel(), &mut tpm, QUICK)
            .map_err(|f| f.to_string())
            .unwrap();
    }
}

#[test]
fn the_monitor_hears_how_far_the_guest_is() {
    let monitor = Monitor::start(Manner::Honest);
    let channel = monitor.channel();
    channel.status(Phase::Started, "").unwrap();
    channel.status(Phase::Failed, &"é".repeat(200)).unwrap();
    channel.await_stop().unwrap();
    let seen = monitor.statuses();
    assert_eq!(seen[0], (Phase::Started, String::new()));
    assert_eq!((seen[1].0, seen[1].1.len()), (Phase::Failed, 256));
}
