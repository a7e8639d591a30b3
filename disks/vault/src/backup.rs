//! Taking a volume to another host, by its verifier's leave (SPEC 11.17).
//!
//! ```text
//! "COFFERBK" | version 1 (u32) | p (u32) | signed permit (p) | encapsulated key (65) | d (u32) | description (d) | chunks
//! description: deterministic CBOR, HPKE in mode Auth from the sender's transport key to the recipient's; holds the stream key
//! chunk:       n (u32) | AES-256-GCM of (first block (u64) | data), n bytes; nonce: its number; what is left out is zero
//! ```
//! The recipient trusts the verifier that the volume names, and nobody attaches it whose image has another
//! ([`Vault::attach_verified`]): so a backup that somebody forged, with a verifier of his own, reaches his own images only.

use std::io::{self, Read, Write};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use coffer_disk::{BLOCK, BlockDevice, DiskError};
use coffer_formats::cbor;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::{Deserializable as _, HpkeError, Kem, OpModeR, OpModeS, Serializable as _};
use minicbor::{Decode, Encode};
use zeroize::{Zeroize as _, Zeroizing};

use crate::attach::{open_volume, settle};
use crate::error::VaultError;
use crate::identity::Owner;
use crate::keys::{Transport, random};
use crate::permit::{PERMIT_MAX, Permit, SignedPermit};
use crate::vault::Vault;
use crate::volume::{VolumeInfo, VolumeKind};
use crate::volume_record::{VolumeRecord, now};
use crate::volumes::sized;

type PublicKey = <Transport as Kem>::PublicKey;
type Encapsulated = <Transport as Kem>::EncappedKey;

const MAGIC: &[u8; 8] = b"COFFERBK";
const VERSION: u32 = 1;
const INFO: &[u8] = b"coffer/volume-backup/v1\0";
/// Most bytes of an encrypted description.
const DESCRIPTION_MAX: usize = 1024;
/// Blocks in a chunk.
const CHUNK: u64 = 64;
/// Bytes of a chunk beside its data: its place, and a tag.
const CHUNK_OVERHEAD: usize = 8 + 16;

/// The volume, for the recipient's eyes.
#[derive(Encode, Decode)]
#[cbor(map)]
pub(crate) struct Description {
    #[n(0)]
    version: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub stream_key: [u8; 32],
    #[n(2)]
    pub bytes: u64,
    #[cbor(n(3), with = "minicbor::bytes")]
    owner: [u8; 33],
    #[n(4)]
    svn: u32,
    #[n(5)]
    floor: u32,
    #[cbor(n(6), with = "minicbor::bytes")]
    verifier: [u8; 65],
}

impl Drop for Description {
    fn drop(&mut self) {
        self.stream_key.zeroize();
    }
}

impl Vault {
    /// The uncompressed point that backups for this vault are encrypted to, and those of this vault authenticated by.
    pub fn transport_key(&self) -> [u8; 65] {
        self.0.keys.transport_point()
    }

    /// Writes an encrypted volume that nobody uses to `out`, for the host that the verifier's permit names.
    pub fn backup(&self, name: &str, permit: &[u8], out: &mut dyn Write) -> Result<(), VaultError> {
        self.backup_named(name, permit, out).map_err(|error| error.of_volume(name))
    }

    fn backup_named(
        &self,
        name: &str,
        permit: &[u8],
        out: &mut dyn Write,
    ) -> Result<(), VaultError> {
        let claim = self.claim(name)?;
        let record = self.record(name)?;
        if record.kind() != VolumeKind::Encrypted {
            return Err(VaultError::WrongKind {
                kind: record.kind().as_str(),
                verb: "be exported",
            });
        }
        let verifier = record.verifier().ok_or(VaultError::NoPermit)?;
        let signed = SignedPermit::decode(permit)?;
        let said: Permit = signed.verify(&verifier, now())?;
        if said.volume != record.id {
            return Err(VaultError::BadPermit("is for another volume"));
        }
        if said.sender != self.transport_key() {
            return Err(VaultError::BadPermit("is for a volume of another host"));
        }
        let record = settle(self, &claim, record)?;
        let mut disk = open_volume(self, name, &record)?;
        let failed = |source| VaultError::VolumeDisk { name: name.to_owned(), source };
        disk.require_none_lost().map_err(failed)?;
        let stream_key = random()?;
        let description = Description {
            version: VERSION,
            stream_key: *stream_key,
            bytes: record.bytes,
            owner: record.owner,
            svn: record.svn,
            floor: record.floor,
            verifier,
        };
        let head = self.wrap(&said, permit, &Zeroizing::new(cbor::encode(&description)))?;
        let written = out.write_all(&head);
        written.map_err(VaultError::storage("writing a backup"))?;
        let mut stream = Stream { cipher: Aes256Gcm::new((&*stream_key).into()), number: 0 };
        let blocks = record.bytes / BLOCK as u64;
        for first in (0..blocks).step_by(CHUNK as usize) {
            let count = CHUNK.min(blocks - first) as usize;
            let mut data = Zeroizing::new(vec![0; count * BLOCK]);
            disk.read(first, &mut data).map_err(failed)?;
            if data.iter().any(|byte| *byte != 0) {
                stream.write(out, first, &data, false)?;
            }
        }
        stream.write(out, blocks, &[], true)?;
        out.flush().map_err(VaultError::storage("writing a backup"))
    }

