//! Appraisal: from received evidence to a verdict, in one fixed order (SPEC 7.3, 7.4).
//!
//! The order is the argument: nothing is interpreted before the check that makes it worth interpreting.
//! Host key from the enrolment row, never from the message; host quote, then what it covers (claims, batch,
//! vTPM key); then the VM's quote under that key; then images, logs and reference values. An [`Appraisal`]
//! can only be made here, takes a [`ConsumedNonce`], and is what releasing a secret asks for.

use std::borrow::Cow;

use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::claims::{HostClaims, VmClaims};
use crate::event_log::{self, EventLog, vm_launch_log};
use crate::evidence::Evidence;
pub use crate::host_reference::{HostProfile, HostReference};
use crate::host_reference::{Unrecognised, recognise};
use crate::launch::{BoxKind, LaunchRecord};
use crate::quote::{QuoteKey, QuotedPcrs, ReceivedQuote};
use crate::report::word;
pub use crate::report::{Report, Row};
use crate::runtime::RuntimeData;
use crate::tpm::attest::ClockInfo;
use crate::tpm::pcr::{HOST_SELECTION, VM_SELECTION};
use crate::tpm::public::Public;
use crate::{
    Digest, InstanceId, Nonce, ObjectName, Reject, Statement as _, binding, clock, enroll, merkle,
};

/// Evidence that passed size limits and strict decoding; nothing in it is believed.
#[derive(Debug)]
pub struct ReceivedEvidence {
    evidence: Evidence,
    digest: Digest,
}

impl ReceivedEvidence {
    /// Takes the bytes of a request.
    pub fn receive(bytes: &[u8]) -> Result<Self, Reject> {
        Ok(Self { evidence: Evidence::from_cmw(bytes)?, digest: Evidence::digest(bytes) })
    }

    /// The challenge it claims to answer: consume this one.
    pub fn nonce(&self) -> &Nonce {
        &self.evidence.nonce
    }

    /// The host key it claims to be signed by: look this one up.
    pub fn hak_name(&self) -> &ObjectName {
        &self.evidence.host.hak_name
    }

    /// SHA-256 of the bytes as received.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A nonce that the verifier gave out and has just made unusable for anybody else.
pub struct ConsumedNonce(Nonce);

impl ConsumedNonce {
    /// States that `nonce` was given out by this verifier, has not expired, and was removed from the store
    /// in one atomic step before this call, whatever the outcome will be. Only a nonce store may say so.
    pub fn assert_consumed(nonce: Nonce) -> Self {
        Self(nonce)
    }
}

/// What the verifier knows of a host since its enrolment.
#[derive(Debug, Clone)]
pub struct EnrolledHost {
    /// Name it was enrolled under.
    pub name: String,
    /// The attestation key that activated the credential.
    pub ak_public: Public,
    /// True if its EK chain ends in a root that was loaded as a dangerous software root.
    pub software_tpm: bool,
    /// resetCount of the last accepted quote.
    pub last_reset_count: u32,
    /// restartCount of the last accepted quote.
    pub last_restart_count: u32,
    /// Clock of the last accepted quote.
    pub last_clock: u64,
    /// TPM firmware versions that nobody's host may have any more.
    pub revoked_firmware: Vec<u64>,
}

/// What a descriptor says that evidence is judged by: the blobs it names, and its vTPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// SHA-256 of the kernel.
    pub kernel: Digest,
    /// SHA-256 of the initrd.
    pub initrd: Digest,
    /// SHA-256 of the command line.
    pub cmdline: Digest,
    /// Whether a closed box of it has a vTPM that outlasts a launch (SPEC 3.7.1).
    pub vtpm_lasts: bool,
}

/// Reads a descriptor. The format belongs to the image crate; this crate only asks for what it judges by, and
/// only after the bytes were found to be the ones the host vouches for.
pub trait DescriptorReader {
    /// What it says, or why the descriptor is not acceptable ([`Reject::BadDescriptor`]).
    fn read(&self, descriptor: &[u8]) -> Result<ImageFacts, Reject>;
}

impl<F: Fn(&[u8]) -> Result<ImageFacts, Reject>> DescriptorReader for F {
    fn read(&self, descriptor: &[u8]) -> Result<ImageFacts, Reject> {
        self(descriptor)
    }
}

