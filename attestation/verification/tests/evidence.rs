//! Evidence of two real TPMs, host and VM, from end to end: accepted as made, and refused for the right
//! reason after each change. Changes to signed parts are made before the TPM signs, so that it is the check
//! in question that refuses and not the signature.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use std::collections::BTreeMap;

use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, HostProfile, HostReference, ImageFacts,
    ReceivedEvidence, Refusal, Row, appraise,
};
use coffer_attestation::claims::{HostClaims, VmClaims};
use coffer_attestation::event_log::{
    EventKind, EventType, LogBuilder, VmEvent, VmLog, body, vm_launch_log,
};
use coffer_attestation::evidence::{Evidence, HostPart, QuotePart, VmPart};
use coffer_attestation::launch::{BoxKind, LaunchRecord};
use coffer_attestation::ledger::{self, Entry};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::tpm::attest::Attest;
use coffer_attestation::tpm::hash::HashAlg;
use coffer_attestation::tpm::pcr::{HOST_SELECTION, VM_BANKS, VM_SELECTION};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::{command, response, template};
use coffer_attestation::{Digest, InstanceId, Nonce, Reject, binding, enroll, merkle, predict};
use swtpm::Swtpm;

const AUDIENCE: &str = "https://verifier.example:8443";
const NONCE: Nonce = Nonce([0x11; 32]);
const DESCRIPTOR: &[u8] = br#"{"version":1}"#;
const IMAGE: ImageFacts = ImageFacts {
    kernel: Digest([1; 32]),
    initrd: Digest([2; 32]),
    cmdline: Digest([3; 32]),
    vtpm_lasts: false,
};
const HOST_KERNEL: Digest = Digest([0xa1; 32]);
const HOST_INITRD: Digest = Digest([0xa2; 32]);
const HOST_CMDLINE: &str = "console=ttyS0 initrd=initrd";

type Event = (u8, EventType, Digest, Vec<u8>);

