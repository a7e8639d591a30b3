//! Attaching a volume to one guest (SPEC 11.15.3).
//!
//! ```text
//! name free -> verifier the image's -> policy admits -> what was cut off settled -> file there, long enough, locked -> handed out
//! image as its descriptor says -> floor raised -> key and counter served
//! ```

use std::fs::{File, TryLockError};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use coffer_disk::{
    Anchor, AnchorError, BLOCK, Disk, DiskError, DiskId, DiskKey, Entropy, FileStore,
    LedgerCounter, Place, Store, SystemEntropy, serve, try_lock,
};
use coffer_formats::Digest;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::identity::Identity;
use crate::pace::{Pace, Paced};
use crate::vault::{Claim, Vault};
use crate::volume::{Attached, AttachedDisk, VolumeKind};
use crate::volume_record::{ENDING, VolumeRecord};
use crate::volumes::{salt, sized};

/// The disk of a volume, with its counter in the vault.
pub(crate) type VolumeDisk = Disk<FileStore, VolumeCounter>;

/// It wears the TPM, whoever moves it.
type VolumeCounter = Paced<LedgerCounter<Box<dyn Store + Send>, Box<dyn Anchor + Send>>>;

/// Most bytes of a vTPM's state.
pub const VTPM_STATE_MAX: usize = 128 << 10;

/// Keeps a volume taken. Dropping it ends the service of its counter.
pub struct Hold {
    vault: Vault,
    name: String,
    /// As it will be once the guest is let in.
    record: VolumeRecord,
    /// Our end, until somebody serves it.
    waiting: Option<UnixStream>,
    service: Option<(UnixStream, JoinHandle<()>)>,
    failure: Failure,
    /// Dropped last.
    _claim: Arc<Claim>,
}

impl Hold {
    /// Lets the guest in, whose image is known by now to be what its descriptor says: images of a lower security version
    /// are locked out for good, and an encrypted disk gets its key and counter, which moves at the volume's pace. A launch
    /// that is refused before that has changed nothing.
    pub fn admit(&mut self) -> Result<(), VaultError> {
        self.let_in().map_err(|error| error.of_volume(&self.name))
    }

    fn let_in(&mut self) -> Result<(), VaultError> {
        if self.vault.record(&self.name)?.floor != self.record.floor {
            self.vault.save(&self.name, &self.record)?;
        }
        if let Some(stream) = self.waiting.take() {
            let failure = self.failure.clone();
            self.service = Some(self.vault.keep_counter(&self.record, stream, failure)?);
        }
        Ok(())
    }

