//! Enrolment over real TLS with a real TPM: accepted once, and every shortcut refused with its code
//! (SPEC 7.2, 7.6).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod testkit;

use coffer_attestation::Reject;
use coffer_attestation::protocol::{EnrollChallenge, Enrolled};
use coffer_verifier::api;
use testkit::Scene;
use testkit::host::EkAuthority;

const POLICIES: &[&str] = &["default"];

#[test]
fn a_host_enrols_and_is_listed() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let enrolled: Enrolled = scene.enroll().ok();
    assert_eq!(enrolled.host, "rack-7");
    assert_eq!(enrolled.ak_name, scene.host.ak.object_name().unwrap());
    assert!(enrolled.software_tpm, "its root lies among the dangerous ones");
    let hosts = scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts;
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].ak_name, scene.host.ak.object_name().unwrap());
    let row = scene.last_decision();
    assert_eq!((row.kind, row.allowed), (api::DecisionKind::Enroll, true));
}

#[test]
fn a_token_enrols_once() {
    let scene = Scene::not_enrolled(POLICIES);
    let start = scene.enroll_start();
    scene.service.post("/v1/enroll/start", &start).ok::<EnrollChallenge>();
    scene.service.post("/v1/enroll/start", &start).refused(Reject::TokenInvalid);
}

#[test]
fn a_token_enrols_its_own_host_until_it_expires() {
    let scene = Scene::not_enrolled(POLICIES);
    let mut start = scene.enroll_start();
    start.host = "rack-8".into();
    scene.service.post("/v1/enroll/start", &start).refused(Reject::TokenInvalid);
    let start = scene.enroll_start();
    scene.service.later(3601);
    scene.service.post("/v1/enroll/start", &start).refused(Reject::TokenInvalid);
    let mut start = scene.enroll_start();
    start.token = "0".repeat(64);
    scene.service.post("/v1/enroll/start", &start).refused(Reject::TokenInvalid);
    scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok::<EnrollChallenge>();
}

#[test]
fn a_host_is_not_enrolled_without_its_row_in_the_log() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let challenge: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let answer = scene.host.activate(&challenge);
    scene.service.sql(&[
        "CREATE TRIGGER full_disk BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ]);
    scene.service.post("/v1/enroll/complete", &answer).refused(Reject::LogUnavailable);
    scene.service.sql(&["DROP TRIGGER full_disk"]);
    assert!(scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts.is_empty());
    scene.enroll().ok::<Enrolled>();
    assert_eq!(scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts.len(), 1);
}

#[test]
fn a_made_up_token_or_session_fills_no_log() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let mut start = scene.enroll_start();
    let rows = scene.decisions().len();
    let token = std::mem::replace(&mut start.token, "0".repeat(64));
    scene.service.post("/v1/enroll/start", &start).refused(Reject::TokenInvalid);
    start.token = token;
    let mut challenge: EnrollChallenge = scene.service.post("/v1/enroll/start", &start).ok();
    let answer = scene.host.activate(&challenge);
    challenge.session = "0".repeat(32);
    let made_up = scene.host.activate(&challenge);
    scene.service.post("/v1/enroll/complete", &made_up).refused(Reject::SessionGone);
    assert_eq!(scene.decisions().len(), rows);
    scene.service.post("/v1/enroll/complete", &answer).ok::<Enrolled>();
    assert_eq!(scene.decisions().len(), rows + 1);
}

#[test]
fn a_wrong_proof_spends_the_session() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let challenge: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let secret = scene.host.activate_credential(&challenge).unwrap();
    let wrong = scene.host.complete(&challenge, &[0; 32]);
    scene.service.post("/v1/enroll/complete", &wrong).refused(Reject::ActivationFailed);
    let right = scene.host.complete(&challenge, &secret);
    scene.service.post("/v1/enroll/complete", &right).refused(Reject::SessionGone);
    scene.enroll().ok::<Enrolled>();
}

#[test]
fn a_session_completes_once_and_in_time() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let challenge: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let answer = scene.host.activate(&challenge);
    scene.service.later(301);
    scene.service.post("/v1/enroll/complete", &answer).refused(Reject::SessionGone);

    let challenge: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let answer = scene.host.activate(&challenge);
    scene.service.post("/v1/enroll/complete", &answer).ok::<Enrolled>();
    scene.service.post("/v1/enroll/complete", &answer).refused(Reject::SessionGone);
}

