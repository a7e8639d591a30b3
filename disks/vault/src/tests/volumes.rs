//! Volumes of each kind: made, used, tended, removed, and their files lost.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use coffer_disk::{BLOCK, BlockDevice as _, Integrity};

use super::support::*;
use crate::volume_record::VolumeRecord;
use crate::*;

fn vault() -> (tempfile::TempDir, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let vault = software(folder.path()).unwrap();
    (folder, vault)
}

fn file_of(folder: &std::path::Path, vault: &Vault, name: &str) -> std::path::PathBuf {
    folder.join("volumes").join(format!("{}.disk", vault.volume(name).unwrap().id))
}

#[test]
fn volumes_are_told_as_they_were_made() {
    let (folder, vault) = vault();
    let made = vault.create_volume(&encrypted("b", by(1, 3))).unwrap();
    vault.create_volume(&new("a", NewKind::Raw { bytes: 8192 }, Owner::Open)).unwrap();
    vault.create_volume(&new("c", NewKind::Vtpm, image(2))).unwrap();
    drop(vault);
    let vault = software(folder.path()).unwrap();
    let told = vault.volumes().unwrap();
    assert_eq!(told.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(told[1], made);
    assert_eq!((made.bytes, made.svn_floor, made.attached), (BYTES, 3, false));
    assert_eq!(made.owner.to_string(), format!("signer:{},svn=3", "01".repeat(32)));
    vault.remove_volume("b").unwrap();
    assert_eq!(refused(vault.volume("b")), "no-such-volume");
    assert_eq!(refused(vault.remove_volume("b")), "no-such-volume");
    assert_eq!(vault.volumes().unwrap().len(), 2);
    assert_eq!(fs::read_dir(folder.path().join("volumes")).unwrap().count(), 1);
    // Its counter serves the next one.
    vault.create_volume(&encrypted("b", image(1))).unwrap();
    write(&vault, "b", &closed(1), 7);
}

#[test]
fn bad_volumes_are_refused() {
    let (_folder, vault) = vault();
    vault.create_volume(&new("a", NewKind::Vtpm, Owner::Open)).unwrap();
    let check = |name: &str, kind, expected| {
        assert_eq!(refused(vault.create_volume(&new(name, kind, Owner::Open))), expected, "{name}");
    };
    check("a", NewKind::Vtpm, "volume-exists");
    for name in ["", "A", "-a", "a/b", "a b", "..", &"a".repeat(64)] {
        check(name, NewKind::Vtpm, "bad-name");
    }
    for bytes in [0, 1, 4097, (1 << 40) + 4096, u64::MAX] {
        check("b", NewKind::Raw { bytes }, "bad-size");
        check("b", NewKind::Encrypted { bytes }, "bad-size");
    }
    let volume = NewVolume { verifier_key: Some([4; 65]), ..encrypted("b", Owner::Open) };
    assert_eq!(refused(vault.create_volume(&volume)), "bad-key");
    vault.create_volume(&encrypted(&"a".repeat(63), Owner::Open)).unwrap();
}

#[test]
fn encrypted_volumes_keep_what_was_flushed() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 0);
    write(&vault, "v", &closed(1), 7);
    drop(vault);
    let vault = software(folder.path()).unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 7);
    assert_eq!(vault.check("v").unwrap().damaged, 0);
    let needle = [7; 64];
    let stored = fs::read(file_of(folder.path(), &vault, "v")).unwrap();
    assert!(!stored.windows(64).any(|part| part == needle));
}

#[test]
fn a_volume_is_in_use_once() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    vault.create_volume(&encrypted("w", image(1))).unwrap();
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    assert!(attached.volume.attached && vault.volume("v").unwrap().attached);
    assert_eq!(refused(vault.attach("v", &closed(1))), "volume-in-use");
    assert_eq!(refused(vault.remove_volume("v")), "volume-in-use");
    assert_eq!(refused(vault.check("v")), "volume-in-use");
    assert_eq!(refused(vault.grow("v", 2 * BYTES)), "volume-in-use");
    assert_eq!(refused(vault.rekey("v")), "volume-in-use");
    vault.attach("w", &closed(1)).unwrap();
    // A guest that outlives its attachment has no session, and keeps the file from the next. What it was committing
    // may count, as after a power cut.
    let mut survivor = disk(&mut attached).unwrap();
    drop(attached);
    survivor.write(0, &[3; BLOCK]).unwrap();
    assert_eq!(survivor.flush().unwrap_err().code(), "anchor-failed");
    assert_eq!(survivor.write(0, &[4; BLOCK]).unwrap_err().code(), "session-ended");
    assert_eq!(refused(vault.attach("v", &closed(1))), "volume-in-use");
    drop(survivor);
    assert!([0, 3].contains(&read(&vault, "v", &closed(1))));
    // Another process waits for the folder, and for what is attached.
    let attached = vault.attach("v", &closed(1)).unwrap();
    assert_eq!(refused(software(folder.path())), "busy");
    drop(vault);
    assert_eq!(refused(software(folder.path())), "busy");
    drop(attached);
    software(folder.path()).unwrap();
}

