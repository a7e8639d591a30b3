//! Making a vault, cut off anywhere, and never a second one in silence (SPEC 11.14.4).
//!
//! ```text
//! 1 marker: trial key      4 marker: the vault's key, v + 1     7 disk made:    counter v + 2
//! 2 trial counter made: v  5 the vault's counter made: v + 1    8 first record: counter v + 3
//! 3 trial counter removed  6 (another value: from 1)            9 marker becomes the key file
//! ```
//! A counter starts above all that the TPM ever had, so step 2 tells where the vault's will start, before it is there.
//! Who finds a marker and the marker's counter below v + 3 knows that nothing was ever anchored there, and starts over; from
//! v + 3 on the vault is whole. So an old marker put back beside a vault in use starts nothing over, and a counter
//! without a folder is a vault that is missing.

use coffer_anchor::{CounterError, CounterIndex, NvAnchor};
use coffer_disk::Anchor;

use crate::error::VaultError;
use crate::folder::{COUNTER, DISK, Folder, ID, KEY, MAKING, NEXT};
use crate::key_file::{KeyFile, Sealing, Stage};
use crate::keys::{Keys, random};
use crate::root::{Connect, Root, Stepping};

/// Key and counter of a vault.
pub(crate) struct Ground {
    pub keys: Keys,
    pub anchor: Box<dyn Anchor + Send>,
    /// What the key is sealed to, if it is.
    pub sealing: Option<Sealing>,
    /// There is no disk yet.
    pub fresh: bool,
}

/// What is known of a vault that was being made.
enum Cut {
    /// It never was one.
    Nothing,
    /// It was whole, but for its name.
    Whole,
}

impl Ground {
    /// Finds the vault, or begins one where none is and none was.
    pub(crate) fn find(folder: &Folder, root: &Root) -> Result<Self, VaultError> {
        if let Some(bytes) = folder.read(KEY)? {
            return Self::there(folder, root, &KeyFile::decode(KEY, bytes)?);
        }
        let marker =
            folder.read(MAKING)?.map(|bytes| KeyFile::decode(MAKING, bytes)).transpose()?;
        let cut = match root {
            Root::Tpm { connect, index, .. } => cut(root, connect, *index, marker.as_ref())?,
            // Nothing but the folder remembers.
            Root::DangerouslySoftware => Cut::Nothing,
        };
        match (cut, marker) {
            (Cut::Whole, Some(file)) => {
                folder.rename(MAKING, KEY)?;
                Self::there(folder, root, &file)
            }
            _ => Self::begin(folder, root),
        }
    }

    /// A vault that was finished.
    fn there(folder: &Folder, root: &Root, file: &KeyFile) -> Result<Self, VaultError> {
        let (keys, sealing) = root.unlock_vault(folder, file)?;
        if !folder.has(DISK)? {
            return Err(VaultError::Missing);
        }
        let anchor = root.anchor(folder, &keys)?;
        Ok(Self { keys, anchor, sealing, fresh: false })
    }

    /// Steps 1 to 6.
    fn begin(folder: &Folder, root: &Root) -> Result<Self, VaultError> {
        for name in [DISK, ID, NEXT, COUNTER] {
            folder.remove(name)?;
        }
        let Root::Tpm { connect, index, .. } = root else {
            let (keys, file) = root.draw(Stage::Vault { first: 0 })?;
            folder.write(MAKING, &file)?;
            folder.write(COUNTER, &[0; 8])?;
            let anchor = root.anchor(folder, &keys)?;
            return Ok(Self { anchor, keys, sealing: None, fresh: true });
        };
        for _ in 0..TRIES {
            let (trial, file) = root.draw(Stage::Trial)?;
            folder.write(MAKING, &file)?;
            let (at, counter) = define(folder, connect, *index, &trial)?;
            drop(counter);
            undefine(folder, connect, *index)?;
            let first = at.saturating_add(1);
            let (keys, file) = root.draw(Stage::Vault { first })?;
            folder.write(MAKING, &file)?;
            let (at, counter) = define(folder, connect, *index, &keys)?;
            if at == first {
                let anchor = Stepping(Box::new(counter), folder.steps().clone());
                let (anchor, sealing) =
                    (Box::new(anchor), KeyFile::decode(MAKING, file)?.sealing()?);
                return Ok(Self { keys, anchor, sealing, fresh: true });
            }
            // Somebody moved another counter of this TPM meanwhile.
            drop(counter);
            undefine(folder, connect, *index)?;
        }
        Err(VaultError::CountersUnsteady)
    }

