//! A changed image is refused, and the reason named is the right one.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use coffer_image::descriptor::DescriptorError;
use coffer_image::layout::{Layout, LayoutError};
use coffer_image::verity::{Place, SuperblockError, VerityError};
use coffer_image_build::{Archive, Verified, VerifyError, inspect, verify};
use serde_json::{Value, json};

use crate::fixture::{Fixture, blob, manifest, put, read_json, reauthor, set_manifest};

struct Image {
    path: PathBuf,
    _fixture: Fixture,
}

impl Image {
    fn new() -> Self {
        let fixture = Fixture::new();
        Self { path: fixture.build("image").path, _fixture: fixture }
    }

    fn verify(&self) -> Result<Verified, VerifyError> {
        verify(&self.path)
    }

    /// The file of layer `n`: 0 kernel, 1 initrd, 2 command line, 3 root disk.
    fn layer(&self, n: usize) -> PathBuf {
        blob(&self.path, &manifest(&self.path)["layers"][n]["digest"])
    }

    fn descriptor(&self) -> Value {
        read_json(&blob(&self.path, &manifest(&self.path)["config"]["digest"]))
    }
}

fn flip(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

#[test]
fn a_whole_image_is_accepted_from_folder_and_tar() {
    let image = Image::new();
    let folder = image.verify().unwrap();
    let tar = image.path.with_extension("tar");
    for root in [".", "./oci-layout"] {
        let mut command = Command::new("tar");
        command.arg("-cf").arg(&tar).arg("-C").arg(&image.path);
        match root {
            "." => command.arg("."),
            _ => command.args(["oci-layout", "index.json", "blobs"]),
        };
        assert!(command.status().unwrap().success());
        assert_eq!(verify(&tar).unwrap().image_id, folder.image_id);
        assert_eq!(inspect(&tar).unwrap().image_id, folder.image_id);
    }
    assert!(folder.to_string().contains("matches its root hash"));
}

#[test]
fn a_flipped_byte_in_any_blob_is_named() {
    for (layer, name) in ["kernel", "initrd", "command line", "disk `root`"].into_iter().enumerate()
    {
        let image = Image::new();
        let path = image.layer(layer);
        flip(&path, fs::metadata(&path).unwrap().len() / 2);
        match image.verify() {
            Err(VerifyError::Layout(LayoutError::Digest { what, .. })) => assert_eq!(what, name),
            other => panic!("{name}: {other:?}"),
        }
        assert!(
            Layout::open(&image.path).is_ok(),
            "{name}: found when opened, but only loading hashes blobs"
        );
    }
}

#[test]
fn a_flipped_byte_in_descriptor_or_manifest_is_named() {
    let image = Image::new();
    flip(&blob(&image.path, &manifest(&image.path)["config"]["digest"]), 20);
    assert!(
        matches!(image.verify(), Err(VerifyError::Layout(LayoutError::Digest { what, .. })) if what == "descriptor")
    );
    let image = Image::new();
    let index = read_json(&image.path.join("index.json"));
    flip(&blob(&image.path, &index["manifests"][0]["digest"]), 20);
    assert!(
        matches!(image.verify(), Err(VerifyError::Layout(LayoutError::Digest { what, .. })) if what == "manifest")
    );
}

#[test]
fn a_truncated_or_missing_blob_is_named() {
    for layer in 0..4 {
        let image = Image::new();
        truncate(&image.layer(layer));
        assert!(matches!(image.verify(), Err(VerifyError::Layout(LayoutError::Size { .. }))));
        fs::remove_file(image.layer(layer)).unwrap();
        assert!(matches!(image.verify(), Err(VerifyError::Layout(LayoutError::Missing { .. }))));
    }
}

#[track_caller]
fn not_opened(path: &Path) -> LayoutError {
    let error = inspect(path).expect_err("refused");
    assert!(!error.hint().is_empty());
    error
}

#[test]
fn foreign_and_damaged_layouts_are_named() {
    let image = Image::new();
    let other = image.path.with_file_name("other");
    assert!(matches!(not_opened(&other), LayoutError::Open { .. }));
    fs::create_dir(&other).unwrap();
    assert!(matches!(not_opened(&other), LayoutError::NotALayout(_)));
    fs::write(other.join("oci-layout"), "{}").unwrap();
    assert!(matches!(not_opened(&other), LayoutError::NotALayout(_)));
    fs::write(other.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    assert!(
        matches!(not_opened(&other), LayoutError::Missing { what, .. } if what == "index.json")
    );
    fs::write(other.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    assert!(matches!(not_opened(&other), LayoutError::Foreign(_)));
    fs::write(other.join("index.json"), "{").unwrap();
    assert!(matches!(not_opened(&other), LayoutError::Malformed { what: "index.json", .. }));
    fs::write(other.join("index.json"), vec![b' '; 300 << 10]).unwrap();
    assert!(matches!(not_opened(&other), LayoutError::TooLarge { .. }));
    assert!(matches!(not_opened(&other.join("index.json")), LayoutError::NotALayout(_)));
    assert!(matches!(Layout::open(&other.join("index.json")), Err(LayoutError::NotALayout(_))));
}

#[test]
fn a_container_image_is_named_as_foreign() {
    let image = Image::new();
    let mut container = manifest(&image.path);
    container["artifactType"] = json!("application/vnd.oci.image.config.v1+json");
    set_manifest(&image.path, &container);
    assert!(matches!(not_opened(&image.path), LayoutError::Foreign(_)));
}

#[test]
fn links_and_fifos_are_not_followed() {
    let image = Image::new();
    let kernel = image.layer(0);
    let outside = image.path.with_file_name("kernel");
    fs::rename(&kernel, &outside).unwrap();
    symlink(&outside, &kernel).unwrap();
    assert!(matches!(image.verify(), Err(VerifyError::Layout(LayoutError::NotPlain { .. }))));
    fs::remove_file(&kernel).unwrap();
    assert!(Command::new("mkfifo").arg(&kernel).status().unwrap().success());
    assert!(matches!(image.verify(), Err(VerifyError::Layout(LayoutError::NotPlain { .. }))));
    let image = Image::new();
    let blobs = image.path.join("blobs");
    fs::rename(&blobs, image.path.with_file_name("blobs")).unwrap();
    symlink("../blobs", &blobs).unwrap();
    assert!(matches!(not_opened(&image.path), LayoutError::NotPlain { .. }));
}

#[test]
fn a_tar_with_a_blob_twice_is_refused() {
    let image = Image::new();
    let tar = image.path.with_extension("tar");
    let made = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&image.path)
        .args([".", "./index.json"])
        .status();
    assert!(made.unwrap().success());
    assert!(matches!(not_opened(&tar), LayoutError::NotPlain { .. }));
}

#[test]
fn a_descriptor_with_an_unknown_field_is_refused() {
    let image = Image::new();
    reauthor(&image.path, |descriptor| descriptor["surprise"] = json!(true));
    let error = not_opened(&image.path);
    assert!(
        matches!(&error, LayoutError::Descriptor(DescriptorError::Malformed(why)) if why.contains("surprise"))
    );
}

#[test]
fn an_author_cannot_lie_about_the_root_hash() {
    let image = Image::new();
    reauthor(&image.path, |descriptor| {
        descriptor["disks"][0]["root_hash"] = json!("00".repeat(32))
    });
    let error = image.verify().unwrap_err();
    assert!(
        matches!(
            error,
            VerifyError::Verity { source: VerityError::Mismatch(Place::Tree { .. }), .. }
        ),
        "{error}"
    );
}

/// Replaces the disk by a changed one, with the digest that belongs to it.
fn change_disk(image: &Image, offset: impl Fn(u64) -> u64) -> VerifyError {
    let mut bytes = fs::read(image.layer(3)).unwrap();
    let data_size = image.descriptor()["disks"][0]["data_size"].as_u64().unwrap();
    bytes[offset(data_size) as usize] ^= 1;
    let new = put(&image.path, &bytes);
    reauthor(&image.path, |descriptor| descriptor["disks"][0]["blob"] = new);
    image.verify().unwrap_err()
}

#[test]
fn changed_data_superblock_and_tree_are_told_apart() {
    let error = change_disk(&Image::new(), |_| 4096 + 5);
    assert!(
        matches!(
            error,
            VerifyError::Verity { source: VerityError::Mismatch(Place::Data { block: 1 }), .. }
        ),
        "{error}"
    );
    let error = change_disk(&Image::new(), |data_size| data_size + 4096);
    assert!(
        matches!(
            error,
            VerifyError::Verity { source: VerityError::Mismatch(Place::Tree { .. }), .. }
        ),
        "{error}"
    );
    let error = change_disk(&Image::new(), |data_size| data_size);
    assert!(
        matches!(error, VerifyError::Superblock { source: SuperblockError::Missing, .. }),
        "{error}"
    );
    let error = change_disk(&Image::new(), |data_size| data_size + 72);
    assert!(matches!(error, VerifyError::SuperblockDiffers(_)), "{error}");
}

#[test]
fn initrd_and_descriptor_must_agree() {
    let mut other_verifier = Image::new().descriptor()["verifier"].clone();
    other_verifier["url"] = json!("https://192.0.2.8");
    let changes = [
        ("verifier", other_verifier),
        ("secrets", json!([])),
        ("network", json!({"mode": "none"})),
    ];
    for (field, value) in changes {
        let image = Image::new();
        reauthor(&image.path, |descriptor| descriptor[field] = value);
        assert!(
            matches!(image.verify(), Err(VerifyError::Differs(found)) if found == field),
            "{field}"
        );
    }
}

#[test]
fn the_manifest_must_list_the_blobs_of_the_descriptor() {
    let image = Image::new();
    let mut shortened = manifest(&image.path);
    shortened["layers"].as_array_mut().unwrap().pop();
    set_manifest(&image.path, &shortened);
    assert!(matches!(image.verify(), Err(VerifyError::Layers)));
}

/// Replaces the initrd.
fn with_initrd(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<Verified, VerifyError> {
    let image = Image::new();
    let new = put(&image.path, &change(fs::read(image.layer(1)).unwrap()));
    reauthor(&image.path, |descriptor| descriptor["initrd"] = new);
    image.verify()
}

fn archive(build: impl FnOnce(&mut Archive)) -> Vec<u8> {
    let mut archive = Archive::new();
    build(&mut archive);
    let mut bytes = Vec::new();
    archive.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn an_initrd_that_the_kernel_could_read_otherwise_is_refused() {
    let malformed = |result: Result<Verified, VerifyError>, says: &str| match result {
        Err(VerifyError::Initrd(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("{says}: {other:?}"),
    };
    assert!(with_initrd(|bytes| bytes).is_ok());
    assert!(with_initrd(|bytes| [bytes, vec![0; 512]].concat()).is_ok());
    let second = archive(|archive| archive.bytes("init", 0o755, b"evil".to_vec()).unwrap());
    malformed(with_initrd(|bytes| [bytes, second].concat()), "something follows");
    malformed(with_initrd(|bytes| bytes[..bytes.len() / 2].to_vec()), "");
    malformed(with_initrd(|_| b"\x1f\x8bgzip".to_vec()), "");
    malformed(
        with_initrd(|_| archive(|archive| archive.link("init", "/x").unwrap())),
        "neither a file nor a directory",
    );
    malformed(
        with_initrd(|_| archive(|archive| archive.bytes("init", 0o755, vec![]).unwrap())),
        "no `/coffer/appliance.json`",
    );
    malformed(
        with_initrd(|_| archive(|archive| archive.bytes("init", 0o644, vec![]).unwrap())),
        "no program `/init`",
    );
}

#[test]
fn inspect_tells_what_the_image_says() {
    let image = Image::new();
    let text = inspect(&image.path).unwrap().to_string();
    for word in [
        "image id   sha256:",
        "closed box",
        "https://192.0.2.7",
        "site/key",
        "/bin/server --flag",
        "console=ttyS0",
    ] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    flip(&image.layer(1), 500);
    assert!(inspect(&image.path).unwrap().to_string().contains("damaged"));
}