#[test]
fn raw_and_integrity_volumes() {
    let (folder, vault) = vault();
    vault.create_volume(&new("r", NewKind::Raw { bytes: 8192 }, Owner::Open)).unwrap();
    let AttachedDisk::Raw { file } = vault.attach("r", &open_box(closed(1))).unwrap().disk else {
        panic!()
    };
    assert_eq!(file.metadata().unwrap().len(), 8192);
    drop(file);
    assert_eq!(vault.grow("r", 12288).unwrap().bytes, 12288);
    assert_eq!(refused(vault.grow("r", 8192)), "bad-size");

    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&[5; 3 * BLOCK + 10]).unwrap();
    vault.create_volume(&new("i", NewKind::Integrity { source }, image(1))).unwrap();
    assert_eq!(refused(vault.grow("i", 1 << 20)), "wrong-kind");
    assert_eq!(refused(vault.rekey("i")), "wrong-kind");
    let attached = vault.attach("i", &closed(1)).unwrap();
    let AttachedDisk::Integrity { file, data_size, root_hash, salt } = attached.disk else {
        panic!()
    };
    assert_eq!(data_size, 4 * BLOCK as u64);
    let mut disk = Integrity::ahead_of_time(file, data_size, root_hash, &salt).unwrap();
    let mut block = [0; BLOCK];
    disk.read(3, &mut block).unwrap();
    assert_eq!((block[9], block[10]), (5, 0));
    drop((disk, attached.hold));
    assert_eq!(vault.check("i").unwrap().damaged, 0);
    let path = file_of(folder.path(), &vault, "i");
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[6], 4100).unwrap();
    assert_eq!(vault.check("i").unwrap().damaged, 1);
}

#[test]
fn the_state_of_a_vtpm_is_the_last_one_stored() {
    let (folder, vault) = vault();
    vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    let state = |vault: &Vault| match vault.attach("t", &closed(1)).unwrap().disk {
        AttachedDisk::Vtpm(state) => state,
        _ => panic!(),
    };
    let first = state(&vault);
    assert!(first.load().unwrap().is_none());
    for length in [0, 1, 3872, 3873, 4096, 4097, VTPM_STATE_MAX, 10] {
        let bytes: Vec<u8> = (0..length).map(|n| n as u8 ^ length as u8).collect();
        first.store(&bytes).unwrap();
        assert_eq!(*first.load().unwrap().unwrap(), bytes);
    }
    assert_eq!(refused(first.store(&vec![0; VTPM_STATE_MAX + 1])), "too-large");
    // Its volume is taken while it is there.
    assert_eq!(refused(vault.attach("t", &closed(1))), "volume-in-use");
    drop((first, vault));
    let vault = software(folder.path()).unwrap();
    assert_eq!(state(&vault).load().unwrap().unwrap().len(), 10);
    // A new one of the name has nothing of the old one's.
    vault.remove_volume("t").unwrap();
    vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    assert!(state(&vault).load().unwrap().is_none());
}

#[test]
fn volumes_grow_and_get_other_keys() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    write(&vault, "v", &closed(1), 9);
    assert_eq!(vault.grow("v", 3 * BYTES).unwrap().bytes, 3 * BYTES);
    let before = vault.record("v").unwrap();
    vault.rekey("v").unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 9);
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    assert_eq!(disk(&mut attached).unwrap().info().shape.blocks, 3 * 64);
    drop(attached);
    // Cut off before the disk had the new key, and after: the record says that either may be it.
    let after = vault.record("v").unwrap();
    assert_eq!((before.generation, after.generation), (0, 1));
    for mut record in [before, after] {
        record.rekeying = true;
        vault.save("v", &record).unwrap();
        assert_eq!(read(&vault, "v", &closed(1)), 9);
        let settled = vault.record("v").unwrap();
        assert_eq!((settled.generation, settled.rekeying), (1, false));
    }
    // Without that, the old key is a wrong key.
    let mut record = vault.record("v").unwrap();
    record.generation = 0;
    vault.save("v", &record).unwrap();
    assert_eq!(refused(vault.check("v")), "wrong-key");
    drop((vault, folder));
}