/// Why evidence was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reject}: {explanation}")]
pub struct Refusal {
    /// The code.
    pub reject: Reject,
    /// One line for the operator, with what was found and expected where that can be said.
    pub explanation: String,
    /// Rows judged before the refusal, the refusing one among them if a row refused.
    pub report: Report,
}

/// What an accepted evidence establishes. Read only through [`Appraisal::facts`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Facts {
    /// The challenge answered.
    pub nonce: Nonce,
    /// SHA-256 of the evidence as received.
    pub evidence: Digest,
    /// Name of the host, from enrolment.
    pub host_name: String,
    /// From enrolment: the host's TPM is software.
    pub software_tpm: bool,
    /// Name of the reference value the host's boot matches.
    pub reference_name: String,
    /// Security version of that reference value.
    pub reference_svn: u32,
    /// What that reference value states the host build to be; the host claims the same.
    pub profile: HostProfile,
    /// Security version of the monitor in that reference value; the host claims the same.
    pub monitor_svn: u32,
    /// Claims of the recognised monitor about its host.
    pub host_claims: HostClaims,
    /// Claims of the recognised monitor about the VM.
    pub vm_claims: VmClaims,
    /// The launch, as measured into PCR 12 and 17.
    pub launch_record: LaunchRecord,
    /// Whether later launches of this VM may have the same vTPM (SPEC 3.7.1).
    pub vtpm_may_last: bool,
    /// The descriptor, whose SHA-256 is the image ID.
    pub descriptor: Vec<u8>,
    /// Claimed by the guest, bound by both quotes.
    pub runtime: RuntimeData,
}

impl Facts {
    /// Open or closed.
    pub fn box_kind(&self) -> BoxKind {
        self.vm_claims.box_kind
    }

    /// SHA-256 of the descriptor.
    pub fn image_id(&self) -> &Digest {
        &self.vm_claims.image_id
    }

    /// The launch.
    pub fn instance_id(&self) -> &InstanceId {
        &self.vm_claims.instance_id
    }

    /// Secrets the guest asks for.
    pub fn resources(&self) -> &[String] {
        &self.runtime.resources
    }

    /// Key to seal secrets to.
    pub fn hpke_key(&self) -> &[u8; 32] {
        &self.runtime.hpke_key
    }
}

/// Accepted evidence. Only [`appraise`] makes one.
#[derive(Debug)]
pub struct Appraisal {
    facts: Facts,
    report: Report,
    host_clock: ClockInfo,
}

impl Appraisal {
    /// What is established.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What was measured and expected.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The host TPM's clock, to be stored as the host's last.
    pub fn host_clock(&self) -> ClockInfo {
        self.host_clock
    }
}

/// Judges evidence against an enrolled host, the verifier's own URL and the host builds it accepts.
///
/// `host` must be the row found under [`ReceivedEvidence::hak_name`], not revoked. The first check that
/// fails decides the reject code.
pub fn appraise(
    received: ReceivedEvidence,
    nonce: ConsumedNonce,
    host: &EnrolledHost,
    audience: &str,
    references: &[HostReference],
    descriptors: &dyn DescriptorReader,
) -> Result<Appraisal, Refusal> {
    let mut report = Report::default();
    let case = Case { received, nonce: nonce.0, host, audience, references, descriptors };
    match case.judge(&mut report) {
        Ok((facts, host_clock)) => Ok(Appraisal { facts, report, host_clock }),
        Err(Fault { reject, explanation }) => Err(Refusal { reject, explanation, report }),
    }
}

struct Case<'a> {
    received: ReceivedEvidence,
    nonce: Nonce,
    host: &'a EnrolledHost,
    audience: &'a str,
    references: &'a [HostReference],
    descriptors: &'a dyn DescriptorReader,
}

