//! A VM's life from the supervisor's side, with a double for the VM process: a real vTPM, a real host TPM, the
//! real channel, no KVM (SPEC 1.3, 1.4, 6.1, 6.3).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Statement as _, merkle};
use coffer_formats::channel::Answer;
use coffer_formats::claims::VmClaims;
use coffer_formats::endorsement::GuestId;
use coffer_formats::event_log::vm_launch_log;
use coffer_formats::evidence::HostPart;
use coffer_formats::launch::{BoxKind, LaunchDisk, LaunchRecord};
use coffer_formats::{Digest, InstanceId, Nonce, Reject, binding, cbor};
use coffer_host_tpm::HostTpm;
use coffer_monitor::channel::Channels;
use coffer_monitor::console::Chunk;
use coffer_monitor::evidence::VmIdentity;
use coffer_monitor::group::Group;
use coffer_monitor::history::Kept;
use coffer_monitor::launch::enter_and_run;
use coffer_monitor::launch_error::LaunchError;
use coffer_monitor::measurements;
use coffer_monitor::memfile::MemFile;
use coffer_monitor::metrics;
use coffer_monitor::registry::{Entry, Registry};
use coffer_monitor::state::StateDir;
use coffer_monitor::vm::{LaunchClock, Vm};
use coffer_monitor::vm_process::{Companions, Control, VmProcess};
use coffer_monitor_wire::api::{CreateVm, Restart, VmEvent, VmInfo, VmState, VolumeRequest};
use coffer_monitor_wire::{FdRole, VmSpec};
use coffer_services::ek_certificate::VtpmAuthority;
use coffer_services::{Services, endorsement::Endorsements};
use coffer_vtpm::{Swtpm, SwtpmConfig, Walls};
use common::{MONITOR, TestTpm};
use http_body_util::channel::Channel;
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(10);

struct Launched {
    entry: Entry,
    result: Result<(), LaunchError>,
    registry: Arc<Registry>,
    pid: u32,
    vtpm_state: PathBuf,
    _state: StateDir,
    dir: tempfile::TempDir,
}

fn double() -> PathBuf {
    let path = Path::new(MONITOR).with_file_name("examples").join("vm_double");
    assert!(
        path.exists(),
        "run the whole crate's tests, or `cargo build --release -p coffer-monitor --examples` first"
    );
    path
}

/// Where this machine has it mounted, be it without controllers.
fn unified_hierarchy() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    mount.split(' ').nth(1).unwrap().into()
}

/// Launches the double as a VM whose guest behaves as `story` says.
fn launch(story: &str, host_tpm: Option<HostTpm>) -> Launched {
    launch_watched(story, host_tpm, LONG, |_| {})
}