    /// The volume.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why the volume's counter could not be read or moved, if it could not: the disk's process is not told.
    pub fn counter_failure(&self) -> Option<String> {
        self.failure.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((stream, thread)) = self.service.take() {
            // Whoever still has the disk's end moves nothing from here on.
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

/// The last failure of a counter.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

/// A counter whose failures are noted.
struct Noted<A>(A, Failure);

impl<A> Noted<A> {
    fn note<T>(&self, done: Result<T, AnchorError>) -> Result<T, AnchorError> {
        if let Err(AnchorError::Failed(why)) = &done {
            let mut failure = self.1.0.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(why.to_string());
        }
        done
    }
}

impl<A: Anchor> Anchor for Noted<A> {
    fn read(&mut self) -> Result<u64, AnchorError> {
        let done = self.0.read();
        self.note(done)
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let done = self.0.advance(from);
        self.note(done)
    }
}

/// The state of a vTPM, in the vault. Its volume is taken for as long as this is there.
pub struct VtpmState {
    vault: Vault,
    record: String,
    launch: u64,
    pace: Arc<Pace>,
    _claim: Arc<Claim>,
}

impl VtpmState {
    /// Which launch of the vTPM this is, from 1: more than every attaching before had, whatever became of it.
    pub fn launch(&self) -> u64 {
        self.launch
    }

    /// The state stored last; none if there was none yet.
    pub fn load(&self) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        self.vault.0.records.get(&self.record)
    }

    /// Returns when `state`, at most 128 KiB, is what every later [`VtpmState::load`] gives, and no older one.
    pub fn store(&self, state: &[u8]) -> Result<(), VaultError> {
        match state.len() {
            0..=VTPM_STATE_MAX => self.pace.keep(|| self.vault.0.records.put(&self.record, state)),
            found => Err(VaultError::TooLarge { found, limit: VTPM_STATE_MAX }),
        }
    }
}

impl Vault {
    /// Attaches a volume that names no verifier.
    pub fn attach(&self, name: &str, user: &Identity) -> Result<Attached, VaultError> {
        self.attach_verified(name, user, None)
    }

    /// Attaches a volume; `verifier_key` is the `release_key` of the image's descriptor, the point. A volume with a
    /// verifier goes only to images with the same one: otherwise whoever makes a volume could permit himself its backup.
    pub fn attach_verified(
        &self,
        name: &str,
        user: &Identity,
        verifier_key: Option<&[u8; 65]>,
    ) -> Result<Attached, VaultError> {
        self.attach_named(name, user, verifier_key).map_err(|error| error.of_volume(name))
    }

    fn attach_named(
        &self,
        name: &str,
        user: &Identity,
        verifier_key: Option<&[u8; 65]>,
    ) -> Result<Attached, VaultError> {
        let claim = Arc::new(self.claim(name)?);
        let record = self.record(name)?;
        if record.verifier().is_some_and(|key| Some(&key) != verifier_key) {
            return Err(VaultError::OtherVerifier);
        }
        let floor = record.owner().admit(user, record.floor)?;
        let record = settle(self, &claim, record)?;
        let file = match record.kind() {
            VolumeKind::Vtpm => None,
            _ => Some(open_file(self, name, &record)?),
        };
        let record = VolumeRecord { floor, ..record };
        let (disk, waiting) = self.hand_out(&claim, &record, file)?;
        let volume = record.info(name, true);
        let (vault, name) = (self.clone(), name.to_owned());
        let failure = Failure::default();
        let hold = Hold { vault, name, record, waiting, service: None, failure, _claim: claim };
        Ok(Attached { volume, disk, hold })
    }

    /// The disk, and our end of the stream over which it is told its key and counter.
    fn hand_out(
        &self,
        claim: &Arc<Claim>,
        record: &VolumeRecord,
        file: Option<File>,
    ) -> Result<(AttachedDisk, Option<UnixStream>), VaultError> {
        let disk = match (record.kind(), file) {
            (VolumeKind::Raw, Some(file)) => AttachedDisk::Raw { file },
            (VolumeKind::Integrity, Some(file)) => AttachedDisk::Integrity {
                file,
                data_size: record.bytes,
                root_hash: record.root_hash.unwrap_or(Digest::ZERO),
                salt: salt(record),
            },
            (VolumeKind::Encrypted, Some(file)) => {
                let (id, _) = disk_of(record)?;
                let streams = UnixStream::pair();
                let (ours, theirs) = streams.map_err(VaultError::storage("making a stream"))?;
                let blocks = record.bytes / BLOCK as u64;
                let disk = AttachedDisk::Encrypted { file, id, blocks, channel: theirs.into() };
                return Ok((disk, Some(ours)));
            }
            _ => AttachedDisk::Vtpm(VtpmState {
                vault: self.clone(),
                record: record.state(),
                launch: self.next_launch(record)?,
                pace: self.pace(record.id),
                _claim: claim.clone(),
            }),
        };
        Ok((disk, None))
    }

    /// Moves the number of a vTPM's launches.
    fn next_launch(&self, record: &VolumeRecord) -> Result<u64, VaultError> {
        let (records, name) = (&self.0.records, record.launches());
        let last = match records.get(&name)?.as_deref().map(|bytes| <[u8; 8]>::try_from(&**bytes)) {
            None => 0,
            Some(Ok(bytes)) => u64::from_le_bytes(bytes),
            Some(Err(_)) => return Err(VaultError::Record(name)),
        };
        let next = last.checked_add(1).ok_or(VaultError::Full)?;
        records.put(&name, &next.to_le_bytes())?;
        Ok(next)
    }

    /// Serves key and counter of a volume: the stream, to end it, and who serves.
    fn keep_counter(
        &self,
        record: &VolumeRecord,
        ours: UnixStream,
        failure: Failure,
    ) -> Result<(UnixStream, JoinHandle<()>), VaultError> {
        let failed = || VaultError::storage("serving a volume's counter");
        let (_, holder) = disk_of(record)?;
        let (stream, key) = (ours.try_clone().map_err(failed())?, self.key_of(record));
        let counter = Paced(self.0.ledger.counter(holder), self.pace(record.id));
        let mut counter = Noted(counter, failure);
        let thread = std::thread::Builder::new().name("volume-counter".into());
        let thread = thread.spawn(move || {
            // What ends it ends that disk's session; the disk says so itself.
            let end = stream.try_clone();
            let _ = serve(stream, key, &mut counter);
            let _ = end.map(|end| end.shutdown(Shutdown::Both));
        });
        Ok((ours, thread.map_err(failed())?))
    }

    pub(crate) fn key_of(&self, record: &VolumeRecord) -> Zeroizing<[u8; 32]> {
        self.0.keys.volume(&record.id.0, record.generation, &record.owner())
    }
}

/// Which disk, and which counter.
fn disk_of(record: &VolumeRecord) -> Result<(DiskId, u64), VaultError> {
    match (record.disk, record.holder) {
        (Some(disk), Some(holder)) => Ok((DiskId(disk.0), holder)),
        _ => Err(VaultError::WrongKind { kind: record.kind().as_str(), verb: "be opened" }),
    }
}

/// The file of a volume: there, long enough, locked.
pub(crate) fn open_file(
    vault: &Vault,
    name: &str,
    record: &VolumeRecord,
) -> Result<File, VaultError> {
    let (file, found) = measured(vault, name, record)?;
    if found < record.stored {
        let (name, needed) = (name.to_owned(), record.stored);
        return Err(VaultError::VolumeShort { name, needed, found });
    }
    locked(name, file)
}

/// Makes a file that became shorter as long as it was. What is missing is zeros then, and damaged: no block is zeros.
pub(crate) fn lengthen(
    vault: &Vault,
    name: &str,
    record: &VolumeRecord,
    needed: u64,
) -> Result<(), VaultError> {
    let (file, found) = measured(vault, name, record)?;
    let file = locked(name, file)?;
    if found < needed {
        let lengthened = file.set_len(needed).and_then(|()| file.sync_all());
        lengthened.map_err(VaultError::storage("lengthening a volume's file"))?;
    }
    Ok(())
}

fn measured(vault: &Vault, name: &str, record: &VolumeRecord) -> Result<(File, u64), VaultError> {
    let access = match record.kind() {
        VolumeKind::Integrity => OFlags::RDONLY,
        _ => OFlags::RDWR,
    };
    let file = match vault.0.folder.file(&(record.file() + ENDING), access) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(VaultError::VolumeMissing(name.to_owned()));
        }
        other => other.map_err(VaultError::storage("opening a volume's file"))?,
    };
    let metadata = file.metadata().map_err(VaultError::storage("measuring a volume's file"))?;
    Ok((file, metadata.len()))
}

