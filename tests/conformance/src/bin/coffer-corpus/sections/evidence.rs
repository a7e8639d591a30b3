//! Two-level evidence under software keys, and what a case may change of it before it is signed.

use coffer_attestation::claims::{HostClaims, VmClaims};
use coffer_attestation::evidence::{Evidence, HostPart, PcrValue, QuotePart, VmPart};
use coffer_attestation::launch::LaunchRecord;
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::{Digest, Nonce, ObjectName, binding, cbor, merkle};
use coffer_conformance::case::{Files, Surface};
use serde_json::Value;

use crate::attest::{Attest, selection};
use crate::book::{About, Book};
use crate::keys::Key;
use crate::record::{evidence_context, text};
use crate::scene::{self, Event, NONCE};

pub const RESIGNED: &str = "evidence-resigned";
pub const RECORDED: &str = "evidence-batch-1";
pub const BATCH: &str = "evidence-batch-7";

pub fn originals(book: &mut Book) {
    let draft = Draft::good(book);
    let files = draft.files();
    book.derive(RESIGNED, RECORDED, files);
}

/// A quote before it is signed.
#[derive(Clone)]
pub struct Half {
    pub attest: Attest,
    pub pcrs: Vec<(u8, Digest)>,
    pub log: Vec<u8>,
    /// Qualifying data, if it is not to be the right one.
    pub extra: Option<Digest>,
    pub key: Key,
    /// Public area, if it is not to be the key's.
    pub public: Option<Vec<u8>>,
}

impl Half {
    fn new(part: &QuotePart, key: Key) -> Self {
        let mut attest = Attest::parse(&part.attest);
        attest.signer = key.qualified_name();
        let pcrs = part.pcrs.iter().map(|v| (v.index, v.digest)).collect();
        Self { attest, pcrs, log: part.event_log.clone(), extra: None, key, public: None }
    }

    pub fn public(&self) -> Vec<u8> {
        self.public.clone().unwrap_or_else(|| self.key.public())
    }

    pub fn name(&self) -> ObjectName {
        ObjectName::from_slice(&crate::keys::name(&self.public())).unwrap()
    }

    /// Registers and log after these events.
    pub fn measure(&mut self, events: &[Event], log: Vec<u8>) {
        for (pcr, value) in &mut self.pcrs {
            *value = scene::replay(events, *pcr);
        }
        self.log = log;
    }

    /// Quotes these registers and no others.
    pub fn select(&mut self, pcrs: &[u8]) {
        let held = std::mem::take(&mut self.pcrs);
        let value =
            |pcr: &u8| held.iter().find(|(p, _)| p == pcr).map_or(Digest::ZERO, |(_, v)| *v);
        self.pcrs = pcrs.iter().map(|pcr| (*pcr, value(pcr))).collect();
        self.attest.selection = selection(&[(0x000b, pcrs)]);
    }

    fn sign(&self, extra: Digest) -> QuotePart {
        let mut attest = self.attest.clone();
        attest.extra = self.extra.unwrap_or(extra).0.to_vec();
        let values: Vec<&[u8]> = self.pcrs.iter().map(|(_, value)| value.as_bytes()).collect();
        attest.digest = Digest::of(&values).0.to_vec();
        let attest = attest.encode();
        let signature = self.key.sign(&attest);
        let value = |(index, digest): &(u8, Digest)| PcrValue { index: *index, digest: *digest };
        let pcrs = self.pcrs.iter().map(value).collect();
        QuotePart { attest, signature, pcrs, event_log: self.log.clone() }
    }
}

/// Everything that goes into one evidence before anything is signed.
#[derive(Clone)]
pub struct Draft {
    pub runtime: RuntimeData,
    pub record: LaunchRecord,
    pub descriptor: Vec<u8>,
    pub vm_claims: VmClaims,
    pub host_claims: HostClaims,
    pub host: Half,
    pub vm: Half,
    /// Nonces that host and VM answer.
    pub host_nonce: Nonce,
    pub vm_nonce: Nonce,
    pub neighbours: Vec<Digest>,
    /// Changes the encoded VM claims before the host signs.
    pub vm_claims_bytes: Option<Vec<u8>>,
    pub context: Value,
}

