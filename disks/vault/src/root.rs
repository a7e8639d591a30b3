//! What a vault stands on: a key and a counter, of the host's TPM (SPEC 11.14.1).

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use coffer_anchor::{CounterIndex, NvAnchor, Registers, SealError, SealedKey, Stream, Tpm};
use coffer_disk::{Anchor, AnchorError, SystemEntropy};
use coffer_formats::evidence::PcrValue;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::folder::{COUNTER, Folder, KEY, NEXT};
use crate::key_file::{Kept, KeyFile, Sealing, Stage};
use crate::keys::{KEY as KEY_LEN, Keys, random};

/// Reaches the TPM; each call gives a handle of its own.
pub type Connect = Box<dyn Fn() -> io::Result<Tpm> + Send + Sync>;

/// Where key and counter are.
pub enum Root {
    /// In the host's TPM: the key sealed to what these registers hold now, the counter under this index.
    Tpm {
        /// Reaches the TPM.
        connect: Connect,
        /// What the key is sealed to.
        registers: Registers,
        /// The counter.
        index: CounterIndex,
    },
    /// In files beside the vault: whoever has the folder reads it, and turns it back. For hosts without a TPM, and to
    /// show what the TPM is for.
    DangerouslySoftware,
}

impl Root {
    /// The TPM behind this device, and its first counter; the key sealed to what these registers hold.
    pub fn device(path: &Path, registers: &[u8]) -> Result<Self, VaultError> {
        let path = path.to_owned();
        let connect = move || {
            let device = Stream::device(&path)?;
            Ok(Tpm::new(Box::new(device), Box::new(SystemEntropy)))
        };
        let (connect, registers) = (Box::new(connect), Registers::of(registers)?);
        Ok(Self::Tpm { connect, registers, index: CounterIndex::new(0) })
    }

    pub(crate) fn tpm(connect: &Connect) -> Result<Tpm, VaultError> {
        connect().map_err(VaultError::storage("opening the TPM"))
    }

    /// A fresh key, and the file that keeps it.
    pub(crate) fn draw(&self, stage: Stage) -> Result<(Keys, Zeroizing<Vec<u8>>), VaultError> {
        let mut key = random::<KEY_LEN>()?;
        let clear = key.clone();
        let keys = Keys::new(&mut key);
        let file = match self {
            Self::Tpm { connect, registers, .. } => {
                let blob = SealedKey::seal(&mut Self::tpm(connect)?, keys.plain(), registers)?;
                KeyFile::encode(stage, Kept::Sealed, &blob.encode(), &keys)
            }
            Self::DangerouslySoftware => {
                KeyFile::encode(stage, Kept::InClear, clear.as_slice(), &keys)
            }
        };
        Ok((keys, file))
    }

    /// The key that a key file keeps, and what the file says.
    pub(crate) fn unlock(&self, file: &KeyFile) -> Result<(Keys, Stage), VaultError> {
        let keys = match (self, file.kept()) {
            (Self::Tpm { connect, .. }, Kept::Sealed) => {
                let sealed = SealedKey::decode(file.key())?;
                Keys::of(sealed.unseal(&mut Self::tpm(connect)?)?)
            }
            (Self::DangerouslySoftware, Kept::InClear) => {
                let key: Result<[u8; 32], _> = file.key().try_into();
                let mut key = Zeroizing::new(key.map_err(|_| VaultError::KeyFile(KEY))?);
                Keys::new(&mut key)
            }
            // A vault in software is not opened as one of the TPM's, nor the other way round.
            _ => return Err(VaultError::KeyFile(KEY)),
        };
        let stage = file.verify(&keys)?;
        Ok((keys, stage))
    }

    /// The key of a finished vault, and what it is sealed to: for the host as it boots now, or as it was to boot next;
    /// which of the two it was is the one kept.
    pub(crate) fn unlock_vault(
        &self,
        folder: &Folder,
        file: &KeyFile,
    ) -> Result<(Keys, Option<Sealing>), VaultError> {
        let moved = match self.unlock(file) {
            Err(error @ VaultError::Seal(SealError::PcrsMoved)) => error,
            other => return Ok((other?.0, file.sealing()?)),
        };
        let Some(bytes) = folder.read(NEXT)? else { return Err(moved) };
        let next = KeyFile::decode(NEXT, bytes)?;
        let (keys, stage) = self.unlock(&next)?;
        match stage {
            Stage::Vault { .. } => folder.rename(NEXT, KEY)?,
            Stage::Trial => return Err(VaultError::KeyFile(NEXT)),
        }
        Ok((keys, next.sealing()?))
    }

    /// The counter of a vault that is there.
    pub(crate) fn anchor(
        &self,
        folder: &Folder,
        keys: &Keys,
    ) -> Result<Box<dyn Anchor + Send>, VaultError> {
        match self {
            Self::Tpm { connect, index, .. } => {
                let anchor = NvAnchor::open(Self::tpm(connect)?, *index, keys.counter(*index))?;
                Ok(Box::new(Stepping(Box::new(anchor), folder.steps().clone())))
            }
            Self::DangerouslySoftware => Ok(Box::new(FileCounter::open(folder)?)),
        }
    }

    /// Seals the key to other values of registers too.
    pub(crate) fn reseal(
        &self,
        folder: &Folder,
        keys: &Keys,
        values: &[PcrValue],
    ) -> Result<(), VaultError> {
        let Self::Tpm { connect, .. } = self else { return Err(VaultError::NoTpm) };
        let blob = SealedKey::seal_to(&mut Self::tpm(connect)?, keys.plain(), values)?;
        let stage = Stage::Vault { first: 0 };
        folder.write(NEXT, &KeyFile::encode(stage, Kept::Sealed, &blob.encode(), keys))
    }
}

/// A counter whose moves can be cut off by a test.
pub(crate) struct Stepping(pub Box<dyn Anchor + Send>, pub crate::folder::Steps);

impl Anchor for Stepping {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.0.read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        (self.1)().map_err(|error| AnchorError::Failed(error.into()))?;
        self.0.advance(from)
    }
}

/// A counter in a file: it is turned back with the folder.
struct FileCounter(std::fs::File);

impl FileCounter {
    fn open(folder: &Folder) -> Result<Self, VaultError> {
        let file = folder.file(COUNTER, rustix::fs::OFlags::RDWR);
        Ok(Self(file.map_err(VaultError::storage("opening the counter's file"))?))
    }
}

impl Anchor for FileCounter {
    fn read(&mut self) -> Result<u64, AnchorError> {
        let mut value = [0; 8];
        let read = self.0.read_exact_at(&mut value, 0);
        read.map_err(|error| AnchorError::Failed(error.into()))?;
        Ok(u64::from_le_bytes(value))
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let found = self.read()?;
        if found != from {
            return Err(AnchorError::Moved { expected: from, found });
        }
        let next = from.checked_add(1).ok_or_else(|| AnchorError::Failed("it is spent".into()))?;
        let written = self.0.write_all_at(&next.to_le_bytes(), 0);
        written.and_then(|()| self.0.sync_data()).map_err(|error| AnchorError::Failed(error.into()))
    }
}