fn locked(name: &str, file: File) -> Result<File, VaultError> {
    match try_lock(&file) {
        Ok(()) => Ok(file),
        // A VM that outlived its attachment, or something that is no vault.
        Err(TryLockError::WouldBlock) => Err(VaultError::VolumeInUse(name.to_owned())),
        Err(TryLockError::Error(source)) => {
            Err(VaultError::Storage { doing: "locking a volume's file", source })
        }
    }
}

/// Opens an encrypted volume here.
pub(crate) fn open_volume(
    vault: &Vault,
    name: &str,
    record: &VolumeRecord,
) -> Result<VolumeDisk, VaultError> {
    let file = open_file(vault, name, record)?;
    open_with(vault, name, record, file, Disk::open)
}

/// What `open` makes of an encrypted volume: file, counter, key, and which disk it is.
pub(crate) fn open_with<T>(
    vault: &Vault,
    name: &str,
    record: &VolumeRecord,
    file: File,
    open: impl FnOnce(
        FileStore,
        VolumeCounter,
        &DiskKey,
        DiskId,
        &mut dyn Entropy,
    ) -> Result<T, DiskError>,
) -> Result<T, VaultError> {
    let (id, holder) = disk_of(record)?;
    let disk = |source| VaultError::VolumeDisk { name: name.to_owned(), source };
    let key = DiskKey::new(&mut vault.key_of(record));
    let counter = Paced(vault.0.ledger.counter(holder), vault.pace(record.id));
    let store = FileStore::new(file).map_err(disk)?;
    open(store, counter, &key, id, &mut SystemEntropy).map_err(disk)
}

