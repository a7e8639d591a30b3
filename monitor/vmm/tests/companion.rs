//! What a program that serves one VM can still do once it was taken over (SPEC 6.3.1): each attempt succeeds in the
//! open and fails behind the walls. Needs root, as the monitor does.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// Runs a shell script in the open, or behind the walls with `state` as its folder.
fn done(script: &str, behind: Option<&Path>) -> bool {
    let mut command = match behind {
        Some(state) => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_coffer-vmm"));
            command.args(["confine", "1879048192"]).arg(state).arg("/usr/bin/bash");
            command
        }
        None => Command::new("/usr/bin/bash"),
    };
    let output = command.arg("-c").arg(script).env_clear().current_dir("/").output().unwrap();
    // Whatever fails has to fail in the script, and not because the walls could not be put up.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("coffer-vmm"), "{said}");
    output.status.success()
}

#[test]
fn each_attempt_succeeds_in_the_open_and_fails_behind_the_walls() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    std::fs::create_dir(&own).unwrap();
    std::fs::create_dir(&other).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let attempts = [
        ("read a file of the host's", "/usr/bin/head -c 1 /etc/passwd".to_owned()),
        ("write into the system", "[ -w /usr ]".to_owned()),
        (
            "write where everybody may",
            ": > /tmp/coffer-companion && /usr/bin/rm /tmp/coffer-companion".to_owned(),
        ),
        ("find another VM's state", format!("[ -e {} ]", other.display())),
        ("see processes", "[ -e /proc/self ]".to_owned()),
        ("signal another process", format!("kill -0 {}", std::process::id())),
        ("reach an address", format!("exec 3<>/dev/tcp/127.0.0.1/{port}")),
        ("have a device", ": < /dev/zero".to_owned()),
        ("be root", "[ $EUID = 0 ]".to_owned()),
        ("dump a core", "[ $(ulimit -Hc) != 0 ]".to_owned()),
    ];
    for (what, script) in &attempts {
        assert!(done(script, None), "{what}: fails in the open");
        assert!(!done(script, Some(&own)), "{what}: succeeds behind the walls");
    }
}

/// Behind the walls no core is written, and none is piped: to a program that takes cores a kernel gives none at a limit of
/// one byte, and gives one at 0 (`fs/coredump.c`).
#[test]
fn cores_are_limited_to_one_byte() {
    let folder = tempfile::tempdir().unwrap();
    let limit = |mut command: Command| {
        let mut child = command.arg("20").spawn().unwrap();
        let limits = format!("/proc/{}/limits", child.id());
        let line = (0..500).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let program = std::fs::read_link(format!("/proc/{}/exe", child.id())).ok()?;
            let limits = std::fs::read_to_string(&limits).ok()?;
            let line = limits.lines().find(|line| line.starts_with("Max core"))?.to_owned();
            program.ends_with("sleep").then_some(line)
        });
        let _ = child.kill();
        let _ = child.wait();
        line.unwrap().split_whitespace().skip(4).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut behind = Command::new(env!("CARGO_BIN_EXE_coffer-vmm"));
    behind.args(["confine", "1879048192"]).arg(folder.path()).arg("/usr/bin/sleep");
    assert_eq!(limit(behind)[..2], ["1", "1"]);
    assert_ne!(limit(Command::new("/usr/bin/sleep"))[1], "1");
}

#[test]
fn its_work_it_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    assert!(done(
        "echo seed > /state/a && /usr/bin/mv /state/a /state/b && [ $EUID = 1879048192 ]",
        Some(&own)
    ));
    assert_eq!(std::fs::read_to_string(own.join("b")).unwrap(), "seed\n");
    // It is the system's swtpm that runs there, with all it needs.
    assert!(done("/usr/bin/swtpm --version", Some(&own)));
}

#[test]
fn refuses_what_is_no_uid_of_a_vm() {
    let folder = tempfile::tempdir().unwrap();
    for uid in ["0", "1000", "2147418112", "x"] {
        let output = Command::new(env!("CARGO_BIN_EXE_coffer-vmm"))
            .args(["confine", uid])
            .arg(folder.path())
            .args(["/usr/bin/bash", "-c", "echo here"])
            .output()
            .unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{uid}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("UID is none for a VM"));
    }
}
