//! Images in the hands of the management: changed between check and use, before a launch and under a running VM; older
//! ones; the console of one that has none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer_image::descriptor::{BlobRef, Disk};
use coffer_image::layout::Layout;
use coffer_lab::intruder::{Attempt, Outcome};
use coffer_lab::{wait, workspace};

use super::{ROOT, attempt, done};
use crate::world::{World, enter};

/// The image in the host's memory, where it can be written to.
const COPY: &str = "/run/management/watcher";
const OTHER: &str = "/run/management/other";
const STORE: &str = "/var/lib/coffer/images/watcher";
/// Ends the flipping of a byte.
const ENOUGH: &str = "/run/management/enough";
/// A word of the command line in which a byte is flipped.
pub const MARKED: &str = "management=aaaa";

fn blob(layout: &str, blob: &BlobRef) -> PathBuf {
    Path::new(layout).join("blobs/sha256").join(blob.digest.0.to_string())
}

/// What the guest said it read, line by line; all of it has to be what the image holds.
fn reads(world: &World, vm: &str) -> usize {
    let log = world.host.logs(vm).unwrap().replace('\r', "");
    let program = workspace::rootfs("tools").unwrap().join("usr/bin/tpm2");
    let expected = coffer_attestation::Digest::of(&[&std::fs::read(program).unwrap()]).to_string();
    // The last line may be cut.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines: Vec<&str> = whole.lines().filter_map(|line| line.strip_prefix("READ ")).collect();
    for line in &lines {
        assert!(line.starts_with(&expected), "`{vm}` read something else: {line}\n{log}");
    }
    lines.len()
}

#[track_caller]
fn wait_for_reads(world: &World, vm: &str, more_than: usize) {
    wait::until("a read", Duration::from_secs(30), || {
        Ok((reads(world, vm) > more_than).then_some(()))
    })
    .unwrap_or_else(|error| panic!("`{vm}`: {error}\n{}", world.host.logs(vm).unwrap()));
}

#[track_caller]
fn wait_for_end(world: &World, vm: &str) -> String {
    wait::until("the end of a VM", Duration::from_secs(40), || {
        let vm = &world.host.inspect(vm)?["vm"];
        let ended = vm["state"] == "failed" || vm["state"] == "stopped";
        Ok(ended.then(|| vm["reason"].as_str().unwrap_or("none").to_owned()))
    })
    .unwrap_or_else(|error| panic!("`{vm}`: {error}\n{}", world.host.logs(vm).unwrap()))
}

/// The folder of the image is another's, and its files change while the monitor looks at them and afterwards.
#[test]
fn an_image_changed_at_any_moment_is_what_was_measured_or_refused() {
    let world = enter();
    let layout = Layout::open(&world.scene.images.join("watcher")).unwrap();
    let descriptor = layout.descriptor();
    let Some(Disk::Integrity { blob: of_disk, .. }) = descriptor.disks.first() else {
        panic!("the image has no disk");
    };
    let (disk, good) = (blob(COPY, of_disk), blob(STORE, of_disk));
    for copy in [COPY, OTHER] {
        done(&world.host, Attempt::Copy(STORE.into(), copy.into()));
    }
    let other = blob(OTHER, of_disk);
    done(&world.host, Attempt::Overwrite(other.clone()));

    let command_line = std::fs::read(blob(
        world.scene.images.join("watcher").to_str().unwrap(),
        &descriptor.cmdline,
    ))
    .unwrap();
    launch_while_the_command_line_changes(&world, &blob(COPY, &descriptor.cmdline), &command_line);

    // Another disk in its place, of the same name and size.
    let replace = |with: &Path| Attempt::Replace { with: with.into(), to: disk.clone() };
    done(&world.host, replace(&other));
    assert_eq!(world.outcome(COPY, "swapped", &[]), "disk-integrity");
    done(&world.host, replace(&good));

    // Cut while it is read: what is gone is no zeros.
    let launch = world.host.run(COPY, "cut", &[]).unwrap();
    assert!(launch.ok, "{launch:?}");
    wait_for_reads(&world, "cut", 0);
    done(&world.host, Attempt::Truncate(disk.clone()));
    assert_eq!(wait_for_end(&world, "cut"), "disk-integrity");
    reads(&world, "cut");
    world.host.remove("cut").unwrap();

    // The first VM has the file it was given all the while, until that is rewritten too.
    let so_far = reads(&world, "raced");
    wait_for_reads(&world, "raced", so_far);
    done(&world.host, Attempt::Overwrite(disk.with_extension("old")));
    assert_eq!(wait_for_end(&world, "raced"), "disk-integrity");
    reads(&world, "raced");
    world.host.remove("raced").unwrap();
}

