//! A host that booted another initrd than the one the verifier knows gets no secret; the one it knows does
//! (SPEC 7.3, 7.4).
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use coffer_lab::scene::{HOST_NAME, Scene};

#[test]
fn refuses_a_host_whose_initrd_changed() {
    let scene = Scene::prepare().unwrap().build_images().unwrap();
    scene.put_secret().unwrap();
    let known = scene.boot_host("host", None).unwrap();
    scene.trust(&known, HOST_NAME).unwrap();
    scene.enrol(&known, HOST_NAME).unwrap();
    let launch = known.run("site", "site", &[]).unwrap();
    assert_eq!(launch.reason(), "running", "{launch:?}");
    drop(known);

    // The same TPM: what changed is what was measured, not who measured.
    let changed = scene.boot_host("host-changed", Some("one file more")).unwrap();
    let launch = changed.run("site", "site", &[]).unwrap();
    assert_eq!(launch.reason(), "host-not-recognised", "{launch:?}");
    assert_eq!(scene.last_refusal().unwrap(), "host-not-recognised");
}