/// The same with a limit for the launch, watched by `watch` while it is under way.
fn launch_watched(
    story: &str,
    host_tpm: Option<HostTpm>,
    patience: Duration,
    watch: impl FnOnce(&Registry) + Send,
) -> Launched {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let id = InstanceId([3; 16]);
    let directory = state.create_vm(&id).unwrap();
    let record = LaunchRecord {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest::of(&[b"descriptor"]),
        vcpus: 1,
        memory_mib: 256,
        disks: vec![LaunchDisk {
            name: "data".into(),
            kind: "encrypted".into(),
            root_hash: None,
            size: 4096,
            volume: Some(InstanceId([5; 16])),
        }],
        nics: Vec::new(),
        instance_id: id,
        incarnation: 1,
    };
    let record_bytes = record.encode();
    let kernel = MemFile::copy("kernel", &b"kernel"[..]).unwrap();
    let log = vm_launch_log(
        "test",
        &kernel.digest,
        &kernel.digest,
        &kernel.digest,
        &record.image_id,
        &record_bytes,
    );
    let vtpm_state = directory.path().join("vtpm");
    let swtpm = Swtpm::spawn(&SwtpmConfig {
        restored: None,
        program: "/usr/bin/swtpm".into(),
        state: vtpm_state.clone(),
        walls: Walls::DangerouslyNone,
    })
    .unwrap();
    let keyed = swtpm.initialise().unwrap().make_keys().unwrap();
    let certificate = VtpmAuthority::new().unwrap().certify(&keyed.keys.ek).unwrap();
    let measured =
        keyed.certify(&certificate).unwrap().measure(&log.events, &record_bytes).unwrap();
    let (vtpm, tpm_channel) = measured.seal().unwrap();
    let registry = Arc::new(Registry::default());
    let kept = Kept {
        info: info(&record),
        request: request(),
        measurements: measurements::describe(&log, &record_bytes),
    };
    let guest = GuestId {
        version: 1,
        box_kind: record.box_kind,
        image_id: record.image_id,
        signer: None,
        svn: 1,
        launch_digest: LaunchRecord::digest(&record_bytes),
        instance_id: id,
        incarnation: record.incarnation,
        hak_name: host_tpm.as_ref().map(HostTpm::ak_name),
    };
    let identity = VmIdentity {
        guest,
        vak_name: vtpm.keys.ak.object_name(),
        vek_name: vtpm.keys.ek.object_name(),
        record,
        record_bytes,
        descriptor: b"descriptor".to_vec(),
    };
    let history = Arc::clone(&registry.history);
    let vm = Arc::new(Vm::new(kept, Some(identity), LaunchClock::start(), history));
    let disk_path = dir.path().join("disk");
    std::fs::write(&disk_path, [0; 4096]).unwrap();
    let disk = File::open(disk_path).unwrap();
    // As the launch of an open box does it.
    let input = (story == "hear").then(|| vm.console.open_input().unwrap());
    let spec = VmSpec {
        version: 1,
        vcpus: 1,
        memory_mib: 256,
        cmdline: story.into(),
        kernel_size: kernel.size,
        initrd_size: kernel.size,
        event_log: hex::encode(&log.log),
        disks: Vec::new(),
        nics: Vec::new(),
        guest_cid: 3,
        uid: 0x7000_0000,
        smt: false,
        console: true,
        fds: [FdRole::Kernel, FdRole::Initrd, FdRole::Tpm, FdRole::Disk(0)]
            .into_iter()
            .chain(input.iter().map(|_| FdRole::Input))
            .collect(),
    };
    let fds: Vec<_> = [kernel.as_fd(), kernel.as_fd(), tpm_channel.as_fd(), disk.as_fd()]
        .into_iter()
        .chain(input.iter().map(AsFd::as_fd))
        .collect();
    let group = Group::dangerous_without_limits(
        &unified_hierarchy()
            .join(format!("coffer-test-{}", dir.path().file_name().unwrap().display())),
    );
    let companions = Companions {
        passt: None,
        vtpm,
        directory,
        group: group.unwrap(),
        keeper: None,
        holds: vec![],
    };
    let reservation = registry.reserve(Some("test"), "test", &[], None).unwrap();
    let process = VmProcess::spawn(&double()).unwrap();
    let (pid, control) = (process.id(), process.control.clone());
    let result = std::thread::scope(|scope| {
        scope.spawn(|| watch(&registry));
        enter_and_run(&registry, reservation, &vm, control.clone(), patience, || {
            let entered = registry.find("test").ok().map(|entry| entry.vm.info().state);
            assert_eq!(entered, Some(VmState::Launching), "it is told to run before it is known");
            assert_ne!(registry.launch_log_head(), Digest::ZERO);
            let channels = Channels::new(host_tpm, services(), control.clone());
            process.start(&vm, &spec, &fds, companions, channels)
        })
    });
    let entry = Entry { vm, control: Some(control) };
    Launched { entry, result, registry, pid, vtpm_state, _state: state, dir }
}

fn services() -> Services {
    let endorsements = Arc::new(Endorsements::new(None).unwrap());
    Services {
        vault: Err("this host keeps no sealed store".into()),
        endorsements,
        pace: Arc::default(),
    }
}

fn request() -> CreateVm {
    CreateVm {
        image: "test".into(),
        name: Some("test".into()),
        box_kind: BoxKind::Closed,
        vcpus: None,
        memory_mib: None,
        publish: Vec::new(),
        disks: vec![],
        volumes: vec![VolumeRequest { name: "data".into(), volume: "kept".into() }],
        vtpm: None,
        verify_ahead: false,
        tap: None,
        network_limit: Default::default(),
        restart: Restart::default(),
    }
}