/// What a host's firmware and kernel measure, as in a log recorded in the lab.
fn host_boot() -> Vec<Event> {
    let backed = |pcr, kind, data: &[u8]| (pcr, kind, Digest::of(&[data]), data.to_vec());
    let mut events = vec![
        backed(0, EventType::S_CRTM_VERSION, &[0, 0]),
        backed(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", &[1])),
        backed(7, EventType::SEPARATOR, &[0; 4]),
        // An image from nowhere: no path.
        (4, EventType::EFI_BOOT_SERVICES_APPLICATION, HOST_KERNEL, vec![0; 32]),
        backed(1, EventType::EFI_VARIABLE_BOOT, &variable("BootOrder", &[0, 0])),
        backed(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option"),
    ];
    events.extend((0..7).map(|pcr| backed(pcr, EventType::SEPARATOR, &[0; 4])));
    let options = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0".to_vec();
    events.push((9, EventType::EVENT_TAG, predict::load_options(HOST_CMDLINE), options));
    let initrd = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0".to_vec();
    events.push((9, EventType::EVENT_TAG, HOST_INITRD, initrd));
    events.push(backed(5, EventType::EFI_ACTION, b"Exit Boot Services Invocation"));
    events
}

/// UEFI_VARIABLE_DATA of EFI_GLOBAL_VARIABLE (PFP 1.06, 10.2.6).
fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let sizes = [name.len() as u64 / 2, data.len() as u64].map(u64::to_le_bytes).concat();
    [&body::Guid::GLOBAL.0[..], &sizes, &name, data].concat()
}

fn log_of(events: &[Event]) -> Vec<u8> {
    let log =
        |log: LogBuilder, (pcr, kind, digest, data): &Event| log.event(*pcr, *kind, *digest, data);
    events.iter().fold(LogBuilder::new(), log).finish()
}

fn reference() -> HostReference {
    let log = log_of(&host_boot());
    let log = coffer_attestation::event_log::parse(&log).unwrap();
    HostReference {
        name: "lab-1".into(),
        svn: 3,
        profile: HostProfile::Sealed,
        monitor_svn: 1,
        kernel: HOST_KERNEL,
        initrd: HOST_INITRD,
        cmdline: predict::load_options(HOST_CMDLINE),
        firmware: HostReference::firmware_of(&log).unwrap(),
    }
}

/// Everything that goes into one evidence before anything is signed.
struct Draft {
    runtime: RuntimeData,
    record: LaunchRecord,
    /// Bytes sent; differ from the record measured only where a case says so.
    launch_record: Vec<u8>,
    descriptor: Vec<u8>,
    vm_claims: VmClaims,
    host_claims: HostClaims,
    vm_extra: Option<Digest>,
    host_extra: Option<Digest>,
    vm_pcrs: Vec<u8>,
    host_pcrs: Vec<u8>,
    vm_label_signed_by_host: bool,
    neighbours: Vec<Digest>,
}

/// A host and a VM on it, booted.
struct Scene {
    host: Swtpm,
    vm: Swtpm,
    hak: (u32, Public),
    vak: (u32, Public),
    host_log: Vec<u8>,
    vm_log: VmLog,
}

fn record() -> LaunchRecord {
    LaunchRecord {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest::of(&[DESCRIPTOR]),
        vcpus: 2,
        memory_mib: 512,
        disks: vec![],
        nics: vec![],
        instance_id: InstanceId([4; 16]),
        incarnation: 1,
    }
}

fn launch(record: &LaunchRecord) -> VmLog {
    let image = Digest::of(&[DESCRIPTOR]);
    let encoded = record.encode();
    vm_launch_log("0.1.0", &IMAGE.kernel, &IMAGE.initrd, &IMAGE.cmdline, &image, &encoded)
}

impl Scene {
    fn good() -> Self {
        Self::boot(&host_boot(), launch(&record()), &record().encode())
    }

    fn boot(host_events: &[Event], vm_log: VmLog, hashed: &[u8]) -> Self {
        let (mut host, mut vm) = (Swtpm::fresh(), Swtpm::with_banks(&VM_BANKS));
        for (pcr, _, digest, _) in host_events {
            host.extend(*pcr, digest);
        }
        vm.measure(&vm_log.events, hashed);
        let key = |tpm: &mut Swtpm, template: &[u8]| {
            let (handle, public) = tpm.create_primary(template);
            (handle, Public::parse(&public).unwrap())
        };
        let hak = key(&mut host, &template::host_ak());
        let vak = key(&mut vm, &template::vm_ak());
        Self { host, vm, hak, vak, host_log: log_of(host_events), vm_log }
    }

    fn draft(&self) -> Draft {
        let runtime = RuntimeData {
            version: 1,
            hpke_key: [9; 32],
            audience: AUDIENCE.into(),
            resources: vec!["site/tls-key".into()],
            user_data: None,
        };
        let record = record();
        Draft {
            vm_claims: VmClaims {
                version: 1,
                instance_id: record.instance_id,
                box_kind: record.box_kind,
                image_id: record.image_id,
                launch_digest: LaunchRecord::digest(&record.encode()),
                vak_name: self.vak.1.object_name().unwrap(),
                vek_name: self.vak.1.object_name().unwrap(),
                incarnation: record.incarnation,
                report_data: RuntimeData::report_data(&encode(&runtime)),
                debug: false,
            },
            host_claims: HostClaims {
                version: 1,
                hak_name: self.hak.1.object_name().unwrap(),
                profile: "sealed".into(),
                monitor_version: "0.1.0".into(),
                monitor_svn: 1,
                swtpm_version: "0.7".into(),
                kernel_release: "6.1".into(),
                lockdown: "none".into(),
                iommu: false,
                nested_paging: "npt".into(),
                smt: false,
                ksm: false,
                live_vms: 1,
                launch_log_head: Digest::ZERO,
                boot_id: [0; 16],
                vault: None,
            },
            launch_record: record.encode(),
            record,
            runtime,
            descriptor: DESCRIPTOR.to_vec(),
            vm_extra: None,
            host_extra: None,
            vm_pcrs: VM_SELECTION.to_vec(),
            host_pcrs: HOST_SELECTION.to_vec(),
            vm_label_signed_by_host: false,
            neighbours: vec![],
        }
    }

    fn evidence(&mut self, draft: &Draft) -> Evidence {
        let runtime_data = encode(&draft.runtime);
        let vm_claims = draft.vm_claims.encode();
        let host_claims = draft.host_claims.encode();
        let report_data = RuntimeData::report_data(&runtime_data);
        let vm_extra = draft.vm_extra.unwrap_or(binding::vm_quote(&NONCE, &report_data));

        let mut leaves = draft.neighbours.clone();
        leaves.push(binding::vm_leaf(&NONCE, &vm_claims));
        let root = merkle::root(&leaves).unwrap();
        let host_extra = match draft.vm_label_signed_by_host {
            true => vm_extra,
            false => draft.host_extra.unwrap_or(binding::host_quote(
                leaves.len() as u64,
                &root,
                &host_claims,
            )),
        };
        let vm_log = self.vm_log.log.clone();
        Evidence {
            version: 1,
            nonce: NONCE,
            runtime_data,
            vm: VmPart {
                vak_public: self.vak.1.as_bytes().to_vec(),
                quote: quote(&mut self.vm, self.vak.0, &vm_extra, &draft.vm_pcrs, vm_log),
            },
            host: HostPart {
                hak_name: self.hak.1.object_name().unwrap(),
                quote: quote(
                    &mut self.host,
                    self.hak.0,
                    &host_extra,
                    &draft.host_pcrs,
                    self.host_log.clone(),
                ),
                host_claims,
                vm_claims,
                inclusion: merkle::prove(&leaves, leaves.len() - 1).unwrap(),
                launch_record: draft.launch_record.clone(),
                descriptor: draft.descriptor.clone(),
            },
        }
    }

    fn enrolled(&self) -> EnrolledHost {
        EnrolledHost {
            name: "rack-7".into(),
            ak_public: self.hak.1.clone(),
            software_tpm: true,
            last_reset_count: 0,
            last_restart_count: 0,
            last_clock: 0,
            revoked_firmware: vec![],
        }
    }

    fn judge(&self, evidence: &Evidence) -> Result<Appraisal, Refusal> {
        judge(evidence, &self.enrolled(), &[reference()])
    }

    /// Judges evidence made from a changed draft.
    #[track_caller]
    fn refuses(&mut self, what: &str, reject: Reject, change: impl FnOnce(&mut Draft)) {
        let mut draft = self.draft();
        change(&mut draft);
        let evidence = self.evidence(&draft);
        check(what, self.judge(&evidence), reject);
    }

    /// Judges good evidence changed on the way.
    #[track_caller]
    fn refuses_altered(&mut self, what: &str, reject: Reject, change: impl FnOnce(&mut Evidence)) {
        let mut evidence = self.evidence(&self.draft());
        change(&mut evidence);
        check(what, self.judge(&evidence), reject);
    }
}

/// Where the bytes of an event are in the log of a launch: a header of 69, and events whose SHA-256 digest is at 14,
/// SHA-384 digest at 48, size at 96, and data at 100.
fn event(log: &[u8], number: usize) -> std::ops::Range<usize> {
    let mut end = 69;
    let mut range = end..end;
    for _ in 0..=number {
        let size = u32::from_le_bytes(log[end + 96..end + 100].try_into().unwrap()) as usize;
        range = end..end + 100 + size;
        end = range.end;
    }
    range
}

fn judge(
    evidence: &Evidence,
    host: &EnrolledHost,
    references: &[HostReference],
) -> Result<Appraisal, Refusal> {
    let received = ReceivedEvidence::receive(&evidence.to_cmw()).unwrap();
    let descriptors = |descriptor: &[u8]| match descriptor {
        DESCRIPTOR => Ok(IMAGE),
        _ => Err(Reject::BadDescriptor),
    };
    appraise(
        received,
        ConsumedNonce::assert_consumed(NONCE),
        host,
        AUDIENCE,
        references,
        &descriptors,
    )
}

#[track_caller]
fn check(what: &str, verdict: Result<Appraisal, Refusal>, reject: Reject) {
    match verdict {
        Ok(_) => panic!("{what}: accepted"),
        Err(refusal) => assert_eq!(refusal.reject, reject, "{what}: {refusal}"),
    }
}

fn encode(runtime: &RuntimeData) -> Vec<u8> {
    coffer_attestation::cbor::encode(runtime)
}

fn quote(tpm: &mut Swtpm, ak: u32, extra: &Digest, pcrs: &[u8], event_log: Vec<u8>) -> QuotePart {
    let answer = tpm.send(&command::quote(ak, extra.as_bytes(), pcrs));
    let (attest, signature) = response::quote(&answer).unwrap();
    QuotePart { attest, signature, pcrs: tpm.pcrs(pcrs), event_log }
}

#[test]
fn accepts_evidence_as_made_and_says_what_it_rests_on() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let appraisal = scene.judge(&evidence).unwrap();
    let facts = appraisal.facts();
    assert_eq!(facts.host_name, "rack-7");
    assert_eq!((facts.reference_name.as_str(), facts.reference_svn), ("lab-1", 3));
    assert_eq!(facts.box_kind(), BoxKind::Closed);
    assert_eq!((facts.hpke_key(), facts.resources()), (&[9; 32], &["site/tls-key".into()][..]));
    assert_eq!(facts.evidence, Digest::of(&[&evidence.to_cmw()]));
    let report = appraisal.report();
    assert!(report.host.iter().chain(&report.vm).all(|row| row.ok));
    let names = |rows: &[Row]| rows.iter().map(|row| row.what.to_string()).collect::<Vec<_>>();
    // Registers 0, 4, 9, 11, 12, 17 hold 2, 2, 2, 1, 1 and 1 events.
    let vm = "monitor version, separator, separator, kernel, initrd, cmdline, descriptor, launch record, launch";
    assert_eq!(names(&report.vm).join(", "), vm);
    // Registers whole, save 4 and 9, which are judged event by event.
    let host = [
        "firmware code, firmware configuration, option ROM code, option ROM configuration",
        "boot configuration, platform events, Secure Boot state",
        "register, register, register, register, register",
        "host kernel, boot manager, boot manager, host command line, host initrd",
    ];
    assert_eq!(names(&report.host).join(", "), host.join(", "));
    assert!(report.vm.iter().all(|row| row.expected == row.digest));
    assert!(report.host.iter().any(|row| row.what == "host initrd" && row.expected.is_some()));
}

