//! A whole scene for tests: the real service on a real TLS port with a real database, a host whose TPM is
//! an swtpm with a certified EK, and VMs whose vTPMs are swtpms measured into as the monitor does.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod host;
pub mod service;
// The TPM process that the attestation tests use, so that there is one way to drive it.
#[path = "../../../attestation/verification/tests/swtpm/mod.rs"]
pub mod swtpm;
pub mod vm;

use coffer_attestation::Digest;
use coffer_attestation::protocol::{Challenge, EnrollStart, Enrolled};
use coffer_attestation::release::{Release, SignedRelease};
use coffer_verifier::api;

use host::{EkAuthority, Host};
use service::{Answer, Service};
use vm::{Shape, Vm};

pub const SECRET_ID: &str = "site/tls-key";
pub const SECRET: &[u8] = b"-----BEGIN PRIVATE KEY----- as it were";

/// A service that knows one enrolled host, one image and one secret.
pub struct Scene {
    pub service: Service,
    pub host: Host,
    authority: EkAuthority,
}

impl Scene {
    /// Software TPMs are what tests have, so the policy that names them is loaded.
    pub fn new() -> Self {
        Self::with_policies(&["default", "dangerous-software-tpm"])
    }

    pub fn with_policies(policies: &[&str]) -> Self {
        let scene = Self::not_enrolled(policies);
        let mut scene = scene;
        scene.enroll().ok::<Enrolled>();
        scene
    }

    pub fn not_enrolled(policies: &[&str]) -> Self {
        let authority = EkAuthority::new();
        let host = authority.host();
        let service = Service::start(policies, |dir| {
            std::fs::copy(authority.root(), dir.dangerous_software_ek_roots().join("local.pem"))
                .unwrap();
        });
        let reference = host::reference();
        service
            .put(&format!("/v1/admin/host-references/{}", reference.name), &reference)
            .no_content();
        let image = Vm::image_id(&Shape::default());
        service.put_secret(SECRET_ID, SECRET, &[image]);
        Self { service, host, authority }
    }

    pub fn token(&self, host: &str) -> String {
        let request = api::NewToken { host: host.into(), ttl_s: None };
        self.service.admin_post("/v1/admin/tokens", &request).ok::<api::Token>().token
    }

    /// Runs the enrolment as `coffer host enroll` does.
    pub fn enroll(&mut self) -> Answer {
        let start = self.enroll_start();
        let challenge = self.service.post("/v1/enroll/start", &start).ok();
        self.service.post("/v1/enroll/complete", &self.host.activate(&challenge))
    }

    pub fn enroll_start(&self) -> EnrollStart {
        self.enroll_start_as("rack-7")
    }

    fn enroll_start_as(&self, name: &str) -> EnrollStart {
        EnrollStart { token: self.token(name), host: name.into(), identity: self.host.identity() }
    }

    /// One more, enrolled under this name.
    pub fn another_host(&mut self, name: &str) -> Host {
        let host = self.authority.host();
        let ours = std::mem::replace(&mut self.host, host);
        let challenge = self.service.post("/v1/enroll/start", &self.enroll_start_as(name)).ok();
        let complete = self.host.activate(&challenge);
        self.service.post("/v1/enroll/complete", &complete).ok::<Enrolled>();
        std::mem::replace(&mut self.host, ours)
    }

    pub fn challenge(&self) -> Challenge {
        self.service.post("/v1/challenge", &()).ok()
    }

    /// Challenge, evidence, answer.
    pub fn attest(&mut self, vm: &mut Vm) -> (Vec<u8>, Answer) {
        let nonce = self.challenge().nonce;
        let evidence = vm.evidence(&mut self.host, &nonce);
        let answer = self.service.release(&evidence);
        (evidence, answer)
    }

    /// Attests, checks the signed release as a guest does and opens its secrets.
    pub fn secrets(&mut self, vm: &mut Vm) -> Vec<(String, u64, Vec<u8>)> {
        let nonce = self.challenge().nonce;
        let evidence = vm.evidence(&mut self.host, &nonce);
        let bytes = self.service.release(&evidence).bytes();
        let digest = Digest::of(&[&evidence]);
        let release: Release =
            SignedRelease::open(&bytes, &self.service.release_key(), &nonce, &digest).unwrap();
        assert_eq!(release.instance_id, vm.record.instance_id);
        release
            .secrets
            .iter()
            .map(|s| (s.id.clone(), s.version, vm.open(s, &digest, &nonce)))
            .collect()
    }

    pub fn decisions(&self) -> Vec<api::DecisionSummary> {
        self.service.get("/v1/admin/decisions?limit=1000").ok::<api::Decisions>().decisions
    }

    /// The newest row, in full.
    pub fn last_decision(&self) -> api::Decision {
        let id = self.decisions().first().unwrap().id.clone();
        self.service.get(&format!("/v1/admin/decisions/{id}")).ok()
    }
}