fn info(record: &LaunchRecord) -> VmInfo {
    VmInfo {
        id: record.instance_id,
        name: "test".into(),
        image_id: record.image_id,
        image: "test".into(),
        box_kind: record.box_kind,
        state: VmState::Launching,
        reason: None,
        reported_by: None,
        detail: None,
        vcpus: 1,
        memory_mib: 256,
        publish: Vec::new(),
        restarts: 0,
        last_reason: None,
        created: 0,
        timings: Vec::new(),
    }
}

impl Launched {
    fn control(&self) -> &Control {
        self.entry.control.as_ref().unwrap()
    }

    fn console(&self) -> String {
        match self.entry.vm.console.read(0) {
            Chunk::Bytes(bytes, _) => String::from_utf8(bytes).unwrap(),
            _ => String::new(),
        }
    }

    fn wait_for(&self, what: impl Fn(&Vm) -> bool) {
        let reached = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            what(&self.entry.vm)
        });
        assert!(reached, "{:?} {}", self.entry.vm.info(), self.console());
    }

    /// How it ended; nothing of it is left.
    #[track_caller]
    fn ended(&self, state: VmState, reason: Option<&str>) {
        assert!(self.entry.vm.wait_for_end(LONG), "{:?}", self.entry.vm.info());
        let info = self.entry.vm.info();
        assert_eq!((info.state, info.reason.as_deref()), (state, reason), "{info:?}");
        assert!(!self.vtpm_state.exists());
        assert_eq!(std::fs::read_dir(self.dir.path().join("state/vms")).unwrap().count(), 0);
    }
}

#[test]
fn gives_evidence_for_its_own_vm_and_stops_in_order() {
    let tpm = TestTpm::start();
    let host =
        HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap();
    let vm = launch("attest", Some(host.clone()));
    vm.wait_for(|vm| vm.info().state == VmState::Running);
    vm.wait_for(|vm| matches!(vm.console.read(0), Chunk::Bytes(bytes, _) if bytes.ends_with(b"\n") && bytes.len() > 1000));
    let console = vm.console();
    let part = console.lines().find_map(|line| line.strip_prefix("host part ")).unwrap();
    let part: HostPart = cbor::decode(&hex::decode(part).unwrap(), 1 << 20).unwrap();

    let claims = VmClaims::decode(&part.vm_claims).unwrap();
    let identity = vm.entry.vm.identity.as_ref().unwrap();
    assert_eq!(
        (claims.vak_name, claims.instance_id),
        (identity.vak_name, identity.record.instance_id)
    );
    assert_eq!(claims.report_data, Digest([2; 32]));
    assert_eq!(part.launch_record, identity.record_bytes);
    let leaf = binding::vm_leaf(&Nonce([1; 32]), &part.vm_claims);
    let root = merkle::root_from(&leaf, &part.inclusion).unwrap();
    let expected = binding::host_quote(part.inclusion.size, &root, &part.host_claims);
    let ak = Public::parse(host.ak_public()).unwrap();
    let key = QuoteKey::endorsement_primary(&ak);
    let quote = ReceivedQuote::of(&part.quote).authenticate(&key).unwrap();
    assert!(quote.bind(expected.as_bytes(), Reject::HostBindingMismatch).is_ok());

    let steps: Vec<String> = vm.entry.vm.info().timings.into_iter().map(|t| t.step).collect();
    assert_eq!(steps, ["run", "init", "attested", "running"]);
    assert!(vm.entry.stop(LONG));
    vm.ended(VmState::Stopped, None);
}

#[test]
fn refuses_evidence_without_a_host_tpm() {
    let vm = launch("attest", None);
    vm.ended(VmState::Failed, Some("vmm-failed"));
    // The double ends with status 8 when it is refused evidence, and repeats the refusal.
    assert_eq!(
        vm.entry.vm.info().detail.as_deref(),
        Some("the VM process ended with exit status: 8: this host has no TPM")
    );
    assert!(!vm.console().contains("host part"), "{}", vm.console());
}