#[test]
fn accepts_one_vm_of_a_batch() {
    let mut scene = Scene::good();
    let mut draft = scene.draft();
    draft.neighbours = vec![Digest([7; 32]); 5];
    let evidence = scene.evidence(&draft);
    assert_eq!(scene.judge(&evidence).map(|_| ()), Ok(()));
}

#[test]
fn refuses_what_the_tpms_signed_wrongly() {
    let scene = &mut Scene::good();
    let d = Digest([0x55; 32]);
    scene.refuses("host quote over something else", Reject::HostBindingMismatch, |s| {
        s.host_extra = Some(d)
    });
    scene.refuses("VM quote for another nonce", Reject::NonceMismatch, |s| s.vm_extra = Some(d));
    scene.refuses("VM label under the host key", Reject::HostBindingMismatch, |s| {
        s.vm_label_signed_by_host = true;
    });
    scene
        .refuses("host quote without PCR 9", Reject::PcrNotQuoted, |s| s.host_pcrs = vec![0, 4, 7]);
    scene.refuses("VM quote with PCR 10 too", Reject::SelectionMismatch, |s| {
        s.vm_pcrs = vec![0, 4, 9, 10, 11, 12, 17];
    });
    scene.refuses("VM quote without PCR 17", Reject::PcrNotQuoted, |s| {
        s.vm_pcrs = vec![0, 4, 9, 11, 12]
    });
}

#[test]
fn refuses_claims_that_do_not_belong_together() {
    let scene = &mut Scene::good();
    let d = Digest([0x55; 32]);
    let other = Public::parse(&scene.host.create_primary(&template::vm_ak()).1)
        .unwrap()
        .object_name()
        .unwrap();
    scene.refuses("another vTPM key vouched for", Reject::VmNotVouched, |s| {
        s.vm_claims.vak_name = other
    });
    scene.refuses("claims of another host", Reject::HostMismatch, |s| {
        s.host_claims.hak_name = other
    });
    scene.refuses("other report data", Reject::ReportDataMismatch, |s| s.vm_claims.report_data = d);
    scene.refuses("another verifier", Reject::AudienceMismatch, |s| {
        s.runtime.audience.push('/');
        s.vm_claims.report_data = RuntimeData::report_data(&encode(&s.runtime));
    });
    scene.refuses("another image claimed", Reject::ImageMismatch, |s| s.vm_claims.image_id = d);
    scene.refuses("another descriptor", Reject::ImageMismatch, |s| s.descriptor = b"{}".to_vec());
    scene.refuses("another launch claimed", Reject::LaunchMismatch, |s| {
        s.vm_claims.launch_digest = d
    });
    scene.refuses("open box claimed", Reject::LaunchMismatch, |s| {
        s.vm_claims.box_kind = BoxKind::Open
    });
    scene.refuses("another instance", Reject::LaunchMismatch, |s| {
        s.vm_claims.instance_id = InstanceId([0; 16]);
    });
    scene.refuses("another incarnation", Reject::LaunchMismatch, |s| s.vm_claims.incarnation = 2);
    scene.refuses("closed box with a debugger", Reject::LaunchMismatch, |s| {
        s.vm_claims.debug = true
    });
    scene.refuses("claims of version 2", Reject::UnsupportedVersion, |s| s.vm_claims.version = 2);
    scene.refuses("host claims of version 2", Reject::UnsupportedVersion, |s| {
        s.host_claims.version = 2
    });
    scene.refuses("another monitor version", Reject::LaunchMismatch, |s| {
        s.host_claims.monitor_version = "0.2.0".into();
    });
    scene.refuses("a record that was not measured", Reject::LaunchMismatch, |s| {
        s.record.vcpus = 8;
        s.launch_record = s.record.encode();
        s.vm_claims.launch_digest = LaunchRecord::digest(&s.launch_record);
    });
    scene.refuses("a record of another image", Reject::ImageMismatch, |s| {
        s.record.image_id = d;
        s.launch_record = s.record.encode();
        s.vm_claims.launch_digest = LaunchRecord::digest(&s.launch_record);
    });
}

