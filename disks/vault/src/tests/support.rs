//! Hosts with a vault's folder, guests, and fuses.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use coffer_anchor::Registers;
use coffer_disk::{BLOCK, Disk, DiskError, FileStore, RemoteAnchor, SystemEntropy};
use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use tempfile::TempDir;

use super::swtpm::{Host, INDEX};
use crate::folder::Steps;
use crate::*;

/// A host, and a folder for its vault.
pub(super) struct Site {
    pub host: Arc<Mutex<Host>>,
    pub folder: TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        let host = Arc::new(Mutex::new(Host::fresh()));
        Self { host, folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn root(&self) -> Root {
        let host = self.host.clone();
        Root::Tpm {
            connect: Box::new(move || Ok(host.lock().unwrap().tpm())),
            registers: Registers::of(&[0, 7, 11]).unwrap(),
            index: INDEX,
        }
    }

    /// Under the verifier number 1.
    pub(super) fn open(&self) -> Result<Vault, VaultError> {
        Vault::open_under(self.folder.path(), self.root(), Some(Verifier::new(1).point()))
    }

    pub(super) fn open_with(&self, steps: Steps) -> Result<Vault, VaultError> {
        let verifier = Some(Verifier::new(1).point());
        Vault::open_in_steps(self.folder.path(), self.root(), verifier, steps)
    }

    /// The host goes down, and boots another build or the first.
    pub(super) fn boot(&self, upgraded: bool) {
        let mut host = self.host.lock().unwrap();
        host.restart();
        if upgraded {
            host.extend(11);
        }
    }
}

/// A verifier with its release key.
pub(super) struct Verifier(pub SigningKey);

impl Verifier {
    pub(super) fn new(n: u8) -> Self {
        Self(SigningKey::from_slice(&[n; 32]).unwrap())
    }

    pub(super) fn point(&self) -> [u8; 65] {
        self.0.verifying_key().to_sec1_point(false).as_bytes().try_into().unwrap()
    }

    /// `r | s` over these bytes.
    pub(super) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        Signer::<Signature>::sign(&self.0, bytes).to_bytes().to_vec()
    }
}

/// A vault without a TPM.
pub(super) fn software(folder: &Path) -> Result<Vault, VaultError> {
    Vault::open(folder, Root::DangerouslySoftware)
}

/// Lets so many steps pass; then nothing is reached any more.
pub(super) fn fuse(steps: i64) -> (Steps, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(steps));
    let counted = left.clone();
    let steps = move || match counted.fetch_sub(1, Ordering::SeqCst) {
        1.. => Ok(()),
        _ => Err(io::Error::other("the power is cut")),
    };
    (Arc::new(steps), left)
}

/// A copy of a folder with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // With its holes: the vault's disk is 200 MiB of almost nothing.
            false => {
                let done = std::process::Command::new("cp")
                    .arg("--sparse=always")
                    .args([entry.path(), target])
                    .status();
                assert!(done.unwrap().success());
            }
        }
    }
}

pub(super) fn clear(folder: &Path) {
    fs::remove_dir_all(folder).unwrap();
}

pub(super) fn closed(image: u8) -> Identity {
    Identity { box_kind: BoxKind::Closed, image_id: Digest([image; 32]), signer: None, svn: 0 }
}

pub(super) fn signed(image: u8, signer: u8, svn: u32) -> Identity {
    Identity { signer: Some(Digest([signer; 32])), svn, ..closed(image) }
}

pub(super) fn open_box(of: Identity) -> Identity {
    Identity { box_kind: BoxKind::Open, ..of }
}

pub(super) fn by(signer: u8, svn: u32) -> Owner {
    Owner::Signer { key: Digest([signer; 32]), svn }
}

pub(super) fn image(image: u8) -> Owner {
    Owner::Image(Digest([image; 32]))
}

pub(super) fn new(name: &str, kind: NewKind, owner: Owner) -> NewVolume {
    NewVolume { name: name.into(), kind, owner, verifier_key: None }
}

pub(super) const BYTES: u64 = 64 * BLOCK as u64;

pub(super) fn encrypted(name: &str, owner: Owner) -> NewVolume {
    new(name, NewKind::Encrypted { bytes: BYTES }, owner)
}

/// What the VM process does with an encrypted volume.
pub(super) fn disk(attached: &mut Attached) -> Result<Disk<FileStore, RemoteAnchor>, DiskError> {
    attached.hold.admit().unwrap();
    let AttachedDisk::Encrypted { file, id, channel, .. } = &attached.disk else {
        panic!("this volume is not encrypted")
    };
    let stream = channel.try_clone().unwrap().into();
    let (key, anchor) = RemoteAnchor::connect(stream).unwrap();
    let store = FileStore::new(file.try_clone().unwrap())?;
    Disk::open(store, anchor, &key, *id, &mut SystemEntropy)
}

/// Writes a block full of `byte`, for good.
pub(super) fn write(vault: &Vault, name: &str, user: &Identity, byte: u8) {
    let mut attached = vault.attach(name, user).unwrap();
    let mut disk = disk(&mut attached).unwrap();
    disk.write(0, &[byte; BLOCK]).unwrap();
    disk.flush().unwrap();
}

pub(super) fn read(vault: &Vault, name: &str, user: &Identity) -> u8 {
    let mut attached = vault.attach(name, user).unwrap();
    let mut block = [0; BLOCK];
    disk(&mut attached).unwrap().read(0, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]));
    block[0]
}

#[track_caller]
pub(super) fn refused<T>(result: Result<T, VaultError>) -> &'static str {
    result.err().expect("it was not refused").code()
}