impl<'a> Case<'a> {
    /// SPEC 7.3, step by step.
    fn judge(self, report: &mut Report) -> Result<(Facts, ClockInfo), Fault> {
        // 2. The challenge consumed is the one answered.
        if !bool::from(self.received.nonce().as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(Fault::of(Reject::NonceMismatch));
        }
        // 4 to 9. The host quote and everything it covers.
        let (host_pcrs, host_claims) = self.host_quote()?;
        let (vm_claims, runtime) = self.claims()?;
        // 10. The VM quote, by the key the host vouches for.
        let vm_pcrs = self.vm_quote(&vm_claims)?;
        // 11. Image and launch.
        let record = self.launch(&vm_claims)?;
        let image = self
            .descriptors
            .read(&self.received.evidence.host.descriptor)
            .map_err(at("descriptor"))?;
        // 12. Logs.
        let host_log = self.host_log(&host_pcrs)?;
        self.vm_log(&vm_pcrs, &host_claims, &vm_claims, &image, report)?;
        // 13. Reference values.
        let reference = self.recognise(&host_log, &host_pcrs, &host_claims, report)?;

        let box_kind = vm_claims.box_kind;
        let facts = Facts {
            nonce: self.nonce,
            evidence: self.received.digest,
            host_name: self.host.name.clone(),
            software_tpm: self.host.software_tpm,
            reference_name: reference.name.clone(),
            reference_svn: reference.svn,
            profile: reference.profile,
            monitor_svn: reference.monitor_svn,
            host_claims,
            vm_claims,
            launch_record: record,
            // Whoever starts an open box chooses.
            vtpm_may_last: image.vtpm_lasts || box_kind == BoxKind::Open,
            descriptor: self.received.evidence.host.descriptor,
            runtime,
        };
        Ok((facts, host_pcrs.clock_info()))
    }

    /// Signature by the enrolled key, type and signer, extraData over the batch and the claims, selection
    /// and values, clock. The batch root is not sent: it is what leaf and path lead to.
    fn host_quote(&self) -> Result<(QuotedPcrs, HostClaims), Fault> {
        let part = &self.received.evidence.host;
        let here = at("host quote");
        let key = QuoteKey::endorsement_primary(&self.host.ak_public);
        let authentic = ReceivedQuote::of(&part.quote).authenticate(&key).map_err(&here)?;
        let name = self.host.ak_public.object_name().map_err(at("host key"))?;
        if part.hak_name != name {
            return Err(differ(Reject::HostMismatch, "host key", &part.hak_name, &name));
        }
        let leaf = binding::vm_leaf(&self.nonce, &part.vm_claims);
        let root = merkle::root_from(&leaf, &part.inclusion).map_err(at("inclusion proof"))?;
        let expected = binding::host_quote(part.inclusion.size, &root, &part.host_claims);
        let pcrs = authentic
            .bind(expected.as_bytes(), Reject::HostBindingMismatch)
            .and_then(|bound| bound.pcrs(HOST_SELECTION, &part.quote.pcrs))
            .and_then(|pcrs| pcrs.check_reliable().map(|()| pcrs))
            .map_err(&here)?;
        clock::check_firmware(pcrs.signed(), &self.host.revoked_firmware).map_err(|reject| {
            let explanation = format!(
                "host TPM: firmware version {:016x} is revoked",
                pcrs.signed().firmware_version
            );
            Fault { reject, explanation }
        })?;
        self.clock(&pcrs.clock_info())?;
        let claims = HostClaims::decode(&part.host_claims).map_err(at("host claims"))?;
        if claims.hak_name != name {
            return Err(differ(Reject::HostMismatch, "claimed host key", &claims.hak_name, &name));
        }
        Ok((pcrs, claims))
    }

    fn clock(&self, now: &ClockInfo) -> Result<(), Fault> {
        let last = ClockInfo {
            clock: self.host.last_clock,
            reset_count: self.host.last_reset_count,
            restart_count: self.host.last_restart_count,
            safe: true,
        };
        clock::judge(now, &last).map_err(|reject| {
            let shown = |info: &ClockInfo| (info.reset_count, info.restart_count, info.clock);
            let explanation = format!(
                "host TPM (resets, restarts, clock): found {:?}, last seen {:?}",
                shown(now),
                shown(&last)
            );
            Fault { reject, explanation }
        })
    }

    /// What the monitor says of the VM answers for this runtime data, and that is meant for us.
    fn claims(&self) -> Result<(VmClaims, RuntimeData), Fault> {
        let evidence = &self.received.evidence;
        let claims = VmClaims::decode(&evidence.host.vm_claims).map_err(at("VM claims"))?;
        let report_data = RuntimeData::report_data(&evidence.runtime_data);
        if claims.report_data != report_data {
            let what = "report data";
            return Err(differ(
                Reject::ReportDataMismatch,
                what,
                &claims.report_data,
                &report_data,
            ));
        }
        let runtime = RuntimeData::decode(&evidence.runtime_data).map_err(at("runtime data"))?;
        if runtime.audience != self.audience {
            let explanation =
                format!("audience: found `{}`, expected `{}`", runtime.audience, self.audience);
            return Err(Fault { reject: Reject::AudienceMismatch, explanation });
        }
        Ok((claims, runtime))
    }