#[test]
fn refuses_evidence_altered_on_the_way() {
    let scene = &mut Scene::good();
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    scene.refuses_altered("nonce", Reject::NonceMismatch, |e| e.nonce.0[0] ^= 1);
    scene
        .refuses_altered("runtime data", Reject::ReportDataMismatch, |e| flip(&mut e.runtime_data));
    scene.refuses_altered("vAK", Reject::BadKey, |e| flip(&mut e.vm.vak_public));
    scene.refuses_altered("vAK cut", Reject::Malformed, |e| {
        e.vm.vak_public.pop();
    });
    scene.refuses_altered("VM attest", Reject::BadSignature, |e| flip(&mut e.vm.quote.attest));
    scene
        .refuses_altered("VM signature", Reject::BadSignature, |e| flip(&mut e.vm.quote.signature));
    scene.refuses_altered("VM register", Reject::PcrDigestMismatch, |e| {
        e.vm.quote.pcrs[0].digest.0[0] ^= 1
    });
    scene.refuses_altered("VM register's index", Reject::SelectionMismatch, |e| {
        e.vm.quote.pcrs[1].index = 5
    });
    scene.refuses_altered("VM log", Reject::ReplayMismatch, |e| {
        let at = event(&e.vm.quote.event_log, 0).start;
        e.vm.quote.event_log[at + 14] ^= 1;
    });
    // No quoted register tells of these: the log of a launch is known to the byte.
    let otherwise = Reject::LaunchMismatch;
    scene.refuses_altered("VM log: data of an event of PCR 0", otherwise, |e| {
        let at = event(&e.vm.quote.event_log, 0).start;
        e.vm.quote.event_log[at + 100] ^= 1;
    });
    scene.refuses_altered("VM log: type of PCR 1's separator", otherwise, |e| {
        let at = event(&e.vm.quote.event_log, 2).start;
        e.vm.quote.event_log[at + 4] ^= 1;
    });
    scene.refuses_altered("VM log: digest of PCR 1's separator", otherwise, |e| {
        let at = event(&e.vm.quote.event_log, 2).start;
        e.vm.quote.event_log[at + 14..at + 46].fill(0);
    });
    scene.refuses_altered("VM log: no separator of PCR 1", otherwise, |e| {
        let range = event(&e.vm.quote.event_log, 2);
        e.vm.quote.event_log.drain(range);
    });
    // The other bank is in no quote either.
    for number in 0..15 {
        scene.refuses_altered("VM log: SHA-384 digest", otherwise, |e| {
            let at = event(&e.vm.quote.event_log, number).start;
            e.vm.quote.event_log[at + 48 + number] ^= 1;
        });
    }
    scene.refuses_altered("VM log: SHA-384 digests of PCR 9 swapped", otherwise, |e| {
        let log = &mut e.vm.quote.event_log;
        let [first, second] = [10, 11].map(|number| event(log, number).start + 48);
        (0..48).for_each(|at| log.swap(first + at, second + at));
    });
    scene.refuses_altered("VM log: banks of an event swapped", otherwise, |e| {
        let at = event(&e.vm.quote.event_log, 9).start;
        e.vm.quote.event_log[at + 12..at + 96].rotate_left(34);
    });
    scene.refuses_altered("VM log: an event without SHA-384", Reject::Malformed, |e| {
        let at = event(&e.vm.quote.event_log, 9).start;
        e.vm.quote.event_log[at + 8] = 1;
        e.vm.quote.event_log.drain(at + 46..at + 96);
    });
    scene.refuses_altered("VM log: no event has SHA-384", otherwise, |e| {
        let add = |log: LogBuilder, e: &VmEvent| log.event(e.pcr, e.kind, e.digest, &e.data);
        let events = launch(&record()).events;
        e.vm.quote.event_log = events.iter().fold(LogBuilder::new(), add).finish();
    });
    scene.refuses_altered("VM log cut", Reject::Malformed, |e| {
        e.vm.quote.event_log.pop();
    });
    scene.refuses_altered("host key name", Reject::HostMismatch, |e| e.host.hak_name.0[5] ^= 1);
    scene.refuses_altered("host claims", Reject::HostBindingMismatch, |e| {
        flip(&mut e.host.host_claims)
    });
    scene
        .refuses_altered("VM claims", Reject::HostBindingMismatch, |e| flip(&mut e.host.vm_claims));
    scene.refuses_altered("host attest", Reject::BadSignature, |e| flip(&mut e.host.quote.attest));
    scene.refuses_altered("host signature", Reject::BadSignature, |e| {
        flip(&mut e.host.quote.signature)
    });
    scene.refuses_altered("host signature RSAPSS", Reject::SchemeMismatch, |e| {
        e.host.quote.signature[1] = 0x16
    });
    scene.refuses_altered("host signature RSASSA", Reject::SchemeMismatch, |e| {
        e.host.quote.signature = vec![0, 0x14, 0, 0x0b, 0, 1, 1];
    });
    scene.refuses_altered("host signature SHA-384", Reject::SchemeMismatch, |e| {
        e.host.quote.signature[3] = 0x0c
    });
    scene.refuses_altered("host signature hash", Reject::WeakHash, |e| {
        e.host.quote.signature[3] = 0x04
    });
    scene.refuses_altered("host register", Reject::PcrDigestMismatch, |e| {
        e.host.quote.pcrs[4].digest.0[0] ^= 1
    });
    scene.refuses_altered("host register left out", Reject::SelectionMismatch, |e| {
        e.host.quote.pcrs.pop();
    });
    scene.refuses_altered("host log", Reject::ReplayMismatch, |e| e.host.quote.event_log[80] ^= 1);
    scene.refuses_altered("host log empty", Reject::Malformed, |e| e.host.quote.event_log.clear());
    scene.refuses_altered("index", Reject::BadInclusion, |e| e.host.inclusion.index = 1);
    scene.refuses_altered("tree size", Reject::BadInclusion, |e| e.host.inclusion.size = 2);
    scene.refuses_altered("path", Reject::BadInclusion, |e| {
        e.host.inclusion.path.push(Digest::ZERO)
    });
    scene.refuses_altered("launch record", Reject::LaunchMismatch, |e| {
        flip(&mut e.host.launch_record)
    });
    scene.refuses_altered("descriptor", Reject::ImageMismatch, |e| flip(&mut e.host.descriptor));
    scene.refuses_altered("quotes swapped", Reject::BadSignature, |e| {
        std::mem::swap(&mut e.host.quote, &mut e.vm.quote);
    });
}