#[test]
fn a_lost_torn_or_foreign_file_is_named() {
    let (folder, vault) = vault();
    for name in ["v", "w"] {
        vault.create_volume(&encrypted(name, image(1))).unwrap();
        write(&vault, name, &closed(1), 4);
    }
    let [v, w] = ["v", "w"].map(|name| file_of(folder.path(), &vault, name));
    let kept = folder.path().join("kept");
    fs::rename(&v, &kept).unwrap();
    assert_eq!(refused(vault.attach("v", &closed(1))), "volume-missing");
    fs::copy(&w, &v).unwrap();
    assert_eq!(refused(vault.check("v")), "foreign");
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    assert_eq!(disk(&mut attached).err().unwrap().code(), "foreign");
    drop(attached);
    fs::copy(&kept, &v).unwrap();
    let length = fs::metadata(&v).unwrap().len();
    OpenOptions::new().write(true).open(&v).unwrap().set_len(length - 1).unwrap();
    assert_eq!(refused(vault.attach("v", &closed(1))), "volume-short");
    // Two blocks of it torn.
    fs::copy(&kept, &v).unwrap();
    OpenOptions::new().write(true).open(&v).unwrap().write_all_at(&[0; 8192], 0).unwrap();
    assert_eq!(refused(vault.check("v")), "not-a-disk");
    fs::copy(&kept, &v).unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 4);
    assert_eq!(read(&vault, "w", &closed(1)), 4);
}

/// All but the superblocks is gone: nothing opens, until what is gone is given up.
#[test]
fn a_damaged_volume_is_refused_until_it_is_repaired() {
    let (folder, vault) = vault();
    for (name, kind) in
        [("v", NewKind::Encrypted { bytes: BYTES }), ("r", NewKind::Raw { bytes: BYTES })]
    {
        vault.create_volume(&new(name, kind, image(1))).unwrap();
    }
    assert_eq!(refused(vault.repair("r")), "wrong-kind");
    assert_eq!(refused(vault.repair("none")), "no-such-volume");
    write(&vault, "v", &closed(1), 4);
    let v = file_of(folder.path(), &vault, "v");
    let length = fs::metadata(&v).unwrap().len();
    OpenOptions::new().write(true).open(&v).unwrap().set_len(8192).unwrap();
    assert_eq!(refused(vault.check("v")), "volume-short");
    let mut attached = vault.attach("v", &closed(1)).err();
    assert_eq!(attached.take().map(|error| error.code()), Some("volume-short"));
    // Its key was being changed, too.
    let record = vault.record("v").unwrap();
    vault.save("v", &VolumeRecord { rekeying: true, ..record }).unwrap();
    let report = vault.repair("v").unwrap();
    assert_eq!((report.damaged, report.lost), (1, BYTES / BLOCK as u64));
    assert_eq!(fs::metadata(&v).unwrap().len(), length);
    assert!(!vault.record("v").unwrap().rekeying);
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    assert_eq!(refused(vault.repair("v")), "volume-in-use");
    let mut disk = disk(&mut attached).unwrap();
    let mut block = [1; BLOCK];
    assert_eq!(disk.read(0, &mut block).unwrap_err().code(), "lost");
    assert_eq!(block, [0; BLOCK]);
    drop((disk, attached));
    write(&vault, "v", &closed(1), 5);
    assert_eq!(read(&vault, "v", &closed(1)), 5);
    let report = vault.check("v").unwrap();
    assert_eq!((report.damaged, report.lost), (0, BYTES / BLOCK as u64 - 1));
    // Growing it was cut off, and then it became shorter.
    let record = vault.record("v").unwrap();
    vault.grow("v", 2 * BYTES).unwrap();
    vault.save("v", &record).unwrap();
    OpenOptions::new().write(true).open(&v).unwrap().set_len(length).unwrap();
    assert_eq!(refused(vault.check("v")), "truncated");
    assert_eq!(vault.repair("v").unwrap().damaged, 0);
    vault.grow("v", 2 * BYTES).unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 5);
    // An old copy is not made new by it.
    let old = fs::read(&v).unwrap();
    write(&vault, "v", &closed(1), 6);
    fs::write(&v, old).unwrap();
    assert_eq!(refused(vault.repair("v")), "stale");
}

