//! Making, listing, removing and tending volumes (SPEC 11.15).
//!
//! ```text
//! make:    ID.pending written -> record -> ID.disk        remove: ID.disk -> ID.pending -> no record -> no file
//! ```
//! A file that is `pending` when the vault is opened belongs to the record that names it, or to nobody.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::FileExt as _;

use coffer_disk::{
    BLOCK, BLOCKS_MAX, Disk, DiskError, DiskKey, FileStore, Integrity, Report, Shape, SystemEntropy,
};
use coffer_formats::{Digest, InstanceId};
use coffer_image::verity::{Geometry, Salt, Superblock, build_tree};

use crate::attach::{lengthen, open_file, open_volume, open_with, settle, settle_key};
use crate::error::VaultError;
use crate::keys::random;
use crate::pace::Paced;
use crate::vault::{Claim, Vault};
use crate::volume::{NewKind, NewVolume, VolumeInfo, VolumeKind};
use crate::volume_record::{ENDING, LAUNCHES_PREFIX, PENDING, PREFIX, STATE_PREFIX, VolumeRecord};

impl Vault {
    /// Makes a volume.
    pub fn create_volume(&self, new: &NewVolume) -> Result<VolumeInfo, VaultError> {
        self.create_named(new).map_err(|error| error.of_volume(&new.name))
    }

    fn create_named(&self, new: &NewVolume) -> Result<VolumeInfo, VaultError> {
        if let Some(key) = &new.verifier_key {
            p256::PublicKey::from_sec1_bytes(key).map_err(|_| VaultError::BadKey)?;
        }
        let kind = match &new.kind {
            NewKind::Raw { .. } => VolumeKind::Raw,
            NewKind::Integrity { .. } => VolumeKind::Integrity,
            NewKind::Encrypted { .. } => VolumeKind::Encrypted,
            NewKind::Vtpm => VolumeKind::Vtpm,
        };
        let mut claim = self.claim_new(&new.name)?;
        let mut record = VolumeRecord::new(*random()?, kind, &new.owner, new.verifier_key);
        let made = match &new.kind {
            NewKind::Raw { bytes } => {
                sized(*bytes).and_then(|_| self.make_raw(&mut record, *bytes))
            }
            NewKind::Integrity { source } => self.make_integrity(&mut record, source),
            NewKind::Encrypted { bytes } => sized(*bytes)
                .and_then(|blocks| self.make_encrypted(&mut claim, &mut record, blocks).map(drop)),
            NewKind::Vtpm => Ok(()),
        };
        self.enter(&claim, &record, made)
    }

    /// A name nobody has.
    pub(crate) fn claim_new(&self, name: &str) -> Result<Claim, VaultError> {
        if !is_name(name) {
            return Err(VaultError::BadName(name.to_owned()));
        }
        let claim = self.claim(name)?;
        match self.0.records.get(&VolumeRecord::key(name))? {
            None => Ok(claim),
            Some(_) => Err(VaultError::VolumeExists(name.to_owned())),
        }
    }