#[test]
fn refuses_a_vm_of_another_host() {
    let (mut one, mut two) = (Scene::good(), Scene::good());
    let mut relayed = one.evidence(&one.draft());
    relayed.vm = two.evidence(&two.draft()).vm;
    check("the VM's half of another host", one.judge(&relayed), Reject::VmNotVouched);
    let mut relayed = one.evidence(&one.draft());
    relayed.host = two.evidence(&two.draft()).host;
    check("the host's half of another host", one.judge(&relayed), Reject::BadSignature);
}

#[test]
fn refuses_an_event_relabelled_but_accepts_what_nobody_measures() {
    let scene = &mut Scene::good();
    // The type of the kernel's event: claimed, so the digest is no longer looked for among applications.
    let at = |log: &[u8], kind: u32| log.windows(4).position(|w| w == kind.to_le_bytes()).unwrap();
    for (kind, reject) in [
        (EventType::COMPACT_HASH, Reject::HostNotRecognised),
        (EventType::EFI_ACTION, Reject::EventDataMismatch),
    ] {
        scene.refuses_altered("application as something else", reject, |e| {
            let log = &mut e.host.quote.event_log;
            let at = at(log, EventType::EFI_BOOT_SERVICES_APPLICATION.0);
            log[at..at + 4].copy_from_slice(&kind.0.to_le_bytes());
        });
    }
    scene.refuses_altered("separator as an action", Reject::SeparatorInvalid, |e| {
        let log = &mut e.host.quote.event_log;
        let at = log.windows(8).position(|w| w == [7, 0, 0, 0, 4, 0, 0, 0]).unwrap();
        log[at + 4..at + 8].copy_from_slice(&EventType::EFI_ACTION.0.to_le_bytes());
    });
}

