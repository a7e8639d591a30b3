//! Images: a tiny real one is built once, then damaged in every way the command line must notice.
//!
//! Needs Debian's kernel and the static `coffer-init`, as `cargo xtask test` sets them up.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::Digest as _;

use crate::support::{Place, Refusal, succeeds};

const RECIPE: &str =
    r#"{"name":"tiny","workload":{"argv":["/bin/app"]},"network":{"mode":"none"}}"#;

pub fn workspace(path: &str, made_by: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(path);
    assert!(path.exists(), "`{}` is missing; {made_by} makes it", path.display());
    path
}

fn kernel() -> String {
    text(&workspace(".coffer/cache/kernel", "`cargo xtask test`"))
}

fn init() -> String {
    text(&workspace("target/x86_64-unknown-linux-gnu/guest/coffer-init", "`cargo xtask test`"))
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A place with a recipe and a root file system.
pub fn inputs() -> Place {
    let place = Place::new();
    place.write("recipe.json", RECIPE);
    for folder in ["dev", "proc", "sys", "run", "tmp", "etc"] {
        std::fs::create_dir_all(place.path(&format!("rootfs/{folder}"))).expect("create a folder");
    }
    let app = place.write("rootfs/bin/app", "#!/bin/true\n");
    std::fs::set_permissions(&app, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    place
}

pub fn build_args() -> Vec<String> {
    [
        "image",
        "build",
        "recipe.json",
        "--rootfs",
        "rootfs",
        "--kernel",
        &kernel(),
        "--init",
        &init(),
        "-o",
        "out.image",
    ]
    .map(str::to_owned)
    .into()
}

/// Builds with one argument changed and checks that it is refused.
#[track_caller]
fn build_refused(place: &Place, change: &[(&str, &str)]) -> Refusal {
    let mut args = build_args();
    for (flag, value) in change {
        match args.iter().position(|a| a == flag) {
            Some(at) => args[at + 1] = (*value).to_owned(),
            None => args.extend([(*flag).to_owned(), (*value).to_owned()]),
        }
    }
    place.refused(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The image every damage starts from, built once.
pub fn built() -> &'static (Place, String) {
    static BUILT: OnceLock<(Place, String)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let place = inputs();
        let id = succeeds(place.coffer().args(build_args()));
        (place, id.trim().to_owned())
    })
}

/// A copy to damage.
fn copy() -> Place {
    let place = Place::new();
    let from = built().0.path("out.image");
    let done =
        std::process::Command::new("cp").arg("-r").args([from, place.path("x.image")]).status();
    assert!(done.expect("cp").success());
    place
}

fn blob(place: &Place, digest: &str) -> PathBuf {
    place.path(&format!("x.image/blobs/sha256/{}", digest.trim_start_matches("sha256:")))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
}

/// Replaces a JSON blob and returns its new digest and size.
fn put_json(place: &Place, value: &serde_json::Value) -> (String, usize) {
    let bytes = serde_json::to_vec(value).expect("encode");
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)));
    std::fs::write(blob(place, &digest), &bytes).expect("write");
    (digest, bytes.len())
}

/// Rewrites the descriptor and everything that names it, as an attacker with the store would.
fn rewrite_descriptor(place: &Place, change: impl FnOnce(&mut serde_json::Value)) {
    let index_path = place.path("x.image/index.json");
    let mut index = json(&index_path);
    let mut manifest =
        json(&blob(place, index["manifests"][0]["digest"].as_str().expect("a digest")));
    let mut descriptor =
        json(&blob(place, manifest["config"]["digest"].as_str().expect("a digest")));
    change(&mut descriptor);
    let (digest, size) = put_json(place, &descriptor);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (digest.into(), size.into());
    let (digest, size) = put_json(place, &manifest);
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (digest.into(), size.into());
    std::fs::write(index_path, serde_json::to_vec(&index).expect("encode")).expect("write");
}