#[test]
fn serves_a_guest_over_its_channel_and_within_bounds() {
    let vm = launch("serve", None);
    vm.ended(VmState::Stopped, None);
    let console = vm.console();
    let lines = console.lines().filter_map(|line| line.strip_prefix("answer "));
    let answers: Vec<Answer> =
        lines.map(|hex| cbor::decode(&hex::decode(hex).unwrap(), 1 << 20).unwrap()).collect();
    let identity = vm.entry.vm.identity.as_ref().unwrap();
    let Answer::Id(id, ca) = &answers[0] else { panic!("{:?}", answers[0]) };
    assert_eq!(id.instance_id, identity.record.instance_id);
    assert_eq!(id.launch_digest, Digest::of(&[&identity.record_bytes]));
    let Answer::Endorsed(_, same) = &answers[1] else { panic!("{:?}", answers[1]) };
    assert_eq!(ca, same);
    let refusals: Vec<&str> = answers[2..]
        .iter()
        .map(|answer| match answer {
            Answer::Refused(line) => line.split(':').next().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(refusals, ["bad-key", "no-vault", "no-vault", "no-vault", "no-vault"]);
    assert!(console.contains("closed true"), "{console}");
}

/// Types into it; the status that refuses, if one does.
async fn typed(vm: &Launched, text: &'static str) -> Result<(), StatusCode> {
    let typed = vm.entry.vm.console.type_in(Body::from(text)).await;
    typed.map_err(|refused| refused.into_response().status())
}

#[tokio::test]
async fn one_caller_types_and_a_box_without_input_hears_none() {
    let vm = launch("hear", None);
    typed(&vm, "hello").await.unwrap();
    vm.wait_for(
        |vm| matches!(vm.console.read(0), Chunk::Bytes(b, _) if b.ends_with(b"heard hello\n")),
    );
    // A caller that has typed nothing yet.
    let (keep, body) = Channel::<Bytes>::new(1);
    let console = vm.entry.vm.console.clone();
    let first = tokio::spawn(async move { console.type_in(Body::new(body)).await.is_ok() });
    tokio::task::yield_now().await;
    assert_eq!(typed(&vm, "x").await, Err(StatusCode::CONFLICT));
    drop(keep);
    assert!(first.await.unwrap());
    typed(&vm, "end").await.unwrap();
    vm.ended(VmState::Stopped, None);
    // Nobody is left to hear it, and nobody waits.
    typed(&vm, "late").await.unwrap();

    let deaf = launch("wait", None);
    assert_eq!(typed(&deaf, "hello").await, Err(StatusCode::FORBIDDEN));
    assert!(deaf.entry.stop(Duration::ZERO));
}

#[tokio::test]
async fn who_types_more_than_the_guest_reads_waits_and_no_longer_than_the_guest_lives() {
    let vm = launch("hear", None);
    typed(&vm, "sleep").await.unwrap();
    // Read by itself: whatever else is there by then would be one word with it.
    vm.wait_for(
        |vm| matches!(vm.console.read(0), Chunk::Bytes(b, _) if b.ends_with(b"heard sleep\n")),
    );
    // More than any pipe of the kernel's holds.
    let console = vm.entry.vm.console.clone();
    let flood =
        tokio::spawn(async move { console.type_in(Body::from(vec![b'x'; 4 << 20])).await.is_ok() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!flood.is_finished());
    assert!(vm.entry.stop(Duration::ZERO));
    assert!(flood.await.unwrap());
}

#[test]
fn opens_the_network_once_when_the_guest_attested_and_not_before() {
    let vm = launch("network", None);
    vm.ended(VmState::Stopped, None);
    let console = vm.console();
    let heard: Vec<&str> = console.lines().filter_map(|l| l.strip_prefix("heard ")).collect();
    let nothing = "None after";
    assert_eq!(heard.len(), 4, "{console}");
    assert!(heard[0].starts_with(nothing), "{console}");
    assert_eq!(heard[1], "Some(OpenNetwork) after Attested");
    assert!(heard[2].starts_with(nothing) && heard[3].starts_with(nothing), "{console}");
}

#[test]
fn kills_a_guest_that_will_not_stop() {
    let vm = launch("wait", None);
    vm.wait_for(|vm| vm.info().state == VmState::Booting);
    assert!(vm.entry.stop(Duration::from_millis(300)));
    vm.ended(VmState::Stopped, None);
}

/// States told since `events` began.
fn told(events: &mut tokio::sync::broadcast::Receiver<VmEvent>) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.event).collect()
}

#[test]
fn a_paused_vm_says_so_goes_on_and_can_be_ended_while_it_is_paused() {
    let vm = launch("wait", None);
    let mut events = vm.registry.history.listen();
    let state = || vm.entry.vm.info().state;
    assert_eq!(state(), VmState::Booting);
    // Whatever is so already needs no word.
    assert!(vm.control().pause(&vm.entry.vm, false));
    for _ in 0..2 {
        assert!(vm.control().pause(&vm.entry.vm, true));
        assert!(vm.control().pause(&vm.entry.vm, true));
        assert_eq!(state(), VmState::Paused);
        assert!(vm.control().pause(&vm.entry.vm, false));
        assert_eq!(state(), VmState::Booting);
    }
    assert!(vm.control().pause(&vm.entry.vm, true));
    assert!(vm.entry.stop(Duration::ZERO));
    assert_eq!(told(&mut events), ["paused", "booting", "paused", "booting", "paused", "stopped"]);
    assert!(!vm.control().pause(&vm.entry.vm, true), "it has ended");
    // Stopped again, with a grace and without, it is as it was, and nobody is told.
    for grace in [LONG, Duration::ZERO] {
        assert!(vm.entry.stop(grace));
    }
    assert_eq!(told(&mut events), [""; 0]);
    vm.ended(VmState::Stopped, None);
}

#[test]
fn a_paused_vm_goes_on_to_stop_in_order() {
    let vm = launch("wait", None);
    let mut events = vm.registry.history.listen();
    assert!(vm.control().pause(&vm.entry.vm, true));
    assert!(vm.entry.stop(Duration::from_millis(300)));
    assert_eq!(told(&mut events), ["paused", "booting", "stopped"]);
    vm.ended(VmState::Stopped, None);
}

#[test]
fn a_vm_that_has_ended_is_not_called_paused() {
    let vm = launch("tampered", None);
    assert!(vm.entry.vm.wait_for_end(LONG));
    assert!(!vm.control().pause(&vm.entry.vm, true));
    vm.ended(VmState::Failed, Some("disk-integrity"));
}

#[test]
fn kills_a_vm_process_that_hears_nothing() {
    let vm = launch("wait", None);
    vm.wait_for(|vm| vm.info().state == VmState::Booting);
    let pid = Pid::from_raw(vm.pid.try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    assert!(vm.entry.stop(Duration::ZERO));
    assert!(!Path::new(&format!("/proc/{}", vm.pid)).exists());
    vm.ended(VmState::Stopped, None);
}

#[test]
fn a_launch_that_hangs_is_live_until_it_is_killed() {
    let vm = launch_watched("frozen", None, Duration::from_secs(1), |registry| {
        let seen = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            registry.live() == 1
        });
        assert!(seen);
    });
    assert!(matches!(vm.result, Err(LaunchError::Vmm(_))), "{:?}", vm.result);
    assert!(!Path::new(&format!("/proc/{}", vm.pid)).exists());
    assert!(vm.entry.vm.has_ended());
    assert_eq!((vm.registry.live(), vm.registry.list().len()), (0, 0));
    let digest = vm.entry.vm.measurements.launch_digest;
    assert_eq!(vm.registry.launch_log_head(), Digest::ZERO.extend(&digest));
    assert!(vm.registry.reserve(Some("test"), "test", &[], None).is_ok());
}

