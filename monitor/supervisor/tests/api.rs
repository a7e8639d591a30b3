//! The API, up to the point where KVM is needed: what is refused, with which code, and what is left behind
//! (SPEC 1.7, 6.4, 6.5).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use coffer_exchange::permit::ResealPermit;
use coffer_formats::evidence::PcrValue;
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId};
use coffer_image::descriptor::Disk;
use coffer_monitor_wire::api::{HostInfo, VmInfo};
use coffer_vault::VaultInfo;
use common::{Monitor, TestImage, serve};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::json;

fn create(image: &TestImage) -> serde_json::Value {
    json!({ "image": image.path, "box": "closed" })
}

fn setup() -> (Monitor, TestImage) {
    let monitor = Monitor::start(&[]);
    let image = TestImage::write(&monitor.images().join("test"), BoxKind::Closed);
    (monitor, image)
}

/// Every refused launch leaves no VM, no process and no state.
#[track_caller]
fn refused(monitor: &Monitor, request: &serde_json::Value, expected: (u16, &str)) {
    let (status, code) = monitor.refusal("POST", "/v1/vms", &request.to_string());
    assert_eq!((status, code.as_str()), expected);
    assert!(monitor.json::<Vec<VmInfo>>("GET", "/v1/vms", "").is_empty());
    assert_eq!(fs::read_dir(monitor.dir.path().join("state/vms")).unwrap().count(), 0);
    for thread in fs::read_dir(format!("/proc/{}/task", monitor.pid())).unwrap() {
        let children =
            fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default();
        assert_eq!(children.trim(), "");
    }
}

#[test]
fn intact_image_passes_every_check_up_to_kvm() {
    let monitor = Monitor::start_on_bare_dev();
    let image = TestImage::write(&monitor.images().join("test"), BoxKind::Closed);
    refused(&monitor, &create(&image), (503, "kvm-unusable"));
    refused(&monitor, &json!({ "image": "test", "box": "open" }), (503, "kvm-unusable"));
}

#[test]
fn names_the_part_of_the_image_that_was_changed() {
    let (monitor, image) = setup();
    for (blob, code) in [
        (&image.descriptor.cmdline, "cmdline-digest"),
        (&image.descriptor.initrd, "initrd-digest"),
        (&image.descriptor.kernel, "kernel-digest"),
    ] {
        image.flip(blob);
        refused(&monitor, &create(&image), (422, code));
        // As an open box just as well.
        refused(&monitor, &json!({ "image": image.path, "box": "open" }), (422, code));
        image.flip(blob);
    }
}

#[test]
fn names_the_part_of_the_image_that_is_missing_or_short() {
    let (monitor, image) = setup();
    let initrd = image.blob(&image.descriptor.initrd);
    let whole = fs::read(&initrd).unwrap();
    fs::write(&initrd, &whole[..100]).unwrap();
    refused(&monitor, &create(&image), (422, "initrd-digest"));
    fs::remove_file(&initrd).unwrap();
    refused(&monitor, &create(&image), (422, "blob-missing"));
}

#[test]
fn refuses_an_image_that_is_none() {
    let (monitor, image) = setup();
    refused(&monitor, &json!({ "image": "absent", "box": "closed" }), (404, "image-not-found"));
    refused(
        &monitor,
        &json!({ "image": "../images/test", "box": "closed" }),
        (404, "image-not-found"),
    );
    refused(&monitor, &json!({ "image": "/absent", "box": "closed" }), (404, "image-not-found"));
    fs::write(image.path.join("oci-layout"), "{}").unwrap();
    refused(&monitor, &create(&image), (422, "bad-descriptor"));
}

#[test]
fn refuses_a_shape_the_image_does_not_allow() {
    let (monitor, image) = setup();
    for (field, value) in [("vcpus", 5), ("memory_mib", 128), ("memory_mib", 1_000_000)] {
        let mut request = create(&image);
        request[field] = value.into();
        refused(&monitor, &request, (422, "shape-not-allowed"));
    }
}

#[test]
fn refuses_an_open_image_as_a_closed_box() {
    let (monitor, _) = setup();
    let open = TestImage::write(&monitor.images().join("open"), BoxKind::Open);
    refused(&monitor, &create(&open), (422, "shape-not-allowed"));
}

