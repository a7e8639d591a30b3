//! The site's key is nowhere on the host's side, and the search that says so would find it.

use coffer_lab::probe::decoys_missed;

use crate::world::enter;

#[test]
fn the_key_is_in_no_file_of_the_host_while_the_site_uses_it() {
    let world = enter();
    let (key, decoy) = world.scene.needles().unwrap();
    let found = world.host.search(&[&key, &decoy]).unwrap();
    assert_eq!(found.hits[0], Vec::<String>::new(), "the key is on the host");
    let missed = decoys_missed(&found.hits[1]);
    assert_eq!(missed, Vec::<String>::new(), "the search missed a key planted on the host");
}

#[test]
fn the_key_is_in_nothing_the_host_left_on_this_machine() {
    let world = enter();
    let log = world.host.logs("site").unwrap();
    std::fs::write(world.host.folder().join("vm-site.log"), log).unwrap();
    let (key, _) = world.scene.needles().unwrap();
    for folder in ["host", "tpm", "images"] {
        let (hits, searched) = key.below(&world.scene.workdir.path().join(folder)).unwrap();
        assert_eq!(hits, Vec::<String>::new());
        assert!(searched > 0, "nothing was searched in `{folder}`");
    }
    let (own, _) = key.below(&world.scene.workdir.path().join("operator")).unwrap();
    assert!(!own.is_empty(), "the search missed the key where its owner keeps it");
}
