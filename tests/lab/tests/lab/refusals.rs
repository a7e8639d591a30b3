//! Every refusal of the story, by its reason; and the launch it differs from (SPEC 1.5, 2.5, 7.3).
//!
//! Where the verifier refuses, the guest's word for why is not enough: the verifier's own record must say the same.

use coffer_lab::demo::with_nonce;

use crate::world::enter;

#[test]
fn a_sealed_appliance_on_an_enrolled_host_gets_its_key_and_serves() {
    let world = enter();
    assert_eq!(world.site.reason(), "running", "{:?}", world.site);
    let page = world.scene.fetch(&world.host).unwrap();
    assert!(page.contains(coffer_lab::appliance::PAGE));
}

#[test]
fn every_measurement_of_an_accepted_launch_is_as_expected() {
    let world = enter();
    assert_eq!(world.decision["allowed"], true);
    for side in ["host", "vm"] {
        let rows = world.decision["release"]["report"][side].as_array().unwrap();
        assert!(!rows.is_empty(), "no rows for the {side}");
        for row in rows {
            assert_eq!(row["ok"], true, "{row}");
        }
    }
}

#[test]
fn refuses_a_host_nobody_enrolled() {
    let world = enter();
    assert_eq!(world.before.reason(), "not-enrolled");
    assert_eq!(world.refused_before, "not-enrolled");
}

#[test]
fn stops_the_vm_that_reads_a_flipped_bit_of_its_root_file_system() {
    assert_eq!(enter().outcome("forged-rootfs", "forged-rootfs", &[]), "disk-integrity");
}

#[test]
fn refuses_an_initrd_with_a_flipped_bit() {
    assert_eq!(enter().outcome("forged-initrd", "forged-initrd", &[]), "initrd-digest");
}

#[test]
fn refuses_a_command_line_with_a_flipped_bit() {
    assert_eq!(enter().outcome("forged-cmdline", "forged-cmdline", &[]), "cmdline-digest");
}

#[test]
fn withholds_the_key_from_an_image_sealed_with_another_command_line() {
    let world = enter();
    assert_eq!(world.outcome("resealed", "resealed", &[]), "policy-denied");
    let decision = world.scene.last_release().unwrap();
    assert_eq!(decision["code"], "policy-denied");
    assert_eq!(decision["release"]["image"], world.scene.resealed.id.as_str());
}

#[test]
fn withholds_the_key_from_the_same_image_as_an_open_box() {
    let world = enter();
    assert_eq!(world.outcome("site", "opened", &["--open"]), "policy-denied");
    let decision = world.scene.last_release().unwrap();
    assert_eq!(decision["code"], "policy-denied");
    assert_eq!(decision["release"]["image"], world.scene.site.id.as_str());
    assert_eq!(decision["release"]["box"], "open");
}

#[test]
fn refuses_evidence_that_was_accepted_before() {
    let world = enter();
    let evidence = world.scene.verifier.evidence(world.decision["id"].as_str().unwrap()).unwrap();
    assert_eq!(world.scene.verifier.submit(&evidence).unwrap(), "nonce-consumed");
    assert_eq!(world.scene.last_refusal().unwrap(), "nonce-consumed");
}

#[test]
fn refuses_old_evidence_under_a_fresh_nonce() {
    let world = enter();
    let evidence = world.scene.verifier.evidence(world.decision["id"].as_str().unwrap()).unwrap();
    let fresh = world.scene.verifier.challenge().unwrap();
    let forged = with_nonce(&evidence, &fresh).unwrap();
    assert_eq!(world.scene.verifier.submit(&forged).unwrap(), "host-binding-mismatch");
    assert_eq!(world.scene.last_refusal().unwrap(), "host-binding-mismatch");
}