/// Cut off after the file or after the disk became larger: the volume is used as it is, and grown from there.
#[test]
fn a_growing_that_was_cut_off_leaves_a_volume_that_is_used() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    vault.create_volume(&new("r", NewKind::Raw { bytes: BYTES }, image(1))).unwrap();
    write(&vault, "v", &closed(1), 1);
    let [v, r] = ["v", "r"].map(|name| file_of(folder.path(), &vault, name));
    let lengthen = |path: &std::path::Path, to: u64| {
        OpenOptions::new().write(true).open(path).unwrap().set_len(to).unwrap();
    };
    let length = |path: &std::path::Path| fs::metadata(path).unwrap().len();
    let before = vault.record("v").unwrap();

    let was = length(&v);
    lengthen(&v, 3 * was);
    assert_eq!(vault.attach("v", &closed(1)).unwrap().volume.bytes, BYTES);
    assert_eq!(length(&v), was);
    assert_eq!(read(&vault, "v", &closed(1)), 1);
    // Nothing is promised of a raw one, but nothing of it is cut off either.
    lengthen(&r, 3 * BYTES + 7);
    assert_eq!(vault.attach("r", &closed(1)).unwrap().volume.bytes, 3 * BYTES);
    assert_eq!(vault.volume("r").unwrap().bytes, 3 * BYTES);
    assert_eq!(length(&r), 3 * BYTES + 7);

    vault.grow("v", 3 * BYTES).unwrap();
    let grown = length(&v);
    vault.save("v", &before).unwrap();
    assert_eq!(vault.attach("v", &closed(1)).unwrap().volume.bytes, 3 * BYTES);
    assert_eq!((vault.volume("v").unwrap().bytes, length(&v)), (3 * BYTES, grown));
    vault.save("v", &before).unwrap();
    let smaller = vault.grow("v", 2 * BYTES).unwrap_err();
    assert_eq!(smaller.code(), "bad-size");
    let said = smaller.to_string();
    assert!(said.contains("`v`") && said.contains(&(3 * BYTES).to_string()), "{said}");
    assert_eq!(vault.grow("v", 4 * BYTES).unwrap().bytes, 4 * BYTES);
    assert_eq!(read(&vault, "v", &closed(1)), 1);
    assert_eq!(refused(vault.grow("r", 2 * BYTES)), "bad-size");
    assert_eq!(vault.grow("r", 4 * BYTES).unwrap().bytes, 4 * BYTES);
    assert_eq!(length(&r), 4 * BYTES);
    // And then its key was being changed, and then it became shorter.
    let before = vault.record("v").unwrap();
    let was = length(&v);
    vault.grow("v", 5 * BYTES).unwrap();
    vault.save("v", &before).unwrap();
    vault.rekey("v").unwrap();
    assert_eq!(vault.volume("v").unwrap().bytes, 5 * BYTES);
    let record = vault.record("v").unwrap();
    vault.save("v", &VolumeRecord { rekeying: true, ..record }).unwrap();
    lengthen(&v, was);
    vault.repair("v").unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 1);
}

/// Growing, cut off before every fifth step, with and without a change of keys before it: the volume has either size, and opens.
#[test]
fn growing_may_be_cut_off_anywhere() {
    for steps in (0..).step_by(5) {
        let (folder, vault) = vault();
        vault.create_volume(&encrypted("v", image(1))).unwrap();
        vault.create_volume(&new("r", NewKind::Raw { bytes: BYTES }, image(1))).unwrap();
        write(&vault, "v", &closed(1), 1);
        drop(vault);
        let (fused, left) = fuse(i64::MAX);
        let root = Root::DangerouslySoftware;
        let vault = Vault::open_in_steps(folder.path(), root, None, fused).unwrap();
        left.store(steps, std::sync::atomic::Ordering::SeqCst);
        let rekeyed = if steps % 2 == 0 { vault.rekey("v").map(drop) } else { Ok(()) };
        let grown = rekeyed.and_then(|()| vault.grow("v", 2 * BYTES)).is_ok();
        let done = vault.grow("r", 2 * BYTES).is_ok() && grown;
        drop(vault);
        let vault = software(folder.path()).unwrap();
        for name in ["v", "r"] {
            let bytes = vault.attach(name, &closed(1)).unwrap().volume.bytes;
            assert!(bytes == 2 * BYTES || (bytes == BYTES && !done), "{name}, step {steps}");
        }
        assert_eq!(read(&vault, "v", &closed(1)), 1, "step {steps}");
        assert_eq!(vault.grow("v", 2 * BYTES).unwrap().bytes, 2 * BYTES);
        assert_eq!(read(&vault, "v", &closed(1)), 1, "step {steps}");
        if done {
            assert!(steps > 10, "fewer steps than that has");
            return;
        }
    }
}

/// A folder where a volume's file was: the volume can be removed, and the vault opens.
#[test]
fn a_folder_in_the_place_of_a_file_is_in_nobodys_way() {
    for full in [false, true] {
        let (folder, vault) = vault();
        vault.create_volume(&encrypted("v", image(1))).unwrap();
        vault.create_volume(&encrypted("w", image(1))).unwrap();
        write(&vault, "w", &closed(1), 1);
        let v = file_of(folder.path(), &vault, "v");
        fs::remove_file(&v).unwrap();
        fs::create_dir(&v).unwrap();
        let other = folder.path().join("volumes").join("00.pending");
        fs::create_dir(&other).unwrap();
        if full {
            [&v, &other].iter().for_each(|at| fs::write(at.join("in-it"), "").unwrap());
        }
        vault.remove_volume("v").unwrap();
        drop(vault);
        let vault = software(folder.path()).unwrap();
        assert_eq!(read(&vault, "w", &closed(1)), 1);
        assert_eq!(other.exists(), full);
    }
}