#[test]
fn refuses_hosts_whose_boot_differs() {
    let differing = |change: &dyn Fn(&mut Vec<Event>)| {
        let mut events = host_boot();
        change(&mut events);
        let mut scene = Scene::boot(&events, launch(&record()), &record().encode());
        let evidence = scene.evidence(&scene.draft());
        scene.judge(&evidence).unwrap_err()
    };
    let find = |events: &[Event], pcr, kind| {
        events.iter().rposition(|(p, k, ..)| (*p, *k) == (pcr, kind)).unwrap()
    };
    type Change<'a> = &'a dyn Fn(&mut Vec<Event>);
    let cases: &[(&str, &str, Change<'_>)] = &[
        ("another initrd", "host initrd", &|e| {
            let at = find(e, 9, EventType::EVENT_TAG);
            e[at].2 = Digest([0xee; 32]);
        }),
        ("another command line", "host command line", &|e| {
            let at = find(e, 9, EventType::EVENT_TAG) - 1;
            e[at].2 = predict::load_options("console=ttyS0 init=/bin/sh initrd=initrd");
        }),
        ("another kernel", "host kernel", &|e| {
            let at = find(e, 4, EventType::EFI_BOOT_SERVICES_APPLICATION);
            e[at].2 = Digest([0xee; 32]);
        }),
        ("a shell before the kernel", "host kernel", &|e| {
            let kind = EventType::EFI_BOOT_SERVICES_APPLICATION;
            e.insert(3, (4, kind, Digest([0xee; 32]), vec![0; 32]));
        }),
        ("a shell under another type", "unexpected event", &|e| {
            let data = b"the image itself".to_vec();
            e.insert(3, (4, EventType::EFI_ACTION, Digest::of(&[&data]), data));
        }),
        ("no kernel", "host kernel", &|e| drop(e.remove(3))),
        ("a second initrd", "unexpected event", &|e| {
            let at = find(e, 9, EventType::EVENT_TAG);
            e.push(e[at].clone());
        }),
        ("no initrd", "host initrd", &|e| {
            let at = find(e, 9, EventType::EVENT_TAG);
            e.remove(at);
        }),
        ("something more in PCR 9", "unexpected event", &|e| {
            e.push((9, EventType::IPL, Digest([0xee; 32]), b"initrd".to_vec()));
        }),
        ("a tag nobody knows", "unexpected event", &|e| {
            e.insert(0, (9, EventType::EVENT_TAG, Digest([0xee; 32]), vec![0; 8]));
        }),
        ("the initrd under another type", "unexpected event", &|e| {
            let at = find(e, 9, EventType::EVENT_TAG);
            e[at].1 = EventType::IPL;
        }),
        ("a separator of something else", "unexpected event", &|e| {
            e.push((9, EventType::SEPARATOR, Digest([0xee; 32]), vec![0; 4]));
        }),
        ("a separator that says error", "unexpected event", &|e| {
            e.push((9, EventType::SEPARATOR, Digest::of(&[&[1, 0, 0, 0]]), vec![1, 0, 0, 0]));
        }),
        ("a separator under another type", "unexpected event", &|e| {
            e.push((9, EventType::EFI_ACTION, Digest::of(&[&[0; 4]]), vec![0; 4]));
        }),
        ("an announcement under another type", "unexpected event", &|e| {
            let data = b"Calling EFI Application from Boot Option".to_vec();
            e.push((4, EventType::IPL, Digest::of(&[&data]), data));
        }),
        ("other firmware", "firmware code", &|e| e[0].2 = Digest([0xee; 32])),
        ("other Secure Boot state", "Secure Boot state", &|e| {
            let data = variable("SecureBoot", &[0]);
            (e[1].2, e[1].3) = (Digest::of(&[&data]), data);
        }),
        ("an option ROM", "option ROM code", &|e| {
            let kind = EventType::EFI_BOOT_SERVICES_DRIVER;
            e.insert(3, (2, kind, Digest([0xee; 32]), vec![0; 32]));
        }),
    ];
    for (name, what, change) in cases {
        let refusal = differing(*change);
        assert_eq!(refusal.reject, Reject::HostNotRecognised, "{name}: {refusal}");
        let row = refusal.report.host.iter().find(|row| !row.ok).unwrap();
        assert_eq!(&row.what, what, "{name}");
        assert!(refusal.explanation.contains(what), "{name}: {refusal}");
    }
    let separators =
        differing(&|e| e.push((3, EventType::SEPARATOR, Digest::of(&[&[0; 4]]), vec![0; 4])));
    assert_eq!(separators.reject, Reject::SeparatorInvalid);
    let two_states = differing(&|e| e.insert(2, e[1].clone()));
    assert_eq!(two_states.reject, Reject::Malformed, "{two_states}");
}

#[test]
fn a_reference_may_give_any_register_whole() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let log = coffer_attestation::event_log::parse(&scene.host_log).unwrap();
    let registers = log.registers(HashAlg::Sha256).unwrap();
    let mut whole = reference();
    for (pcr, what) in [(4, "boot manager and kernel"), (9, "command line and initrd")] {
        let value = registers.get(pcr).unwrap().sha256().unwrap();
        whole.firmware.insert(pcr, value);
        let accepted = judge(&evidence, &scene.enrolled(), &[whole.clone()]).unwrap();
        assert!(accepted.report().host.iter().any(|row| row.what == what), "{what}");
        let mut other = whole.clone();
        other.firmware.insert(pcr, Digest([0xee; 32]));
        let refusal = judge(&evidence, &scene.enrolled(), &[other]).unwrap_err();
        assert_eq!(refusal.reject, Reject::HostNotRecognised);
        let expected = format!("pcr {pcr} `{what}`: found {value}");
        assert!(refusal.explanation.contains(&expected), "{refusal}");
    }
}

#[test]
fn a_separator_in_pcr_9_is_harmless() {
    let mut events = host_boot();
    events.push((9, EventType::SEPARATOR, Digest::of(&[&[0; 4]]), vec![0; 4]));
    let mut scene = Scene::boot(&events, launch(&record()), &record().encode());
    let evidence = scene.evidence(&scene.draft());
    let accepted = scene.judge(&evidence).unwrap();
    assert!(accepted.report().host.iter().any(|row| row.what == "separator"));
}

#[test]
fn refuses_vms_measured_otherwise() {
    let other = LaunchRecord { box_kind: BoxKind::Open, ..record() };
    let mut more = launch(&record());
    let descriptor = more.events[12].clone();
    more.events.push(VmEvent { digest: Digest([0xee; 32]), ..descriptor });
    let mut kernel = launch(&record());
    let at = kernel.events.iter().position(|e| (e.pcr, e.kind) == (4, EventKind::IPL)).unwrap();
    kernel.events[at].digest = Digest([0xee; 32]);
    let mut drtm = launch(&record());
    *drtm.events.last_mut().unwrap() = launch(&other).events.pop().unwrap();
    let cases = [
        ("an open box measured", launch(&other), other.encode(), "launch record"),
        ("one event more", more, record().encode(), "unexpected event"),
        ("another kernel", kernel, record().encode(), "kernel"),
        ("another record in PCR 17", drtm, other.encode(), "launch"),
    ];
    for (name, log, hashed, what) in cases {
        let mut scene = Scene::boot(&host_boot(), VmLog::of(log.events), &hashed);
        let evidence = scene.evidence(&scene.draft());
        let refusal = scene.judge(&evidence).unwrap_err();
        assert_eq!(refusal.reject, Reject::LaunchMismatch, "{name}: {refusal}");
        assert_eq!(refusal.report.vm.iter().find(|row| !row.ok).unwrap().what, what, "{name}");
    }
    // A log that tells the expected story over registers that hold another.
    let mut scene = Scene::boot(&host_boot(), launch(&record()), &other.encode());
    let evidence = scene.evidence(&scene.draft());
    check("PCR 17 of another launch", scene.judge(&evidence), Reject::ReplayMismatch);
}

