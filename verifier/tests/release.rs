//! Releases over real TLS with two real TPMs, host and VM: given to the right VM, and to nobody else
//! (SPEC 2.4, 2.5, 7.3, 7.6).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod testkit;

use std::sync::Barrier;

use coffer_attestation::appraisal::{HostProfile, HostReference};
use coffer_attestation::evidence::Evidence;
use coffer_attestation::launch::BoxKind;
use coffer_attestation::protocol::Enrolled;
use coffer_attestation::tpm::attest::Attest;
use coffer_attestation::{Digest, Nonce, Reject};
use coffer_image::descriptor::Vtpm;
use coffer_verifier::{Clock as _, SystemClock, api};
use testkit::host::EkAuthority;
use testkit::vm::{Shape, Vm};
use testkit::{SECRET, SECRET_ID, Scene};

#[test]
fn a_closed_box_on_an_enrolled_host_gets_its_secret() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let secrets = scene.secrets(&mut vm);
    assert_eq!(secrets, [(SECRET_ID.to_owned(), 1, SECRET.to_vec())]);

    let row = scene.last_decision();
    assert!(row.allowed);
    assert_eq!(row.host.as_deref(), Some("rack-7"));
    let record = row.release.unwrap();
    assert_eq!(record.secrets[0].permitted_by, ["dangerous-software-tpm"]);
    assert_eq!(record.image, Some(Vm::image_id(&Shape::default())));
    assert!(record.report.vm.iter().all(|r| r.ok) && record.report.vm.len() == 9);
    let text = serde_json::to_string(&scene.decisions()).unwrap();
    assert!(!text.contains(std::str::from_utf8(SECRET).unwrap()));
}

#[test]
fn a_host_whose_tpm_firmware_was_revoked_gets_nothing_and_is_not_enrolled_again() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let nonce = Nonce([1; 32]);
    let evidence = Evidence::from_cmw(&vm.evidence(&mut scene.host, &nonce)).unwrap();
    let quote = Attest::parse(&evidence.host.quote.attest).unwrap();
    let revoke = |scene: &mut Scene, version: u64| {
        let list = format!("# made up for this test\n{version:016x} # and for no other\n");
        std::fs::write(scene.service.dir().revoked_tpm_firmware(), list).unwrap();
        scene.service.restart();
    };
    revoke(&mut scene, quote.firmware_version ^ 1);
    assert_eq!(scene.secrets(&mut vm).len(), 1, "another version is revoked");
    revoke(&mut scene, quote.firmware_version);
    scene.attest(&mut vm).1.refused(Reject::TcbRevoked);

    scene.service.delete("/v1/admin/hosts/rack-7").no_content();
    scene.enroll().refused(Reject::TcbRevoked);
    revoke(&mut scene, quote.firmware_version ^ 1);
    scene.enroll().ok::<Enrolled>();
}

#[test]
fn only_the_newest_version_is_released() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let version = scene.service.put_secret(SECRET_ID, b"second", &[vm.record.image_id]).version;
    assert_eq!(version, 2);
    assert_eq!(scene.secrets(&mut vm), [(SECRET_ID.to_owned(), 2, b"second".to_vec())]);
}

#[test]
fn evidence_is_good_once() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let (evidence, answer) = scene.attest(&mut vm);
    let id = answer.request_id.clone();
    answer.bytes();
    scene.service.release(&evidence).refused(Reject::NonceConsumed);

    // What was received is kept, so an operator can show the replay.
    let kept = scene.service.get(&format!("/v1/admin/decisions/{id}/evidence")).bytes();
    assert_eq!(kept, evidence);
    scene.service.release(&kept).refused(Reject::NonceConsumed);
    assert_eq!(scene.last_decision().code.as_deref(), Some("nonce-consumed"));
}

#[test]
fn a_refusal_spends_the_challenge_too() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let nonce = scene.challenge().nonce;
    vm.asks = vec!["site/other".into()];
    let refused = vm.evidence(&mut scene.host, &nonce);
    scene.service.release(&refused).refused(Reject::SecretNotDeclared);
    vm.asks = vec![SECRET_ID.into()];
    let good = vm.evidence(&mut scene.host, &nonce);
    scene.service.release(&good).refused(Reject::NonceConsumed);
}

