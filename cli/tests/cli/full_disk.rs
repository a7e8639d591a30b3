//! No space left: on standard output (`/dev/full`) and on a small file system of the test's own.

use std::process::{Command, Stdio};

use crate::support::{Place, Refusal};

#[test]
fn standard_output_that_is_full_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["doctor", "--json"])
        .stdout(Stdio::from(full))
        .stderr(Stdio::piped())
        .output()
        .expect("coffer starts");
    Refusal::of(&output).says(
        1,
        "cannot write to standard output: no space left",
        "free some space",
    );
}

#[test]
fn a_reader_that_goes_away_is_none() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["verifier", "serve", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("coffer starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Runs a command in a mount namespace where `full` is a tmpfs with that many KiB, then lists what is in it.
fn on_small_disk(place: &Place, kib: u32, args: &str) -> (Refusal, String) {
    on_small_disk_after(place, kib, "", args)
}

/// The same, after some commands.
fn on_small_disk_after(place: &Place, kib: u32, before: &str, args: &str) -> (Refusal, String) {
    std::fs::create_dir_all(place.path("full")).expect("create");
    let script = format!(
        "mount -t tmpfs -o size={kib}k tmpfs full && {{ {before}{} {args}; code=$?; ls -A full; exit $code; }}",
        env!("CARGO_BIN_EXE_coffer"),
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .current_dir(place.path("."))
        .env("TMPDIR", place.path("full"))
        .output()
        .expect("unshare(1) of util-linux");
    (Refusal::of(&output), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn verifier_init_leaves_nothing_on_a_full_disk() {
    let place = Place::new();
    let (refusal, left) = on_small_disk(&place, 8, "verifier init --dir full/v --name localhost");
    refusal.says(1, "full/", "");
    assert!(
        refusal.error.to_lowercase().contains("no space left") || refusal.hint.contains("room"),
        "{refusal:?}"
    );
    assert_eq!(left, "");
}

#[test]
fn image_build_leaves_nothing_on_a_full_disk() {
    let place = crate::image::inputs();
    let args = crate::image::build_args().join(" ").replace("out.image", "full/out.image");
    let (refusal, left) = on_small_disk(&place, 512, &args);
    refusal.says(1, "", "the disk is full");
    assert_eq!(left, "");
}

#[test]
fn host_reference_leaves_the_old_file_on_a_full_disk() {
    let place = crate::host::reference_inputs();
    // One page holds the old file; the new one finds none.
    let fill = "sh -c 'echo old > full/ref.json; head -c 1M /dev/zero > full/filler' 2>/dev/null; ";
    let args = [crate::host::REFERENCE_ARGS, &["-o", "full/ref.json"]].concat().join(" ");
    let (refusal, left) = on_small_disk_after(
        &place,
        16,
        fill,
        &format!("{args}; r=$?; cat full/ref.json; (exit $r)"),
    );
    refusal.says(1, "`full/ref.json`: no space left", "free some space");
    assert_eq!(left, "old\nfiller\nref.json\n");
}

/// A verifier that serves from a disk which is then filled, and freed again. The requests after that are as many as
/// it has connections to its database, so that each which met the full disk would be met.
const SERVE_AND_FILL: &str = r#"
mount -t tmpfs -o size=1m tmpfs full && "$0" verifier init --dir full/v --name localhost >/dev/null || exit 99
mkfifo address; "$0" verifier serve --dir full/v --listen 127.0.0.1:0 >address 2>/dev/null & serving=$!
read -r address <address
export COFFER_VERIFIER=https://localhost:${address##*:} COFFER_CA=full/v/ca.pem
export COFFER_ADMIN_TOKEN_FILE=full/v/admin-token
put() { "$0" secret put a/b --from-file key --image "$1"; }
put "$1"; head -c 2M /dev/zero >full/filler 2>/dev/null
put "$1"; code=$?; for again in 2 3 4; do put "$1" 2>/dev/null; done
rm full/filler; for again in 1 2 3 4; do put "$1" || exit 98; done
"$0" verifier decisions --json
kill $serving; wait $serving; exit $code"#;

#[test]
fn a_verifier_whose_disk_is_full_keeps_the_old_secret_and_its_log() {
    let place = Place::new();
    std::fs::create_dir(place.path("full")).expect("create");
    // Several pages, so that room left in the last page of a file does not take it.
    place.write("key", vec![b'k'; 20 << 10]);
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "bash", "-c", SERVE_AND_FILL])
        .args([env!("CARGO_BIN_EXE_coffer"), &"ab".repeat(32)])
        .current_dir(place.path("."))
        .output()
        .expect("unshare(1) of util-linux");
    Refusal::of(&output).says(1, "(log-unavailable)", "free space on the verifier");
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    let (versions, decisions) = out.split_once('{').expect("decisions");
    let kept: Vec<_> = (1..=5).map(|n| format!("a/b version {n}\n")).collect();
    assert_eq!(versions, kept.concat());
    assert_eq!(decisions.matches("new version of secret").count(), 5, "{decisions}");
}
