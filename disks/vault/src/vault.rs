//! The vault: opening it, and what it is made of (SPEC 11.14).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coffer_disk::{Anchor, Disk, DiskError, DiskId, FileStore, Ledger, Store, SystemEntropy};
use coffer_formats::InstanceId;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::error::VaultError;
use crate::folder::{DISK, Folder, ID, Steps};
use crate::key_file::Sealing;
use crate::keys::Keys;
use crate::making::Ground;
use crate::pace::{Pace, Paced, Paces};
use crate::records::{Records, VaultDisk, VaultLedger, shape};
use crate::root::Root;

/// A vault in use. Clones share it; it is free for another process when all of them, and all that is attached, are
/// dropped.
#[derive(Clone)]
pub struct Vault(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub folder: Folder,
    pub keys: Arc<Keys>,
    pub ledger: VaultLedger,
    pub records: Records,
    /// One change of a guest's counter at a time: it reads before it writes.
    pub counting: Mutex<()>,
    /// One change of what the vault is sealed to, or of its fleet, at a time.
    pub changing: Mutex<()>,
    /// What the key that opened it is sealed to; none without a TPM.
    pub sealing: Option<Sealing>,
    /// Release key of the verifier whose leave it takes.
    pub verifier: Option<[u8; 65]>,
    pub root: Root,
    paces: Mutex<Paces>,
    /// Of the counter that all of them move.
    pace: Arc<Pace>,
    id: [u8; 16],
    users: Mutex<Users>,
}

/// Who uses what, in this process; no other has the vault.
#[derive(Default)]
struct Users {
    /// Names of volumes.
    names: BTreeSet<String>,
    /// Counters given to volumes that have no record yet.
    holders: BTreeSet<u64>,
}

impl Vault {
    /// Opens the vault in `folder`, or makes it where none is and none was. Nobody permits it anything.
    pub fn open(folder: &Path, root: Root) -> Result<Self, VaultError> {
        Self::open_under(folder, root, None)
    }

    /// The same, of a host whose configuration names the release key of a verifier: he permits what changes whom the vault
    /// opens for.
    pub fn open_under(
        folder: &Path,
        root: Root,
        verifier: Option<[u8; 65]>,
    ) -> Result<Self, VaultError> {
        Self::open_in_steps(folder, root, verifier, Arc::new(|| Ok(())))
    }

    pub(crate) fn open_in_steps(
        folder: &Path,
        root: Root,
        verifier: Option<[u8; 65]>,
        steps: Steps,
    ) -> Result<Self, VaultError> {
        let folder = Folder::open(folder, steps)?;
        let Ground { keys, anchor, sealing, fresh } = Ground::find(&folder, &root)?;
        let pace = Arc::new(Pace::in_all());
        let anchor: Box<dyn Anchor + Send> = Box::new(Paced(anchor, Arc::clone(&pace)));
        let disk = match fresh {
            true => {
                let file = folder.create(DISK)?;
                file.set_len(shape().storage()?)
                    .and_then(|()| reserve(&file))
                    .map_err(VaultError::storage("making the vault's disk"))?;
                let store = store(file, &folder)?;
                let disk = Disk::create(store, anchor, &keys.disk(), shape(), &mut SystemEntropy)?;
                folder.write(ID, disk.info().id.to_string().as_bytes())?;
                disk
            }
            false => open_disk(&folder, &keys, anchor)?,
        };
        let id = disk.info().id.0;
        let keys = Arc::new(keys);
        let again = Arc::clone(&keys);
        let ledger = Ledger::resuming(disk, move || again.disk());
        let records = Records::new(ledger.clone())?;
        if fresh {
            records.put(VAULT, &FORMAT)?;
            Ground::finish(&folder)?;
        }
        if records.get(VAULT)?.is_none_or(|format| **format != FORMAT) {
            return Err(VaultError::Record(VAULT.into()));
        }
        let vault = Self(Arc::new(Shared {
            folder,
            keys,
            ledger,
            records,
            counting: Mutex::default(),
            changing: Mutex::default(),
            sealing,
            verifier,
            root,
            paces: Mutex::default(),
            pace,
            id,
            users: Mutex::default(),
        }));
        vault.sweep()?;
        Ok(vault)
    }

