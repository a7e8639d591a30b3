//! The same inputs give the same image; a failed build changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use coffer_image::layout::Layout;
use coffer_image_build::{
    BuildError, BuildPlan, KernelSource, Recipe, Step, build, inspect, verify,
};
use serde_json::json;

use crate::fixture::{Fixture, VMLINUZ, recipe, recipe_json, run, vmlinux};

#[test]
fn building_twice_gives_the_same_files() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.build("one"), fixture.build("two"));
    assert_eq!(one.image_id, two.image_id);
    let same = Command::new("diff").arg("-r").args([&one.path, &two.path]).status().unwrap();
    assert!(same.success());
    assert_eq!(fixture.left(), ["one", "two"]);
}

#[test]
fn another_machine_gives_the_same_image() {
    // Other paths, times, inode numbers and directory order.
    let (here, there) = (Fixture::new(), Fixture::new());
    let touched = Command::new("touch")
        .args(["-d", "2001-02-03"])
        .arg(there.path("root/etc/config"))
        .status()
        .unwrap();
    assert!(touched.success());
    assert_eq!(here.build("image").image_id, there.build("image").image_id);
}

#[test]
fn a_tar_gives_the_same_image_as_the_folder() {
    let fixture = Fixture::new();
    let plan = BuildPlan { rootfs: fixture.tar(), ..fixture.plan("from-tar") };
    assert_eq!(run(&plan).unwrap().image_id, fixture.build("from-folder").image_id);
    assert_eq!(fixture.left(), ["from-folder", "from-tar"]);
}

#[test]
fn the_mode_of_the_root_directory_does_not_matter() {
    let fixture = Fixture::new();
    let one = fixture.build("one");
    fs::set_permissions(fixture.path("root"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(fixture.build("two").image_id, one.image_id);
}

#[test]
fn device_nodes_and_fifos_are_left_out() {
    let fixture = Fixture::new();
    let one = fixture.build("one");
    for path in ["root/dev/pipe", "root/etc/pipe with space"] {
        assert!(Command::new("mkfifo").arg(fixture.path(path)).status().unwrap().success());
    }
    assert_eq!(fixture.build("two").image_id, one.image_id);
    let plan = BuildPlan { rootfs: fixture.tar(), ..fixture.plan("three") };
    assert_eq!(run(&plan).unwrap().image_id, one.image_id);
}

#[test]
fn every_input_changes_the_image_id() {
    let fixture = Fixture::new();
    let first = fixture.build("first").image_id;
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = recipe_json();
        change(&mut json);
        let recipe = Recipe::parse(json.to_string().as_bytes()).unwrap();
        run(&BuildPlan { recipe, force: true, ..fixture.plan("other") }).unwrap().image_id
    };
    assert_eq!(changed(&|_| ()), first);
    assert_ne!(changed(&|recipe| recipe["svn"] = json!(2)), first);
    assert_ne!(changed(&|recipe| recipe["workload"]["argv"][1] = json!("--other")), first);
    assert_ne!(changed(&|recipe| recipe["cmdline"] = json!(["a=b"])), first);
    fs::write(fixture.path("root/etc/config"), "key = other\n").unwrap();
    assert_ne!(changed(&|_| ()), first);
}

#[test]
fn a_kernel_is_kept_unpacked() {
    let fixture = Fixture::new();
    let kernel_of = |recipe: serde_json::Value, name: &str| {
        let recipe = Recipe::parse(recipe.to_string().as_bytes()).unwrap();
        let image = run(&BuildPlan { recipe, ..fixture.plan(name) }).unwrap();
        let kernel = Layout::open(&image.path).unwrap().descriptor().kernel.digest.0;
        verify(&image.path).unwrap();
        fs::read(image.path.join(format!("blobs/sha256/{kernel}"))).unwrap()
    };
    let unpacked = kernel_of(recipe_json(), "unpacked");
    assert!(unpacked.starts_with(b"\x7FELF") && unpacked.ends_with(&vmlinux()[20_000..]));
    let packed = fs::read(fixture.path(VMLINUZ)).unwrap();
    let spoilt = fixture.path("spoilt");
    fs::write(&spoilt, &packed[..packed.len() - 4]).unwrap();
    let modules = fixture.path("kernel/lib/modules/6.1.0-test");
    let kernel = KernelSource::Files { vmlinuz: spoilt, modules };
    let error = fails(&fixture, BuildPlan { kernel, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::Packed(_)), "{error}");
}

#[test]
fn veritysetup_accepts_the_disk_and_fsck_the_file_system() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    let disk = image.descriptor.disks[0].blob().unwrap();
    let blob = image.path.join(format!("blobs/sha256/{}", disk.digest.0));
    let coffer_image::descriptor::Disk::Integrity { data_size, .. } = &image.descriptor.disks[0]
    else {
        panic!("no sealed root")
    };
    let verified = Command::new("/usr/sbin/veritysetup")
        .arg("verify")
        .args([&blob, &blob])
        .args([image.root_hash.unwrap().to_hex(), format!("--hash-offset={data_size}")])
        .status()
        .unwrap();
    assert!(verified.success());
    assert!(Command::new("fsck.erofs").arg(&blob).status().unwrap().success());
}

