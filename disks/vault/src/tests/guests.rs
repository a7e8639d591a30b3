//! Who may what: owners, security versions, sealed data, counters.

use super::support::*;
use crate::*;

fn vault() -> (tempfile::TempDir, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let vault = software(folder.path()).unwrap();
    (folder, vault)
}

/// Every policy against every kind of guest: who may is said here, all others may not.
#[test]
fn a_policy_admits_whom_it_names() {
    let (_folder, vault) = vault();
    let guests = [
        ("closed image 1", closed(1)),
        ("closed image 2", closed(2)),
        ("closed image 1 signed", signed(1, 7, 5)),
        ("closed image 3 signed", signed(3, 7, 5)),
        ("closed image 3 signed by another", signed(3, 8, 5)),
        ("open image 1", open_box(closed(1))),
        ("open image 3 signed", open_box(signed(3, 7, 5))),
    ];
    let cases: [(Owner, &[usize]); 4] =
        [(image(1), &[0, 2]), (by(7, 0), &[2, 3]), (by(7, 5), &[2, 3]), (Owner::Open, &[5, 6])];
    for (n, (owner, may)) in cases.into_iter().enumerate() {
        let name = format!("v{n}");
        vault.create_volume(&new(&name, NewKind::Vtpm, owner)).unwrap();
        let blob = vault.seal(&guests[4].1, &owner, false, b"data").unwrap();
        for (who, (what, guest)) in guests.iter().enumerate() {
            let (attached, unsealed) = (vault.attach(&name, guest), vault.unseal(guest, &blob));
            match may.contains(&who) {
                true => {
                    attached.unwrap();
                    let unsealed = unsealed.unwrap();
                    assert_eq!(&**unsealed.data, b"data");
                    assert_eq!(unsealed.sealed_by, guests[4].1);
                }
                false => {
                    assert_eq!(refused(attached), "not-owner", "{owner} {what}");
                    assert_eq!(refused(unsealed), "not-owner", "{owner} {what}");
                }
            }
        }
    }
}

#[test]
fn a_newer_image_locks_the_older_out() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", by(7, 2))).unwrap();
    assert_eq!(refused(vault.attach("v", &signed(1, 7, 1))), "svn-too-low");
    write(&vault, "v", &signed(1, 7, 2), 1);
    write(&vault, "v", &signed(2, 7, 3), 2);
    // Whose image was not looked at yet locks nobody out, and gets no key.
    let attached = vault.attach("v", &signed(3, 7, 9)).unwrap();
    let AttachedDisk::Encrypted { file, channel, .. } = attached.disk else { panic!() };
    drop((file, attached.hold));
    assert!(coffer_disk::RemoteAnchor::connect(channel.into()).is_err());
    assert_eq!(vault.volume("v").unwrap().svn_floor, 3);
    // Whoever is let in does, for good.
    let mut attached = vault.attach("v", &signed(3, 7, 4)).unwrap();
    attached.hold.admit().unwrap();
    drop(attached);
    drop(vault);
    let vault = software(folder.path()).unwrap();
    assert_eq!(vault.volume("v").unwrap().svn_floor, 4);
    for svn in [2, 3] {
        assert_eq!(refused(vault.attach("v", &signed(2, 7, svn))), "svn-too-low");
    }
    assert_eq!(read(&vault, "v", &signed(3, 7, 4)), 2);
    // One who is refused raises nothing.
    assert_eq!(refused(vault.attach("v", &signed(3, 8, 9))), "not-owner");
    assert_eq!(refused(vault.attach("v", &open_box(signed(3, 7, 9)))), "not-owner");
    assert_eq!(vault.volume("v").unwrap().svn_floor, 4);
}

#[test]
fn sealed_data_keeps_to_its_lowest_security_version() {
    let (_folder, vault) = vault();
    let blob = vault.seal(&signed(1, 7, 3), &by(7, 3), false, b"x").unwrap();
    assert_eq!(refused(vault.unseal(&signed(1, 7, 2), &blob)), "svn-too-low");
    vault.unseal(&signed(1, 7, 3), &blob).unwrap();
    vault.unseal(&signed(2, 7, 9), &blob).unwrap();
}