#[test]
fn refuses_raw_disks_of_closed_boxes_and_those_that_cannot_be() {
    let (monitor, image) = setup();
    let disks = monitor.dir.path().join("disks");
    fs::create_dir(&disks).unwrap();
    fs::write(disks.join("a.raw"), [0; 4096]).unwrap();
    let disk = |name: &str, path: &str| json!({ "name": name, "path": path });
    let request = |kind: &str, image: &TestImage, list: &[serde_json::Value]| json!({ "image": image.path, "box": kind, "disks": list });
    let a = disk("data", "a.raw");
    refused(&monitor, &request("closed", &image, std::slice::from_ref(&a)), (403, "closed-box"));
    for (list, expected) in [
        (vec![disk("data", "absent.raw")], (422, "disk-unusable")),
        (vec![disk("data", "/etc/passwd")], (422, "disk-unusable")),
        (vec![a.clone(), disk("more", "a.raw")], (409, "disk-in-use")),
        (vec![disk("root", "a.raw")], (400, "bad-request")),
        (vec![disk("Data", "a.raw")], (400, "bad-request")),
    ] {
        refused(&monitor, &request("open", &image, &list), expected);
    }
    // An image that leaves its root to be given, without one and with one.
    let bare = TestImage::write_with(&monitor.images().join("bare"), BoxKind::Open, |descriptor| {
        descriptor.disks = vec![Disk::Raw { name: "root".into() }];
    });
    refused(&monitor, &request("open", &bare, &[]), (400, "bad-request"));
    refused(&monitor, &request("open", &bare, std::slice::from_ref(&a)), (400, "bad-request"));
}

#[test]
fn a_raw_disk_passes_every_check_up_to_kvm() {
    let monitor = Monitor::start_on_bare_dev();
    let image = TestImage::write(&monitor.images().join("test"), BoxKind::Closed);
    let bare = TestImage::write_with(&monitor.images().join("bare"), BoxKind::Open, |descriptor| {
        descriptor.disks = vec![Disk::Raw { name: "root".into() }];
    });
    let disks = monitor.dir.path().join("disks");
    fs::create_dir(&disks).unwrap();
    fs::write(disks.join("a.raw"), [0; 4096]).unwrap();
    for (image, name) in [(&image, "data"), (&bare, "root")] {
        let list = [json!({ "name": name, "path": "a.raw" })];
        let request = json!({ "image": image.path, "box": "open", "disks": list });
        // Twice: the lock is gone with the launch.
        refused(&monitor, &request, (503, "kvm-unusable"));
        refused(&monitor, &request, (503, "kvm-unusable"));
    }
}

#[test]
fn refuses_a_port_in_use_and_ports_that_make_no_sense() {
    let (monitor, image) = setup();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut request = create(&image);
    request["publish"] = json!([{ "host": port, "guest": 443 }]);
    refused(&monitor, &request, (409, "port-in-use"));
    for publish in [
        json!([{ "host": 0, "guest": 1 }]),
        json!([{ "host": 9, "guest": 1 }, { "host": 9, "guest": 2 }]),
    ] {
        request["publish"] = publish;
        refused(&monitor, &request, (400, "bad-request"));
    }
}