#[test]
fn a_launch_that_runs_stays_entered() {
    let vm = launch("wait", None);
    assert!(vm.result.is_ok());
    assert_eq!(vm.registry.live(), 1);
    assert!(vm.entry.stop(Duration::ZERO));
    assert_eq!((vm.registry.live(), vm.registry.list().len()), (0, 1));
}

#[test]
fn a_launch_whose_volume_does_not_open_names_it_the_cause_and_the_remedy() {
    let vm = launch("stale-disk", None);
    let error = vm.result.as_ref().unwrap_err();
    assert_eq!(error.code(), ("stale", 503));
    assert_eq!(error.to_string(), "volume `kept`: it fails?[2J");
    assert_eq!(error.hint(), "plug it in");
    vm.ended(VmState::Failed, Some("stale"));
}

#[test]
fn a_volume_that_fails_while_its_guest_runs_is_told_and_the_vm_goes_on() {
    let vm = launch("lost-disk", None);
    let mut events = vm.registry.history.listen();
    assert!(vm.control().pause(&vm.entry.vm, true));
    let event = events.try_recv().unwrap();
    assert_eq!(event.event, "disk-failed");
    assert_eq!(event.detail.unwrap(), "storage-failed: volume `kept`: it fails?[2J; plug it in");
    assert!(vm.control().pause(&vm.entry.vm, false));
    assert!(vm.entry.stop(Duration::ZERO));
    vm.ended(VmState::Stopped, None);
}