#[test]
fn of_two_concurrent_submissions_exactly_one_succeeds() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    for _ in 0..5 {
        let nonce = scene.challenge().nonce;
        let evidence = vm.evidence(&mut scene.host, &nonce);
        let barrier = Barrier::new(4);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let submit = || {
                let client = scene.service.client.clone();
                barrier.wait();
                client.release(&evidence).status
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(submit)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|s| **s == 403).count(), 3, "{statuses:?}");
    }
}

#[test]
fn a_challenge_expires() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let nonce = scene.challenge().nonce;
    let evidence = vm.evidence(&mut scene.host, &nonce);
    scene.service.later(121);
    scene.service.release(&evidence).refused(Reject::NonceExpired);

    let nonce = scene.challenge().nonce;
    let evidence = vm.evidence(&mut scene.host, &nonce);
    scene.service.later(118);
    scene.service.release(&evidence).bytes();
}

#[test]
fn a_fresh_challenge_does_not_freshen_old_evidence() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let (old, answer) = scene.attest(&mut vm);
    answer.bytes();
    let mut evidence = Evidence::from_cmw(&old).unwrap();
    evidence.nonce = scene.challenge().nonce;
    // The host quote is looked at first; its tree binds the old challenge.
    scene.service.release(&evidence.to_cmw()).refused(Reject::HostBindingMismatch);
}

#[test]
fn an_old_vm_quote_under_a_fresh_host_quote_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let (old, answer) = scene.attest(&mut vm);
    answer.bytes();
    let nonce = scene.challenge().nonce;
    let fresh = vm.evidence(&mut scene.host, &nonce);
    let (old, mut mixed) = (Evidence::from_cmw(&old).unwrap(), Evidence::from_cmw(&fresh).unwrap());
    mixed.vm = old.vm;
    scene.service.release(&mixed.to_cmw()).refused(Reject::NonceMismatch);
}

#[test]
fn a_challenge_nobody_gave_out_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let evidence = vm.evidence(&mut scene.host, &Nonce([9; 32]));
    scene.service.release(&evidence).refused(Reject::NonceConsumed);
}

#[test]
fn a_host_that_never_enrolled_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let enrolled = std::mem::replace(&mut scene.host, EkAuthority::new().host());
    scene.attest(&mut vm).1.refused(Reject::NotEnrolled);
    scene.host = enrolled;
    scene.attest(&mut vm).1.bytes();
    scene.service.delete("/v1/admin/hosts/rack-7").no_content();
    scene.attest(&mut vm).1.refused(Reject::NotEnrolled);
}

#[test]
fn a_host_whose_boot_is_no_longer_accepted_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    scene.attest(&mut vm).1.bytes();
    scene.service.delete("/v1/admin/host-references/lab-1").no_content();
    scene.attest(&mut vm).1.refused(Reject::HostNotRecognised);
    let mut reference = testkit::host::reference();
    reference.initrd = Digest([0xee; 32]);
    scene.service.put("/v1/admin/host-references/lab-1", &reference).no_content();
    scene.attest(&mut vm).1.refused(Reject::HostNotRecognised);
    let row = scene.last_decision();
    assert!(row.explanation.contains("host initrd"), "{}", row.explanation);
    assert!(row.release.unwrap().report.host.iter().any(|r| !r.ok && r.what == "host initrd"));
    scene.service.put("/v1/admin/host-references/lab-1", &testkit::host::reference()).no_content();
    scene.attest(&mut vm).1.bytes();
}

#[test]
fn an_open_box_is_refused() {
    let mut scene = Scene::new();
    let open = Shape { launched_as: BoxKind::Open, ..Shape::default() };
    scene.attest(&mut Vm::launch(&open)).1.refused(Reject::PolicyDenied);
    let row = scene.last_decision();
    assert!(row.explanation.contains("vm.box is open"), "{}", row.explanation);
    let record = row.release.unwrap();
    assert_eq!(record.box_kind, Some(BoxKind::Open));
    assert_eq!(record.secrets[0].denial.as_ref().unwrap().failed[0].fact, "vm.box");
    scene.attest(&mut Vm::launch(&Shape::default())).1.bytes();
}

