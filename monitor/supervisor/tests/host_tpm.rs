//! The host's TPM through the keeper, against a real swtpm: identity, enrolment, batched quotes (SPEC 5.2 to 5.4).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use coffer_attestation::credential::make_credential;
use coffer_attestation::quote::ReceivedQuote;
use coffer_attestation::{Digest, Nonce, ObjectName, Reject, binding, enroll, merkle};
use coffer_formats::claims::HostClaims;
use coffer_formats::evidence::QuotePart;
use coffer_formats::protocol::{EnrollChallenge, EnrollComplete, HexBytes, HostIdentity};
use coffer_formats::tpm::pcr::HOST_SELECTION;
use coffer_formats::tpm::public::Public;
use coffer_host_tpm::{HostTpm, HostTpmError};
use common::{MONITOR, Monitor, TestTpm};
use std::path::Path;
use std::sync::{Arc, Barrier};

const SECRET: [u8; 32] = [5; 32];
const NONCE: Nonce = Nonce([6; 32]);

fn challenge(identity: &HostIdentity, ak_name: &ObjectName) -> EnrollChallenge {
    let ek = Public::parse(&identity.ek_public.0).unwrap();
    let credential = make_credential(&ek, ak_name, &SECRET, &[9; 64]).unwrap();
    EnrollChallenge {
        session: "session".into(),
        nonce: NONCE,
        credential_blob: HexBytes(credential.blob),
        encrypted_secret: HexBytes(credential.encrypted_secret),
    }
}

#[test]
fn enrolls_through_the_api() {
    let tpm = TestTpm::start();
    let monitor = Monitor::start(&tpm.flags());
    let identity: HostIdentity = monitor.json("GET", "/v1/host/identity", "");
    let (ek, ak) = (
        Public::parse(&identity.ek_public.0).unwrap(),
        Public::parse(&identity.ak_public.0).unwrap(),
    );
    enroll::check_ek(&ek).unwrap();
    enroll::check_ak(&ak).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&identity.ek_certificate.0).unwrap();
    assert!(!certificate.public_key().raw.is_empty());

    let body = serde_json::to_string(&challenge(&identity, &ak.name())).unwrap();
    let complete: EnrollComplete = monitor.json("POST", "/v1/host/activate", &body);
    enroll::verify_proof(&complete.proof.0, &SECRET, "session", &NONCE, &ak.name()).unwrap();
    let quote = QuotePart {
        attest: complete.attest.0,
        signature: complete.signature.0,
        pcrs: complete
            .pcrs
            .iter()
            .map(|p| coffer_formats::evidence::PcrValue { index: p.index, digest: p.digest })
            .collect(),
        event_log: complete.event_log.0,
    };
    let first = enroll::verify_first_quote(&ak, &NONCE, &complete.host_claims.0, &quote).unwrap();
    assert_eq!(first.claims.profile, "developer");
    let other = Nonce([7; 32]);
    assert_eq!(
        enroll::verify_first_quote(&ak, &other, &complete.host_claims.0, &quote).err(),
        Some(Reject::NonceMismatch)
    );
    let (_, log) = monitor.call("GET", "/v1/host/event-log", "");
    assert_eq!(log, quote.event_log);
    assert!(monitor.end());
}

#[test]
fn refuses_a_credential_for_another_key() {
    let tpm = TestTpm::start();
    let monitor = Monitor::start(&tpm.flags());
    let identity: HostIdentity = monitor.json("GET", "/v1/host/identity", "");
    let body = serde_json::to_string(&challenge(&identity, &ObjectName([0x0b; 34]))).unwrap();
    // More often than a TPM has session slots: a failure must not use one up.
    for _ in 0..5 {
        let (_, code) = monitor.refusal("POST", "/v1/host/activate", &body);
        assert_eq!(code, "activation-failed");
    }
    let (status, code) = monitor.refusal(
        "POST",
        "/v1/host/activate",
        &body.replace("session\":\"s", "session\":1,\"s"),
    );
    assert_eq!((status, code.as_str()), (400, "bad-request"));
    let ak = Public::parse(&identity.ak_public.0).unwrap();
    let body = serde_json::to_string(&challenge(&identity, &ak.name())).unwrap();
    let _: EnrollComplete = monitor.json("POST", "/v1/host/activate", &body);
}

#[test]
fn requests_that_wait_share_a_quote_and_each_has_its_own_proof() {
    let tpm = TestTpm::start();
    let host =
        HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap();
    let claims = b"claims".to_vec();
    host.set_claims(Arc::new(move || claims.clone()));
    let ak = Public::parse(host.ak_public()).unwrap();
    let barrier = Arc::new(Barrier::new(24));
    let threads: Vec<_> = (0..24u8)
        .map(|n| {
            let (host, barrier) = (host.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                let leaf = Digest([n; 32]);
                (leaf, host.attest(leaf).unwrap())
            })
        })
        .collect();
    let mut largest = 0;
    for thread in threads {
        let (leaf, batched) = thread.join().unwrap();
        let root = merkle::root_from(&leaf, &batched.inclusion).unwrap();
        let expected = binding::host_quote(batched.inclusion.size, &root, &batched.host_claims);
        let pcrs = ReceivedQuote::new(&batched.quote)
            .authenticate(&ak)
            .unwrap()
            .bind(&expected, Reject::HostBindingMismatch)
            .unwrap()
            .pcrs(HOST_SELECTION);
        assert!(pcrs.is_ok());
        largest = largest.max(batched.inclusion.size);
    }
    assert!(largest > 1, "no two of 24 shared a quote");
}

#[test]
fn claims_are_those_of_this_key_and_host() {
    let tpm = TestTpm::start();
    let monitor = Monitor::start(&tpm.flags());
    let identity: HostIdentity = monitor.json("GET", "/v1/host/identity", "");
    let ak = Public::parse(&identity.ak_public.0).unwrap();
    let body = serde_json::to_string(&challenge(&identity, &ak.name())).unwrap();
    let complete: EnrollComplete = monitor.json("POST", "/v1/host/activate", &body);
    let claims = HostClaims::decode(&complete.host_claims.0).unwrap();
    assert_eq!(
        (claims.hak_name, claims.live_vms, claims.launch_log_head),
        (ak.name(), 0, Digest::ZERO)
    );
}

#[test]
fn survives_the_death_of_its_keeper() {
    let tpm = TestTpm::start();
    let host =
        HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap();
    let me = std::process::id();
    let keepers = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.split(' ').nth(2) == Some(&me.to_string()))
                && line.contains(&tpm.tcti)
        });
    for pid in keepers.collect::<Vec<_>>() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(matches!(host.attest(Digest::ZERO), Err(HostTpmError::Keeper(_))));
    assert!(host.attest(Digest::ZERO).is_ok());
}

#[test]
fn a_missing_event_log_is_named_and_never_empty() {
    let tpm = TestTpm::start();
    let start =
        |log: &Path| HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), log).unwrap();
    let absent = tpm.dir.path().join("absent");
    assert!(matches!(start(&absent).attest(Digest::ZERO), Err(HostTpmError::EventLog { .. })));
    let empty = tpm.dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(start(&empty).attest(Digest::ZERO), Err(HostTpmError::EventLog { .. })));
}