/// Ends what was cut off: a change of keys, then a growing.
pub(crate) fn settle(
    vault: &Vault,
    claim: &Claim,
    record: VolumeRecord,
) -> Result<VolumeRecord, VaultError> {
    settle_size(vault, claim, settle_key(vault, claim, record)?)
}

/// Whichever key opens the disk is the one.
pub(crate) fn settle_key(
    vault: &Vault,
    claim: &Claim,
    record: VolumeRecord,
) -> Result<VolumeRecord, VaultError> {
    if !record.rekeying {
        return Ok(record);
    }
    let old = VolumeRecord { rekeying: false, ..record };
    let settled = match fits(vault, &claim.name, &old) {
        Ok(()) => old,
        Err(VaultError::VolumeDisk {
            source: DiskError::WrongKey | DiskError::Stale { .. },
            ..
        }) => {
            let generation = old.generation.checked_add(1).ok_or(VaultError::Full)?;
            let new = VolumeRecord { generation, ..old };
            fits(vault, &claim.name, &new)?;
            new
        }
        Err(error) => return Err(error),
    };
    vault.save(&claim.name, &settled)?;
    Ok(settled)
}

/// A growing that was cut off leaves the file longer than the record says. An encrypted volume has the size that its disk says,
/// and no more of its file is used; a raw one is as long as its file.
fn settle_size(
    vault: &Vault,
    claim: &Claim,
    record: VolumeRecord,
) -> Result<VolumeRecord, VaultError> {
    if !matches!(record.kind(), VolumeKind::Raw | VolumeKind::Encrypted) {
        return Ok(record);
    }
    let (file, found) = measured(vault, &claim.name, &record)?;
    if found <= record.stored {
        return Ok(record);
    }
    let settled = match record.kind() {
        VolumeKind::Encrypted => {
            let shape = open_volume(vault, &claim.name, &record)?.info().shape;
            let disk = |source| VaultError::VolumeDisk { name: claim.name.clone(), source };
            let stored = shape.storage().map_err(disk)?;
            VolumeRecord { bytes: shape.blocks * BLOCK as u64, stored, ..record.clone() }
        }
        _ => {
            let bytes = found - found % BLOCK as u64;
            sized(bytes)?;
            VolumeRecord { bytes, stored: bytes, ..record.clone() }
        }
    };
    if (settled.bytes, settled.stored) != (record.bytes, record.stored) {
        vault.save(&claim.name, &settled)?;
    }
    if record.kind() == VolumeKind::Encrypted {
        vault.0.folder.step()?;
        let cut = locked(&claim.name, file)?.set_len(settled.stored);
        cut.map_err(VaultError::storage("cutting a volume's file"))?;
    }
    Ok(settled)
}

/// Whether the key of this record is the disk's: with another nobody gets as far as a damaged node.
fn fits(vault: &Vault, name: &str, record: &VolumeRecord) -> Result<(), VaultError> {
    let file = open_file(vault, name, record)?;
    match open_with(vault, name, record, file, Disk::open) {
        Err(VaultError::VolumeDisk { source: DiskError::Corrupt(Place::Node { .. }), .. }) => {
            Ok(())
        }
        other => other.map(drop),
    }
}
