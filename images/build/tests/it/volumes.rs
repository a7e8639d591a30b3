//! Images that keep something: what the recipe asks for is in descriptor, initrd and modules, and they agree.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use coffer_image::descriptor::{Disk, Vtpm};
use coffer_image_build::{BuildError, BuildPlan, Recipe, VerifyError, inspect, verify};
use serde_json::{Value, json};

use crate::fixture::{Fixture, reauthor, recipe_json, run};

fn plan(fixture: &Fixture, name: &str, change: impl FnOnce(&mut Value)) -> BuildPlan {
    let mut recipe = recipe_json();
    recipe["volumes"] = json!([
        {"name": "data", "path": "/srv/data"}, {"name": "more", "path": "/srv/more"}
    ]);
    recipe["vtpm"] = json!("persistent");
    change(&mut recipe);
    let recipe = Recipe::parse(recipe.to_string().as_bytes()).unwrap();
    BuildPlan { recipe, ..fixture.plan(name) }
}

/// A root file system with what volumes need.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    for folder in ["root/srv/data", "root/srv/more", "root/sbin"] {
        fs::create_dir_all(fixture.path(folder)).unwrap();
    }
    let mkfs = fixture.path("root/sbin/mkfs.ext4");
    fs::write(&mkfs, "#!").unwrap();
    fs::set_permissions(mkfs, fs::Permissions::from_mode(0o755)).unwrap();
    fixture
}

#[test]
fn a_recipe_with_volumes_makes_disks_mounts_and_modules() {
    let fixture = fixture();
    let image = run(&plan(&fixture, "image", |_| ())).unwrap();
    let disks: Vec<_> = image.descriptor.disks.iter().map(|d| (d.name(), d.kind())).collect();
    assert_eq!(disks, [("root", "integrity"), ("data", "encrypted"), ("more", "encrypted")]);
    assert_eq!(image.descriptor.vtpm, Vtpm::Persistent);
    let checks = verify(&image.path).unwrap().checks;
    assert!(checks.iter().any(|check| check.starts_with("initrd and descriptor agree")));
    let shown = inspect(&image.path).unwrap();
    let appliance = shown.appliance.as_ref().unwrap();
    assert_eq!(
        serde_json::to_value(&appliance.volumes).unwrap(),
        json!([
            {"disk": "data", "device": "/dev/vdb", "path": "/srv/data", "fs": "ext4"},
            {"disk": "more", "device": "/dev/vdc", "path": "/srv/more", "fs": "ext4"}
        ])
    );
    let at = |name: &str| appliance.modules.iter().position(|m| m == name).unwrap();
    assert!(at("jbd2.ko") < at("ext4.ko") && at("mbcache.ko") < at("ext4.ko"));
    let text = shown.to_string();
    for line in [
        "disk       data: encrypted, given with --volume\n",
        "volume     more at /srv/more (ext4)\n",
        "vtpm       persistent\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    // Without volumes nothing of it is there.
    let plain = inspect(&fixture.build("plain").path).unwrap();
    let appliance = plain.appliance.unwrap();
    assert!(appliance.volumes.is_empty() && !appliance.modules.contains(&"ext4.ko".to_owned()));
}

#[test]
fn a_root_without_the_folder_or_the_formatter_is_refused() {
    let fixture = fixture();
    fs::remove_dir(fixture.path("root/srv/more")).unwrap();
    let refused = run(&plan(&fixture, "image", |_| ()));
    assert!(matches!(refused, Err(BuildError::NoMountPoint(path)) if path == "/srv/more"));
    fs::create_dir(fixture.path("root/srv/more")).unwrap();
    fs::remove_file(fixture.path("root/sbin/mkfs.ext4")).unwrap();
    let error = run(&plan(&fixture, "image", |_| ())).unwrap_err();
    assert!(matches!(&error, BuildError::NoProgram(path) if path == "/sbin/mkfs.ext4"));
    assert!(error.hint().contains("e2fsprogs"));
    assert!(fixture.left().is_empty());
    // It is asked of images with volumes only.
    run(&plan(&fixture, "image", |recipe| recipe["volumes"] = json!([]))).unwrap();
}

#[test]
fn volumes_that_break_a_rule_are_refused_before_anything_is_read() {
    let fixture = fixture();
    for (volumes, field) in [
        (json!([{"name": "root", "path": "/srv/data"}]), "volumes[0].disk"),
        (json!([{"name": "data", "path": "/var/log"}]), "volumes[0].path"),
        (
            json!([{"name": "a", "path": "/srv"}, {"name": "b", "path": "/srv/more"}]),
            "volumes[1].path",
        ),
    ] {
        match run(&plan(&fixture, "image", |recipe| recipe["volumes"] = volumes)) {
            Err(BuildError::Invalid(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn descriptor_and_initrd_are_held_to_each_other() {
    let fixture = fixture();
    let volume = |name: &str| json!({"kind": "encrypted", "name": name});
    type Change = Box<dyn Fn(&mut Vec<Value>)>;
    let changes: [(&str, Change); 5] = [
        ("another name", Box::new(move |disks| disks[1] = volume("dota"))),
        ("another order", Box::new(|disks| disks.swap(1, 2))),
        ("one less", Box::new(|disks| drop(disks.pop()))),
        ("one more", Box::new(move |disks| disks.push(volume("third")))),
        (
            "another letter",
            Box::new(|disks| disks.insert(1, json!({"kind": "raw", "name": "raw"}))),
        ),
    ];
    for (what, change) in changes {
        let image =
            run(&plan(&fixture, &what.replace(' ', "-"), |recipe| recipe["box"] = json!("open")));
        let image = image.unwrap();
        verify(&image.path).unwrap();
        reauthor(&image.path, |descriptor| change(descriptor["disks"].as_array_mut().unwrap()));
        let refused = verify(&image.path);
        assert!(matches!(refused, Err(VerifyError::Differs("volumes"))), "{what}: {refused:?}");
    }
    // An encrypted disk of which the initrd knows nothing.
    let image = fixture.build("plain");
    assert!(!image.descriptor.disks.iter().any(|disk| matches!(disk, Disk::Encrypted { .. })));
    reauthor(&image.path, |descriptor| {
        descriptor["disks"].as_array_mut().unwrap().push(volume("data"))
    });
    assert!(matches!(verify(&image.path), Err(VerifyError::Differs("volumes"))));
}