#[test]
fn an_image_nobody_named_is_refused() {
    let mut scene = Scene::new();
    let other = Shape { svn: 2, ..Shape::default() };
    scene.attest(&mut Vm::launch(&other)).1.refused(Reject::PolicyDenied);
    scene.service.put_secret(SECRET_ID, SECRET, &[Vm::image_id(&other)]);
    scene.attest(&mut Vm::launch(&other)).1.bytes();
    scene.attest(&mut Vm::launch(&Shape::default())).1.refused(Reject::PolicyDenied);
}

#[test]
fn a_software_tpm_is_refused_unless_the_policy_is_named() {
    let mut scene = Scene::with_policies(&["default"]);
    scene.attest(&mut Vm::launch(&Shape::default())).1.refused(Reject::PolicyDenied);
    let row = scene.last_decision();
    assert!(row.explanation.contains("host.softwareTpm is true"), "{}", row.explanation);
}

#[test]
fn a_developer_host_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let path = "/v1/admin/host-references/lab-1";
    let sealed = testkit::host::reference();
    let developer = HostReference { profile: HostProfile::Developer, ..sealed.clone() };
    scene.service.put(path, &developer).no_content();
    // It may claim what it likes: its build is known to be a developer's.
    scene.attest(&mut vm).1.refused(Reject::HostNotRecognised);
    let row = scene.last_decision();
    assert!(row.explanation.contains("host profile: found \"sealed\""), "{}", row.explanation);
    scene.host.profile = "developer";
    scene.attest(&mut vm).1.refused(Reject::PolicyDenied);
    assert_eq!(scene.last_decision().release.unwrap().secrets[0].facts.host.profile, "developer");
    scene.service.put(path, &sealed).no_content();
    scene.attest(&mut vm).1.refused(Reject::HostNotRecognised);
    scene.host.profile = "sealed";
    scene.attest(&mut vm).1.bytes();
}

#[test]
fn an_image_past_its_lifetime_is_refused() {
    let mut scene = Scene::new();
    let shape = Shape { not_after: Some(SystemClock.now() + 1000), ..Shape::default() };
    scene.service.put_secret(SECRET_ID, SECRET, &[Vm::image_id(&shape)]);
    let mut vm = Vm::launch(&shape);
    scene.attest(&mut vm).1.bytes();
    scene.service.later(1001);
    scene.attest(&mut vm).1.refused(Reject::PolicyDenied);
    assert!(scene.last_decision().explanation.contains("lifetime ended"));
}

#[test]
fn secrets_are_asked_for_as_declared_or_not_at_all() {
    let mut scene = Scene::new();
    let shape = Shape { declares: vec![SECRET_ID, "site/missing"], ..Shape::default() };
    let image = Vm::image_id(&shape);
    scene.service.put_secret(SECRET_ID, SECRET, &[image]);
    scene.service.put_secret("site/undeclared", b"x", &[image]);
    let mut vm = Vm::launch(&shape);
    let cases: [(&[&str], Reject); 6] = [
        (&["site/undeclared"], Reject::SecretNotDeclared),
        (&[SECRET_ID, "site/undeclared"], Reject::SecretNotDeclared),
        (&["site/missing"], Reject::PolicyDenied),
        (&["../tls-key"], Reject::BadResource),
        (&[SECRET_ID, SECRET_ID], Reject::BadResource),
        (&[], Reject::BadResource),
    ];
    for (asks, reject) in cases {
        vm.asks = asks.iter().map(|&id| id.to_owned()).collect();
        scene.attest(&mut vm).1.refused(reject);
    }
    vm.asks = vec![SECRET_ID.into()];
    assert_eq!(scene.secrets(&mut vm).len(), 1);
    scene.service.put_secret("site/missing", b"there now", &[image]);
    vm.asks = vec!["site/missing".into(), SECRET_ID.into()];
    let ids: Vec<_> = scene.secrets(&mut vm).into_iter().map(|(id, ..)| id).collect();
    assert_eq!(ids, ["site/missing", SECRET_ID], "in the order asked");
}

