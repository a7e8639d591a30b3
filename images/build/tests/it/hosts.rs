//! Host initrds hold programs that can run, and are the same every time.

use std::fs;
use std::process::Command;

use coffer_image_build::{ArchiveError, BuildError, HostError, HostInitrd, ModuleTree};

use crate::fixture::make_modules;

fn host(tree: &ModuleTree) -> HostInitrd<'_> {
    HostInitrd::new()
        .binary("/bin/cp", "bin/cp")
        .library("libresolv.so.2")
        .data("hello", "etc/greeting", 0o600)
        .symlink("bin/cp", "init")
        .directory("var/empty", 0o700)
        .kernel_modules(tree)
        .module("virtio_net")
        .module("erofs")
}

#[test]
fn is_the_same_every_time_and_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_modules(&path("modules"));
    let tree = ModuleTree::open(&path("modules")).unwrap();
    let sealed = host(&tree).write(&path("one")).unwrap();
    assert_eq!(host(&tree).write(&path("two")).unwrap().archive, sealed.archive);
    assert_eq!(sealed.modules.first().map(String::as_str), Some("virtio_ring.ko"));

    fs::create_dir(path("root")).unwrap();
    let unpacked = Command::new("cpio")
        .args(["-id", "--quiet"])
        .current_dir(path("root"))
        .stdin(fs::File::open(path("one")).unwrap())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let list = fs::read_to_string(path("root/coffer/modules.list")).unwrap();
    assert_eq!(list.lines().collect::<Vec<_>>(), sealed.modules);
    assert_eq!(fs::read_link(path("root/init")).unwrap().to_str(), Some("bin/cp"));
    // The program runs with nothing but the unpacked libraries.
    let loader = path("root/lib64/ld-linux-x86-64.so.2");
    let libraries = path("root/lib/x86_64-linux-gnu");
    assert!(libraries.join("libresolv.so.2").exists());
    let ran = Command::new(loader)
        .args(["--inhibit-cache", "--library-path"])
        .arg(&libraries)
        .arg(path("root/bin/cp"))
        .args([path("root/etc/greeting"), path("copied")])
        .status()
        .unwrap();
    assert!(ran.success());
    assert_eq!(fs::read_to_string(path("copied")).unwrap(), "hello");
}

#[test]
fn what_is_missing_is_named_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let error = HostInitrd::new().binary("/nowhere", "x").write(&out).unwrap_err();
    assert!(
        matches!(error, HostError::Build(BuildError::Input { what: "program", .. })),
        "{error}"
    );
    let error = HostInitrd::new().library("libnothing.so.0").write(&out).unwrap_err();
    assert!(matches!(error, HostError::NoSuchLibrary(_)), "{error}");
    let error = HostInitrd::new().module("kvm").write(&out).unwrap_err();
    assert!(matches!(error, HostError::NoKernel), "{error}");
    let error = HostInitrd::new().file("/nowhere", "x", 0o644).write(&out).unwrap_err();
    assert!(matches!(error, HostError::Archive(ArchiveError::Read { .. })), "{error}");
    assert!(!out.exists());
}

#[test]
fn two_things_under_one_path_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let twice = HostInitrd::new().data("a", "x", 0o644).data("b", "x", 0o644);
    assert!(matches!(twice.write(&out), Err(HostError::Archive(ArchiveError::Twice(_)))));
    let below = HostInitrd::new().data("a", "x", 0o644).data("b", "x/y", 0o644);
    assert!(matches!(below.write(&out), Err(HostError::Archive(ArchiveError::Twice(_)))));
    for path in ["", "/", "a//b", "a/../b", "./a"] {
        let odd = HostInitrd::new().data("a", path, 0o644);
        assert!(
            matches!(odd.write(&out), Err(HostError::Archive(ArchiveError::Path(_)))),
            "{path:?}"
        );
    }
    fs::write(&out, "kept").unwrap();
    assert!(HostInitrd::new().write(&out).is_err());
    assert_eq!(fs::read_to_string(&out).unwrap(), "kept");
}
