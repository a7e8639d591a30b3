//! What a monitor knew outlives it, however it ended: a real one, killed at many moments (SPEC 6.4.1 to 6.4.4).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId};
use coffer_monitor::history::{History, Kept};
use coffer_monitor::state::StateDir;
use coffer_monitor_wire::api::{
    CreateVm, Measurements, Publish, Restart, RestartPolicy, VmEvent, VmInfo, VmState, VmStats,
};
use common::{Monitor, TestImage};
use serde_json::json;

/// A VM that ran when its monitor ended.
fn running(number: u8, name: &str, policy: RestartPolicy) -> Kept {
    let publish = vec![Publish { host: 20_000 + u16::from(number), guest: 443 }];
    let request = CreateVm {
        image: "test".into(),
        name: Some(name.into()),
        box_kind: BoxKind::Closed,
        vcpus: None,
        memory_mib: None,
        publish: publish.clone(),
        disks: vec![],
        volumes: vec![],
        vtpm: None,
        verify_ahead: false,
        tap: None,
        network_limit: Default::default(),
        restart: Restart { policy, max: None },
    };
    let info = VmInfo {
        id: InstanceId([number; 16]),
        name: name.into(),
        image_id: Digest::ZERO,
        image: "test".into(),
        box_kind: BoxKind::Closed,
        state: VmState::Running,
        reason: None,
        reported_by: None,
        detail: None,
        vcpus: 1,
        memory_mib: 256,
        publish,
        restarts: 4,
        last_reason: None,
        created: number.into(),
        timings: Vec::new(),
    };
    let measurements = Measurements {
        events: Vec::new(),
        launch_record: "00".into(),
        launch_digest: Digest::of(&[name.as_bytes()]),
    };
    Kept { info, request, measurements }
}

/// A folder as a monitor that had these VMs leaves it when it is killed.
fn left(vms: &[Kept]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let (history, _) = History::open(&state).unwrap();
    vms.iter().for_each(|vm| history.keep(vm).unwrap());
    TestImage::write(&dir.path().join("images/test"), BoxKind::Closed);
    dir
}

fn list(monitor: &Monitor) -> Vec<VmInfo> {
    monitor.json("GET", "/v1/vms", "")
}