    /// Makes a new volume of a backup for this host: the same owner, verifier and lowest security version, another id.
    pub fn restore(&self, name: &str, input: &mut dyn Read) -> Result<VolumeInfo, VaultError> {
        self.restore_named(name, input).map_err(|error| error.of_volume(name))
    }

    fn restore_named(&self, name: &str, input: &mut dyn Read) -> Result<VolumeInfo, VaultError> {
        let mut claim = self.claim_new(name)?;
        let (permit, description) = self.unwrap(input)?;
        let owner = Owner::from_canonical(&description.owner, description.svn)
            .filter(|_| description.version == VERSION && description.floor >= description.svn)
            .ok_or(VaultError::BackupCorrupt)?;
        let blocks = sized(description.bytes).map_err(|_| VaultError::BackupCorrupt)?;
        if self.is_used(permit.serial)? {
            return Err(VaultError::PermitUsed);
        }
        let verifier = Some(description.verifier);
        let mut record = VolumeRecord::new(*random()?, VolumeKind::Encrypted, &owner, verifier);
        record.floor = description.floor;
        let made = self.make_encrypted(&mut claim, &mut record, blocks).and_then(|mut disk| {
            let cipher = Aes256Gcm::new((&description.stream_key).into());
            Stream { cipher, number: 0 }.fill(input, &mut disk, blocks, name)?;
            self.use_up(permit.serial, permit.expiry)
        });
        self.enter(&claim, &record, made)
    }

    /// Everything before the chunks.
    fn wrap(
        &self,
        permit: &Permit,
        signed: &[u8],
        description: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let refused = |_: HpkeError| VaultError::BadPermit("names no transport key");
        let recipient = PublicKey::from_bytes(&permit.recipient).map_err(refused)?;
        let (encapsulated, mut context) = hpke::setup_sender::<AesGcm256, HkdfSha256, Transport>(
            &OpModeS::Auth(self.0.keys.transport()),
            &recipient,
            INFO,
        )
        .map_err(refused)?;
        let sealed = context.seal(description, signed).map_err(refused)?;
        let lengths = [signed.len() as u32, sealed.len() as u32].map(u32::to_le_bytes);
        let [permit_length, length] = lengths;
        let version = VERSION.to_le_bytes();
        let encapsulated = encapsulated.to_bytes();
        let parts: [&[u8]; 7] =
            [MAGIC, &version, &permit_length, signed, &encapsulated, &length, &sealed];
        Ok(parts.concat())
    }

    /// A head as the sender writes it, of a description with this stream key.
    #[cfg(fuzzing)]
    pub(crate) fn head(
        &self,
        permit: &Permit,
        signed: &[u8],
        stream_key: [u8; 32],
        bytes: u64,
        verifier: [u8; 65],
    ) -> Result<Vec<u8>, VaultError> {
        let owner = Owner::Open.canonical();
        let version = VERSION;
        let description =
            Description { version, stream_key, bytes, owner, svn: 0, floor: 0, verifier };
        self.wrap(permit, signed, &cbor::encode(&description))
    }

    /// Reads everything before the chunks: whole, for us, from whom the permit says, permitted by the verifier within.
    pub(crate) fn unwrap(&self, input: &mut dyn Read) -> Result<(Permit, Description), VaultError> {
        if *take::<8>(input)? != *MAGIC || number(input)? != VERSION {
            return Err(VaultError::BackupCorrupt);
        }
        let bytes = portion(input, PERMIT_MAX)?;
        let signed = SignedPermit::decode(&bytes)?;
        let claimed: Permit = signed.claimed()?;
        if claimed.recipient != self.transport_key() {
            return Err(VaultError::BackupForeign);
        }
        let encapsulated = take::<65>(input)?;
        let sealed = portion(input, DESCRIPTION_MAX)?;
        let opened = || -> Result<_, HpkeError> {
            let sender = PublicKey::from_bytes(&claimed.sender)?;
            let encapsulated = Encapsulated::from_bytes(&*encapsulated)?;
            let (ours, _) = self.0.keys.transport();
            let mode = OpModeR::Auth(sender);
            hpke::setup_receiver::<AesGcm256, HkdfSha256, Transport>(
                &mode,
                &ours,
                &encapsulated,
                INFO,
            )?
            .open(&sealed, &bytes)
        };
        let plain = Zeroizing::new(opened().map_err(|_| VaultError::BackupCorrupt)?);
        let description: Description =
            cbor::decode(&plain, DESCRIPTION_MAX).map_err(|_| VaultError::BackupCorrupt)?;
        let permit = signed.verify(&description.verifier, now())?;
        Ok((permit, description))
    }
}

