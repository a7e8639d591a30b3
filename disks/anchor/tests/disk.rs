//! The encrypted disk with a real TPM as its anchor, end to end: a file, a counter, a key.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use std::fs::{File, OpenOptions};
use std::path::Path;

use coffer_anchor::{CounterAuth, NvAnchor, PlainKey, Registers, SealedKey};
use coffer_disk::{
    Anchor, BLOCK, DangerousMemoryAnchor, Disk, DiskError, DiskId, DiskKey, FileStore, Shape,
    SystemEntropy,
};
use swtpm::{COUNTER, Host, INDEX, secret};

const SHAPE: Shape = Shape { blocks: 64, spare: 64 };

fn key() -> DiskKey {
    DiskKey::new(&mut [5; 32])
}

fn store(path: &Path) -> FileStore {
    FileStore::new(OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
}

fn create<A: Anchor>(path: &Path, anchor: A) -> Disk<FileStore, A> {
    File::create(path).unwrap().set_len(SHAPE.storage().unwrap()).unwrap();
    Disk::create(store(path), anchor, &key(), SHAPE, &mut SystemEntropy).unwrap()
}

fn open<A: Anchor>(path: &Path, anchor: A, id: DiskId) -> Result<Disk<FileStore, A>, DiskError> {
    Disk::open(store(path), anchor, &key(), id, &mut SystemEntropy)
}

fn write<A: Anchor>(disk: &mut Disk<FileStore, A>, byte: u8) {
    disk.write(0, &[byte; BLOCK]).unwrap();
    disk.flush().unwrap();
}

fn first_byte<A: Anchor>(disk: &mut Disk<FileStore, A>) -> u8 {
    let mut block = [0; BLOCK];
    disk.read(0, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]));
    block[0]
}

#[track_caller]
fn refused<A>(result: Result<Disk<FileStore, A>, DiskError>) -> &'static str {
    result.err().expect("it was not refused").code()
}

#[test]
fn a_disk_outlives_its_hosts_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let mut host = Host::fresh();
    let mut disk = create(&file, host.define(1).unwrap());
    let id = disk.info().id;
    write(&mut disk, 1);
    for round in 1..4 {
        // Flushed on, across a restart of the TPM under a disk in use and a power cut between.
        host.restart();
        write(&mut disk, round);
        drop(disk);
        host.power_cut();
        disk = open(&file, host.open(1).unwrap(), id).unwrap();
        assert_eq!(first_byte(&mut disk), round);
        assert_eq!(disk.info().epoch, host.open(1).unwrap().value().unwrap());
    }
}

#[test]
fn an_old_copy_of_the_file_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    let [file, old, new] = ["disk", "old", "new"].map(|name| folder.path().join(name));
    let host = Host::fresh();
    let mut disk = create(&file, host.define(1).unwrap());
    let id = disk.info().id;
    write(&mut disk, 1);
    drop(disk);
    std::fs::copy(&file, &old).unwrap();
    let at_copy = host.open(1).unwrap().value().unwrap();

    let mut disk = open(&file, host.open(1).unwrap(), id).unwrap();
    write(&mut disk, 2);
    drop(disk);
    std::fs::copy(&file, &new).unwrap();

    std::fs::copy(&old, &file).unwrap();
    assert_eq!(refused(open(&file, host.open(1).unwrap(), id)), "stale");
    // Turned back, a counter lets it in: it is the counter that refuses.
    let mut turned_back = open(&file, DangerousMemoryAnchor::at(at_copy), id).unwrap();
    assert_eq!(first_byte(&mut turned_back), 1);
    drop(turned_back);
    // The newest copy opens.
    let mut disk = open(&new, host.open(1).unwrap(), id).unwrap();
    assert_eq!(first_byte(&mut disk), 2);
}

#[test]
fn a_counter_made_again_by_one_who_has_the_secret_gains_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let [file, old] = ["disk", "old"].map(|name| folder.path().join(name));
    let host = Host::fresh();
    let mut disk = create(&file, host.define(1).unwrap());
    let id = disk.info().id;
    write(&mut disk, 1);
    drop(disk);
    std::fs::copy(&file, &old).unwrap();
    let mut disk = open(&file, host.open(1).unwrap(), id).unwrap();
    write(&mut disk, 2);
    drop(disk);
    drop(open(&file, host.open(1).unwrap(), id).unwrap());

    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[1; 32], 1);
    for (what, path) in [("old", &old), ("newest", &file)] {
        assert_eq!(refused(open(path, host.open(1).unwrap(), id)), "stale", "{what}");
    }
}

#[test]
fn a_disk_on_another_host_is_ahead_of_its_counter() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let (host, other) = (Host::fresh(), Host::fresh());
    let mut disk = create(&file, host.define(1).unwrap());
    let id = disk.info().id;
    (1..6).for_each(|byte| write(&mut disk, byte));
    drop(disk);
    // Whoever moves the disk has the secret too; the other TPM's counter has not counted.
    assert_eq!(refused(open(&file, other.define(1).unwrap(), id)), "anchor-behind");
    assert_eq!(first_byte(&mut open(&file, host.open(1).unwrap(), id).unwrap()), 5);
}

#[test]
fn a_counter_moved_under_a_session_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let host = Host::fresh();
    let mut disk = create(&file, host.define(1).unwrap());
    write(&mut disk, 1);
    let mut thief = host.open(1).unwrap();
    let at = thief.value().unwrap();
    thief.advance(at).unwrap();
    disk.write(0, &[2; BLOCK]).unwrap();
    assert_eq!(disk.flush().unwrap_err().code(), "superseded");
}

#[test]
fn one_sealed_key_opens_disk_and_counter() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let mut host = Host::fresh();
    let plain = PlainKey::new(&mut [6; 32]);
    let registers = Registers::of(&[0, 7, 11]).unwrap();
    let blob = SealedKey::seal(&mut host.tpm(), &plain, &registers).unwrap().encode();

    let anchor = NvAnchor::define(host.tpm(), INDEX, CounterAuth::of(&plain, INDEX)).unwrap();
    File::create(&file).unwrap().set_len(SHAPE.storage().unwrap()).unwrap();
    let mut disk =
        Disk::create(store(&file), anchor, &plain.disk_key(), SHAPE, &mut SystemEntropy).unwrap();
    let id = disk.info().id;
    write(&mut disk, 9);
    drop((disk, plain));

    host.restart();
    let plain = SealedKey::decode(&blob).unwrap().unseal(&mut host.tpm()).unwrap();
    let anchor = NvAnchor::open(host.tpm(), INDEX, CounterAuth::of(&plain, INDEX)).unwrap();
    let mut disk =
        Disk::open(store(&file), anchor, &plain.disk_key(), id, &mut SystemEntropy).unwrap();
    assert_eq!(first_byte(&mut disk), 9);
    drop(disk);
    // Another secret than the key's moves nothing.
    assert!(NvAnchor::open(host.tpm(), INDEX, secret(1)).is_err());
}