/// Links, FIFOs and folders in the place of each file of a vault's folder: none is followed, waited for or written to, and the
/// vault opens again with what was there.
#[test]
fn what_is_no_file_of_the_folder_is_not_opened() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    write(&vault, "v", &closed(1), 1);
    let raw = NewVolume { owner: Owner::Open, ..new("r", NewKind::Raw { bytes: BYTES }, image(1)) };
    vault.create_volume(&raw).unwrap();
    let [v, r] = ["v", "r"].map(|name| file_of(folder.path(), &vault, name));
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    let pristine = vec![7; 2 * BYTES as usize];
    let link = |at: &std::path::Path| std::os::unix::fs::symlink(&target, at).unwrap();
    let fifo = |at: &std::path::Path| {
        assert!(std::process::Command::new("mkfifo").arg(at).status().unwrap().success());
    };
    let directory = |at: &std::path::Path| fs::create_dir(at).unwrap();
    let others: [&dyn Fn(&std::path::Path); 3] = [&link, &fifo, &directory];
    let aside = folder.path().join("aside");
    let in_place = |at: &std::path::Path, try_it: &dyn Fn() -> Result<(), VaultError>| {
        for put in others {
            fs::write(&target, &pristine).unwrap();
            let there = at.exists();
            if there {
                fs::rename(at, &aside).unwrap();
            }
            put(at);
            let error = try_it().expect_err("it is no file");
            assert_eq!(error.code(), "storage-failed", "{error}");
            assert!(error.to_string().contains("it is no regular file"), "{error}");
            assert!(fs::read(&target).unwrap() == pristine);
            match fs::symlink_metadata(at).unwrap().is_dir() {
                true => fs::remove_dir(at).unwrap(),
                false => fs::remove_file(at).unwrap(),
            }
            if there {
                fs::rename(&aside, at).unwrap();
            }
        }
    };
    let attached = |name: &'static str, user: Identity| {
        let vault = &vault;
        move || match vault.attach(name, &user) {
            Ok(_) => Ok(()),
            Err(error) => {
                assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
                Err(error)
            }
        }
    };
    in_place(&v, &attached("v", closed(1)));
    in_place(&r, &attached("r", open_box(closed(1))));
    attached("r", open_box(closed(1)))().unwrap();
    drop(vault);
    let open = || software(folder.path()).map(drop);
    for name in ["vault.key", "vault.id", "vault.disk", "vault.counter"] {
        in_place(&folder.path().join(name), &open);
    }
    // What is written anew: the file before its name.
    let making = tempfile::tempdir().unwrap();
    for name in ["vault.making.new", "vault.counter.new", "vault.id.new"] {
        in_place(&making.path().join(name), &|| software(making.path()).map(drop));
    }
    software(making.path()).unwrap();
    // The folders themselves.
    let linked = elsewhere.path().join("linked");
    std::os::unix::fs::symlink(folder.path(), &linked).unwrap();
    assert_eq!(refused(software(&linked)), "storage-failed");
    let volumes = folder.path().join("volumes");
    fs::rename(&volumes, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &volumes).unwrap();
    assert_eq!(refused(open()), "storage-failed");
    fs::remove_file(&volumes).unwrap();
    fs::rename(&aside, &volumes).unwrap();
    assert_eq!(read(&software(folder.path()).unwrap(), "v", &closed(1)), 1);
}

#[test]
fn an_old_copy_of_a_volume_is_stale() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    write(&vault, "v", &closed(1), 1);
    let path = file_of(folder.path(), &vault, "v");
    let old = fs::read(&path).unwrap();
    write(&vault, "v", &closed(1), 2);
    let newest = fs::read(&path).unwrap();
    fs::write(&path, old).unwrap();
    assert_eq!(refused(vault.check("v")), "stale");
    fs::write(&path, newest).unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 2);
}

/// Making and removing, cut off before each step: the volume is there and opens, or it is not and its name is free.
#[test]
fn making_and_removing_volumes_may_be_cut_off_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    drop(software(folder.path()).unwrap());
    let opening = {
        let (steps, left) = fuse(i64::MAX);
        Vault::open_in_steps(folder.path(), Root::DangerouslySoftware, None, steps).unwrap();
        i64::MAX - left.load(std::sync::atomic::Ordering::SeqCst)
    };
    let (mut absent, mut present) = (0, 0);
    for remove in [false, true] {
        for cuts in 0.. {
            let (steps, _) = fuse(opening + cuts);
            let cut = Vault::open_in_steps(folder.path(), Root::DangerouslySoftware, None, steps);
            let done = cut.and_then(|vault| match remove {
                false => vault.create_volume(&encrypted("v", image(1))).map(drop),
                true => vault.remove_volume("v"),
            });
            let vault = software(folder.path()).unwrap();
            let there = vault.volumes().unwrap().len() == 1;
            match there {
                true => assert_eq!(read(&vault, "v", &closed(1)), 0),
                false => {
                    let left = fs::read_dir(folder.path().join("volumes")).unwrap().count();
                    assert_eq!(left, 0, "after {cuts} steps");
                }
            }
            *if there { &mut present } else { &mut absent } += 1;
            match (&done, remove) {
                (Ok(()), _) => assert_eq!(there, !remove),
                (Err(_), false) if there => vault.remove_volume("v").unwrap(),
                (Err(_), true) if !there => {
                    vault.create_volume(&encrypted("v", image(1))).map(drop).unwrap();
                }
                _ => {}
            }
            if done.is_ok() {
                break;
            }
        }
    }
    assert!(absent > 5 && present > 5, "{absent} {present}");
}

