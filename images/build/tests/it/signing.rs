//! Keys, signed images, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use coffer_image::layout::{Layout, LayoutError};
use coffer_image::signature::{SIGNATURE_ANNOTATION, SIGNER_ANNOTATION, SignatureError};
use coffer_image_build::{ImageKey, SignError, VerifyError, inspect, verify};
use serde_json::{Value, json};

use crate::fixture::{Fixture, read_json, reauthor};

fn rewrite_index(image: &Path, change: impl FnOnce(&mut Value)) {
    let path = image.join("index.json");
    let mut index = read_json(&path);
    change(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

#[test]
fn a_signed_image_names_its_signer_and_keeps_its_id() {
    let fixture = Fixture::new();
    let image = fixture.build("image");
    let key = ImageKey::generate().unwrap();
    assert_eq!(inspect(&image.path).unwrap().signer, None);
    rewrite_index(&image.path, |index| {
        index["manifests"][0]["annotations"] = json!({"org.example.kept": "1"});
    });
    let before: Vec<_> = listed(&image.path);
    let signed = key.sign(&image.path, false).unwrap();
    assert_eq!((signed.image_id, signed.signer), (image.image_id, key.signer().digest()));
    let layout = Layout::open(&image.path).unwrap();
    assert_eq!(layout.signer(), Ok(Some(key.signer())));
    assert_eq!(layout.image_id(), image.image_id);
    assert_eq!(listed(&image.path), before, "no file is left beside the others");
    let index = read_json(&image.path.join("index.json"));
    assert_eq!(index["manifests"][0]["annotations"]["org.example.kept"], "1");

    let shown = inspect(&image.path).unwrap();
    assert_eq!(shown.signer, Some(signed.signer));
    assert!(shown.to_string().contains(&format!("signer     {}\n", signed.signer)));
    let checks = verify(&image.path).unwrap().checks;
    assert!(checks.contains(&format!("signed by {}", signed.signer)), "{checks:?}");

    // As a tar it is still signed, but is not signed there.
    let tar = image.path.with_extension("tar");
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(&tar).arg("-C").arg(&image.path).arg(".");
    assert!(pack.status().unwrap().success());
    assert_eq!(inspect(&tar).unwrap().signer, Some(signed.signer));
    assert!(matches!(key.sign(&tar, true), Err(SignError::NotAFolder(_))));
}

fn listed(image: &Path) -> Vec<String> {
    let entries = fs::read_dir(image).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn signing_again_is_the_same_and_another_signer_needs_force() {
    let fixture = Fixture::new();
    let image = fixture.build("image").path;
    let [one, other] = [ImageKey::generate().unwrap(), ImageKey::generate().unwrap()];
    one.sign(&image, false).unwrap();
    let index = fs::read(image.join("index.json")).unwrap();
    one.sign(&image, false).unwrap();
    assert_eq!(fs::read(image.join("index.json")).unwrap(), index);
    match other.sign(&image, false) {
        Err(SignError::Signed { by }) => assert_eq!(by, one.signer().digest().to_string()),
        refused => panic!("{refused:?}"),
    }
    assert_eq!(fs::read(image.join("index.json")).unwrap(), index);
    other.sign(&image, true).unwrap();
    assert_eq!(Layout::open(&image).unwrap().signer(), Ok(Some(other.signer())));
}

#[test]
fn a_wrong_signature_is_refused_and_a_missing_one_is_none() {
    let fixture = Fixture::new();
    let image = fixture.build("image").path;
    let key = ImageKey::generate().unwrap();
    key.sign(&image, false).unwrap();
    // Another image under the same name: its signature is still that of the first.
    reauthor(&image, |descriptor| descriptor["svn"] = json!(9));
    let layout = Layout::open(&image).unwrap();
    assert_eq!(layout.signer(), Err(SignatureError::Wrong));
    let wrong =
        |error: &LayoutError| matches!(error, LayoutError::Signature(SignatureError::Wrong));
    assert!(wrong(&inspect(&image).unwrap_err()));
    assert!(matches!(verify(&image), Err(VerifyError::Layout(error)) if wrong(&error)));
    assert!(matches!(key.sign(&image, false), Err(SignError::Signed { .. })));
    for name in [SIGNATURE_ANNOTATION, SIGNER_ANNOTATION] {
        rewrite_index(&image, |index| {
            index["manifests"][0]["annotations"].as_object_mut().unwrap().remove(name);
        });
        let signer = Layout::open(&image).unwrap().signer();
        match name {
            SIGNATURE_ANNOTATION => {
                assert_eq!(signer, Err(SignatureError::Incomplete(SIGNATURE_ANNOTATION)));
            }
            _ => assert_eq!(signer, Ok(None)),
        }
    }
    key.sign(&image, false).unwrap();
    assert_eq!(Layout::open(&image).unwrap().signer(), Ok(Some(key.signer())));
}

#[test]
fn a_key_is_its_owners_and_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let key = ImageKey::generate().unwrap();
    key.write_new(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(ImageKey::read(&path).unwrap().signer(), key.signer());
    let other = ImageKey::generate().unwrap();
    assert!(matches!(other.write_new(&path), Err(SignError::Exists(_))));
    assert_eq!(ImageKey::read(&path).unwrap().signer(), key.signer());
    assert_ne!(other.signer(), key.signer());

    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    for bad in [
        &b""[..],
        b"\xff\xfe",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        text.replace("PRIVATE", "PUBLIC").as_bytes(),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(ImageKey::read(&path), Err(SignError::NotAKey(_))));
    }
    assert!(matches!(ImageKey::read(&directory.path().join("gone")), Err(SignError::File { .. })));
}