#[track_caller]
fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_vm_of_before_is_listed_as_ended_its_processes_gone_its_name_and_ports_free() {
    let dir =
        left(&[running(1, "a", RestartPolicy::OnFailure), running(2, "b", RestartPolicy::No)]);
    // A process of that monitor's, as it noted it.
    let state = StateDir::open(&dir.path().join("state")).unwrap();
    let mut process = Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let folder = state.create_vm(&InstanceId([1; 16])).unwrap();
    folder.note_child(process.id()).unwrap();
    std::mem::forget(folder);
    drop(state);

    let monitor = Monitor::start_in(dir);
    wait_until("the process goes on", || process.try_wait().unwrap().is_some());
    let vms = list(&monitor);
    assert_eq!(vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    for vm in &vms {
        assert_eq!((vm.state, vm.reason.as_deref()), (VmState::Failed, Some("monitor-ended")));
    }
    // By id and by name, with what was measured, and nothing printed.
    let id = vms[0].id.to_hex();
    let measured: Measurements = monitor.json("GET", &format!("/v1/vms/{id}/measurements"), "");
    assert_eq!(measured.launch_digest, Digest::of(&[b"a"]));
    assert_eq!(monitor.call("GET", "/v1/vms/a/logs", ""), (200, Vec::new()));
    let stats: VmStats = monitor.json("GET", "/v1/vms/a/stats", "");
    assert_eq!((stats.name.as_str(), stats.cpu_us, stats.tasks), ("a", None, None));

    // What is so already is no error; what cannot be is one.
    let stop = r#"{"grace_s":10}"#;
    let stopped: VmInfo = monitor.json("POST", "/v1/vms/a/stop", stop);
    assert_eq!(stopped.state, VmState::Failed);
    for word in ["pause", "resume"] {
        let refusal = monitor.refusal("POST", &format!("/v1/vms/a/{word}"), "");
        assert_eq!(refusal, (409, "not-running".into()));
    }
    let create = json!({ "image": "test", "name": "a", "box": "closed" }).to_string();
    assert_eq!(monitor.refusal("POST", "/v1/vms", &create), (409, "name-taken".into()));
    for _ in 0..2 {
        assert_eq!(monitor.call("DELETE", "/v1/vms/a", ""), (204, Vec::new()));
    }
    // Its port was free all the time, its name is now: what refuses comes after them, for want of a VM process.
    for name in ["a", "c"] {
        let request = json!({ "image": "test", "name": name, "box": "closed",
            "publish": [{ "host": 20_001, "guest": 443 }] });
        let (status, code) = monitor.refusal("POST", "/v1/vms", &request.to_string());
        assert!(status >= 500, "{name}: {code}");
    }
    assert_eq!(list(&monitor).len(), 1);
    let monitor = monitor.killed_and_started_again();
    assert_eq!(list(&monitor).len(), 1, "what was removed stays removed");
}

#[test]
fn one_whose_policy_is_always_is_launched_again_and_events_tell() {
    let dir = left(&[running(1, "a", RestartPolicy::Always), running(2, "b", RestartPolicy::No)]);
    let monitor = Monitor::start_in(dir);
    let mut events = Events::listen(&monitor);
    let vms = list(&monitor);
    assert_eq!((vms[0].state, vms[0].restarts), (VmState::Restarting, 0));
    assert_eq!(vms[1].state, VmState::Failed);
    // No VM process runs here, so the launch fails, is told, and another is due.
    let told = events.next();
    assert_eq!((told.name.as_deref(), told.event.as_str()), (Some("a"), "restarting"));
    let after = list(&monitor);
    assert_eq!((after[0].state, after[0].restarts), (VmState::Restarting, 1));
    assert_ne!(after[0].reason.as_deref(), Some("monitor-ended"));
    assert!(told.detail.unwrap().starts_with(after[0].reason.as_deref().unwrap()));
    // Until somebody stops it.
    let stopped: VmInfo = monitor.json("POST", "/v1/vms/a/stop", r#"{"grace_s":0}"#);
    assert_eq!(stopped.state, VmState::Failed);
    assert_eq!(events.next().event, "failed");
    // A reset is one launch, whatever the policy says; what there was stays if it fails.
    for name in ["a", "b"] {
        let (status, code) =
            monitor.refusal("POST", &format!("/v1/vms/{name}/reset"), r#"{"grace_s":0}"#);
        assert!(status >= 500, "{status} {code}");
        let vm: VmInfo = monitor.json("GET", &format!("/v1/vms/{name}"), "");
        assert_eq!((vm.state, vm.reason), (VmState::Failed, Some(code)));
    }
    assert_eq!(monitor.call("DELETE", "/v1/vms/b", "").0, 204);
    assert!((0..5).any(|_| events.next().event == "removed"));
}

/// SPEC 6.4.1, by a VM that waits to be launched again: no other lives without KVM.
#[test]
fn the_same_request_finds_its_vm_and_any_other_finds_the_name_taken() {
    let (waits, ended) =
        (running(1, "a", RestartPolicy::Always), running(2, "b", RestartPolicy::No));
    let monitor = Monitor::start_in(left(&[waits.clone(), ended.clone()]));
    let create = |request: &CreateVm| {
        let (status, body) = monitor.call("POST", "/v1/vms", &json!(request).to_string());
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body[if status < 300 { "id" } else { "code" }].as_str().unwrap().to_owned())
    };
    let taken = (409, "name-taken".to_owned());
    for _ in 0..2 {
        assert_eq!(create(&waits.request), (200, waits.info.id.to_hex()));
    }
    // Each field counts, and none but the same request finds it.
    let others: [fn(&mut CreateVm); 6] = [
        |request| request.vcpus = Some(2),
        |request| request.memory_mib = Some(512),
        |request| request.publish.clear(),
        |request| request.restart.policy = RestartPolicy::OnFailure,
        |request| request.restart.max = Some(9),
        |request| request.network_limit.frames_per_s = std::num::NonZeroU32::MIN,
    ];
    for change in others {
        let mut other = waits.request.clone();
        change(&mut other);
        assert_eq!(create(&other), taken, "{other:?}");
    }
    assert_eq!(create(&ended.request), taken, "it has ended");
    // A stop is the last word; said again it changes nothing.
    for _ in 0..2 {
        let stopped: VmInfo = monitor.json("POST", "/v1/vms/a/stop", r#"{"grace_s":0}"#);
        assert_eq!((stopped.state, stopped.id), (VmState::Failed, waits.info.id));
    }
    assert_eq!(create(&waits.request), taken, "it was stopped");
    assert_eq!(list(&monitor).len(), 2);
    // Until it is removed.
    for _ in 0..2 {
        assert_eq!(monitor.call("DELETE", "/v1/vms/a", ""), (204, Vec::new()));
    }
    let (status, code) = create(&waits.request);
    assert!(status >= 500, "{status} {code}");
}

/// SPEC 6.4.2, from the policy to the launch: the image was in order once, and is found changed.
#[test]
fn what_broke_its_promise_is_not_launched_again_whatever_the_policy() {
    let always = [running(1, "a", RestartPolicy::Always)];
    let dir = left(&always);
    let image = TestImage::write(&dir.path().join("images/test"), BoxKind::Closed);
    image.flip(&image.descriptor.kernel);
    let monitor = Monitor::start_in(dir);
    let mut events = Events::listen(&monitor);
    let told = events.next();
    assert_eq!((told.name.as_deref(), told.event.as_str()), (Some("a"), "failed"), "{told:?}");
    let broken = || {
        let vm: VmInfo = monitor.json("GET", "/v1/vms/a", "");
        assert_eq!((vm.state, vm.reason.as_deref()), (VmState::Failed, Some("kernel-digest")));
        vm.restarts
    };
    let tried = broken();
    // Longer than the next wait would be.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(broken(), tried);
    // Nor by the monitor after it.
    let monitor = monitor.killed_and_started_again();
    assert_eq!(list(&monitor)[0].state, VmState::Failed);
    // The twin whose image is in order fails for want of a VM process, and is tried again.
    let monitor = Monitor::start_in(left(&always));
    let mut events = Events::listen(&monitor);
    for _ in 0..2 {
        assert_eq!(events.next().event, "restarting");
    }
}

/// Restarts of all of them are written at about the same time, a second after each start: each life ends when so many
/// of them are written, be they written fast or slowly.
#[test]
fn killed_at_any_moment_it_knows_all_of_them_again() {
    const VMS: u8 = 40;
    let name = |n| format!("vm-{n}");
    let vms: Vec<Kept> = (0..VMS).map(|n| running(n, &name(n), RestartPolicy::Always)).collect();
    let dir = left(&vms);
    let folder = dir.path().join("state/known");
    let mut monitor = Monitor::start_in(dir);
    let mut mixed = 0;
    for life in 0..=15 {
        let start = SystemTime::now();
        let deadline = Instant::now() + Duration::from_secs(60);
        while tried(&folder, start) < usize::from(VMS) * life / 15 {
            assert!(Instant::now() < deadline, "life {life}");
        }
        monitor.kill();
        mixed += usize::from((1..VMS.into()).contains(&tried(&folder, start)));
        monitor = monitor.killed_and_started_again();
        let known = list(&monitor);
        let mut names: Vec<String> = known.iter().map(|vm| vm.name.clone()).collect();
        names.sort_unstable_by_key(|name| name.trim_start_matches("vm-").parse::<u8>().unwrap());
        assert_eq!(names, (0..VMS).map(name).collect::<Vec<_>>(), "life {life}");
        assert!(known.iter().all(|vm| vm.state == VmState::Restarting));
        assert!(!fs::read_dir(&folder).unwrap().any(|file| {
            file.unwrap().path().extension().is_some_and(|extension| extension == "part")
        }));
    }
    // The first life ended before the first was written and the last after the last; of the others some, between.
    assert!(mixed > 0, "each life wrote all of them, or none");
}

/// How many files were written since `start`; each of them says that a launch was tried.
fn tried(folder: &Path, start: SystemTime) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let whole = files.filter(|path| path.extension().is_none());
    let new = whole.filter(|path| fs::metadata(path).unwrap().modified().unwrap() > start);
    new.map(|path| {
        let kept: Kept = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!((kept.info.state, kept.info.restarts), (VmState::Restarting, 1));
    })
    .count()
}

/// `GET /v1/events` as it comes.
struct Events(BufReader<UnixStream>);

impl Events {
    fn listen(monitor: &Monitor) -> Self {
        let mut stream = UnixStream::connect(monitor.dir.path().join("api.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        Self(reader)
    }

    /// The next line that is an event; those between are the sizes of chunks.
    fn next(&mut self) -> VmEvent {
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream ended");
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }
}