/// A verifier tells launches of one vTPM apart by their numbers: none comes twice, whatever became of a launch.
#[test]
fn launches_of_a_vtpm_are_counted() {
    let (folder, vault) = vault();
    let make = |vault: &Vault| vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    let launch = |vault: &Vault| match vault.attach("t", &closed(1)).unwrap().disk {
        AttachedDisk::Vtpm(state) => state.launch(),
        _ => panic!(),
    };
    make(&vault);
    assert_eq!((launch(&vault), launch(&vault)), (1, 2));
    assert_eq!(refused(vault.attach("t", &closed(2))), "not-owner");
    drop(vault);
    let vault = software(folder.path()).unwrap();
    assert_eq!(launch(&vault), 3);
    // Another of this name is another vTPM.
    vault.remove_volume("t").unwrap();
    make(&vault);
    assert_eq!(launch(&vault), 1);
    assert_eq!(vault.0.records.names("launches/").unwrap().len(), 1);
}

/// A backing disk with no room left: by name, nothing that was committed is lost, and it goes on once there is room.
#[test]
fn a_full_disk_loses_nothing() {
    let (folder, vault) = vault();
    vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    let full = || Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    drop(vault);
    let is_full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = is_full.clone();
    let steps = move || match switch.load(std::sync::atomic::Ordering::SeqCst) {
        true => full(),
        false => Ok(()),
    };
    let root = Root::DangerouslySoftware;
    let vault =
        Vault::open_in_steps(folder.path(), root, None, std::sync::Arc::new(steps)).unwrap();
    let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else { panic!() };
    state.store(&[1; 20_000]).unwrap();
    is_full.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(refused(state.store(&[2; 20_000])), "storage-full");
    assert_eq!(refused(vault.counter(&closed(1), &image(1), "n", true)), "storage-full");
    assert_eq!(refused(vault.create_volume(&encrypted("v", image(1)))), "storage-full");
    assert_eq!(state.load().unwrap().unwrap()[0], 1);
    is_full.store(false, std::sync::atomic::Ordering::SeqCst);
    state.store(&[3; 20_000]).unwrap();
    drop((state, vault));
    let vault = software(folder.path()).unwrap();
    let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else { panic!() };
    assert_eq!(*state.load().unwrap().unwrap(), [3; 20_000]);
}

/// Whatever write or flush fails from then on: what is told of a record afterwards is what the next opening finds.
#[test]
fn what_a_failed_commit_left_is_not_told() {
    let mut told_after_failures = 0;
    for failing in 0.. {
        let (folder, vault) = vault();
        vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
        drop(vault);
        let left = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(i64::MAX));
        let steps = left.clone();
        let steps = move || match steps.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
            ..=0 => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            _ => Ok(()),
        };
        let root = Root::DangerouslySoftware;
        let steps = std::sync::Arc::new(steps);
        let vault = Vault::open_in_steps(folder.path(), root, None, steps).unwrap();
        let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else {
            panic!()
        };
        state.store(&[1; 20]).unwrap();
        left.store(failing, std::sync::atomic::Ordering::SeqCst);
        let stored = state.store(&[2; 20]).is_ok();
        let told = state.load();
        drop((state, vault));
        let vault = software(folder.path()).unwrap();
        let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else {
            panic!()
        };
        let found = state.load().unwrap().unwrap();
        if let Ok(told) = told {
            assert_eq!(told.unwrap(), found, "failing from step {failing} on");
            told_after_failures += u64::from(!stored);
        }
        if stored {
            assert_eq!(*found, [2; 20]);
            assert!(told_after_failures > 0, "no failure left a session");
            return;
        }
    }
}

/// One write or flush fails, whichever: whoever comes next finds the vault in use as before, with all that was committed.
#[test]
fn one_failure_ends_the_vault_for_nobody() {
    for failing in 1.. {
        let (folder, vault) = vault();
        vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
        vault.create_volume(&encrypted("v", image(1))).unwrap();
        drop(vault);
        let left = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(i64::MAX));
        let steps = left.clone();
        let steps = move || match steps.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
            1 => Err(std::io::Error::other("the cable is loose")),
            _ => Ok(()),
        };
        let root = Root::DangerouslySoftware;
        let steps = std::sync::Arc::new(steps);
        let vault = Vault::open_in_steps(folder.path(), root, None, steps).unwrap();
        let mut attached = vault.attach("v", &closed(1)).unwrap();
        let mut guest = disk(&mut attached).unwrap();
        let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else {
            panic!()
        };
        state.store(&[1; 20]).unwrap();
        left.store(failing, std::sync::atomic::Ordering::SeqCst);
        let stored = state.store(&[2; 20]).is_ok();
        left.store(i64::MAX, std::sync::atomic::Ordering::SeqCst);
        if stored {
            assert!(failing > 2, "no failure ended a session");
            return;
        }
        assert!([1, 2].contains(&state.load().unwrap().unwrap()[0]), "step {failing}");
        state.store(&[3; 20]).unwrap();
        guest.write(0, &[4; BLOCK]).unwrap();
        guest.flush().unwrap();
        drop((state, guest, attached, vault));
        let vault = software(folder.path()).unwrap();
        let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else {
            panic!()
        };
        assert_eq!(*state.load().unwrap().unwrap(), [3; 20]);
        drop(state);
        assert_eq!(read(&vault, "v", &closed(1)), 4);
    }
}

