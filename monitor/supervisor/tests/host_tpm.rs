//! The host's TPM through the keeper, against a real swtpm: identity, enrolment, batched quotes (SPEC 5.2 to 5.4).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use coffer_attestation::credential::{ENTROPY, make_credential};
use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::name::Name;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{
    Digest, InstanceId, Nonce, ObjectName, Reject, Statement as _, binding, cbor, enroll, merkle,
};
use coffer_formats::claims::HostClaims;
use coffer_formats::endorsement::GuestId;
use coffer_formats::evidence::QuotePart;
use coffer_formats::launch::{BoxKind, LaunchRecord};
use coffer_formats::protocol::{EnrollChallenge, EnrollComplete, HexBytes, HostIdentity};
use coffer_formats::tpm::pcr::HOST_SELECTION;
use coffer_host_tpm::{Batched, HostTpm, HostTpmError, Timing, Waiting};
use coffer_monitor::evidence::{VmIdentity, host_part};
use common::{MONITOR, Monitor, TestTpm};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// Longer than any answer here takes.
const LONG: Duration = Duration::from_secs(20);
const SECRET: [u8; 32] = [5; 32];
const NONCE: Nonce = Nonce([6; 32]);

fn vm(n: u8) -> InstanceId {
    InstanceId([n; 16])
}

fn start(tpm: &TestTpm) -> HostTpm {
    HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap()
}

/// A TPM that holds still in the middle of a quote for `vm(0)`, and the request for that.
fn hold_in_quote(tpm: &TestTpm, host: &HostTpm) -> Waiting<Batched> {
    host.request(vm(0), Digest::ZERO).and_then(Waiting::finish).unwrap();
    tpm.pause();
    let first = host.request(vm(0), Digest([0xf0; 32])).unwrap();
    // The gathering is over and the quote begun.
    assert!(first.wait(Duration::from_millis(300)).is_none());
    first
}

/// The quote is this key's, over a tree with this leaf and over the host's registers.
#[track_caller]
fn proves(ak: &Public, leaf: &Digest, batched: &Batched) {
    let root = merkle::root_from(leaf, &batched.inclusion).unwrap();
    let expected = binding::host_quote(batched.inclusion.size, &root, &batched.host_claims);
    let key = QuoteKey::endorsement_primary(ak);
    let quote = ReceivedQuote::of(&batched.quote).authenticate(&key).unwrap();
    let bound = quote.bind(expected.as_bytes(), Reject::HostBindingMismatch).unwrap();
    assert!(bound.pcrs(HOST_SELECTION, &batched.quote.pcrs).is_ok());
}

fn challenge(identity: &HostIdentity, ak_name: &Name) -> EnrollChallenge {
    let ek = Public::parse(&identity.ek_public.0).unwrap();
    let credential = make_credential(&ek, ak_name, &SECRET, &[9; ENTROPY]).unwrap();
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
    enroll::verify_proof(&complete.proof.0, &SECRET, "session", &NONCE, &ak.object_name().unwrap())
        .unwrap();
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
    let body = serde_json::to_string(&challenge(
        &identity,
        &Name::parse(&[&[0, 0x0b], &[9; 32][..]].concat()).unwrap(),
    ))
    .unwrap();
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
                (leaf, host.request(vm(n), leaf).and_then(Waiting::finish).unwrap())
            })
        })
        .collect();
    let mut largest = 0;
    for thread in threads {
        let (leaf, batched) = thread.join().unwrap();
        proves(&ak, &leaf, &batched);
        largest = largest.max(batched.inclusion.size);
    }
    assert!(largest > 1, "no two of 24 shared a quote");
}

#[test]
fn requests_that_come_during_a_quote_share_the_next_one() {
    let tpm = TestTpm::start();
    let host = start(&tpm);
    let first = hold_in_quote(&tpm, &host);
    let later: Vec<_> = (1..=40)
        .map(|n| (Digest([n; 32]), host.request(vm(n), Digest([n; 32])).unwrap()))
        .collect();
    tpm.resume();
    let alone = first.finish().unwrap();
    let ak = Public::parse(host.ak_public()).unwrap();
    proves(&ak, &Digest([0xf0; 32]), &alone);
    assert_eq!(alone.inclusion.size, 1);
    let mut attests = Vec::new();
    for (at, (leaf, waiting)) in later.into_iter().enumerate() {
        let batched = waiting.finish().unwrap();
        proves(&ak, &leaf, &batched);
        assert_eq!((batched.inclusion.index, batched.inclusion.size), (at as u64, 40));
        attests.push(batched.quote.attest.clone());
    }
    assert!(attests.windows(2).all(|pair| pair[0] == pair[1]), "one quote for all of them");
    assert_ne!(attests[0], alone.quote.attest);
}