#[test]
fn one_secret_denied_denies_the_request() {
    let mut scene = Scene::new();
    let shape = Shape { declares: vec![SECRET_ID, "site/second"], ..Shape::default() };
    let image = Vm::image_id(&shape);
    scene.service.put_secret(SECRET_ID, SECRET, &[image]);
    scene.service.put_secret("site/second", b"x", &[]);
    scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::PolicyDenied);
    assert_eq!(scene.last_decision().release.unwrap().secrets.len(), 2, "both are explained");
}

#[test]
fn a_removed_secret_is_not_released_and_its_version_never_returns() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let path = format!("/v1/admin/secrets/{SECRET_ID}");
    scene.service.delete(&path).no_content();
    assert_eq!(scene.service.delete(&path).status, 404);
    scene.attest(&mut vm).1.refused(Reject::PolicyDenied);
    let row = scene.last_decision();
    assert!(row.explanation.contains("there is no secret `site/tls-key`"), "{}", row.explanation);
    assert_eq!(scene.service.put_secret(SECRET_ID, b"new", &[vm.record.image_id]).version, 2);
    assert_eq!(scene.secrets(&mut vm)[0].2, b"new");
}

#[test]
fn a_launch_outside_the_image_is_refused() {
    let mut scene = Scene::new();
    scene
        .attest(&mut Vm::launch(&Shape { vcpus: 5, ..Shape::default() }))
        .1
        .refused(Reject::ShapeNotAllowed);
    let disk = Shape { disk_root: Digest([8; 32]), ..Shape::default() };
    scene.attest(&mut Vm::launch(&disk)).1.refused(Reject::LaunchMismatch);
    scene.attest(&mut Vm::launch(&Shape { vcpus: 4, ..Shape::default() })).1.bytes();
    // Nothing of a refused launch is kept, not even the host's clock.
    scene.service.sql(&["UPDATE host_clocks SET last_seen = 1"]);
    scene.attest(&mut Vm::launch(&disk)).1.refused(Reject::LaunchMismatch);
    assert_eq!(scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts[0].last_seen, 1);
}

#[test]
fn raw_disks_are_an_open_boxs_and_no_reason_to_give_it_anything() {
    let mut scene = Scene::new();
    let open = Shape { launched_as: BoxKind::Open, ..Shape::default() };
    let raw_root = Shape {
        made_for: BoxKind::Open,
        raw_root: Some("root"),
        more: Some("raw"),
        ..open.clone()
    };
    for shape in [raw_root.clone(), Shape { more: Some("raw"), ..open.clone() }] {
        scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::PolicyDenied);
    }
    let near_misses = [
        Shape { more: Some("raw"), ..Shape::default() },
        Shape { more: Some("integrity"), ..open },
        Shape { raw_root: Some("other"), ..raw_root },
    ];
    for shape in near_misses {
        scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::LaunchMismatch);
    }
}

#[test]
fn a_volume_is_what_the_image_asked_for_and_no_other() {
    let mut scene = Scene::new();
    let volume = Shape { wants_volume: true, more: Some("encrypted"), ..Shape::default() };
    let images = [&volume, &Shape::default()].map(Vm::image_id);
    scene.service.put_secret(SECRET_ID, SECRET, &images);
    scene.attest(&mut Vm::launch(&volume)).1.bytes();
    let near_misses = [
        Shape { more: None, ..volume.clone() },
        Shape { more: Some("raw"), ..volume.clone() },
        Shape { more: Some("integrity"), ..volume.clone() },
        Shape { wants_volume: false, ..volume.clone() },
        Shape { wants_volume: false, launched_as: BoxKind::Open, ..volume },
    ];
    for shape in near_misses {
        scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::LaunchMismatch);
    }
}

