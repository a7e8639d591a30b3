//! A conversation with the real verifier service, over TLS on loopback: nonces, sessions, tokens, identities
//! (SPEC 7). The case is a script; its last step is the one judged, every other has to end as it says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coffer_attestation::evidence::{CMW_MEDIA_TYPE, Evidence};
use coffer_attestation::protocol::{Challenge, EnrollChallenge, EnrollStart, ErrorBody};
use coffer_attestation::{Digest, Nonce, Reject};
use coffer_verifier::{
    Clock, DataDir, Handle, InitConfig, ServeConfig, SystemClock, api, init, policy_source, serve,
};
use p256::elliptic_curve::PrimeField as _;
use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Judged, Refused, file};
use crate::attester::host::Host;
use crate::attester::keys::Key;
use crate::attester::scene;
use crate::case::Files;

/// `script.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(flatten)]
    action: Action,
    /// The code a step before the last has to be refused with; it has to succeed if absent.
    #[serde(default)]
    refused: Option<String>,
}

/// Names in `as` are given to what comes back.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Action {
    /// The operator makes a one-time token for a host name.
    Token { host: String, r#as: String },
    /// A host asks to be enrolled; `tpm` is `a` or `b`.
    EnrollStart { token: String, host: String, tpm: String, r#as: String },
    /// It answers the challenge of `session`, with a proof for that session, or with the secret of another.
    EnrollComplete {
        session: String,
        tpm: String,
        #[serde(default)]
        secret_of: Option<String>,
    },
    /// The operator removes a host.
    RemoveHost { host: String },
    /// A guest asks for a challenge.
    Challenge { r#as: String },
    /// Many challenges, all different.
    Challenges { count: usize },
    /// Host and guest make evidence; nothing is sent.
    Evidence {
        challenge: String,
        tpm: String,
        r#as: String,
        #[serde(default = "declared")]
        asks: Vec<String>,
    },
    /// Somebody gives the signature of the VM's quote its other form, n - s for s, which verifies as well.
    Mirror { evidence: String, r#as: String },
    /// A guest sends it, `times` at once; of several exactly one may succeed.
    Release {
        evidence: String,
        #[serde(default = "once")]
        times: usize,
    },
    /// Time passes.
    Wait { seconds: u64 },
    /// The verifier's wall clock is set back.
    SetBack { seconds: u64 },
}

/// Longer than the verifier remembers a challenge.
const CHALLENGE_MEMORY_S: u64 = 3600;

fn declared() -> Vec<String> {
    vec![scene::SECRET_ID.into()]
}

fn once() -> usize {
    1
}

pub(super) fn judge(files: &Files) -> Judged {
    let script: Script = serde_json::from_slice(file(files, "script.json"))
        .map_err(|error| Refused::BadCase(format!("`script.json`: {error}")))?;
    let mut scene = Scene::start(files).map_err(Refused::BadCase)?;
    let last = script.steps.len().saturating_sub(1);
    let mut verdict = Ok(());
    for (n, step) in script.steps.iter().enumerate() {
        let outcome = scene.perform(&step.action).map_err(Refused::BadCase)?;
        if n == last {
            verdict = outcome;
        } else if outcome.as_ref().err() != step.refused.as_ref() {
            return Err(Refused::BadCase(format!("step {}: {outcome:?}", n + 1)));
        }
    }
    verdict.map_err(|code| match Reject::from_code(&code) {
        Some(reject) => reject.into(),
        None => Refused::BadCase(format!("code `{code}` is none of the specification's")),
    })
}

/// A step succeeded, or was refused with this code.
type Outcome = Result<(), String>;
/// The case or this machine is at fault.
type Trouble = String;

struct Scene {
    service: Service,
    hosts: BTreeMap<String, Host>,
    tokens: BTreeMap<String, String>,
    sessions: BTreeMap<String, EnrollChallenge>,
    challenges: BTreeMap<String, Nonce>,
    evidence: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    fn start(files: &Files) -> Result<Self, Trouble> {
        let service = Service::start(file(files, "root.pem"))?;
        let host = |seed, name: &str| Host {
            ek: Key::p256(seed),
            ak: Key::p256(seed + 20),
            vak: Key::p256(seed + 40),
            certificate: file(files, name).to_vec(),
            chain: vec![file(files, "issuer.der").to_vec()],
        };
        let hosts = [("a".into(), host(13, "ek-a.der")), ("b".into(), host(14, "ek-b.der"))].into();
        let reference = scene::reference();
        service.admin(
            "PUT",
            &format!("/v1/admin/host-references/{}", reference.name),
            &reference,
        )?;
        let image = Digest::of(&[&scene::descriptor()]);
        let secret =
            api::PutSecret { value: api::Base64Value::new(b"secret"), images: vec![image] };
        service.admin("PUT", &format!("/v1/admin/secrets/{}", scene::SECRET_ID), &secret)?;
        Ok(Self {
            service,
            hosts,
            tokens: BTreeMap::new(),
            sessions: BTreeMap::new(),
            challenges: BTreeMap::new(),
            evidence: BTreeMap::new(),
        })
    }

    fn perform(&mut self, action: &Action) -> Result<Outcome, Trouble> {
        let service = &self.service;
        match action {
            Action::Token { host, r#as } => {
                let request = api::NewToken { host: host.clone(), ttl_s: None };
                let token = service.admin("POST", "/v1/admin/tokens", &request)?;
                let token: api::Token = serde_json::from_slice(&token).map_err(text)?;
                self.tokens.insert(r#as.clone(), token.token);
            }
            Action::EnrollStart { token, host, tpm, r#as } => {
                let request = EnrollStart {
                    token: named(&self.tokens, token)?.clone(),
                    host: host.clone(),
                    identity: named(&self.hosts, tpm)?.identity(),
                };
                match service.post("/v1/enroll/start", &request)? {
                    Err(code) => return Ok(Err(code)),
                    Ok(body) => {
                        let session = serde_json::from_slice(&body).map_err(text)?;
                        self.sessions.insert(r#as.clone(), session);
                    }
                }
            }
            Action::EnrollComplete { session, tpm, secret_of } => {
                let host = named(&self.hosts, tpm)?;
                let challenge = named(&self.sessions, session)?;
                let secret_of = named(&self.sessions, secret_of.as_ref().unwrap_or(session))?;
                // A TPM that cannot activate it has nothing but a guess.
                let secret = host.activate(secret_of).unwrap_or([0; 32]);
                let answer = host.complete(challenge, &secret);
                return Ok(service.post("/v1/enroll/complete", &answer)?.map(drop));
            }
            Action::RemoveHost { host } => {
                service.admin("DELETE", &format!("/v1/admin/hosts/{host}"), &())?;
            }
            Action::Challenge { r#as } => {
                let nonce = service.challenge()?;
                self.challenges.insert(r#as.clone(), nonce);
            }
            Action::Challenges { count } => {
                let mut seen = std::collections::BTreeSet::new();
                for n in 0..*count {
                    // Only so many may be outstanding.
                    if n % 1000 == 999 {
                        service.later(CHALLENGE_MEMORY_S);
                    }
                    if !seen.insert(service.challenge()?) {
                        return Ok(Err(Reject::NonceConsumed.code().into()));
                    }
                }
            }
            Action::Evidence { challenge, tpm, r#as, asks } => {
                let nonce = named(&self.challenges, challenge)?;
                let evidence = named(&self.hosts, tpm)?.evidence(nonce, asks);
                self.evidence.insert(r#as.clone(), evidence);
            }
            Action::Mirror { evidence, r#as } => {
                let mirrored = mirror(named(&self.evidence, evidence)?)?;
                self.evidence.insert(r#as.clone(), mirrored);
            }
            Action::Release { evidence, times } => {
                let evidence = named(&self.evidence, evidence)?;
                let outcomes = std::thread::scope(|scope| {
                    let send = || service.release(evidence);
                    let threads: Vec<_> = (0..*times).map(|_| scope.spawn(send)).collect();
                    let joined = threads.into_iter().map(|thread| thread.join());
                    joined
                        .map(|done| done.unwrap_or_else(|_| Err("a sender panicked".into())))
                        .collect()
                });
                let outcomes: Result<Vec<Outcome>, Trouble> = outcomes;
                let mut outcomes = outcomes?;
                if *times == 1 {
                    return outcomes.pop().ok_or_else(|| "nothing was sent".into());
                }
                let sent = outcomes.len();
                outcomes.retain(Result::is_err);
                return match (sent - outcomes.len(), outcomes.pop()) {
                    (0, _) => Err("none of several succeeded".into()),
                    // What the others were told, each of them.
                    (1, Some(told)) if outcomes.iter().all(|other| *other == told) => Ok(told),
                    (1, _) => Err("several that failed were told different things".into()),
                    // More than one success is one too many: the case has to refuse.
                    _ => Ok(Ok(())),
                };
            }
            Action::Wait { seconds } => service.later(*seconds),
            Action::SetBack { seconds } => {
                service.clock.set_back.fetch_add(*seconds, Ordering::SeqCst);
            }
        }
        Ok(Ok(()))
    }
}

/// The same evidence but for the bytes of one signature: TPMT_SIGNATURE of ECDSA P-256, whose s is the last.
fn mirror(evidence: &[u8]) -> Result<Vec<u8>, Trouble> {
    let mut evidence = Evidence::from_cmw(evidence).map_err(text)?;
    let s = evidence.vm.quote.signature.last_chunk_mut::<32>().ok_or("no signature")?;
    let scalar: Option<p256::Scalar> = p256::Scalar::from_repr((*s).into()).into();
    *s = (-scalar.ok_or("no s")?).to_repr().into();
    Ok(evidence.to_cmw())
}

fn named<'a, T>(map: &'a BTreeMap<String, T>, name: &str) -> Result<&'a T, Trouble> {
    map.get(name).ok_or_else(|| format!("nothing is called `{name}`"))
}

fn text(error: impl std::fmt::Display) -> Trouble {
    error.to_string()
}

/// The audience; the certificate also carries the loopback address that is connected to.
const URL: &str = scene::AUDIENCE;

/// The system's clocks: time passes by hand, and the wall clock is set back by hand.
#[derive(Default)]
struct ByHand {
    passed: AtomicU64,
    set_back: AtomicU64,
}

impl Clock for ByHand {
    fn now(&self) -> u64 {
        let passed = SystemClock.now() + self.passed.load(Ordering::SeqCst);
        passed.saturating_sub(self.set_back.load(Ordering::SeqCst))
    }

    fn steady(&self) -> u64 {
        SystemClock.steady() + self.passed.load(Ordering::SeqCst)
    }
}

/// The service and a client that trusts its CA alone. Ends with this value, its folder with it.
struct Service {
    agent: Agent,
    base: String,
    token: String,
    clock: Arc<ByHand>,
    _handle: Handle,
    runtime: Option<tokio::runtime::Runtime>,
    _folder: tempfile::TempDir,
}

impl Service {
    fn start(software_root: &[u8]) -> Result<Self, Trouble> {
        let folder = tempfile::tempdir().map_err(text)?;
        let dir = folder.path().join("data");
        let config =
            InitConfig { dir: dir.clone(), url: URL.into(), names: vec!["127.0.0.1".into()] };
        init(&config).map_err(text)?;
        let data = DataDir::new(&dir);
        let root = data.dangerous_software_ek_roots().join("root.pem");
        std::fs::write(root, software_root).map_err(text)?;
        let clock = Arc::new(ByHand::default());
        let mut config = ServeConfig::new(&dir, ([127, 0, 0, 1], 0).into());
        config.policies = ["default", "dangerous-software-tpm"]
            .iter()
            .map(|name| policy_source(name))
            .collect::<Result<_, _>>()
            .map_err(text)?;
        config.clock = clock.clone();
        let runtime = tokio::runtime::Runtime::new().map_err(text)?;
        let handle = runtime.block_on(serve(config)).map_err(text)?;
        Ok(Self {
            agent: agent(&data.ca_certificate())?,
            base: format!("https://127.0.0.1:{}", handle.local_addr().port()),
            token: std::fs::read_to_string(data.admin_token()).map_err(text)?,
            clock,
            _handle: handle,
            runtime: Some(runtime),
            _folder: folder,
        })
    }

    fn later(&self, seconds: u64) {
        self.clock.passed.fetch_add(seconds, Ordering::SeqCst);
    }

    fn challenge(&self) -> Result<Nonce, Trouble> {
        let body = self.post("/v1/challenge", &())?.map_err(|code| format!("challenge: {code}"))?;
        let challenge: Challenge = serde_json::from_slice(&body).map_err(text)?;
        Ok(challenge.nonce)
    }

    fn release(&self, evidence: &[u8]) -> Result<Outcome, Trouble> {
        let request = self.agent.post(format!("{}/v1/release", self.base));
        Ok(answer(request.content_type(CMW_MEDIA_TYPE).send(evidence))?.map(drop))
    }

    /// Without a token, as guests and hosts ask.
    fn post(&self, path: &str, body: &impl Serialize) -> Result<Result<Vec<u8>, String>, Trouble> {
        answer(self.agent.post(format!("{}{path}", self.base)).send_json(body))
    }

    /// As the operator, who is not refused in any case.
    fn admin(&self, method: &str, path: &str, body: &impl Serialize) -> Result<Vec<u8>, Trouble> {
        let url = format!("{}{path}", self.base);
        let bearer = format!("Bearer {}", self.token.trim());
        let response = match method {
            "DELETE" => self.agent.delete(url).header("authorization", bearer).call(),
            "PUT" => self.agent.put(url).header("authorization", bearer).send_json(body),
            _ => self.agent.post(url).header("authorization", bearer).send_json(body),
        };
        answer(response)?.map_err(|code| format!("{method} {path}: {code}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Connections that are open must not keep the caller.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn agent(ca: &Path) -> Result<Agent, Trouble> {
    let pem = std::fs::read(ca).map_err(text)?;
    let certificate = Certificate::from_pem(&pem).map_err(text)?.to_owned();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[certificate]))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into())
}

/// The body, or the code of a refusal.
fn answer(
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Result<Vec<u8>, String>, Trouble> {
    let mut response = response.map_err(text)?;
    let body = response.body_mut().with_config().limit(4 << 20).read_to_vec().map_err(text)?;
    if response.status().is_success() {
        return Ok(Ok(body));
    }
    let error: ErrorBody = serde_json::from_slice(&body).map_err(text)?;
    Ok(Err(error.code))
}
