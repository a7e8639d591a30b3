//! Which modules load, and in which order.

use coffer_image_build::{BuildError, ModuleTree};

use crate::fixture::make_modules;

fn names(wanted: &[&str]) -> Result<Vec<String>, BuildError> {
    let directory = tempfile::tempdir().unwrap();
    make_modules(directory.path());
    let modules = ModuleTree::open(directory.path()).unwrap().closure(wanted)?;
    Ok(modules.into_iter().map(|module| module.file_name).collect())
}

#[test]
fn what_a_module_needs_comes_first_and_once() {
    assert_eq!(
        names(&["virtio_mmio", "virtio_blk"]).unwrap(),
        ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_blk.ko"]
    );
}

#[test]
fn dash_and_underscore_are_the_same() {
    assert_eq!(names(&["crc32c_intel"]).unwrap(), ["crc32c-intel.ko"]);
}

#[test]
fn built_in_modules_are_left_out() {
    assert_eq!(names(&["built_in", "erofs"]).unwrap(), ["libcrc32c.ko", "erofs.ko"]);
}

#[test]
fn a_loop_of_dependencies_ends() {
    assert_eq!(names(&["loop_a"]).unwrap(), ["loop-b.ko", "loop-a.ko"]);
}

#[test]
fn missing_and_broken_modules_are_named() {
    assert!(matches!(names(&["nothing"]), Err(BuildError::NoModule(name)) if name == "nothing"));
    assert!(matches!(names(&["orphan"]), Err(BuildError::NoModule(name)) if name == "absent"));
    assert!(matches!(names(&["broken"]), Err(BuildError::BadModule { .. })));
}

#[test]
fn compressed_modules_are_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    make_modules(directory.path());
    let path = directory.path().join("kernel/drivers/virtio_ring.ko");
    let before = std::fs::read(&path).unwrap();
    assert!(std::process::Command::new("xz").arg(&path).status().unwrap().success());
    let modules = ModuleTree::open(directory.path()).unwrap().closure(&["virtio"]).unwrap();
    assert_eq!(modules[0].file_name, "virtio_ring.ko");
    assert_eq!(modules[0].bytes, before);
}