#[test]
fn box_network_and_incarnation_are_the_descriptors() {
    let mut scene = Scene::new();
    let nat = Shape { nat: true, nics: 1, ..Shape::default() };
    let open_image = Shape { made_for: BoxKind::Open, ..Shape::default() };
    scene.service.put_secret(
        SECRET_ID,
        SECRET,
        &[&Shape::default(), &nat, &open_image].map(Vm::image_id),
    );
    let refused = [
        ("open boxes", open_image.clone()),
        ("interfaces: found 1, expected 0", Shape { nics: 1, ..Shape::default() }),
        ("interfaces: found 0, expected 1", Shape { nics: 0, ..nat.clone() }),
        ("interfaces: found 2, expected 1", Shape { nics: 2, ..nat.clone() }),
        ("incarnation 1 of a VM not seen", Shape { incarnation: 2, ..Shape::default() }),
    ];
    for (says, shape) in refused {
        scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::LaunchMismatch);
        let row = scene.last_decision();
        assert!(row.explanation.contains(says), "{}", row.explanation);
    }
    scene.attest(&mut Vm::launch(&nat)).1.bytes();
    scene.attest(&mut Vm::launch(&Shape::default())).1.bytes();
    // An image for open boxes in an open box is a matter of policy.
    let open = Shape { launched_as: BoxKind::Open, ..open_image };
    scene.attest(&mut Vm::launch(&open)).1.refused(Reject::PolicyDenied);
}

#[test]
fn of_two_holders_of_one_identity_the_ledger_knows_one() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    scene.attest(&mut vm).1.bytes();
    scene.attest(&mut vm).1.bytes();
    // A copy of the launch on another vTPM.
    let instance = Some(vm.record.instance_id);
    let mut copy = Vm::launch(&Shape { instance, ..Shape::default() });
    scene.attest(&mut copy).1.refused(Reject::DuplicateVmIdentity);
    assert!(scene.last_decision().explanation.contains("VM identity: found incarnation 1 of"));

    // The ledger's row is the defence: without it the copy is as good as the original.
    scene.service.sql(&["DELETE FROM vms"]);
    scene.attest(&mut copy).1.bytes();
    scene.attest(&mut vm).1.refused(Reject::DuplicateVmIdentity);

    // What a move or a restored snapshot will leave in the ledger.
    let cases = [
        ("UPDATE vms SET incarnation = 2", Reject::IncarnationRollback),
        ("UPDATE vms SET hak_name = zeroblob(34)", Reject::VmMoved),
        ("UPDATE vms SET incarnation = 1", Reject::DuplicateVmIdentity),
        ("UPDATE vms SET incarnation = 0", Reject::LaunchMismatch),
        ("UPDATE vms SET instance_id = zeroblob(16)", Reject::DuplicateVmIdentity),
    ];
    for (change, reject) in cases {
        scene.service.sql(&[change]);
        scene.attest(&mut copy).1.refused(reject);
    }
}

#[test]
fn launches_of_a_vtpm_that_lasts_follow_one_another() {
    let policy = tempfile::NamedTempFile::with_suffix(".cedar").unwrap();
    std::fs::write(policy.path(), "@id(\"all\") permit (principal, action, resource);").unwrap();
    let mut scene = Scene::with_policies(&[policy.path().to_str().unwrap()]);
    let lasting = Shape { vtpm: Vtpm::Persistent, incarnation: 3, ..Shape::default() };
    let mut vm = Vm::launch(&lasting);
    // Launched before, and this verifier was not asked.
    scene.attest(&mut vm).1.bytes();
    // The launch before was another instance; the row is this one's from then on.
    scene.service.sql(&["UPDATE vms SET instance_id = zeroblob(16), incarnation = 2"]);
    scene.attest(&mut vm).1.bytes();
    scene.service.sql(&["DELETE FROM vms WHERE instance_id = zeroblob(16)"]);
    scene.attest(&mut vm).1.bytes();
    scene.service.sql(&["UPDATE vms SET incarnation = 4"]);
    scene.attest(&mut vm).1.refused(Reject::IncarnationRollback);
    let another = "UPDATE vms SET instance_id = zeroblob(16)";
    scene.service.sql(&[another]);
    scene.attest(&mut vm).1.refused(Reject::IncarnationRollback);
    scene.service.sql(&["UPDATE vms SET incarnation = 3"]);
    scene.attest(&mut vm).1.refused(Reject::DuplicateVmIdentity);
    scene.service.sql(&["UPDATE vms SET incarnation = 2, hak_name = zeroblob(34)"]);
    scene.attest(&mut vm).1.refused(Reject::DuplicateVmIdentity);

    // One vTPM under two instance ids is a copy where it has to be fresh.
    scene.service.sql(&["DELETE FROM vms"]);
    let mut fresh = Vm::launch(&Shape::default());
    scene.attest(&mut fresh).1.bytes();
    scene.service.sql(&[another, "UPDATE vms SET incarnation = 0"]);
    scene.attest(&mut fresh).1.refused(Reject::DuplicateVmIdentity);
}