    /// One in memory, under a key and an id that are known; of `folder` it takes the lock alone.
    #[cfg(fuzzing)]
    pub(crate) fn dangerously_known(
        folder: &Path,
        mut key: [u8; 32],
        id: [u8; 16],
    ) -> Result<Self, VaultError> {
        let (folder, keys) = (Folder::open(folder, Arc::new(|| Ok(())))?, Keys::new(&mut key));
        let store: Box<dyn Store + Send> =
            Box::new(coffer_disk::MemoryStore::zeroed(shape().storage()?));
        let anchor: Box<dyn Anchor + Send> =
            Box::new(coffer_disk::DangerousMemoryAnchor::default());
        let disk = Disk::create(store, anchor, &keys.disk(), shape(), &mut SystemEntropy)?;
        let ledger = Ledger::new(disk);
        let (records, root) = (Records::new(ledger.clone())?, Root::DangerouslySoftware);
        let (counting, changing, users) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Shared {
            folder,
            keys: Arc::new(keys),
            ledger,
            records,
            counting,
            changing,
            sealing: None,
            verifier: None,
            root,
            paces: Mutex::default(),
            pace: Arc::new(Pace::in_all()),
            id,
            users,
        })))
    }

    /// How many flushes a second each volume and each vTPM keeps up for long, from the next attaching on; 5 if nobody says.
    pub fn set_flushes_per_second(&self, count: u32) {
        self.set_paces(Paces::a_second(count));
    }

    /// How many moves a second of the TPM's counter all of them together keep up for long; 10 if nobody says.
    pub fn set_moves_per_second(&self, count: u32) {
        self.0.pace.set_in_all(count);
    }

    /// How long two of these moves are apart that are kept up for long.
    pub fn moves_every(&self) -> std::time::Duration {
        self.0.pace.every()
    }

    #[cfg(test)]
    pub(crate) fn pace_in_all(&self) -> &Pace {
        &self.0.pace
    }

    pub(crate) fn set_paces(&self, new: Paces) {
        *self.0.paces.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    pub(crate) fn pace(&self, volume: InstanceId) -> Arc<Pace> {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner).of(volume)
    }

    /// Names the vault: random, drawn when it was made.
    pub fn id(&self) -> [u8; 16] {
        self.0.id
    }

    /// Takes a name for as long as the claim is there.
    pub(crate) fn claim(&self, name: &str) -> Result<Claim, VaultError> {
        match self.0.users()?.names.insert(name.to_owned()) {
            true => Ok(Claim { shared: self.0.clone(), name: name.to_owned(), holder: None }),
            false => Err(VaultError::VolumeInUse(name.to_owned())),
        }
    }

    /// Whether somebody has the name.
    pub(crate) fn is_claimed(&self, name: &str) -> Result<bool, VaultError> {
        Ok(self.0.users()?.names.contains(name))
    }

    /// The lowest counter for which `used` is false and that no volume in the making has.
    pub(crate) fn take_holder(
        &self,
        claim: &mut Claim,
        used: &BTreeSet<u64>,
    ) -> Result<u64, VaultError> {
        let mut users = self.0.users()?;
        let free = (0..crate::records::HOLDERS)
            .find(|holder| !used.contains(holder) && !users.holders.contains(holder))
            .ok_or(VaultError::Full)?;
        users.holders.insert(free);
        claim.holder = Some(free);
        Ok(free)
    }
}

impl Shared {
    fn users(&self) -> Result<MutexGuard<'_, Users>, VaultError> {
        self.users.lock().map_err(|_| panicked())
    }
}

/// A name in use.
pub(crate) struct Claim {
    shared: Arc<Shared>,
    pub name: String,
    holder: Option<u64>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Ok(mut users) = self.shared.users() {
            users.names.remove(&self.name);
            if let Some(holder) = self.holder {
                users.holders.remove(&holder);
            }
        }
    }
}

pub(crate) fn panicked() -> VaultError {
    DiskError::AnchorFailed("a user of the vault panicked".into()).into()
}

fn open_disk(
    folder: &Folder,
    keys: &Keys,
    anchor: Box<dyn Anchor + Send>,
) -> Result<VaultDisk, VaultError> {
    // The key is of one disk only, so the id is as good as authentic once that opens.
    let id = folder.read(ID)?.ok_or(VaultError::KeyFile(ID))?;
    let id = std::str::from_utf8(&id).ok().and_then(InstanceId::from_hex);
    let id = DiskId(id.ok_or(VaultError::KeyFile(ID))?.0);
    let file = folder.file(DISK, OFlags::RDWR);
    let file = file.map_err(VaultError::storage("opening the vault's disk"))?;
    // A copy may have left out what was zero. Where there is no room for it, volumes can be removed once the vault is open.
    match reserve(&file) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        other => other.map_err(VaultError::storage("taking room for the vault's disk"))?,
    }
    let store = store(file, folder)?;
    Ok(Disk::open(store, anchor, &keys.disk(), id, &mut SystemEntropy)?)
}

/// Takes all the room of a file, where the file system can: once it is full, by a volume for instance, who asks for more
/// fails, and not every flush of every volume.
fn reserve(file: &std::fs::File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let take = || rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length);
    match rustix::io::retry_on_intr(take) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.sync_all(),
        Err(error) => Err(error.into()),
    }
}

fn store(file: std::fs::File, folder: &Folder) -> Result<Box<dyn Store + Send>, VaultError> {
    Ok(Box::new(SteppingStore(FileStore::new(file)?, folder.steps().clone())))
}

/// A file whose writes and flushes can be cut off by a test.
struct SteppingStore(FileStore, Steps);

impl Store for SteppingStore {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (self.1)()?;
        self.0.write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (self.1)()?;
        self.0.flush()
    }
}

/// The record that says how the others are to be read.
const VAULT: &str = "vault";
const FORMAT: [u8; 4] = 1_u32.to_le_bytes();