/// A flush of the vault's disk fails, whichever, and the next ones do not: a guest that flushes its volume meanwhile does not
/// hear of it.
#[test]
fn a_failure_that_passes_ends_no_guests_disk() {
    for failing in 1.. {
        let (folder, vault) = vault();
        vault.create_volume(&encrypted("v", image(1))).unwrap();
        drop(vault);
        let (left, flushes) = (std::sync::Arc::new(std::sync::atomic::AtomicI64::new(i64::MAX)), 3);
        let steps = left.clone();
        let steps = move || match steps.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
            1 => Err(std::io::Error::other("the cable is loose")),
            _ => Ok(()),
        };
        let steps = std::sync::Arc::new(steps);
        let root = Root::DangerouslySoftware;
        let vault = Vault::open_in_steps(folder.path(), root, None, steps).unwrap();
        let mut attached = vault.attach("v", &closed(1)).unwrap();
        let mut guest = disk(&mut attached).unwrap();
        guest.write(0, &[4; BLOCK]).unwrap();
        left.store(failing, std::sync::atomic::Ordering::SeqCst);
        let flushed = guest.flush();
        let passed = left.swap(i64::MAX, std::sync::atomic::Ordering::SeqCst) > 0;
        // What fails is a block's own write: it answers for itself, before anything is committed.
        if passed {
            assert!(failing > flushes, "fewer steps than a commit has");
            flushed.unwrap();
            return;
        }
        if failing > 1 {
            flushed.unwrap_or_else(|error| panic!("step {failing}: {error}"));
            drop((guest, attached, vault));
            let vault = software(folder.path()).unwrap();
            assert_eq!(read(&vault, "v", &closed(1)), 4);
        }
    }
}

/// Nor is a file that was made longer a way to move it faster: what is opened for that keeps the pace too.
#[test]
fn a_longer_file_wears_the_tpm_at_the_volumes_pace() {
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    let v = file_of(folder.path(), &vault, "v");
    let pace = std::time::Duration::from_millis(60);
    vault.set_paces(crate::pace::Paces::new(pace, 0));
    let start = std::time::Instant::now();
    for _ in 0..4 {
        let file = OpenOptions::new().append(true).open(&v).unwrap();
        (&file).write_all(b"x").unwrap();
        vault.attach("v", &closed(1)).unwrap();
    }
    // Each opening moves the counter once at least.
    assert!(start.elapsed() >= 3 * pace, "{:?}", start.elapsed());
}

/// A guest's disk knows that its counter failed; who keeps the counter knows why.
#[test]
fn why_a_counter_failed_is_known_to_who_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let (steps, left) = fuse(i64::MAX);
    let vault =
        Vault::open_in_steps(folder.path(), Root::DangerouslySoftware, None, steps).unwrap();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    let mut guest = disk(&mut attached).unwrap();
    guest.write(0, &[4; BLOCK]).unwrap();
    guest.flush().unwrap();
    assert_eq!(attached.hold.counter_failure(), None);
    left.store(0, std::sync::atomic::Ordering::SeqCst);
    guest.write(0, &[5; BLOCK]).unwrap();
    assert_eq!(guest.flush().unwrap_err().code(), "anchor-failed");
    let why = attached.hold.counter_failure().unwrap();
    assert!(why.contains("the power is cut"), "{why}");
}

/// However often it is attached, a volume's flushes and a vTPM's states move the TPM's counter at their pace.
#[test]
fn what_wears_the_tpm_keeps_its_pace_over_launches() {
    let (_folder, vault) = vault();
    let pace = std::time::Duration::from_millis(60);
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    vault.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    vault.set_paces(crate::pace::Paces::new(pace, 0));
    let start = std::time::Instant::now();
    // An opening moves the counter twice, a flush once.
    (0..2).for_each(|n| write(&vault, "v", &closed(1), n));
    assert!(start.elapsed() >= 5 * pace);
    let start = std::time::Instant::now();
    for n in 0..4 {
        let AttachedDisk::Vtpm(state) = vault.attach("t", &closed(1)).unwrap().disk else {
            panic!()
        };
        state.store(&[n; 9]).unwrap();
    }
    assert!(start.elapsed() >= 3 * pace);
}