#[test]
fn names_the_promise_that_broke() {
    launch("tampered", None).ended(VmState::Failed, Some("disk-integrity"));
}

#[test]
fn names_the_guests_reason() {
    launch("denied", None).ended(VmState::Failed, Some("policy-denied"));
}

#[test]
fn survives_a_vm_process_that_dies() {
    let vm = launch("die", None);
    vm.ended(VmState::Failed, Some("vmm-failed"));
    assert!(vm.entry.vm.info().detail.unwrap().contains("exit status: 7"));
}

#[test]
fn bounds_a_hostile_guests_channels() {
    let vm = launch("flood", None);
    assert!(vm.entry.vm.wait_for_end(LONG));
    assert_eq!(vm.entry.vm.info().state, VmState::Stopped, "{:?}", vm.entry.vm.info());
    let metrics = metrics::text(&vm.registry);
    let id = "03".repeat(16);
    let line = |refusal, count| {
        format!(
            "coffer_guest_refusals_total{{vm=\"{id}\",name=\"test\",refusal=\"{refusal}\"}} {count}\n"
        )
    };
    let lines = [line("chain", 3), line("vsock-packet", 12)].concat();
    assert!(metrics.starts_with("# TYPE coffer_live_vms gauge\ncoffer_live_vms 0\n"), "{metrics}");
    assert!(metrics.ends_with(&lines), "{metrics}");
}

#[test]
fn a_polite_guest_was_refused_nothing() {
    let vm = launch("wait", None);
    assert!(vm.entry.vm.refusals().is_empty());
    assert!(!metrics::text(&vm.registry).contains("refusal="));
    assert!(vm.entry.stop(Duration::ZERO));
}

#[test]
fn ek_certificate_in_nv_is_read_by_tpm2_tools() {
    let dir = tempfile::tempdir().unwrap();
    let config = SwtpmConfig {
        restored: None,
        program: "/usr/bin/swtpm".into(),
        state: dir.path().join("vtpm"),
        walls: Walls::DangerouslyNone,
    };
    let keyed = Swtpm::spawn(&config).unwrap().initialise().unwrap().make_keys().unwrap();
    let ek = keyed.keys.ek.clone();
    let certificate = VtpmAuthority::new().unwrap().certify(&ek).unwrap();
    let record = b"record";
    let d = Digest::ZERO;
    let events = vm_launch_log("test", &d, &d, &d, &d, record).events;
    let measured = keyed.certify(&certificate).unwrap().measure(&events, record).unwrap();
    let (_vtpm, channel) = measured.seal().unwrap();
    let read = dir.path().join("nv.der");
    // The tool's transport is a program on a pipe; standard error is how the channel gets there. The size keeps
    // the tool from warning, on standard error.
    let status = Command::new("tpm2_nvread")
        .args(["-T", "cmd:cat <&2 & exec cat >&2", "-C", "0x1c0000a", "0x1c0000a", "-o"])
        .arg(&read)
        .arg("-s")
        .arg(certificate.len().to_string())
        .stderr(channel)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read(&read).unwrap(), certificate);

    let (rest, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    assert!(rest.is_empty());
    let usage = parsed.extended_key_usage().unwrap().unwrap();
    assert_eq!(usage.value.other[0].to_id_string(), "2.23.133.8.1");
    let name = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(name.critical && parsed.subject().iter().next().is_none());
    assert!(matches!(
        name.value.general_names[0],
        x509_parser::extensions::GeneralName::DirectoryName(_)
    ));
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), ek.point());
    let text = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-text", "-in"])
        .arg(&read)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("2.23.133.2.1"), "{text}");
}