fn descriptor(place: &Place) -> serde_json::Value {
    let shown = succeeds(place.coffer().args(["image", "inspect", "--json", "x.image"]));
    serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["descriptor"].clone()
}

fn flip_last_byte(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(path, bytes).expect("write");
}

#[test]
fn an_image_builds_the_same_twice_and_inspects_and_verifies() {
    let (place, id) = built();
    assert_eq!(id.len(), 64, "{id}");
    let other = inputs();
    assert_eq!(succeeds(other.coffer().args(build_args())).trim(), id);
    let shown = succeeds(place.coffer().args(["image", "inspect", "out.image"]));
    assert!(shown.contains(id.as_str()) && shown.contains("tiny"), "{shown}");
    let verified = succeeds(place.coffer().args(["image", "verify", "--json", "out.image"]));
    let verified: serde_json::Value = serde_json::from_str(&verified).expect("JSON");
    assert_eq!(verified["image_id"], id.as_str());
}

#[test]
fn an_image_that_is_there_stays_unless_forced() {
    let place = inputs();
    succeeds(place.coffer().args(build_args()));
    build_refused(&place, &[]).says(1, "`out.image` exists already", "--force");
    succeeds(place.coffer().args(build_args()).arg("--force"));
    place.write("other/file", "mine");
    let refusal = place.refused(
        &[
            &build_args().iter().map(String::as_str).collect::<Vec<_>>()[..10],
            &["other", "--force"],
        ]
        .concat(),
    );
    refusal.says(1, "`other` exists and is not an image", "another output");
}

#[test]
fn refuses_inputs_that_are_missing_or_foreign() {
    let place = inputs();
    build_refused(&place, &[("--kernel", "gone.deb")]).says(
        1,
        "cannot read the kernel `gone.deb`: it does not exist",
        "check the path",
    );
    build_refused(&place, &[("--rootfs", "gone")]).says(1, "`gone`", "check the path");
    build_refused(&place, &[("--init", "gone")]).says(1, "`gone`", "check the path");
    build_refused(&place, &[("-o", "no/such/out")]).says(1, "", "output");
    let kernel_file = text(&place.write("vmlinuz", "not a kernel"));
    build_refused(&place, &[("--kernel", &kernel_file)]).says(
        2,
        "a kernel without its modules",
        "--modules",
    );
    let modules = text(&place.path("rootfs"));
    build_refused(&place, &[("--kernel", &kernel_file), ("--modules", &modules)]).says(1, "", "");
    build_refused(&place, &[("--modules", &modules)]).says(
        2,
        "brings its own modules",
        "leave out --modules",
    );
}

#[test]
fn refuses_a_recipe_with_an_unknown_field_or_none_at_all() {
    let place = inputs();
    place.write("recipe.json", RECIPE.replace("\"name\"", "\"colour\":1,\"name\""));
    build_refused(&place, &[]).says(
        1,
        "`recipe.json` is not a recipe: unknown field `colour`",
        "correct the recipe",
    );
    std::fs::remove_file(place.path("recipe.json")).expect("remove");
    build_refused(&place, &[]).says(
        1,
        "cannot read `recipe.json`: it does not exist",
        "check the path",
    );
}

