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