/// Chunks, in the order they were written, all of them.
pub(crate) struct Stream {
    pub cipher: Aes256Gcm,
    pub number: u64,
}

impl Stream {
    fn write(
        &mut self,
        out: &mut dyn Write,
        first: u64,
        data: &[u8],
        last: bool,
    ) -> Result<(), VaultError> {
        let plain = Zeroizing::new([&first.to_le_bytes()[..], data].concat());
        let (nonce, aad) = self.next(last);
        let sealed = self.cipher.encrypt(&nonce, Payload { msg: &plain, aad: &aad });
        let sealed = sealed.map_err(|_| VaultError::BackupCorrupt)?;
        out.write_all(&(sealed.len() as u32).to_le_bytes())
            .and_then(|()| out.write_all(&sealed))
            .map_err(VaultError::storage("writing a backup"))
    }

    /// Writes what is there to a disk of zeros, up to the chunk that says it is the last.
    pub(crate) fn fill(
        mut self,
        input: &mut dyn Read,
        disk: &mut dyn BlockDevice,
        blocks: u64,
        name: &str,
    ) -> Result<(), VaultError> {
        loop {
            let sealed = portion(input, CHUNK as usize * BLOCK + CHUNK_OVERHEAD)?;
            let last = sealed.len() == CHUNK_OVERHEAD;
            let (nonce, aad) = self.next(last);
            let plain = self.cipher.decrypt(&nonce, Payload { msg: &sealed, aad: &aad });
            let plain = Zeroizing::new(plain.map_err(|_| VaultError::BackupCorrupt)?);
            let (first, data) = plain.split_first_chunk::<8>().ok_or(VaultError::BackupCorrupt)?;
            let failed = |source| VaultError::VolumeDisk { name: name.to_owned(), source };
            if last {
                let whole = u64::from_le_bytes(*first) == blocks && ended(input)?;
                return match whole {
                    true => disk.flush().map_err(failed),
                    false => Err(VaultError::BackupCorrupt),
                };
            }
            disk.write(u64::from_le_bytes(*first), data).map_err(|error| match error {
                DiskError::OutOfRange { .. } | DiskError::Unaligned(_) => VaultError::BackupCorrupt,
                other => failed(other),
            })?;
        }
    }

    /// Nonce and associated data of the next chunk.
    fn next(&mut self, last: bool) -> (Nonce<aes_gcm::aead::consts::U12>, [u8; 9]) {
        let mut nonce = [0; 12];
        let mut aad = [u8::from(last); 9];
        let number = self.number.to_le_bytes();
        nonce.iter_mut().zip(number).for_each(|(to, from)| *to = from);
        aad.iter_mut().zip(number).for_each(|(to, from)| *to = from);
        self.number += 1;
        (nonce.into(), aad)
    }
}

fn take<const N: usize>(input: &mut dyn Read) -> Result<Box<[u8; N]>, VaultError> {
    let mut bytes = Box::new([0; N]);
    input.read_exact(&mut *bytes).map_err(torn)?;
    Ok(bytes)
}

fn number(input: &mut dyn Read) -> Result<u32, VaultError> {
    Ok(u32::from_le_bytes(*take(input)?))
}

/// A length and so many bytes.
fn portion(input: &mut dyn Read, limit: usize) -> Result<Vec<u8>, VaultError> {
    let length = number(input)? as usize;
    if length > limit {
        return Err(VaultError::BackupCorrupt);
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).map_err(torn)?;
    Ok(bytes)
}

/// Whether nothing follows.
fn ended(input: &mut dyn Read) -> Result<bool, VaultError> {
    let read = input.take(1).read_to_end(&mut Vec::new());
    read.map(|more| more == 0).map_err(torn)
}

fn torn(error: io::Error) -> VaultError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => VaultError::BackupCorrupt,
        _ => VaultError::Storage { doing: "reading a backup", source: error },
    }
}