#[test]
fn sealed_data_is_whole_and_this_hosts() {
    let (folder, vault) = vault();
    let me = signed(1, 7, 3);
    let blob = vault.seal(&me, &image(1), false, b"sixteen bytes...").unwrap();
    assert_eq!(blob.len(), 16 + SEALED_OVERHEAD);
    for at in 0..blob.len() {
        for bit in [1, 0x80] {
            let mut altered = blob.clone();
            altered[at] ^= bit;
            let code = refused(vault.unseal(&me, &altered));
            let expected = match (at, bit) {
                (16..32, _) => "sealed-foreign",
                // It says that it is for a fleet.
                (12, 1) => "no-fleet",
                _ => "sealed-corrupt",
            };
            assert_eq!(code, expected, "byte {at}");
        }
    }
    for length in 0..blob.len() {
        assert_eq!(refused(vault.unseal(&me, &blob[..length])), "sealed-corrupt");
    }
    assert_eq!(refused(vault.unseal(&me, &[&blob[..], &[0]].concat())), "sealed-corrupt");
    // Another host's vault, even if the blob is made to name it.
    let other_folder = tempfile::tempdir().unwrap();
    let other = software(other_folder.path()).unwrap();
    assert_eq!(refused(other.unseal(&me, &blob)), "sealed-foreign");
    let mut renamed = blob.clone();
    renamed[16..32].copy_from_slice(&other.id());
    assert_eq!(refused(other.unseal(&me, &renamed)), "sealed-corrupt");
    // After a restart it opens; twice sealed it is never the same.
    assert_ne!(vault.seal(&me, &image(1), false, b"sixteen bytes...").unwrap(), blob);
    drop(vault);
    let vault = software(folder.path()).unwrap();
    assert_eq!(&**vault.unseal(&me, &blob).unwrap().data, b"sixteen bytes...");
    // Sizes.
    for length in [0, 1, SEALED_MAX] {
        let blob = vault.seal(&me, &image(1), false, &vec![9; length]).unwrap();
        assert_eq!(*vault.unseal(&me, &blob).unwrap().data, vec![9; length]);
    }
    assert_eq!(refused(vault.seal(&me, &image(1), false, &vec![9; SEALED_MAX + 1])), "too-large");
    assert_eq!(refused(vault.seal(&me, &image(1), true, b"x")), "no-fleet");
}

#[test]
fn counters_are_theirs_alone_whom_the_guest_names() {
    let (folder, vault) = vault();
    let me = signed(1, 7, 3);
    for expected in 1..4 {
        assert_eq!(vault.counter(&me, &by(7, 0), "a", true).unwrap(), expected);
    }
    drop(vault);
    let vault = software(folder.path()).unwrap();
    assert_eq!(vault.counter(&me, &by(7, 0), "a", false).unwrap(), 3);
    // The signer's, whatever the image and the lowest security version.
    assert_eq!(vault.counter(&signed(2, 7, 1), &by(7, 1), "a", false).unwrap(), 3);
    assert_eq!(refused(vault.counter(&signed(2, 7, 1), &by(7, 2), "a", false)), "svn-too-low");
    // An image without its signature, or with another, comes to no other counters: it is refused.
    for other in [closed(1), signed(1, 8, 3), open_box(me)] {
        assert_eq!(refused(vault.counter(&other, &by(7, 0), "a", true)), "not-owner");
    }
    // The image's own are others, and the same whoever signed it; an open box moves none of them.
    assert_eq!(vault.counter(&me, &image(1), "a", true).unwrap(), 1);
    assert_eq!(vault.counter(&closed(1), &image(1), "a", true).unwrap(), 2);
    assert_eq!(refused(vault.counter(&closed(2), &image(1), "a", true)), "not-owner");
    assert_eq!(refused(vault.counter(&open_box(me), &image(1), "a", true)), "not-owner");
    assert_eq!(vault.counter(&open_box(me), &Owner::Open, "a", true).unwrap(), 1);
    assert_eq!(vault.counter(&open_box(closed(1)), &Owner::Open, "a", true).unwrap(), 2);
    assert_eq!(vault.counter(&open_box(closed(2)), &Owner::Open, "a", true).unwrap(), 1);
    assert_eq!(vault.counter(&me, &by(7, 0), "b", false).unwrap(), 0);
    assert_eq!(vault.counter(&me, &by(7, 0), "a", false).unwrap(), 3);
    for name in ["", "a b", "a\n", &"a".repeat(65)] {
        assert_eq!(refused(vault.counter(&me, &by(7, 0), name, true)), "bad-name");
    }
    for n in 1..COUNTERS_MAX {
        vault.counter(&me, &by(7, 0), &format!("{n:064}"), true).unwrap();
    }
    let more = vault.counter(&me, &by(7, 0), "one-more", true);
    assert_eq!(refused(more), "too-many-counters");
    assert_eq!(vault.counter(&me, &by(7, 0), "a", true).unwrap(), 4);
}

#[test]
fn counters_moved_at_once_count_each_move() {
    let (_folder, vault) = vault();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..10).for_each(|_| drop(vault.counter(&closed(1), &image(1), "n", true)))
            });
        }
    });
    assert_eq!(vault.counter(&closed(1), &image(1), "n", false).unwrap(), 40);
}

#[test]
fn policies_are_read_as_they_are_written() {
    for owner in [image(1), by(2, 0), by(2, 9), by(2, u32::MAX), Owner::Open] {
        assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
    }
    let hex = "ab".repeat(32);
    let bad = ["", "closed", "image", "image:", "open:", "signer:1", "Open"].map(String::from);
    let more = [
        format!("image:{}", hex.to_uppercase()),
        format!("signer:{hex},svn="),
        format!("signer:{hex},svn=+1"),
        format!("signer:{hex},svn=4294967296"),
        format!("image:{hex},svn=1"),
    ];
    for text in bad.iter().chain(&more) {
        assert_eq!(refused(text.parse::<Owner>()), "bad-owner", "{text}");
    }
}