    /// Step 9.
    pub(crate) fn finish(folder: &Folder) -> Result<(), VaultError> {
        folder.rename(MAKING, KEY)
    }
}

/// What the TPM knows of a vault that has no key file.
fn cut(
    root: &Root,
    connect: &Connect,
    index: CounterIndex,
    marker: Option<&KeyFile>,
) -> Result<Cut, VaultError> {
    let unlocked = match marker.map(|file| root.unlock(file)) {
        None => None,
        Some(Ok(unlocked)) => Some(unlocked),
        // A marker that says nothing is in nobody's way where there is no counter.
        Some(Err(error)) => match probe(connect, index, None)? {
            Counter::None => return Ok(Cut::Nothing),
            _ => return Err(error),
        },
    };
    let keys = unlocked.as_ref().map(|(keys, _)| keys);
    match (probe(connect, index, keys)?, unlocked.map(|(_, stage)| stage)) {
        (Counter::None, _) => Ok(Cut::Nothing),
        // Never moved, so nothing hangs on it; removed only if we were about to make one.
        (Counter::Unmoved, Some(_)) | (Counter::Ours(_), Some(Stage::Trial)) => {
            remove(connect, index)
        }
        (Counter::Ours(at), Some(Stage::Vault { first })) => match at.saturating_sub(first) {
            0..WHOLE => remove(connect, index),
            _ => Ok(Cut::Whole),
        },
        _ => Err(VaultError::Missing),
    }
}

fn remove(connect: &Connect, index: CounterIndex) -> Result<Cut, VaultError> {
    NvAnchor::undefine(&mut Root::tpm(connect)?, index)?;
    Ok(Cut::Nothing)
}

enum Counter {
    None,
    /// Made, never moved.
    Unmoved,
    /// It has the secret of these keys.
    Ours(u64),
    /// Somebody else's.
    Others,
}

fn probe(
    connect: &Connect,
    index: CounterIndex,
    keys: Option<&Keys>,
) -> Result<Counter, VaultError> {
    let nobody = Keys::new(&mut *random()?);
    let auth = keys.unwrap_or(&nobody).counter(index);
    let opened = NvAnchor::open(Root::tpm(connect)?, index, auth).and_then(|mut it| it.value());
    match opened {
        Ok(value) => Ok(Counter::Ours(value)),
        Err(CounterError::Missing { .. }) => Ok(Counter::None),
        Err(CounterError::NotWritten { .. }) => Ok(Counter::Unmoved),
        Err(CounterError::Foreign { .. } | CounterError::Redefined { .. }) => Ok(Counter::Others),
        Err(other) => Err(other.into()),
    }
}

fn define(
    folder: &Folder,
    connect: &Connect,
    index: CounterIndex,
    keys: &Keys,
) -> Result<(u64, NvAnchor), VaultError> {
    folder.step()?;
    let mut counter = NvAnchor::define(Root::tpm(connect)?, index, keys.counter(index))?;
    let at = counter.value()?;
    folder.step()?;
    Ok((at, counter))
}

fn undefine(folder: &Folder, connect: &Connect, index: CounterIndex) -> Result<(), VaultError> {
    folder.step()?;
    Ok(NvAnchor::undefine(&mut Root::tpm(connect)?, index)?)
}

/// Moves of the counter, from its first value, with which a vault is whole: the disk's making and its first record.
const WHOLE: u64 = 2;
/// How often the counter is made where others move theirs.
const TRIES: usize = 4;