    /// The vAK is the one in the claims and a proper attestation key; its quote answers this challenge.
    fn vm_quote(&self, claims: &VmClaims) -> Result<QuotedPcrs, Fault> {
        let part = &self.received.evidence.vm;
        let vak = Public::parse(&part.vak_public).map_err(at("vTPM key"))?;
        let name = vak.name();
        if name != claims.vak_name {
            return Err(differ(Reject::VmNotVouched, "vTPM key", &name, &claims.vak_name));
        }
        enroll::check_vak(&vak).map_err(at("vTPM key"))?;
        let expected = binding::vm_quote(&self.nonce, &claims.report_data);
        ReceivedQuote::of(&part.quote)
            .authenticate(&QuoteKey::endorsement_primary(&vak))
            .and_then(|quote| quote.bind(expected.as_bytes(), Reject::NonceMismatch))
            .and_then(|quote| quote.pcrs(VM_SELECTION, &part.quote.pcrs))
            .and_then(|pcrs| pcrs.check_reliable().map(|()| pcrs))
            .map_err(at("VM quote"))
    }

    /// Descriptor, launch record and claims tell of one launch.
    fn launch(&self, claims: &VmClaims) -> Result<LaunchRecord, Fault> {
        let part = &self.received.evidence.host;
        let image_id = Digest::of(&[&part.descriptor]);
        if image_id != claims.image_id {
            return Err(differ(Reject::ImageMismatch, "descriptor", &image_id, &claims.image_id));
        }
        let digest = LaunchRecord::digest(&part.launch_record);
        if digest != claims.launch_digest {
            let what = "launch record";
            return Err(differ(Reject::LaunchMismatch, what, &digest, &claims.launch_digest));
        }
        let record = LaunchRecord::decode(&part.launch_record).map_err(at("launch record"))?;
        if record.image_id != claims.image_id {
            let what = "image in the launch record";
            return Err(differ(Reject::ImageMismatch, what, &record.image_id, &claims.image_id));
        }
        let disagree = |what: &str| {
            let explanation = format!("launch record and VM claims disagree on the {what}");
            Err(Fault { reject: Reject::LaunchMismatch, explanation })
        };
        if record.box_kind != claims.box_kind {
            return disagree("kind of box");
        }
        if record.instance_id != claims.instance_id {
            return disagree("instance");
        }
        if record.incarnation != claims.incarnation {
            return disagree("incarnation");
        }
        if claims.debug && claims.box_kind == BoxKind::Closed {
            return disagree("closed box: a debugger may be attached");
        }
        Ok(record)
    }