#[test]
fn refuses_requests_that_do_not_parse() {
    let (monitor, _) = setup();
    for (method, path, body, expected) in [
        ("POST", "/v1/vms", "{", (400, "bad-request")),
        (
            "POST",
            "/v1/vms",
            r#"{"image":"test","box":"closed","debug":true}"#,
            (400, "bad-request"),
        ),
        (
            "POST",
            "/v1/vms",
            r#"{"image":"test","box":"closed","name":"A b"}"#,
            (400, "bad-request"),
        ),
        ("GET", "/v1/vms/absent", "", (404, "not-found")),
        ("GET", "/v1/vms/absent/logs?follow=maybe", "", (400, "bad-request")),
        ("POST", "/v1/vms/absent/console", "ls", (404, "not-found")),
        (
            "POST",
            "/v1/vms",
            r#"{"image":"test","box":"open","disks":[{"name":"a","path":"b","size":1}]}"#,
            (400, "bad-request"),
        ),
        ("POST", "/v1/vms/absent/pause", "", (404, "not-found")),
        ("POST", "/v1/vms/absent/reset", r#"{"grace_s":0}"#, (404, "not-found")),
        ("GET", "/v1/vms/absent/stats", "", (404, "not-found")),
        (
            "POST",
            "/v1/vms",
            r#"{"image":"test","box":"closed","restart":{"policy":"sometimes"}}"#,
            (400, "bad-request"),
        ),
        ("GET", "/v2", "", (404, "not-found")),
        ("PUT", "/v1/vms", "", (405, "bad-request")),
        ("GET", "/v1/host/identity", "", (503, "host-tpm-failed")),
        ("GET", "/v1/vault", "", (503, "no-vault")),
        ("POST", "/v1/vault/reseal", "", (503, "no-vault")),
        ("POST", "/v1/vault/join", "", (503, "no-vault")),
        ("DELETE", "/v1/volumes/a", "", (503, "no-vault")),
        ("POST", "/v1/volumes", "{", (400, "bad-request")),
        ("POST", "/v1/volumes/a/backup", "", (503, "no-vault")),
        ("POST", "/v1/volumes/a/restore", "", (503, "no-vault")),
        ("POST", "/v1/host/power-off", "", (400, "bad-request")),
    ] {
        let (status, code) = monitor.refusal(method, path, body);
        assert_eq!((status, code.as_str()), expected, "{method} {path} {body}");
    }
}

#[test]
fn volumes_are_made_shown_tended_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let vault = dir.path().join("vault");
    let flags = ["--vault", vault.to_str().unwrap(), "--dangerously-software-vault"];
    let monitor = Monitor::start(&flags);
    let json = |method: &str, path: &str, body: &str| {
        let (status, body) = monitor.call(method, path, body);
        (status, serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default())
    };
    assert_eq!(json("GET", "/v1/volumes", ""), (200, json!([])));
    let asked = json!({ "name": "a", "kind": "encrypted", "bytes": 1 << 20, "owner": "open" });
    let (status, made) = json("POST", "/v1/volumes", &asked.to_string());
    assert_eq!((status, &made["name"], &made["bytes"]), (201, &json!("a"), &json!(1 << 20)));
    assert_eq!(json("GET", "/v1/volumes/a", ""), (200, made.clone()));
    assert_eq!(json("GET", "/v1/volumes", ""), (200, json!([made])));
    let (status, grown) = json("POST", "/v1/volumes/a/grow", r#"{"bytes":2097152}"#);
    assert_eq!((status, &grown["bytes"]), (200, &json!(2 << 20)));
    assert_eq!(json("POST", "/v1/volumes/a/rekey", ""), (200, grown));
    let (status, report) = json("POST", "/v1/volumes/a/check", "");
    assert_eq!((status, &report["damaged"]), (200, &json!(0)));
    assert_eq!(json("POST", "/v1/volumes/a/repair", ""), (200, report));
    let (status, vault) = json("GET", "/v1/vault", "");
    assert_eq!((status, vault["id"].as_str().map(str::len)), (200, Some(32)));
    for (method, path, body, expected) in [
        ("POST", "/v1/volumes", "{", (400, "bad-request")),
        ("POST", "/v1/volumes", asked.to_string().as_str(), (409, "volume-exists")),
        ("GET", "/v1/volumes/b", "", (404, "no-such-volume")),
        ("POST", "/v1/volumes/a/grow", "{}", (400, "bad-request")),
        ("POST", "/v1/volumes/a/backup", "", (403, "no-permit")),
        ("POST", "/v1/volumes/b/restore", "", (422, "backup-corrupt")),
        ("POST", "/v1/volumes/a/other", "", (404, "not-found")),
        ("GET", "/v1/volumes/a/check", "", (405, "bad-request")),
    ] {
        let (status, code) = monitor.refusal(method, path, body);
        assert_eq!((status, code.as_str()), expected, "{method} {path}");
    }
    // One that is not there need not be removed.
    for name in ["a", "a"] {
        assert_eq!(monitor.call("DELETE", &format!("/v1/volumes/{name}"), ""), (204, vec![]));
    }
    assert_eq!(json("GET", "/v1/volumes", ""), (200, json!([])));
}

/// Without a TPM there is nothing to reseal, which is said once the leave is in order, and not before.
#[test]
fn leave_to_reseal_is_taken_of_the_configured_verifier_alone() {
    let key = |n: u8| SigningKey::from_slice(&[n; 32]).unwrap();
    let point = hex::encode(key(1).verifying_key().to_sec1_point(false));
    let dir = tempfile::tempdir().unwrap();
    let vault = dir.path().join("vault");
    let flags = ["--vault", vault.to_str().unwrap(), "--dangerously-software-vault"];
    let path = "/v1/vault/reseal";
    let monitor = Monitor::start(&flags);
    let id = monitor.json::<VaultInfo>("GET", "/v1/vault", "").id;
    let signed_by = |n: u8, vault: &str| {
        let permit = ResealPermit {
            version: 1,
            vault: InstanceId::from_hex(vault).unwrap(),
            from: Digest::ZERO,
            to: vec![PcrValue { index: 7, digest: Digest::ZERO }],
            serial: InstanceId([1; 16]),
            expiry: u64::MAX,
        };
        permit.signed(|bytes| Signer::<Signature>::sign(&key(n), bytes).to_bytes().to_vec())
    };
    assert_eq!(monitor.refusal_of("POST", path, &signed_by(1, &id)), (403, "no-verifier".into()));
    assert!(monitor.end());
    let monitor = Monitor::start(&[&flags[..], &["--vault-verifier", &point]].concat());
    let info = monitor.json::<VaultInfo>("GET", "/v1/vault", "");
    assert_eq!((&info.id, info.verifier_key), (&id, Some(point)));
    for (body, expected) in [
        (vec![], (403, "bad-permit")),
        (signed_by(2, &id), (403, "bad-permit")),
        (signed_by(1, &"00".repeat(16)), (403, "bad-permit")),
        (signed_by(1, &id), (422, "vault-no-tpm")),
    ] {
        let (status, code) = monitor.refusal_of("POST", path, &body);
        assert_eq!((status, code.as_str()), expected);
    }
    let (status, _) = monitor.send("POST", path, &[0; (64 << 10) + 1]);
    assert_eq!(status, 413);
    let bad = serve(dir.path(), &[&flags[..], &["--vault-verifier", "04"]].concat()).output();
    assert_eq!(bad.unwrap().status.code(), Some(2));
}

#[test]
fn tells_what_the_host_is() {
    let monitor = Monitor::start(&[]);
    let info: HostInfo = monitor.json("GET", "/v1/host", "");
    assert_eq!((info.profile.as_str(), info.hak_name, info.live_vms), ("developer", None, 0));
    assert!(info.swtpm_version.contains("TPM emulator"));
}

#[test]
fn socket_is_its_owners_alone_and_gone_at_the_end() {
    let monitor = Monitor::start(&[]);
    let socket = monitor.dir.path().join("api.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o700 & 0o777);
    let dir = monitor.dir.path().to_owned();
    // Two on one state directory, two on one socket.
    let second = serve(&dir, &[]).output().unwrap();
    assert!(!second.status.success());
    let mut other_state = serve(&dir, &[]);
    other_state.arg("--state").arg(dir.join("other"));
    assert!(!other_state.output().unwrap().status.success());
    assert!(socket.exists());
    assert!(monitor.end());
    assert!(!socket.exists());
}

#[test]
fn a_tpm_that_is_not_there_is_said_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let output = serve(dir.path(), &["--tcti", "device:/dev/absent"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "coffer-monitor: --tcti: there is no `/dev/absent`\n\
         hint: name the TPM's device, or leave --tcti out if the host has none\n"
    );
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["images"]);
}

/// A device that is there and no TPM: found out after the state directory was taken.
#[test]
fn a_device_that_is_no_tpm_is_refused_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let output = serve(dir.path(), &["--tcti", "device:/dev/null"])
        // The TPM library's own log.
        .env("TSS2_LOG", "all+NONE")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let [error, hint] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(error.starts_with("coffer-monitor: ") && error.contains("host TPM"), "{said}");
    assert!(hint.starts_with("hint: "), "{said}");
    assert!(!dir.path().join("api.sock").exists());
    assert_eq!(fs::read_dir(dir.path().join("state/vms")).unwrap().count(), 0);
}

#[test]
fn takes_over_a_stale_socket_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    fs::write(&socket, "precious").unwrap();
    assert!(!serve(dir.path(), &[]).output().unwrap().status.success());
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut child = serve(dir.path(), &[]).spawn().unwrap();
    let up = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(up);
}