#[test]
fn signs_an_image_and_shows_by_whom() {
    let place = copy();
    let id = &built().1;
    let signer = succeeds(place.coffer().args(["image", "keygen", "key.pem"]));
    assert_eq!(signer.trim().len(), 64);
    place.refused(&["image", "keygen", "key.pem"]).says(1, "`key.pem` exists already", "lost");
    let signed = succeeds(place.coffer().args(["image", "sign", "x.image", "--key", "key.pem"]));
    assert_eq!(signed, signer);
    let shown = succeeds(place.coffer().args(["image", "inspect", "x.image"]));
    assert!(shown.contains(&format!("image id   sha256:{id}\nsigner     {signer}")), "{shown}");
    succeeds(place.coffer().args(["image", "keygen", "other.pem"]));
    let other = ["image", "sign", "x.image", "--key", "other.pem"];
    place.refused(&other).says(1, signer.trim(), "--force");
    succeeds(place.coffer().args(other).arg("--force"));
    // What was signed is another image.
    rewrite_descriptor(&place, |d| d["svn"] = 9.into());
    let index = place.path("x.image/index.json");
    let annotations = json(&index)["manifests"][0]["annotations"].clone();
    assert!(!annotations.is_null(), "the rewritten index keeps the signature");
    for command in ["inspect", "verify"] {
        place.refused(&["image", command, "x.image"]).says(1, "does not verify", "fetch the image");
    }
    place.refused(&["image", "sign", "x.image", "--key", "recipe.json"]).says(
        1,
        "",
        "check the path",
    );
    place.write("not.pem", "key");
    let refusal = place.refused(&["image", "sign", "x.image", "--key", "not.pem"]);
    refusal.says(1, "`not.pem` is not a P-256 private key", "coffer image keygen");
}

#[test]
fn refuses_what_is_no_image() {
    let place = Place::new();
    std::fs::create_dir(place.path("folder")).expect("create");
    place.write("file", "hello");
    place.write("oci/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    place.write("oci/index.json", r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#);
    for command in ["inspect", "verify"] {
        place.refused(&["image", command, "gone"]).says(1, "`gone`", "coffer image build");
        place.refused(&["image", command, "folder"]).says(
            1,
            "`folder` is not an OCI image layout",
            "coffer image build",
        );
        place.refused(&["image", command, "file"]).says(1, "`file` is not an OCI image layout", "");
        place.refused(&["image", command, "oci"]).says(
            1,
            "holds no coffer appliance",
            "coffer image build",
        );
    }
}

#[test]
fn refuses_a_descriptor_with_an_unknown_field() {
    let place = copy();
    rewrite_descriptor(&place, |d| d["colour"] = "red".into());
    for command in ["inspect", "verify"] {
        place.refused(&["image", command, "x.image"]).says(1, "colour", "");
    }
}

#[test]
fn refuses_a_truncated_image() {
    let place = copy();
    let disk =
        descriptor(&place)["disks"][0]["blob"]["digest"].as_str().expect("a digest").to_owned();
    let file = std::fs::OpenOptions::new().write(true).open(blob(&place, &disk)).expect("open");
    file.set_len(4096).expect("truncate");
    place.refused(&["image", "verify", "x.image"]).says(
        1,
        "disk `root` has 4096 bytes, expected",
        "incomplete",
    );
    std::fs::remove_file(blob(&place, &disk)).expect("remove");
    place.refused(&["image", "verify", "x.image"]).says(
        1,
        "the image is incomplete: disk `root`",
        "incomplete",
    );
}

#[test]
fn refuses_one_changed_byte_in_any_blob() {
    for part in ["kernel", "initrd", "cmdline"] {
        let place = copy();
        let digest = descriptor(&place)[part]["digest"].as_str().expect("a digest").to_owned();
        flip_last_byte(&blob(&place, &digest));
        place.refused(&["image", "verify", "x.image"]).says(
            1,
            "has digest sha256:",
            "changed after it was built",
        );
    }
    let place = copy();
    let disk =
        descriptor(&place)["disks"][0]["blob"]["digest"].as_str().expect("a digest").to_owned();
    flip_last_byte(&blob(&place, &disk));
    place.refused(&["image", "verify", "x.image"]).says(1, "", "build it again");
}

#[test]
fn refuses_a_descriptor_that_says_other_than_the_initrd() {
    let place = copy();
    rewrite_descriptor(&place, |d| {
        d["network"] =
            serde_json::json!({"mode":"nat","address":"10.0.0.2","prefix":24,"gateway":"10.0.0.1"})
    });
    succeeds(place.coffer().args(["image", "inspect", "x.image"]));
    place.refused(&["image", "verify", "x.image"]).says(
        1,
        "initrd and descriptor differ in `network`",
        "do not use",
    );
}