#[test]
fn the_initrd_is_one_that_cpio_reads() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    let blob = image.path.join(format!("blobs/sha256/{}", image.descriptor.initrd.digest.0));
    let listing = Command::new("cpio")
        .args(["-t", "--quiet"])
        .stdin(fs::File::open(blob).unwrap())
        .output()
        .unwrap();
    let names = String::from_utf8(listing.stdout).unwrap();
    let names: Vec<&str> = names.lines().collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    for name in [
        "init",
        "coffer/appliance.json",
        "coffer/modules/erofs.ko",
        "dev",
        "proc",
        "sys",
        "run",
        "root",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

#[test]
fn modules_are_listed_in_load_order() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    let modules = inspect(&image.path).unwrap().appliance.unwrap().modules;
    let expected = [
        "virtio_ring.ko",
        "virtio.ko",
        "virtio_mmio.ko",
        "vsock.ko",
        "vmw_vsock_virtio_transport_common.ko",
        "vmw_vsock_virtio_transport.ko",
        "virtio_blk.ko",
        "libcrc32c.ko",
        "erofs.ko",
        "failover.ko",
        "net_failover.ko",
        "virtio_net.ko",
    ];
    assert_eq!(modules, expected);
}

#[test]
fn a_layout_opens_with_all_its_files() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    let layout = Layout::open(&image.path).unwrap();
    assert_eq!(layout.image_id(), image.image_id);
    let files = layout.open_files().unwrap();
    let cmdline = String::from_utf8(files.cmdline.read_all().unwrap()).unwrap();
    assert!(cmdline.starts_with("console=ttyS0 "), "{cmdline}");
    assert_eq!(files.disks.len(), 1);
}

/// Runs a build that must fail, and checks that it left nothing behind and the old image as it was.
#[track_caller]
fn fails(fixture: &Fixture, plan: BuildPlan) -> BuildError {
    let before = fixture.left();
    let error = run(&plan).unwrap_err();
    assert!(!error.hint().is_empty());
    assert_eq!(fixture.left(), before, "{error}");
    error
}

#[test]
fn an_existing_output_is_refused_and_kept() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    assert!(matches!(fails(&fixture, fixture.plan("image")), BuildError::Exists(_)));
    verify(&image.path).unwrap();
}

#[test]
fn an_output_inside_the_root_file_system_is_refused() {
    let fixture = Fixture::new();
    let inside = BuildPlan { output: fixture.path("root/etc/image"), ..fixture.plan("image") };
    assert!(matches!(fails(&fixture, inside), BuildError::Inside { .. }));
    let beside = BuildPlan { output: fixture.path("root.image"), ..fixture.plan("image") };
    assert_eq!(run(&beside).unwrap().image_id, fixture.build("image").image_id);
}

#[test]
fn a_failed_forced_build_keeps_the_old_image() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    fs::remove_dir(fixture.path("root/proc")).unwrap();
    let error = fails(&fixture, BuildPlan { force: true, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::NoMountPoint(path) if path == "/proc"));
    assert_eq!(verify(&image.path).unwrap().image_id, image.image_id);
}

#[test]
fn force_replaces_an_image_and_nothing_else() {
    let fixture = Fixture::new();
    let old = fixture.build("image");
    fs::write(fixture.path("root/etc/config"), "new").unwrap();
    let forced = BuildPlan { force: true, ..fixture.plan("image") };
    let new = run(&forced).unwrap();
    assert_ne!(new.image_id, old.image_id);
    assert_eq!(verify(&new.path).unwrap().image_id, new.image_id);
    assert_eq!(fixture.left(), ["image"]);

    fs::create_dir(fixture.path("out/precious")).unwrap();
    fs::write(fixture.path("out/precious/file"), "data").unwrap();
    fs::write(fixture.path("out/plain"), "data").unwrap();
    for name in ["precious", "plain"] {
        let error = fails(&fixture, BuildPlan { force: true, ..fixture.plan(name) });
        assert!(matches!(error, BuildError::NotAnImage(_)), "{error}");
    }
    assert_eq!(fs::read_to_string(fixture.path("out/precious/file")).unwrap(), "data");
}