#[test]
fn another_tpm_cannot_activate_the_credential() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let challenge: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let mut other = EkAuthority::new().host();
    assert_eq!(other.activate_credential(&challenge), None);
    assert!(scene.host.activate_credential(&challenge).is_some());
}

#[test]
fn a_first_quote_that_answers_another_session_is_refused() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let first: EnrollChallenge = scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let mut mixed = scene.host.activate(&first);
    let second: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let right = scene.host.activate(&second);
    (mixed.session, mixed.proof) = (right.session, right.proof);
    scene.service.post("/v1/enroll/complete", &mixed).refused(Reject::NonceMismatch);
    assert!(scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts.is_empty());
}

#[test]
fn a_tpm_of_an_unknown_maker_is_refused() {
    let scene = Scene::not_enrolled(POLICIES);
    let mut start = scene.enroll_start();
    start.identity = EkAuthority::new().host().identity();
    scene.service.post("/v1/enroll/start", &start).refused(Reject::UntrustedRoot);
}

#[test]
fn a_certificate_for_another_ek_is_refused() {
    let scene = Scene::not_enrolled(POLICIES);
    let mut start = scene.enroll_start();
    let certificate = start.identity.ek_certificate.clone();
    start.identity = EkAuthority::new().host().identity();
    start.identity.ek_certificate = certificate;
    scene.service.post("/v1/enroll/start", &start).refused(Reject::EkMismatch);
}

#[test]
fn identities_do_not_change_hands() {
    let mut scene = Scene::not_enrolled(POLICIES);
    scene.enroll().ok::<Enrolled>();
    // The same TPM again, under its name and under another.
    scene.service.post("/v1/enroll/start", &scene.enroll_start()).refused(Reject::EkInUse);
    let mut start = scene.enroll_start();
    (start.host, start.token) = ("rack-8".into(), scene.token("rack-8"));
    scene.service.post("/v1/enroll/start", &start).refused(Reject::EkInUse);
    // Once the operator removed it, it may come back.
    scene.service.delete("/v1/admin/hosts/rack-7").no_content();
    scene.enroll().ok::<Enrolled>();
}

#[test]
fn a_name_does_not_pass_to_another_tpm() {
    let authority = EkAuthority::new();
    let mut scene = Scene::not_enrolled(POLICIES);
    scene.enroll().ok::<Enrolled>();
    // A second maker is trusted from now on.
    let other = authority.host();
    let roots = scene.service.dir().dangerous_software_ek_roots();
    std::fs::copy(authority.root(), roots.join("second.pem")).unwrap();
    scene.service.restart();
    let mut start = scene.enroll_start();
    start.identity = other.identity();
    scene.service.post("/v1/enroll/start", &start).refused(Reject::IdentityImmutable);
    let mut start = scene.enroll_start();
    (start.host, start.token) = ("rack-8".into(), scene.token("rack-8"));
    start.identity = other.identity();
    scene.service.post("/v1/enroll/start", &start).ok::<EnrollChallenge>();
}

#[test]
fn where_crls_are_required_a_host_without_them_is_refused() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let settings = scene.service.dir().settings();
    let text = std::fs::read_to_string(&settings).unwrap();
    let required = text.replace("\"require_crls\": false", "\"require_crls\": true");
    assert_ne!(text, required);
    std::fs::write(&settings, required).unwrap();
    scene.service.restart();
    let start = scene.enroll_start();
    scene.service.post("/v1/enroll/start", &start).refused(Reject::CrlUnusable);
    std::fs::write(&settings, text).unwrap();
    scene.service.restart();
    scene.enroll().ok::<Enrolled>();
}

#[test]
fn two_sessions_for_one_tpm_make_one_host() {
    let mut scene = Scene::not_enrolled(POLICIES);
    let first: EnrollChallenge = scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let second: EnrollChallenge =
        scene.service.post("/v1/enroll/start", &scene.enroll_start()).ok();
    let (first, second) = (scene.host.activate(&first), scene.host.activate(&second));
    scene.service.post("/v1/enroll/complete", &first).ok::<Enrolled>();
    let code = scene.service.post("/v1/enroll/complete", &second).error().code;
    assert!(
        [Reject::EkInUse.code(), Reject::IdentityImmutable.code()].contains(&code.as_str()),
        "{code}"
    );
}