#[test]
fn requests_that_come_together_do_not_wait_for_a_second_quote() {
    let tpm = TestTpm::start();
    // So long a gathering that no load on this machine can part two requests made in a row.
    let timing = Timing { gather: Duration::from_secs(2), ..Timing::default() };
    let tcti = tpm.tcti.parse().unwrap();
    let host = HostTpm::start_timed(Path::new(MONITOR), &tcti, &tpm.event_log, timing).unwrap();
    let both = [1, 2].map(|n| host.request(vm(n), Digest([n; 32])).unwrap());
    for waiting in both {
        assert_eq!(waiting.finish().unwrap().inclusion.size, 2);
    }
}

#[test]
fn a_caller_who_goes_away_is_not_quoted_and_holds_up_nobody() {
    let tpm = TestTpm::start();
    let host = start(&tpm);
    let first = hold_in_quote(&tpm, &host);
    let gone = host.request(vm(1), Digest([1; 32])).unwrap();
    let stays = host.request(vm(2), Digest([2; 32])).unwrap();
    // One before its turn, one whose quote is being made.
    drop((gone, first));
    tpm.resume();
    let batched = stays.finish().unwrap();
    assert_eq!(batched.inclusion.size, 1);
    proves(&Public::parse(host.ak_public()).unwrap(), &Digest([2; 32]), &batched);
}

#[test]
fn one_vm_cannot_crowd_out_another_nor_the_operator() {
    let tpm = TestTpm::start();
    let host = start(&tpm);
    let first = hold_in_quote(&tpm, &host);
    let mut taken = Vec::new();
    let refused = loop {
        match host.request(vm(0), Digest([taken.len() as u8; 32])) {
            Ok(waiting) => taken.push(waiting),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, HostTpmError::Busy(_)), "{refused}");
    assert_eq!(taken.len(), 1, "with the one being quoted a VM has two");
    let other = host.request(vm(1), Digest([9; 32])).unwrap();
    let operator = std::thread::spawn({
        let host = host.clone();
        move || host.identity()
    });
    tpm.resume();
    assert!(other.finish().is_ok());
    assert!(operator.join().unwrap().is_ok());
    assert!(first.finish().is_ok() && taken.remove(0).finish().is_ok());
    assert!(
        host.request(vm(0), Digest::ZERO).and_then(Waiting::finish).is_ok(),
        "answered requests no longer count"
    );
}

#[test]
fn a_keeper_that_dies_in_a_quote_fails_that_quote_and_no_other() {
    let tpm = TestTpm::start();
    let timing = Timing { gather: Duration::from_secs(1), ..Timing::default() };
    let tcti = tpm.tcti.parse().unwrap();
    let host = HostTpm::start_timed(Path::new(MONITOR), &tcti, &tpm.event_log, timing).unwrap();
    tpm.pause();
    let doomed: Vec<_> = (0..20).map(|n| host.request(vm(n), Digest([n; 32])).unwrap()).collect();
    assert!(doomed[0].wait(Duration::from_secs(2)).is_none());
    let next = host.request(vm(30), Digest([30; 32])).unwrap();
    kill_keepers(&tpm.tcti);
    for waiting in doomed {
        assert!(matches!(waiting.finish(), Err(HostTpmError::Keeper(_))));
    }
    tpm.resume();
    assert!(next.finish().is_ok());
}

#[test]
fn a_tpm_that_hangs_is_given_up_and_tried_again() {
    let tpm = TestTpm::start();
    let timing = Timing { quote: Duration::from_millis(500), ..Timing::default() };
    let tcti = tpm.tcti.parse().unwrap();
    let host = HostTpm::start_timed(Path::new(MONITOR), &tcti, &tpm.event_log, timing).unwrap();
    tpm.pause();
    let hung = host.request(vm(0), Digest::ZERO).unwrap();
    assert!(matches!(hung.wait(LONG), Some(Err(HostTpmError::Keeper(_)))));
    tpm.resume();
    let again =
        (0..20).any(|_| host.request(vm(0), Digest::ZERO).and_then(Waiting::finish).is_ok());
    assert!(again);
}