#[test]
fn refuses_what_the_verifier_holds_against_it() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let clock = scene.judge(&evidence).unwrap().host_clock();
    let good = EnrolledHost {
        last_reset_count: clock.reset_count,
        last_restart_count: clock.restart_count,
        last_clock: clock.clock,
        ..scene.enrolled()
    };
    let references = [reference()];
    assert!(judge(&evidence, &good, &references).is_ok());
    let later = EnrolledHost { last_clock: clock.clock + 1, ..good.clone() };
    check("clock", judge(&evidence, &later, &references), Reject::ClockRegress);
    let later = EnrolledHost { last_restart_count: clock.restart_count + 1, ..good.clone() };
    check("restarts", judge(&evidence, &later, &references), Reject::ClockRegress);
    let later =
        EnrolledHost { last_reset_count: clock.reset_count + 1, last_clock: 0, ..good.clone() };
    check("resets", judge(&evidence, &later, &references), Reject::ClockRegress);
    let rebooted = EnrolledHost {
        last_reset_count: clock.reset_count - 1,
        last_restart_count: 9,
        last_clock: u64::MAX,
        ..good.clone()
    };
    assert!(judge(&evidence, &rebooted, &references).is_ok(), "a reset since starts a new count");
    let firmware = firmware_version(&evidence);
    let revoked = EnrolledHost { revoked_firmware: vec![firmware], ..good.clone() };
    check("revoked firmware", judge(&evidence, &revoked, &references), Reject::TcbRevoked);
    let others = EnrolledHost { revoked_firmware: vec![firmware ^ 1], ..good.clone() };
    assert!(judge(&evidence, &others, &references).is_ok(), "other firmware is revoked");
    let other_key = EnrolledHost { ak_public: scene.vak.1.clone(), ..good.clone() };
    check("another enrolled key", judge(&evidence, &other_key, &references), Reject::BadSignature);

    check("no references", judge(&evidence, &good, &[]), Reject::HostNotRecognised);
    let bare = HostReference { firmware: BTreeMap::new(), ..reference() };
    let refusal = judge(&evidence, &good, &[bare]).unwrap_err();
    assert!(refusal.explanation.contains("no reference value in `lab-1`"), "{refusal}");
    let mut unquoted = reference();
    unquoted.firmware.insert(10, Digest::ZERO);
    check("unquoted register", judge(&evidence, &good, &[unquoted]), Reject::HostNotRecognised);
    // The rows are those of the reference that comes closest, the first of equals.
    let other = Digest([0xee; 32]);
    let far = HostReference { initrd: other, cmdline: other, ..reference() };
    let (near, as_near) = (
        HostReference { initrd: other, ..reference() },
        HostReference { cmdline: other, ..reference() },
    );
    for references in [[&far, &near, &as_near], [&near, &far, &as_near], [&near, &as_near, &far]] {
        let refusal = judge(&evidence, &good, &references.map(Clone::clone)).unwrap_err();
        let at_fault = refusal.report.host.iter().filter(|row| !row.ok).map(|row| &row.what);
        assert!(at_fault.eq(&["host initrd"]), "{refusal}");
    }
    let older = HostReference { name: "old".into(), initrd: Digest::ZERO, ..reference() };
    let accepted = judge(&evidence, &good, &[older, reference()]).unwrap();
    assert_eq!(accepted.facts().reference_name, "lab-1");
}

/// firmwareVersion of the host's quote.
fn firmware_version(evidence: &Evidence) -> u64 {
    Attest::parse(&evidence.host.quote.attest).unwrap().firmware_version
}

/// The boot is the same in every case; what the host says of it has to be what the reference states.
#[test]
fn refuses_a_host_that_says_other_than_its_reference() {
    let mut scene = Scene::good();
    let developer =
        HostReference { name: "developer".into(), profile: HostProfile::Developer, ..reference() };
    let newer = HostReference { name: "newer".into(), monitor_svn: 2, ..reference() };
    let good = scene.evidence(&scene.draft());
    let enrolled = scene.enrolled();
    let cases = [
        ("a developer host that claims to be sealed", vec![developer.clone()], r#""sealed""#),
        ("an old monitor", vec![newer], "monitor svn: found 1, expected 2"),
        ("two statements", vec![reference(), developer.clone()], "by reference `developer`"),
        ("two statements, other order", vec![developer.clone(), reference()], "`developer`"),
    ];
    for (what, references, says) in cases {
        let refusal = judge(&good, &enrolled, &references).unwrap_err();
        assert_eq!(refusal.reject, Reject::HostNotRecognised, "{what}");
        assert!(refusal.explanation.contains(says), "{what}: {refusal}");
    }
    let mut draft = scene.draft();
    draft.host_claims.monitor_svn = 2;
    let raised = scene.evidence(&draft);
    check("a monitor's raised word", scene.judge(&raised), Reject::HostNotRecognised);

    let mut draft = scene.draft();
    draft.host_claims.profile = "developer".into();
    let honest = scene.evidence(&draft);
    let accepted = judge(&honest, &enrolled, &[developer]).unwrap();
    assert_eq!(accepted.facts().profile, HostProfile::Developer);
    check("against sealed", scene.judge(&honest), Reject::HostNotRecognised);
    let accepted = scene.judge(&good).unwrap();
    assert_eq!((accepted.facts().profile, accepted.facts().monitor_svn), (HostProfile::Sealed, 1));
}

#[test]
fn refuses_replayed_consumption() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let received = ReceivedEvidence::receive(&evidence.to_cmw()).unwrap();
    assert_eq!(
        (received.nonce(), received.hak_name()),
        (&NONCE, &scene.hak.1.object_name().unwrap())
    );
    let other = ConsumedNonce::assert_consumed(Nonce([0; 32]));
    let reader = |_: &[u8]| Ok(IMAGE);
    let verdict = appraise(received, other, &scene.enrolled(), AUDIENCE, &[reference()], &reader);
    check("another nonce consumed", verdict, Reject::NonceMismatch);
}

#[test]
fn the_descriptor_reader_has_its_say() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let received = ReceivedEvidence::receive(&evidence.to_cmw()).unwrap();
    let nonce = ConsumedNonce::assert_consumed(NONCE);
    let reader = |_: &[u8]| Err(Reject::BadDescriptor);
    let verdict = appraise(received, nonce, &scene.enrolled(), AUDIENCE, &[reference()], &reader);
    check("descriptor", verdict, Reject::BadDescriptor);
}