/// Two volumes at once, neither of which is at its own pace's end; what waits shares a move.
#[test]
fn all_volumes_together_keep_the_vaults_pace() {
    let (_folder, vault) = vault();
    let pace = std::time::Duration::from_millis(500);
    for name in ["v", "w"] {
        vault.create_volume(&encrypted(name, image(1))).unwrap();
    }
    let both = || {
        let start = std::time::Instant::now();
        let work = |name| write(&vault, name, &closed(1), 3);
        std::thread::scope(|scope| drop(["v", "w"].map(|name| scope.spawn(move || work(name)))));
        start.elapsed()
    };
    vault.pace_in_all().set(pace, 0);
    // Each of them moves its counter three times, and those of both take three moves at least.
    let slow = both();
    assert!(slow >= 2 * pace, "{slow:?}");
    // With so many saved up nobody waits.
    vault.pace_in_all().set(std::time::Duration::from_secs(60), 100);
    let fast = both();
    assert!(fast < std::time::Duration::from_secs(30), "{fast:?}");
}

/// A full file system fails who wants more of it, and not the vault.
#[test]
fn the_vaults_disk_has_all_its_room() {
    use std::os::unix::fs::MetadataExt as _;
    let (folder, vault) = vault();
    drop(vault);
    let disk = folder.path().join("vault.disk");
    let taken = || fs::metadata(&disk).map(|file| file.blocks() * 512 >= file.len()).unwrap();
    assert!(taken());
    // A copy with holes is given it again.
    let copy = folder.path().join("copy");
    let args = ["--sparse=always", disk.to_str().unwrap(), copy.to_str().unwrap()];
    assert!(std::process::Command::new("cp").args(args).status().unwrap().success());
    fs::rename(&copy, &disk).unwrap();
    assert!(!taken());
    drop(software(folder.path()).unwrap());
    assert!(taken());
}

/// Where there is no room for what a copy left out, the vault opens all the same, and what takes room can be removed.
#[test]
fn a_vault_with_holes_opens_on_a_full_file_system() {
    const THIS: &str = "tests::volumes::a_vault_with_holes_opens_on_a_full_file_system";
    // A file system of its own takes a mount, and that a namespace.
    const STAGE: &str = r#"
        set -e
        full=$(mktemp -d)
        mount -t tmpfs -o size=8m none "$full"
        COFFER_TEST_FULL="$full" "$0" --exact "$1" --nocapture
    "#;
    let Some(full) = std::env::var_os("COFFER_TEST_FULL").map(std::path::PathBuf::from) else {
        let this = std::env::current_exe().unwrap();
        let mut stage = std::process::Command::new("unshare");
        stage.args(["--map-root-user", "--mount", "sh", "-c", STAGE]).arg(this).arg(THIS);
        let said = stage.output().unwrap();
        let out = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{out}{}", String::from_utf8_lossy(&said.stderr));
        assert!(out.contains("1 passed"), "{out}");
        return;
    };
    let (folder, vault) = vault();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    vault.create_volume(&encrypted("w", image(1))).unwrap();
    drop(vault);
    copy(folder.path(), &full.join("vault"));
    let rest = full.join("rest");
    let filled = fs::File::create(&rest).and_then(|mut file| {
        let block = [1; BLOCK];
        loop {
            std::io::Write::write_all(&mut file, &block)?;
        }
    });
    let filled: Result<(), _> = filled;
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let vault = software(&full.join("vault")).unwrap();
    let refused = vault.create_volume(&encrypted("x", image(1)));
    assert_eq!(refused.unwrap_err().code(), "storage-full");
    vault.remove_volume("v").unwrap();
    drop(vault);
    fs::remove_file(&rest).unwrap();
    let vault = software(&full.join("vault")).unwrap();
    let names = vault.volumes().unwrap().into_iter().map(|volume| volume.name);
    assert_eq!(names.collect::<Vec<_>>(), ["w"]);
}

#[test]
fn many_large_records_do_not_mix() {
    let (folder, vault) = vault();
    for n in 0..40 {
        vault.create_volume(&new(&format!("t{n}"), NewKind::Vtpm, image(1))).unwrap();
        let attached = vault.attach(&format!("t{n}"), &closed(1)).unwrap();
        let AttachedDisk::Vtpm(state) = &attached.disk else { panic!() };
        state.store(&vec![n; VTPM_STATE_MAX]).unwrap();
    }
    drop(vault);
    let vault = software(folder.path()).unwrap();
    for n in 0..40 {
        let attached = vault.attach(&format!("t{n}"), &closed(1)).unwrap();
        let AttachedDisk::Vtpm(state) = &attached.disk else { panic!() };
        assert_eq!(*state.load().unwrap().unwrap(), vec![n; VTPM_STATE_MAX]);
    }
}