    fn host_log(&self, pcrs: &QuotedPcrs) -> Result<EventLog<'_>, Fault> {
        let bytes = &self.received.evidence.host.quote.event_log;
        let log = event_log::parse(bytes).map_err(at("host event log"))?;
        replays(&log, pcrs, "host event log")?;
        log.check_firmware().map_err(|(pcr, reject)| Fault {
            reject,
            explanation: format!("host event log, pcr {pcr}: {}", reject.message()),
        })?;
        Ok(log)
    }

    /// The VM's registers hold exactly what the monitor measures for this launch: nothing else, no other order.
    fn vm_log(
        &self,
        pcrs: &QuotedPcrs,
        host: &HostClaims,
        claims: &VmClaims,
        image: &ImageFacts,
        report: &mut Report,
    ) -> Result<(), Fault> {
        let evidence = &self.received.evidence;
        let log = event_log::parse(&evidence.vm.quote.event_log).map_err(at("VM event log"))?;
        replays(&log, pcrs, "VM event log")?;
        let predicted = vm_launch_log(
            &host.monitor_version,
            &image.kernel,
            &image.initrd,
            &image.cmdline,
            &claims.image_id,
            &evidence.host.launch_record,
        );
        for &pcr in VM_SELECTION {
            let expected = predicted.events.iter().filter(|event| event.pcr == pcr);
            report.vm.extend(compare(pcr, log.of_pcr(pcr), expected));
        }
        all_ok(&report.vm, Reject::LaunchMismatch)?;
        // Registers and banks that are not quoted, types and data too: what a launch logs is known to the byte.
        match evidence.vm.quote.event_log == predicted.log {
            true => Ok(()),
            false => Err(Fault {
                reject: Reject::LaunchMismatch,
                explanation: "VM event log: not the one that the monitor writes for this launch"
                    .into(),
            }),
        }
    }

    fn recognise(
        &self,
        log: &EventLog<'_>,
        pcrs: &QuotedPcrs,
        claims: &HostClaims,
        report: &mut Report,
    ) -> Result<&'a HostReference, Fault> {
        match recognise(self.references, log, pcrs, claims) {
            Ok((reference, rows)) => {
                report.host = rows;
                Ok(reference)
            }
            Err(Unrecognised { rows, contradiction }) => {
                report.host = rows;
                if let Some(explanation) = contradiction {
                    return Err(Fault { reject: Reject::HostNotRecognised, explanation });
                }
                all_ok(&report.host, Reject::HostNotRecognised)?;
                Err(Fault::of(Reject::HostNotRecognised))
            }
        }
    }
}

/// Events of one register beside the predicted ones, one row each.
fn compare<'a>(
    pcr: u8,
    found: impl Iterator<Item = &'a event_log::Event<'a>>,
    expected: impl Iterator<Item = &'a event_log::VmEvent>,
) -> Vec<Row> {
    let (mut found, mut expected) = (found.fuse(), expected.fuse());
    std::iter::from_fn(|| match (found.next(), expected.next()) {
        (None, None) => None,
        (None, Some(missing)) => {
            Some(Row::missing(pcr, describe(missing.kind, &missing.data), missing.digest))
        }
        (Some(event), None) => {
            Some(Row::refused(pcr, word(event.kind), "unexpected event", event.digest))
        }
        (Some(event), Some(expected)) => {
            let what = describe(expected.kind, &expected.data);
            Some(Row::judged(pcr, word(event.kind), what, event.digest, expected.digest))
        }
    })
    .collect()
}

/// What a predicted event stands for; predicted data is ours, so it may be shown.
fn describe(kind: event_log::EventKind, data: &[u8]) -> Cow<'static, str> {
    use event_log::EventKind;
    match kind {
        EventKind::S_CRTM_VERSION => "monitor version".into(),
        EventKind::SEPARATOR => "separator".into(),
        EventKind::EVENT_TAG => "launch record".into(),
        _ => {
            let text = data.strip_suffix(b"\0").unwrap_or(data);
            let text = String::from_utf8_lossy(text);
            Cow::Owned(text.strip_prefix("coffer:").unwrap_or(&text).to_owned())
        }
    }
}

fn replays(log: &EventLog<'_>, pcrs: &QuotedPcrs, what: &str) -> Result<(), Fault> {
    log.check_replay(pcrs).map_err(|(pcr, reject)| {
        let replayed = log.replay(pcr);
        let quoted =
            pcrs.get(pcr).map_or_else(|reject| reject.to_string(), |value| value.to_string());
        let explanation =
            format!("{what}, pcr {pcr}: log replays to {replayed}, quoted is {quoted}");
        Fault { reject, explanation }
    })
}

fn all_ok(rows: &[Row], otherwise: Reject) -> Result<(), Fault> {
    match rows.iter().find(|row| !row.ok) {
        Some(row) => Err(Fault { reject: otherwise, explanation: row.to_string() }),
        None => Ok(()),
    }
}

/// A reject with the line that explains it.
struct Fault {
    reject: Reject,
    explanation: String,
}

impl Fault {
    fn of(reject: Reject) -> Self {
        Self { reject, explanation: reject.message().into() }
    }
}

fn at(what: &'static str) -> impl Fn(Reject) -> Fault {
    move |reject| Fault { reject, explanation: format!("{what}: {}", reject.message()) }
}

fn differ(
    reject: Reject,
    what: &str,
    found: &impl std::fmt::Display,
    expected: &impl std::fmt::Display,
) -> Fault {
    Fault { reject, explanation: format!("{what}: found {found}, expected {expected}") }
}
