//! Doors for fuzz targets, which only cargo-fuzz's builds have: what reads formats at rest (SPEC 11.14 to 11.17), without
//! a TPM, a folder or a disk.
//!
//! It trusts the targets with a vault whose key they know, and refuses nothing that what is behind a door would not.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use aes_gcm::{Aes256Gcm, KeyInit as _};
use coffer_disk::BlockDevice;
use zeroize::Zeroizing;

use crate::backup::Stream;
use crate::counters::Counters;
use crate::error::VaultError;
use crate::fleet::FleetKey;
use crate::folder::KEY;
use crate::identity::{Identity, Owner};
use crate::key_file::{Kept, KeyFile, Stage};
use crate::keys::Keys;
use crate::permit::{Permit, SignedPermit};
use crate::root::Root;
use crate::vault::Vault;
use crate::volume::VolumeInfo;
use crate::volume_record::VolumeRecord;

/// A vault in memory, under a key and an id that are known.
pub fn vault(folder: &Path, key: [u8; 32], id: [u8; 16]) -> Result<Vault, VaultError> {
    Vault::dangerously_known(folder, key, id)
}

/// A key file as it is read: the counter's first value (none of a trial), whether the key is in clear, and the key as it is
/// kept.
pub type ReadKeyFile = (Option<u64>, bool, Vec<u8>);

/// What a key file says, if this key wrote it.
pub fn key_file(bytes: &[u8], mut key: [u8; 32]) -> Result<ReadKeyFile, VaultError> {
    let file = KeyFile::decode(KEY, Zeroizing::new(bytes.to_vec()))?;
    let stage = file.verify(&Keys::new(&mut key))?;
    Ok((first(stage), file.kept() == Kept::InClear, file.key().to_vec()))
}

/// The key and the counter's first value that the key file of a vault without a TPM gives.
pub fn unlock(bytes: &[u8]) -> Result<([u8; 32], Option<u64>), VaultError> {
    let file = KeyFile::decode(KEY, Zeroizing::new(bytes.to_vec()))?;
    let (keys, stage) = Root::DangerouslySoftware.unlock(&file)?;
    Ok((*keys.plain().derive(b"fuzz"), first(stage)))
}

fn first(stage: Stage) -> Option<u64> {
    match stage {
        Stage::Trial => None,
        Stage::Vault { first } => Some(first),
    }
}

/// A key file as it is written.
pub fn write_key_file((first, in_clear, kept): &ReadKeyFile, mut key: [u8; 32]) -> Vec<u8> {
    let stage = first.map_or(Stage::Trial, |first| Stage::Vault { first });
    let how = if *in_clear { Kept::InClear } else { Kept::Sealed };
    KeyFile::encode(stage, how, kept, &Keys::new(&mut key)).to_vec()
}

/// What a directory of these blocks says: name, bytes and extents of each record.
pub fn directory(blocks: &[&[u8]]) -> Option<Vec<(String, usize, Vec<u32>)>> {
    crate::records::directory(blocks)
}

/// A volume's record, written again, and what is told of it.
pub fn volume_record(bytes: &[u8]) -> Option<(Vec<u8>, VolumeInfo)> {
    let record = VolumeRecord::decode("v", bytes).ok()?;
    Some((record.encode(), record.info("v", false)))
}

/// The key that the record of a vault's fleet holds.
pub fn fleet_record(bytes: &[u8]) -> Option<FleetKey> {
    crate::fleet::read_record(bytes)
}

/// Whether a policy admits a guest, and the floor from then on.
pub fn admit(owner: &Owner, user: &Identity, floor: u32) -> Result<u32, VaultError> {
    owner.admit(user, floor)
}

/// The counters of a guest, by name, and their record written again.
pub fn counters(bytes: &[u8]) -> Option<(BTreeMap<String, u64>, Vec<u8>)> {
    let counters = Counters::decode(bytes)?;
    let written = coffer_formats::cbor::encode(&counters);
    Some((counters.values, written))
}

/// Whether a volume may have this name.
pub fn is_name(name: &str) -> bool {
    crate::volumes::is_name(name)
}

/// Blocks of a volume of so many bytes.
pub fn sized(bytes: u64) -> Option<u64> {
    crate::volumes::sized(bytes).ok()
}

/// A permit as it travels, and what it alleges.
pub fn claimed(bytes: &[u8]) -> Result<(SignedPermit, Permit), VaultError> {
    let signed = SignedPermit::decode(bytes)?;
    let permit = signed.claimed()?;
    Ok((signed, permit))
}

/// What this verifier permits at `now`.
pub fn permitted(bytes: &[u8], key: &[u8; 65], now: u64) -> Result<Permit, VaultError> {
    SignedPermit::decode(bytes)?.verify(key, now)
}

/// Everything of a backup before its chunks, as `sender` writes it.
pub fn backup_head(
    sender: &Vault,
    permit: &Permit,
    signed: &[u8],
    stream_key: [u8; 32],
    bytes: u64,
    verifier: [u8; 65],
) -> Result<Vec<u8>, VaultError> {
    sender.head(permit, signed, stream_key, bytes, verifier)
}

/// The same as `recipient` reads it: the permit, the chunks' key and the volume's size.
pub fn read_backup_head(
    recipient: &Vault,
    input: &mut dyn Read,
) -> Result<(Permit, [u8; 32], u64), VaultError> {
    let (permit, description) = recipient.unwrap(input)?;
    Ok((permit, description.stream_key, description.bytes))
}

/// Fills a disk of zeros with a backup's chunks.
pub fn fill(
    stream_key: &[u8; 32],
    input: &mut dyn Read,
    disk: &mut dyn BlockDevice,
) -> Result<(), VaultError> {
    let blocks = disk.blocks();
    let cipher = Aes256Gcm::new(stream_key.into());
    Stream { cipher, number: 0 }.fill(input, disk, blocks, "v")
}
