//! A vault that is cut off while it is made, and one that is gone.

use std::fs;

use coffer_anchor::NvAnchor;

use super::support::*;
use super::swtpm::INDEX;

#[test]
fn a_vault_is_the_same_after_a_restart() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let (id, key) = (vault.id(), vault.transport_key());
    assert_eq!(vault.counter(&closed(1), &image(1), "n", true).unwrap(), 1);
    drop(vault);
    site.host.lock().unwrap().restart();
    let vault = site.open().unwrap();
    assert_eq!((vault.id(), vault.transport_key()), (id, key));
    assert_eq!(vault.counter(&closed(1), &image(1), "n", false).unwrap(), 1);
    // Another host's, or another making's, is another vault.
    let other = Site::new().open().unwrap();
    assert_ne!(other.id(), id);
    assert_ne!(other.transport_key(), key);
}

/// Every step of making is the last one once, with the host going down after it or going on. The next opening has a
/// vault; and whoever was told of a vault still has that one.
#[test]
fn making_may_be_cut_off_anywhere() {
    let site = Site::new();
    let mut cuts = 0;
    let mut whole = false;
    while !whole {
        let (steps, left) = fuse(cuts);
        let told = site.open_with(steps).map(|vault| vault.id());
        whole = told.is_ok();
        assert!(whole || left.load(std::sync::atomic::Ordering::SeqCst) < 0);
        let vault = site.open().unwrap_or_else(|error| panic!("after {cuts} steps: {error}"));
        if let Ok(id) = told {
            assert_eq!(vault.id(), id);
        }
        assert_eq!(
            vault.counter(&closed(1), &image(1), "n", true).unwrap(),
            1,
            "after {cuts} steps"
        );
        drop(vault);
        if !whole {
            // From nothing again.
            clear(site.folder.path());
            NvAnchor::undefine(&mut site.host.lock().unwrap().tpm(), INDEX).unwrap();
            cuts += 1;
        }
    }
    assert!(cuts > 25, "only {cuts} steps");
}

/// The same in a row, without anything put right between.
#[test]
fn making_may_be_cut_off_again_and_again() {
    let site = Site::new();
    for cuts in 0..40 {
        let _ = site.open_with(fuse(cuts).0);
    }
    let vault = site.open().unwrap();
    assert_eq!(vault.counter(&closed(1), &image(1), "n", true).unwrap(), 1);
}

#[test]
fn opening_may_be_cut_off_anywhere() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let id = vault.id();
    drop(vault);
    for cuts in 0.. {
        let whole = site.open_with(fuse(cuts).0).is_ok();
        assert_eq!(site.open().unwrap().id(), id, "after {cuts} steps");
        if whole {
            return assert!(cuts > 3);
        }
    }
}

#[test]
fn a_folder_that_is_gone_is_missed() {
    let site = Site::new();
    drop(site.open().unwrap());
    let kept = tempfile::tempdir().unwrap();
    copy(site.folder.path(), kept.path());
    clear(site.folder.path());
    assert_eq!(refused(site.open()), "vault-missing");
    // The key file alone is no vault.
    copy(kept.path(), site.folder.path());
    fs::remove_file(site.folder.path().join("vault.disk")).unwrap();
    assert_eq!(refused(site.open()), "vault-missing");
    // Brought back, it is there.
    copy(kept.path(), site.folder.path());
    site.open().unwrap();
    // Once somebody with owner auth removed the counter, it begins with nothing.
    clear(site.folder.path());
    NvAnchor::undefine(&mut site.host.lock().unwrap().tpm(), INDEX).unwrap();
    site.open().unwrap();
}

/// The files of a making, each kept at the step after which it was there, put back beside a vault in use.
#[test]
fn an_old_marker_starts_nothing_over() {
    let site = Site::new();
    let kept = tempfile::tempdir().unwrap();
    let marker = site.folder.path().join("vault.making");
    let (from, to) = (marker.clone(), kept.path().to_owned());
    let seen = std::sync::Mutex::new(Vec::<Vec<u8>>::new());
    let seen = std::sync::Arc::new(seen);
    let log = seen.clone();
    let vault = site
        .open_with(std::sync::Arc::new(move || {
            if let Ok(bytes) = fs::read(&from) {
                let mut log = log.lock().unwrap();
                if log.last() != Some(&bytes) {
                    log.push(bytes);
                }
            }
            Ok(())
        }))
        .unwrap();
    let id = vault.id();
    vault.counter(&closed(1), &image(1), "n", true).unwrap();
    drop(vault);
    copy(site.folder.path(), &to);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "a trial key, and the vault's");
    for (markers, bytes) in seen.into_iter().enumerate() {
        // Beside nothing, and beside all but the key file.
        for rest in [false, true] {
            clear(site.folder.path());
            match rest {
                true => copy(&to, site.folder.path()),
                false => fs::create_dir_all(site.folder.path()).unwrap(),
            }
            let _ = fs::remove_file(site.folder.path().join("vault.key"));
            fs::write(&marker, &bytes).unwrap();
            match site.open() {
                // It is the key file under another name, and opens what is there.
                Ok(vault) => {
                    assert!(rest && markers > 0);
                    assert_eq!(vault.id(), id);
                    assert_eq!(vault.counter(&closed(1), &image(1), "n", false).unwrap(), 1);
                    drop(vault);
                    clear(&to);
                    copy(site.folder.path(), &to);
                }
                Err(error) => {
                    assert_eq!(error.code(), "vault-missing", "{markers} {rest}");
                }
            }
        }
    }
}

#[test]
fn a_damaged_key_file_is_named() {
    let site = Site::new();
    drop(site.open().unwrap());
    let path = site.folder.path().join("vault.key");
    let good = fs::read(&path).unwrap();
    // The head by its MAC, the sealed key by its digest, the rest by the MAC.
    for at in [0, 8, 12, 13, 14, 16, 23, 24, 40, 200, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let code = refused(site.open());
        assert!(code == "vault-key-file" || code.starts_with("seal-"), "byte {at}: {code}");
    }
    fs::write(&path, &good).unwrap();
    site.open().unwrap();
}