#[test]
fn a_build_stops_when_it_is_cancelled() {
    let fixture = Fixture::new();
    let flag = Arc::new(AtomicBool::new(false));
    let plan = BuildPlan { cancelled: Some(flag.clone()), ..fixture.plan("image") };
    let mut steps = Vec::new();
    let error = build(&plan, &mut |step| {
        steps.push(step);
        flag.store(step == Step::RootFileSystem, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(matches!(error, Err(BuildError::Cancelled)));
    assert_eq!(steps, [Step::Kernel, Step::Unpack, Step::RootFileSystem]);
    assert_eq!(fixture.left(), Vec::<String>::new());
}

#[test]
fn steps_are_told_in_order() {
    let fixture = Fixture::new();
    let mut steps = Vec::new();
    build(&fixture.plan("image"), &mut |step| steps.push(step)).unwrap();
    assert_eq!(steps, Step::ALL);
}

#[test]
fn missing_and_foreign_inputs_are_named() {
    let fixture = Fixture::new();
    let nowhere = fixture.path("nowhere");
    let text = fixture.path("text");
    fs::write(&text, "no tar, no kernel, no program").unwrap();
    let plan = || fixture.plan("image");
    let package = |path: &Path| KernelSource::Package(path.into());
    let files = |vmlinuz: &Path| KernelSource::Files {
        vmlinuz: vmlinuz.into(),
        modules: fixture.path("kernel/lib/modules/6.1.0-test"),
    };

    let error = fails(&fixture, BuildPlan { rootfs: nowhere.clone(), ..plan() });
    assert!(matches!(error, BuildError::Input { what: "root file system", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { rootfs: text.clone(), ..plan() });
    assert!(matches!(error, BuildError::NotARoot(_)), "{error}");
    let error = fails(&fixture, BuildPlan { kernel: package(&nowhere), ..plan() });
    assert!(matches!(error, BuildError::Input { what: "kernel package", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { kernel: package(&text), ..plan() });
    assert!(matches!(error, BuildError::Tool { tool: "dpkg-deb", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { kernel: package(&fixture.path("root")), ..plan() });
    assert!(matches!(error, BuildError::KernelPackage { .. }), "{error}");
    let error = fails(&fixture, BuildPlan { kernel: files(&text), ..plan() });
    assert!(matches!(error, BuildError::NotAKernel(_)), "{error}");
    let error = fails(&fixture, BuildPlan { init: nowhere, ..plan() });
    assert!(matches!(error, BuildError::Input { what: "coffer-init", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { init: text, ..plan() });
    assert!(matches!(error, BuildError::BadInit { why: "not a program", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { init: "/bin/cp".into(), ..plan() });
    assert!(matches!(error, BuildError::BadInit { why: "dynamically linked", .. }), "{error}");
    let error = fails(&fixture, BuildPlan { output: fixture.path("out/a/b/c"), ..plan() });
    assert!(matches!(error, BuildError::Write { .. }), "{error}");
}

#[test]
fn a_tar_that_leads_out_is_refused() {
    let fixture = Fixture::new();
    let tar = fixture.path("evil.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..14].copy_from_slice(b"../out/escaped");
    header.set_size(4);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, &b"evil"[..]).unwrap();
    builder.finish().unwrap();
    let error = fails(&fixture, BuildPlan { rootfs: tar, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::Escapes(_)), "{error}");
}

#[test]
fn a_root_without_the_program_is_refused() {
    let fixture = Fixture::new();
    let with_program = |program: &str| {
        let mut recipe = recipe();
        recipe.workload.argv = vec![program.into()];
        BuildPlan { recipe, ..fixture.plan("image") }
    };
    for program in ["/bin/absent", "/etc/config", "/etc", "/../../bin/ls"] {
        let error = fails(&fixture, with_program(program));
        assert!(matches!(error, BuildError::NoProgram(_) | BuildError::Invalid(_)), "{error}");
    }
}

#[test]
fn recipes_are_read_strictly() {
    let refuse = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = recipe_json();
        change(&mut json);
        Recipe::parse(json.to_string().as_bytes()).err()
    };
    assert!(refuse(&|_| ()).is_none());
    assert!(matches!(refuse(&|recipe| recipe["surprise"] = json!(1)), Some(BuildError::Recipe(_))));
    assert!(matches!(refuse(&|recipe| recipe["box"] = json!("ajar")), Some(BuildError::Recipe(_))));
    assert!(matches!(
        refuse(&|recipe| recipe["workload"] = json!(null)),
        Some(BuildError::Recipe(_))
    ));
}

#[test]
fn rules_of_the_descriptor_hold_for_recipes() {
    let fixture = Fixture::new();
    let mut nameless = recipe();
    nameless.name = "No Name".into();
    let error = fails(&fixture, BuildPlan { recipe: nameless, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::Invalid(invalid) if invalid.field == "name"));
    let mut unverified = recipe();
    unverified.verifier = None;
    let error = fails(&fixture, BuildPlan { recipe: unverified, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::Invalid(invalid) if invalid.field == "verifier"));
}

#[test]
fn the_command_line_cannot_start_something_else() {
    let fixture = Fixture::new();
    for word in ["init=/bin/sh", "rdinit=/bin/sh", "a=b rdinit=/x", "\"init=/bin/sh\"", "--"] {
        let mut recipe = recipe();
        recipe.cmdline = vec![word.into()];
        let error = fails(&fixture, BuildPlan { recipe, ..fixture.plan("image") });
        assert!(matches!(error, BuildError::ReservedParameter(_)), "{word}: {error}");
    }
    let mut recipe = recipe();
    recipe.cmdline = vec!["a\nb".into()];
    let error = fails(&fixture, BuildPlan { recipe, ..fixture.plan("image") });
    assert!(matches!(error, BuildError::Invalid(invalid) if invalid.field == "cmdline"));
}
