//! Whoever owns the folder, with two hosts: rollback, copies, two at once. Each with what happens where no TPM is.

use coffer_anchor::NvAnchor;

use super::support::*;
use super::swtpm::INDEX;
use crate::*;

/// The whole folder of before, volume and all, beside the TPM of now.
#[test]
fn a_folder_turned_back_is_refused_and_without_a_tpm_accepted() {
    let site = Site::new();
    let attack = |open: &dyn Fn() -> Result<Vault, VaultError>, folder: &std::path::Path| {
        let old = tempfile::tempdir().unwrap();
        let newest = tempfile::tempdir().unwrap();
        let vault = open().unwrap();
        vault.create_volume(&encrypted("v", image(1))).unwrap();
        write(&vault, "v", &closed(1), 1);
        vault.counter(&closed(1), &image(1), "n", true).unwrap();
        drop(vault);
        copy(folder, old.path());
        let vault = open().unwrap();
        write(&vault, "v", &closed(1), 2);
        vault.counter(&closed(1), &image(1), "n", true).unwrap();
        drop(vault);
        copy(folder, newest.path());
        clear(folder);
        copy(old.path(), folder);
        let turned_back = open().map(|vault| {
            (
                read(&vault, "v", &closed(1)),
                vault.counter(&closed(1), &image(1), "n", false).unwrap(),
            )
        });
        clear(folder);
        copy(newest.path(), folder);
        turned_back
    };
    assert_eq!(refused(attack(&|| site.open(), site.folder.path())), "stale");
    let vault = site.open().unwrap();
    assert_eq!(read(&vault, "v", &closed(1)), 2);
    assert_eq!(vault.counter(&closed(1), &image(1), "n", false).unwrap(), 2);

    let folder = tempfile::tempdir().unwrap();
    let turned_back = attack(&|| software(folder.path()), folder.path()).unwrap();
    assert_eq!(turned_back, (1, 1), "without a TPM the attack succeeds");
}

#[test]
fn a_copy_is_refused_by_another_hosts_tpm_and_without_one_accepted() {
    let (site, other) = (Site::new(), Site::new());
    let vault = site.open().unwrap();
    vault.counter(&closed(1), &image(1), "n", true).unwrap();
    drop(vault);
    copy(site.folder.path(), other.folder.path());
    assert_eq!(refused(other.open()), "seal-other-tpm");
    // Nor with a vault of its own: its key file opens another disk.
    clear(other.folder.path());
    drop(other.open().unwrap());
    let key = std::fs::read(other.folder.path().join("vault.key")).unwrap();
    copy(site.folder.path(), other.folder.path());
    std::fs::write(other.folder.path().join("vault.key"), key).unwrap();
    assert_eq!(refused(other.open()), "wrong-key");
    assert_eq!(site.open().unwrap().counter(&closed(1), &image(1), "n", false).unwrap(), 1);

    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    software(here.path()).unwrap().counter(&closed(1), &image(1), "n", true).unwrap();
    copy(here.path(), there.path());
    let both = [here.path(), there.path()].map(|folder| software(folder).unwrap());
    assert!(both.iter().all(|vault| vault.counter(&closed(1), &image(1), "n", true).unwrap() == 2));
}

#[test]
fn a_vault_is_open_once() {
    let site = Site::new();
    let vault = site.open().unwrap();
    assert_eq!(refused(site.open()), "busy");
    // A copy of the folder has another lock, but the same counter: the first one commits nothing more.
    let copied = tempfile::tempdir().unwrap();
    vault.create_volume(&encrypted("v", image(1))).unwrap();
    let mut attached = vault.attach("v", &closed(1)).unwrap();
    let mut guest = disk(&mut attached).unwrap();
    copy(site.folder.path(), copied.path());
    let second = Vault::open(copied.path(), site.root()).unwrap();
    assert_eq!(refused(vault.counter(&closed(1), &image(1), "n", true)), "superseded");
    guest.write(0, &[1; 4096]).unwrap();
    assert_eq!(guest.flush().unwrap_err().code(), "anchor-failed");
    assert_eq!(second.counter(&closed(1), &image(1), "n", true).unwrap(), 1);
    drop((second, guest, attached, vault));
    // And its folder is an old one now.
    assert_eq!(refused(site.open()), "stale");
    assert_eq!(
        Vault::open(copied.path(), site.root())
            .unwrap()
            .counter(&closed(1), &image(1), "n", false)
            .unwrap(),
        1
    );
}

#[test]
fn a_counter_that_is_gone_or_anothers_is_named() {
    let site = Site::new();
    drop(site.open().unwrap());
    NvAnchor::undefine(&mut site.host.lock().unwrap().tpm(), INDEX).unwrap();
    assert_eq!(refused(site.open()), "counter-missing");
    site.host.lock().unwrap().define(1).unwrap();
    assert_eq!(refused(site.open()), "counter-redefined");
    // Nor is a vault begun over somebody else's counter.
    clear(site.folder.path());
    assert_eq!(refused(site.open()), "vault-missing");
}