#[test]
fn only_who_may_have_any_secret_learns_that_there_is_none() {
    let policy = tempfile::NamedTempFile::with_suffix(".cedar").unwrap();
    std::fs::write(policy.path(), "@id(\"all\") permit (principal, action, resource);").unwrap();
    let mut scene = Scene::with_policies(&[policy.path().to_str().unwrap()]);
    let shape = Shape { declares: vec![SECRET_ID, "site/missing"], ..Shape::default() };
    scene.attest(&mut Vm::launch(&shape)).1.refused(Reject::SecretNotFound);
    let mut vm = Vm::launch(&shape);
    vm.asks = vec![SECRET_ID.into()];
    scene.attest(&mut vm).1.bytes();
}

#[test]
fn what_anybody_can_send_fills_no_log() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let rows = scene.decisions().len();
    let made_up = vm.evidence(&mut scene.host, &Nonce([9; 32]));
    scene.service.release(&made_up).refused(Reject::NonceConsumed);
    assert_eq!(scene.service.release(b"no evidence").error().code, "malformed");
    assert_eq!(scene.decisions().len(), rows);
    // A challenge that was given out is a row, whatever it is answered with.
    let nonce = scene.challenge().nonce;
    let evidence = vm.evidence(&mut scene.host, &nonce);
    scene.service.later(121);
    scene.service.release(&evidence).refused(Reject::NonceExpired);
    assert_eq!(scene.last_decision().code.as_deref(), Some("nonce-expired"));
    scene.service.release(&evidence).refused(Reject::NonceConsumed);
    assert_eq!(scene.decisions().len(), rows + 1);
}

#[test]
fn evidence_for_another_verifier_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    vm.audience = "https://elsewhere.test:8443".into();
    scene.attest(&mut vm).1.refused(Reject::AudienceMismatch);
}

#[test]
fn a_host_tpm_that_was_set_back_is_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    scene.attest(&mut vm).1.bytes();
    scene.service.sql(&["UPDATE host_clocks SET reset_count = reset_count + 1"]);
    scene.attest(&mut vm).1.refused(Reject::ClockRegress);
    scene.service.sql(&["UPDATE host_clocks SET reset_count = reset_count - 1"]);
    scene.attest(&mut vm).1.bytes();
}

#[test]
fn bytes_that_are_no_evidence_are_refused() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let nonce = scene.challenge().nonce;
    let good = vm.evidence(&mut scene.host, &nonce);
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        let code = scene.service.release(&good[..cut]).error().code;
        assert!(["malformed", "not-canonical"].contains(&code.as_str()), "{cut}: {code}");
    }
    let more = [good.as_slice(), &[0]].concat();
    assert_eq!(scene.service.release(&more).error().code, "not-canonical");
    let big = vec![0; (1 << 20) + 1];
    assert_eq!(scene.service.release(&big).error().code, "limit-exceeded");
    // None of them touched the challenge.
    scene.service.release(&good).bytes();
}

#[test]
fn nothing_is_released_that_cannot_be_logged() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    scene.service.sql(&[
        "CREATE TRIGGER full_disk BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ]);
    let (_, answer) = scene.attest(&mut vm);
    assert_eq!(answer.status, 503);
    answer.refused(Reject::LogUnavailable);
    scene.service.sql(&["DROP TRIGGER full_disk"]);
    scene.attest(&mut vm).1.bytes();
}

#[test]
fn a_peer_is_told_little_and_the_log_all() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape { svn: 9, ..Shape::default() });
    let error = scene.attest(&mut vm).1.error();
    assert_eq!(error.message, Reject::PolicyDenied.message());
    let row: api::Decision =
        scene.service.get(&format!("/v1/admin/decisions/{}", error.request_id)).ok();
    assert!(row.explanation.contains(&vm.record.image_id.to_hex()), "{}", row.explanation);
}