    /// Enters a volume whose file was made; removes the file if it was not, or cannot be entered.
    pub(crate) fn enter(
        &self,
        claim: &Claim,
        record: &VolumeRecord,
        made: Result<(), VaultError>,
    ) -> Result<VolumeInfo, VaultError> {
        let (from, to) = (record.file() + PENDING, record.file() + ENDING);
        let folder = &self.0.folder;
        if let Err(error) = made {
            let _ = folder.remove(&from);
            return Err(error);
        }
        // Whether a record that failed is there after all, the next opening sees; until then the file stays.
        self.save(&claim.name, record)?;
        if record.kind() != VolumeKind::Vtpm {
            folder.rename(&from, &to)?;
        }
        Ok(record.info(&claim.name, false))
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>, VaultError> {
        let names = self.0.records.names(PREFIX)?;
        let names = names.iter().filter_map(|key| key.strip_prefix(PREFIX));
        // One removed meanwhile is left out.
        let infos = names
            .map(|name| self.volume(name))
            .filter(|info| !matches!(info, Err(VaultError::NoSuchVolume(_))));
        infos.collect()
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo, VaultError> {
        Ok(self.record(name)?.info(name, self.is_claimed(name)?))
    }

    /// Removes a volume that nobody uses; its data opens no more.
    pub fn remove_volume(&self, name: &str) -> Result<(), VaultError> {
        self.remove_named(name).map_err(|error| error.of_volume(name))
    }

    fn remove_named(&self, name: &str) -> Result<(), VaultError> {
        let claim = self.claim(name)?;
        let record = self.record(name)?;
        let (file, pending) = (record.file() + ENDING, record.file() + PENDING);
        let folder = &self.0.folder;
        if folder.has(&file)? {
            folder.rename(&file, &pending)?;
        }
        self.0.records.remove(&VolumeRecord::key(&claim.name))?;
        self.0.records.remove(&record.state())?;
        self.0.records.remove(&record.launches())?;
        folder.remove(&pending)
    }

    /// Reads and verifies all of a volume that nobody uses.
    pub fn check(&self, name: &str) -> Result<Report, VaultError> {
        self.check_named(name).map_err(|error| error.of_volume(name))
    }

    fn check_named(&self, name: &str) -> Result<Report, VaultError> {
        let claim = self.claim(name)?;
        let record = self.record(name)?;
        let disk = |source| VaultError::VolumeDisk { name: name.to_owned(), source };
        match record.kind() {
            VolumeKind::Raw => open_file(self, name, &record).map(|_| Report::default()),
            VolumeKind::Vtpm => {
                let state = self.0.records.get(&record.state())?;
                let blocks = state.map_or(0, |state| state.len().div_ceil(BLOCK));
                Ok(Report { data: blocks as u64, ..Report::default() })
            }
            VolumeKind::Integrity => {
                let file = open_file(self, name, &record)?;
                let salt = salt(&record);
                let root = record.root_hash.unwrap_or(Digest::ZERO);
                let data = record.bytes / BLOCK as u64;
                match Integrity::ahead_of_time(file, record.bytes, root, &salt) {
                    Ok(_) => Ok(Report { data, ..Report::default() }),
                    Err(DiskError::Corrupt(place)) => {
                        Ok(Report { data, damaged: 1, places: vec![place], ..Report::default() })
                    }
                    Err(error) => Err(disk(error)),
                }
            }
            VolumeKind::Encrypted => {
                let record = settle(self, &claim, record)?;
                open_volume(self, name, &record)?.check().map_err(disk)
            }
        }
    }

    /// Gives up what of an encrypted volume that nobody uses is damaged, for good. Of a file that became shorter the rest is
    /// damaged too.
    pub fn repair(&self, name: &str) -> Result<Report, VaultError> {
        self.repair_named(name).map_err(|error| error.of_volume(name))
    }

    fn repair_named(&self, name: &str) -> Result<Report, VaultError> {
        let claim = self.claim(name)?;
        let record = self.record(name)?;
        if record.kind() != VolumeKind::Encrypted {
            let kind = record.kind().as_str();
            return Err(VaultError::WrongKind { kind, verb: "be repaired" });
        }
        lengthen(self, name, &record, record.stored)?;
        // Its size is settled by who uses it next: what is damaged may not open before.
        let record = settle_key(self, &claim, record)?;
        let repair = || {
            let file = open_file(self, name, &record)?;
            open_with(self, name, &record, file, Disk::repair).map(|(_, report)| report)
        };
        match repair() {
            // Growing it was cut off before the record knew.
            Err(VaultError::VolumeDisk { source: DiskError::Truncated { needed, .. }, .. }) => {
                lengthen(self, name, &record, needed)?;
                repair()
            }
            done => done,
        }
    }

    /// Makes a raw or encrypted volume larger. Cut off, it has its size of before or the new one.
    pub fn grow(&self, name: &str, bytes: u64) -> Result<VolumeInfo, VaultError> {
        self.grow_named(name, bytes).map_err(|error| error.of_volume(name))
    }

    fn grow_named(&self, name: &str, bytes: u64) -> Result<VolumeInfo, VaultError> {
        let claim = self.claim(name)?;
        let record = settle(self, &claim, self.record(name)?)?;
        let blocks = sized(bytes)?;
        if bytes < record.bytes {
            return Err(VaultError::Shrink { has: record.bytes, asked: bytes });
        }
        let grow_file = |bytes: u64| {
            let file = open_file(self, name, &record)?;
            self.0.folder.step()?;
            let grown = file.set_len(bytes).and_then(|()| file.sync_all());
            grown.map_err(VaultError::storage("growing a volume's file"))
        };
        let grown = match record.kind() {
            VolumeKind::Raw => {
                grow_file(bytes)?;
                VolumeRecord { bytes, stored: bytes, ..record.clone() }
            }
            VolumeKind::Encrypted => {
                let disk = |source| VaultError::VolumeDisk { name: name.to_owned(), source };
                let shape = open_volume(self, name, &record)?.info().shape;
                let larger = Shape { blocks: blocks.max(shape.blocks), ..shape };
                let stored = larger.storage().map_err(disk)?;
                grow_file(stored)?;
                if larger != shape {
                    open_volume(self, name, &record)?.grow(blocks).map_err(disk)?;
                }
                VolumeRecord { bytes, stored, ..record.clone() }
            }
            kind => return Err(VaultError::WrongKind { kind: kind.as_str(), verb: "grow" }),
        };
        self.save(name, &grown)?;
        Ok(grown.info(name, false))
    }

    /// Gives an encrypted volume another key. Cut off, it opens with either.
    pub fn rekey(&self, name: &str) -> Result<VolumeInfo, VaultError> {
        self.rekey_named(name).map_err(|error| error.of_volume(name))
    }

    fn rekey_named(&self, name: &str) -> Result<VolumeInfo, VaultError> {
        let claim = self.claim(name)?;
        let record = self.record(name)?;
        if record.kind() != VolumeKind::Encrypted {
            let kind = record.kind().as_str();
            return Err(VaultError::WrongKind { kind, verb: "get another key" });
        }
        let record = settle(self, &claim, record)?;
        let mut disk = open_volume(self, name, &record)?;
        let generation = record.generation.checked_add(1).ok_or(VaultError::Full)?;
        self.save(name, &VolumeRecord { rekeying: true, ..record.clone() })?;
        let mut key = self.0.keys.volume(&record.id.0, generation, &record.owner());
        disk.rekey(&DiskKey::new(&mut key), &mut SystemEntropy)
            .map_err(|source| VaultError::VolumeDisk { name: name.to_owned(), source })?;
        let record = VolumeRecord { generation, rekeying: false, ..record };
        self.save(name, &record)?;
        Ok(record.info(name, false))
    }

    pub(crate) fn record(&self, name: &str) -> Result<VolumeRecord, VaultError> {
        let bytes = self.0.records.get(&VolumeRecord::key(name))?;
        let bytes = bytes.ok_or_else(|| VaultError::NoSuchVolume(name.to_owned()))?;
        VolumeRecord::decode(name, &bytes)
    }

    pub(crate) fn save(&self, name: &str, record: &VolumeRecord) -> Result<(), VaultError> {
        self.0.records.put(&VolumeRecord::key(name), &record.encode())
    }

    fn all_records(&self) -> Result<Vec<VolumeRecord>, VaultError> {
        let names = self.0.records.names(PREFIX)?;
        names
            .iter()
            .filter_map(|key| key.strip_prefix(PREFIX))
            .map(|name| self.record(name))
            .collect()
    }

    fn make_raw(&self, record: &mut VolumeRecord, bytes: u64) -> Result<(), VaultError> {
        let file = self.0.folder.create(&(record.file() + PENDING))?;
        (record.bytes, record.stored) = (bytes, bytes);
        file.set_len(bytes)
            .and_then(|()| file.sync_all())
            .map_err(VaultError::storage("making a volume"))
    }

    /// A disk of zeros, and its record.
    pub(crate) fn make_encrypted(
        &self,
        claim: &mut Claim,
        record: &mut VolumeRecord,
        blocks: u64,
    ) -> Result<crate::attach::VolumeDisk, VaultError> {
        let used = self.all_records()?.iter().filter_map(|record| record.holder).collect();
        let holder = self.take_holder(claim, &used)?;
        let disk = |source| VaultError::VolumeDisk { name: claim.name.clone(), source };
        let shape = Shape::of(blocks);
        let stored = shape.storage().map_err(disk)?;
        let file = self.0.folder.create(&(record.file() + PENDING))?;
        file.set_len(stored)
            .and_then(|()| file.sync_all())
            .map_err(VaultError::storage("making a volume"))?;
        let mut key = self.0.keys.volume(&record.id.0, 0, &record.owner());
        let made = Disk::create(
            FileStore::new(file).map_err(disk)?,
            Paced(self.0.ledger.counter(holder), self.pace(record.id)),
            &DiskKey::new(&mut key),
            shape,
            &mut SystemEntropy,
        );
        let made = made.map_err(disk)?;
        (record.bytes, record.stored) = (blocks * BLOCK as u64, stored);
        (record.holder, record.disk) = (Some(holder), Some(InstanceId(made.info().id.0)));
        Ok(made)
    }

    fn make_integrity(&self, record: &mut VolumeRecord, source: &File) -> Result<(), VaultError> {
        let failed = || VaultError::storage("making a volume");
        let mut source = source;
        source.rewind().map_err(failed())?;
        let mut file = self.0.folder.create(&(record.file() + PENDING))?;
        // What the source grows by meanwhile is not taken beyond the limit.
        let limit = BLOCKS_MAX * BLOCK as u64;
        let length = io::copy(&mut source.take(limit + 1), &mut file).map_err(failed())?;
        let geometry = Geometry::new(length.next_multiple_of(BLOCK as u64))
            .map_err(|_| VaultError::BadSize(length))?;
        file.set_len(geometry.blob_size()).map_err(failed())?;
        let salt = Digest(*random()?);
        let tree = salt_of(&salt);
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        let root = build_tree(&file, &geometry, &tree, &file, threads).map_err(failed())?;
        let superblock = Superblock::of(&geometry, &root, &tree).encode();
        file.write_all_at(&superblock, geometry.data_size())
            .and_then(|()| file.sync_all())
            .map_err(failed())?;
        (record.bytes, record.stored) = (geometry.data_size(), geometry.blob_size());
        (record.root_hash, record.salt) = (Some(root), Some(salt));
        Ok(())
    }

    /// What a power cut left half done.
    pub(crate) fn sweep(&self) -> Result<(), VaultError> {
        let ids: BTreeSet<String> =
            self.all_records()?.iter().map(|record| record.id.to_hex()).collect();
        for id in self.0.folder.volume_files(PENDING)? {
            let file = format!("{}/{id}", crate::folder::VOLUMES);
            match ids.contains(&id) {
                true => self.0.folder.rename(&(file.clone() + PENDING), &(file + ENDING))?,
                false => self.0.folder.remove(&(file + PENDING))?,
            }
        }
        for prefix in [STATE_PREFIX, LAUNCHES_PREFIX] {
            let of_vtpms = self.0.records.names(prefix)?;
            let ownerless = of_vtpms
                .iter()
                .filter(|key| key.strip_prefix(prefix).is_none_or(|id| !ids.contains(id)));
            ownerless.into_iter().try_for_each(|key| self.0.records.remove(key))?;
        }
        Ok(())
    }
}

pub(crate) fn salt(record: &VolumeRecord) -> Salt {
    record.salt.map(|salt| salt_of(&salt)).unwrap_or_default()
}

fn salt_of(salt: &Digest) -> Salt {
    Salt::new(salt.as_bytes()).expect("a salt has up to 32 bytes")
}

/// Blocks of a volume of so many bytes.
pub(crate) fn sized(bytes: u64) -> Result<u64, VaultError> {
    let blocks = bytes / BLOCK as u64;
    let fits = bytes.is_multiple_of(BLOCK as u64) && (1..=BLOCKS_MAX).contains(&blocks);
    fits.then_some(blocks).ok_or(VaultError::BadSize(bytes))
}

pub(crate) fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().next().is_some_and(good)
        && name.bytes().all(|byte| good(byte) || b"-_.".contains(&byte))
}