impl Draft {
    pub fn good(book: &Book) -> Self {
        let recorded = book.original(RECORDED);
        let evidence = Evidence::from_cmw(&recorded["evidence.cmw"]).unwrap();
        let host = Half::new(&evidence.host.quote, Key::p256(1));
        let vm = Half::new(&evidence.vm.quote, Key::p256(2));
        let (record, runtime) = (scene::record(), scene::runtime());
        let context = evidence_context(Some(NONCE), &host.key.public(), &[scene::reference()]);
        Self {
            vm_claims: scene::vm_claims(&record, vm.name(), &cbor::encode(&runtime)),
            host_claims: scene::host_claims(host.name()),
            runtime,
            record,
            descriptor: scene::descriptor(),
            host,
            vm,
            host_nonce: NONCE,
            vm_nonce: NONCE,
            neighbours: vec![],
            vm_claims_bytes: None,
            context,
        }
    }

    /// Claims and registers follow the record: the monitor launched exactly this.
    pub fn launch(&mut self) {
        let launch = scene::launch(&self.record);
        self.vm.measure(&scene::events_of(&launch), launch.log);
        self.claim_launch();
    }

    /// The claims follow the record, the registers stay.
    pub fn claim_launch(&mut self) {
        let (nonce_data, name) = (self.vm_claims.report_data, self.vm_claims.vak_name);
        self.vm_claims = VmClaims {
            report_data: nonce_data,
            ..scene::vm_claims(&self.record, name, &cbor::encode(&self.runtime))
        };
    }

    /// The claims answer for the runtime data.
    pub fn bind_runtime(&mut self) {
        self.vm_claims.report_data = RuntimeData::report_data(&cbor::encode(&self.runtime));
    }

    /// The host booted these events.
    pub fn boot(&mut self, events: &[Event]) {
        self.host.measure(events, scene::log_of(events));
    }

    pub fn evidence(&self) -> Evidence {
        let runtime_data = cbor::encode(&self.runtime);
        let vm_claims = self.vm_claims_bytes.clone().unwrap_or_else(|| self.vm_claims.encode());
        let host_claims = self.host_claims.encode();
        let mut leaves = self.neighbours.clone();
        leaves.push(binding::vm_leaf(&self.host_nonce, &vm_claims));
        let root = merkle::root(&leaves).unwrap();
        let host_extra = binding::host_quote(leaves.len() as u64, &root, &host_claims);
        let vm_extra = binding::vm_quote(&self.vm_nonce, &RuntimeData::report_data(&runtime_data));
        Evidence {
            version: 1,
            nonce: NONCE,
            runtime_data,
            vm: VmPart { vak_public: self.vm.public(), quote: self.vm.sign(vm_extra) },
            host: HostPart {
                hak_name: self.host.name(),
                quote: self.host.sign(host_extra),
                host_claims,
                vm_claims,
                inclusion: merkle::prove(&leaves, leaves.len() - 1).unwrap(),
                launch_record: self.record.encode(),
                descriptor: self.descriptor.clone(),
            },
        }
    }

    pub fn files(&self) -> Files {
        [("evidence.cmw", self.evidence().to_cmw()), ("context.json", text(&self.context))]
            .map(|(name, file)| (name.to_owned(), file))
            .into()
    }
}

/// Changed, then signed by keys the verifier trusts.
#[track_caller]
pub fn refuse(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Draft)) {
    let mut draft = Draft::good(book);
    change(&mut draft);
    book.refuse(Surface::Evidence, RESIGNED, code, about, |files| {
        *files = with_mark(files, &draft)
    });
}

/// The same for what has to be accepted.
#[track_caller]
pub fn accept(book: &mut Book, about: &About<'_>, change: impl FnOnce(&mut Draft)) {
    let mut draft = Draft::good(book);
    change(&mut draft);
    book.accept(Surface::Evidence, RESIGNED, about, |files| *files = with_mark(files, &draft));
}

/// What the original has beside evidence and context stays.
fn with_mark(files: &Files, draft: &Draft) -> Files {
    let mut after = files.clone();
    after.extend(draft.files());
    after
}

/// What two TPMs signed, changed on the way.
#[track_caller]
pub fn refuse_altered(
    book: &mut Book,
    original: &str,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Evidence),
) {
    book.refuse(Surface::Evidence, original, code, about, |files| {
        let mut evidence = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
        change(&mut evidence);
        files.insert("evidence.cmw".into(), evidence.to_cmw());
    });
}

/// Good evidence before a verifier that knows something else.
#[track_caller]
pub fn refuse_known(
    book: &mut Book,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Value),
) {
    book.refuse(Surface::Evidence, RECORDED, code, about, |files| {
        let mut context = serde_json::from_slice(&files["context.json"]).unwrap();
        change(&mut context);
        files.insert("context.json".into(), text(&context));
    });
}

/// Where a field lies in the wrapped bytes.
pub fn position(files: &Files, field: &[u8]) -> usize {
    files["evidence.cmw"].windows(field.len()).position(|window| window == field).unwrap()
}