/// One byte is now this, now that, and the monitor looks while it is: each launch is refused, or runs what was measured.
fn launch_while_the_command_line_changes(world: &World, file: &Path, good: &[u8]) {
    let host = &world.host;
    let at = good.windows(MARKED.len()).position(|w| w == MARKED.as_bytes()).unwrap();
    let at = (at + MARKED.len() - 1) as u64;
    let flip = Attempt::Flip { file: file.into(), at, until: ENOUGH.into() };
    std::thread::scope(|scope| {
        let start = || scope.spawn(|| attempt(host, ROOT, flip.clone()));
        let mut flips = start();
        let (mut refused, mut accepted) = (0, false);
        for _ in 0..40 {
            if accepted && refused > 0 {
                break;
            }
            // It ends by itself, and the byte is good from then on.
            if flips.is_finished() {
                flips = start();
            }
            let name = if accepted { "raced-again" } else { "raced" };
            let launch = host.run(COPY, name, &[]).unwrap();
            if launch.ok {
                if accepted {
                    host.remove(name).unwrap();
                }
                accepted = true;
            } else {
                assert_eq!(launch.reason(), "cmdline-digest", "{launch:?}");
                refused += 1;
            }
        }
        host.intrude(ROOT, &[Attempt::Copy(STORE.into(), ENOUGH.into())]).unwrap();
        let Outcome::Done(flips) = flips.join().unwrap() else { panic!("no byte was flipped") };
        assert!(flips.parse::<u64>().unwrap() > 100, "{flips}");
        assert!(accepted && refused > 0, "accepted: {accepted}, refused: {refused}");
    });
    wait_for_reads(world, "raced", 0);
    let log = host.logs("raced").unwrap();
    assert!(log.contains(MARKED), "the guest has another command line:\n{log}");
    let digest = coffer_attestation::Digest::of(&[good]).to_string();
    let measured = host.inspect("raced").unwrap()["measurements"]["events"].to_string();
    assert!(measured.contains(&digest), "{measured}");
}

#[test]
fn withholds_the_key_from_an_older_version_of_the_image() {
    let world = enter();
    let older = Layout::open(&world.scene.images.join("site-older")).unwrap();
    let newer = Layout::open(&world.scene.site.layout).unwrap();
    assert!(older.descriptor().svn < newer.descriptor().svn);
    assert_eq!(older.descriptor().kernel, newer.descriptor().kernel);
    let launch = world.launch("site-older", "older", &[]);
    assert_eq!(launch.reason(), "policy-denied", "{launch:?}");
    let decision = world.scene.last_release().unwrap();
    assert_eq!(decision["code"], "policy-denied");
    assert_eq!(decision["release"]["image"], older.image_id().to_string());
    // The newer one was given it.
    assert_eq!(world.decision["release"]["image"], newer.image_id().to_string());
    assert_eq!(world.decision["allowed"], true);
}

#[test]
fn a_closed_box_without_a_console_says_nothing_to_the_management() {
    let world = enter();
    let launch = |name: &str, more: &[&str]| {
        let launch = world.host.run("silent", name, more).unwrap();
        assert!(launch.ok, "{launch:?}");
    };
    launch("heard", &["--open"]);
    wait::until("a word", Duration::from_secs(30), || {
        Ok(world.host.logs("heard")?.contains("SPEAKS").then_some(()))
    })
    .unwrap();
    world.host.remove("heard").unwrap();
    launch("silent", &[]);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(world.host.logs("silent").unwrap(), "");
    world.host.remove("silent").unwrap();
}