#[test]
fn the_first_quote_of_an_enrolment_verifies_and_nothing_else_does() {
    let mut scene = Scene::good();
    let claims = scene.draft().host_claims.encode();
    let extra = binding::host_quote(1, &binding::enroll_leaf(&NONCE), &claims);
    let log = scene.host_log.clone();
    let part = quote(&mut scene.host, scene.hak.0, &extra, HOST_SELECTION, log);
    let ak = &scene.hak.1;
    let verify = |nonce: &Nonce, claims: &[u8], part: &QuotePart| {
        enroll::verify_first_quote(ak, nonce, claims, part).map(|quote| quote.claims.hak_name)
    };
    assert_eq!(verify(&NONCE, &claims, &part), Ok(ak.object_name().unwrap()));
    assert_eq!(verify(&Nonce([0; 32]), &claims, &part), Err(Reject::NonceMismatch));
    assert_eq!(
        verify(&NONCE, &[claims.clone(), vec![0]].concat(), &part),
        Err(Reject::NonceMismatch)
    );
    let logless = QuotePart { event_log: LogBuilder::new().finish(), ..part.clone() };
    assert_eq!(verify(&NONCE, &claims, &logless), Err(Reject::ReplayMismatch));
    // A quote made for an attestation does not complete an enrolment.
    let attestation = scene.evidence(&scene.draft()).host;
    let verdict = enroll::verify_first_quote(
        &scene.hak.1,
        &NONCE,
        &attestation.host_claims,
        &attestation.quote,
    );
    assert_eq!(verdict.map(drop).unwrap_err(), Reject::NonceMismatch);
}

#[test]
fn a_vm_not_seen_before_is_its_first_incarnation() {
    let mut scene = Scene::good();
    let evidence = scene.evidence(&scene.draft());
    let judge = |known: &[Entry]| ledger::judge(scene.judge(&evidence).unwrap(), known);
    let current = judge(&[]).unwrap();
    let entry = Entry::of(current.facts());
    assert_eq!((entry.instance_id, entry.incarnation), (InstanceId([4; 16]), 1));
    let appraisal = scene.judge(&evidence).unwrap();
    assert_eq!(current.host_clock(), appraisal.host_clock());
    assert_eq!(current.report(), appraisal.report());
    assert!(judge(&[entry]).is_ok(), "the holder again");
    let moved = Entry { incarnation: 2, ..entry };
    let refusal = judge(&[entry, moved]).unwrap_err();
    assert_eq!(refusal.reject, Reject::IncarnationRollback);
    assert!(refusal.explanation.contains("expected incarnation 2 of"), "{refusal}");

    // What the claims and the record agree on, and nobody gave out.
    let record = LaunchRecord { incarnation: 2, ..record() };
    let mut scene = Scene::boot(&host_boot(), launch(&record), &record.encode());
    let mut draft = scene.draft();
    draft.vm_claims.incarnation = 2;
    draft.vm_claims.launch_digest = LaunchRecord::digest(&record.encode());
    draft.launch_record = record.encode();
    let evidence = scene.evidence(&draft);
    let refusal = ledger::judge(scene.judge(&evidence).unwrap(), &[]).unwrap_err();
    assert_eq!(refusal.reject, Reject::LaunchMismatch);
}

#[test]
fn a_vtpm_that_lasts_may_have_been_launched_before_and_is_its_latest_launch() {
    let mut facts = IMAGE;
    facts.vtpm_lasts = true;
    let launched = |incarnation: u64, instance: u8, image: ImageFacts| {
        let instance_id = InstanceId([instance; 16]);
        let record = LaunchRecord { incarnation, instance_id, ..record() };
        let mut scene = Scene::boot(&host_boot(), launch(&record), &record.encode());
        let mut draft = scene.draft();
        (draft.vm_claims.incarnation, draft.vm_claims.instance_id) = (incarnation, instance_id);
        draft.vm_claims.launch_digest = LaunchRecord::digest(&record.encode());
        draft.launch_record = record.encode();
        let evidence = scene.evidence(&draft);
        let received = ReceivedEvidence::receive(&evidence.to_cmw()).unwrap();
        let nonce = ConsumedNonce::assert_consumed(NONCE);
        let reader = |_: &[u8]| Ok(image);
        appraise(received, nonce, &scene.enrolled(), AUDIENCE, &[reference()], &reader).unwrap()
    };
    let judge = |appraisal: Appraisal, known: &[Entry]| {
        ledger::judge(appraisal, known)
            .map(|current| Entry::of(current.facts()))
            .map_err(|r| r.reject)
    };
    assert!(judge(launched(2, 4, facts), &[]).is_ok());
    assert_eq!(judge(launched(2, 4, IMAGE), &[]), Err(Reject::LaunchMismatch), "a fresh one");
    assert_eq!(judge(launched(0, 4, facts), &[]), Err(Reject::LaunchMismatch));
    // The launch before, of the same vTPM on the same host.
    let second = |claimant: &Appraisal| {
        let instance_id = InstanceId([4; 16]);
        [Entry { instance_id, incarnation: 2, ..Entry::of(claimant.facts()) }]
    };
    let after_it = |claimant: Appraisal| {
        let known = second(&claimant);
        judge(claimant, &known)
    };
    let duplicate = Err(Reject::DuplicateVmIdentity);
    assert_eq!(after_it(launched(3, 5, facts)).map(|entry| entry.incarnation), Ok(3));
    assert_eq!(after_it(launched(1, 5, facts)), Err(Reject::IncarnationRollback));
    assert_eq!(after_it(launched(2, 5, facts)), duplicate);
    assert_eq!(after_it(launched(3, 5, IMAGE)), duplicate, "a fresh one");
}