#[test]
fn a_request_has_its_time_and_no_more() {
    let tpm = TestTpm::start();
    let timing = Timing { request: Duration::from_millis(300), ..Timing::default() };
    let tcti = tpm.tcti.parse().unwrap();
    let host = HostTpm::start_timed(Path::new(MONITOR), &tcti, &tpm.event_log, timing).unwrap();
    tpm.pause();
    assert_eq!(
        host.request(vm(0), Digest::ZERO).and_then(Waiting::finish).err(),
        Some(HostTpmError::TooLate)
    );
    tpm.resume();
}

#[test]
fn evidence_holds_nothing_of_a_neighbour_but_its_leaf() {
    let tpm = TestTpm::start();
    let timing = Timing { gather: Duration::from_secs(1), ..Timing::default() };
    let tcti = tpm.tcti.parse().unwrap();
    let host = HostTpm::start_timed(Path::new(MONITOR), &tcti, &tpm.event_log, timing).unwrap();
    let (one, other) = (identity(1), identity(2));
    let (nonce, others_nonce) = (Nonce([0xa1; 32]), Nonce([0xb2; 32]));
    let part = |vm: &VmIdentity, nonce| {
        host_part(vm, &host, nonce, Digest([7; 32]), || true).unwrap().unwrap()
    };
    let (mine, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| part(&other, &others_nonce));
        (part(&one, &nonce), theirs.join().unwrap())
    });
    assert_eq!(mine.inclusion.size, 2, "they share a quote");
    let bytes = cbor::encode(&mine);
    let holds = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    assert!(holds(&mine.vm_claims), "the search finds what is there");
    let leaf = binding::vm_leaf(&others_nonce, &theirs.vm_claims);
    assert_eq!(mine.inclusion.path, [leaf]);
    for secret in [
        others_nonce.as_bytes(),
        other.record.instance_id.as_bytes(),
        other.vak_name.as_bytes(),
        other.record.image_id.as_bytes(),
        Digest::of(&[&theirs.vm_claims]).as_bytes(),
        Digest::of(&[&other.record_bytes]).as_bytes(),
    ] {
        assert!(!holds(secret));
    }
    // The leaf confirms no guess at the claims without the nonce.
    assert_ne!(binding::vm_leaf(&nonce, &theirs.vm_claims), leaf);
}

fn identity(n: u8) -> VmIdentity {
    let record = LaunchRecord {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest([n; 32]),
        vcpus: 1,
        memory_mib: 256,
        disks: Vec::new(),
        nics: Vec::new(),
        instance_id: vm(n),
        incarnation: 1,
    };
    let guest = GuestId {
        version: 1,
        box_kind: record.box_kind,
        image_id: record.image_id,
        signer: None,
        svn: 1,
        launch_digest: LaunchRecord::digest(&record.encode()),
        instance_id: record.instance_id,
        incarnation: record.incarnation,
        hak_name: None,
    };
    VmIdentity {
        guest,
        record_bytes: record.encode(),
        record,
        descriptor: b"{}".to_vec(),
        vak_name: ObjectName([n; 34]),
        vek_name: ObjectName([n + 100; 34]),
    }
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
        (ak.object_name().unwrap(), 0, Digest::ZERO)
    );
}

/// Kills this process' keepers of one TPM.
fn kill_keepers(tcti: &str) {
    let me = std::process::id();
    let keepers = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.split(' ').nth(2) == Some(&me.to_string()))
                && line.contains(tcti)
        });
    for pid in keepers.collect::<Vec<_>>() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

#[test]
fn survives_the_death_of_its_keeper() {
    let tpm = TestTpm::start();
    let host =
        HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap();
    kill_keepers(&tpm.tcti);
    assert!(matches!(
        host.request(vm(0), Digest::ZERO).and_then(Waiting::finish),
        Err(HostTpmError::Keeper(_))
    ));
    assert!(host.request(vm(0), Digest::ZERO).and_then(Waiting::finish).is_ok());
}

#[test]
fn a_missing_event_log_is_named_and_never_empty() {
    let tpm = TestTpm::start();
    let start =
        |log: &Path| HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), log).unwrap();
    let absent = tpm.dir.path().join("absent");
    assert!(matches!(
        start(&absent).request(vm(0), Digest::ZERO).and_then(Waiting::finish),
        Err(HostTpmError::EventLog(..))
    ));
    let empty = tpm.dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(
        start(&empty).request(vm(0), Digest::ZERO).and_then(Waiting::finish),
        Err(HostTpmError::EventLog(..))
    ));
}
