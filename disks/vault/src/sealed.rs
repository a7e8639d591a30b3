//! Data sealed to a guest, or to a signer's guests of a security version (SPEC 11.16).
//!
//! ```text
//!   0   8  "COFFERSB"               32  37  target: kind, digest, lowest svn (u32)
//!   8   4  version, 1               69  70  sealer: kind of box, image, signed, signer, svn (u32)
//!  12   4  0 vault, 1 fleet        139   5  zero
//!  16  16  id of the vault, fleet  144  32  salt
//! 176   n  ciphertext                   16  tag          all before the ciphertext is associated data
//! ```
//! A key is used once: its salt is drawn for it. The target is in the key, and with the sealer under the tag; so a blob
//! says who sealed it and for whom, and nobody else wrote it. Of what is sealed for a fleet that is each host of it.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId};
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::identity::{Identity, Owner};
use crate::keys::{Key, random};
use crate::vault::Vault;

/// Most bytes that are sealed at once.
pub const SEALED_MAX: usize = 64 << 10;
/// Bytes a blob is longer.
pub const SEALED_OVERHEAD: usize = HEAD + 16;
const HEAD: usize = 176;
const MAGIC: &[u8; 8] = b"COFFERSB";
const VERSION: u32 = 1;

/// What was sealed, and who sealed it.
pub struct Unsealed {
    /// The data.
    pub data: Zeroizing<Vec<u8>>,
    /// Who sealed it, as the monitor knew it then.
    pub sealed_by: Identity,
}

impl Vault {
    /// Seals at most 64 KiB, so that only whom `to` means unseals it: on this host, or on each host of its fleet.
    pub fn seal(
        &self,
        by: &Identity,
        to: &Owner,
        fleet: bool,
        data: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let scope = match fleet {
            true => Scope::Fleet(self.fleet()?.ok_or(VaultError::NoFleet)?.id()),
            false => Scope::Vault(InstanceId(self.id())),
        };
        if data.len() > SEALED_MAX {
            return Err(VaultError::TooLarge { found: data.len(), limit: SEALED_MAX });
        }
        let head = Head { scope, target: *to, sealer: *by, salt: *random()? };
        let aad = head.encode();
        let sealed = cipher(&self.sealing_key(&head)?)
            .encrypt(&Default::default(), Payload { msg: data, aad: &aad })
            .map_err(|_| VaultError::TooLarge { found: data.len(), limit: SEALED_MAX })?;
        Ok([&aad[..], &sealed].concat())
    }

    /// Unseals what was sealed to `by`. Nothing is remembered of it: the lowest security version is the sealer's to say.
    pub fn unseal(&self, by: &Identity, blob: &[u8]) -> Result<Unsealed, VaultError> {
        let whole = blob.len() <= SEALED_MAX + SEALED_OVERHEAD;
        let (aad, sealed) =
            blob.split_first_chunk::<HEAD>().filter(|_| whole).ok_or(VaultError::SealedCorrupt)?;
        let head = Head::decode(aad).ok_or(VaultError::SealedCorrupt)?;
        let data = cipher(&self.sealing_key(&head)?)
            .decrypt(&Default::default(), Payload { msg: sealed, aad })
            .map_err(|_| VaultError::SealedCorrupt)?;
        let data = Zeroizing::new(data);
        head.target.admit(by, 0)?;
        Ok(Unsealed { data, sealed_by: head.sealer })
    }

    fn sealing_key(&self, head: &Head) -> Result<Key, VaultError> {
        match head.scope {
            Scope::Vault(id) if id.0 == self.id() => {
                Ok(self.0.keys.sealed(&head.target, &head.salt))
            }
            Scope::Vault(_) => Err(VaultError::SealedForeign),
            Scope::Fleet(id) => match self.fleet()? {
                Some(key) if key.id() == id => Ok(key.sealed(&head.target, &head.salt)),
                Some(_) => Err(VaultError::OtherFleet),
                None => Err(VaultError::NoFleet),
            },
        }
    }
}

fn cipher(key: &Key) -> Aes256Gcm {
    Aes256Gcm::new((&**key).into())
}

/// Where it opens.
#[derive(Clone, Copy)]
enum Scope {
    Vault(InstanceId),
    Fleet(InstanceId),
}

struct Head {
    scope: Scope,
    target: Owner,
    sealer: Identity,
    salt: [u8; 32],
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let Identity { box_kind, image_id, signer, svn } = self.sealer;
        let (signed, signer) = (u8::from(signer.is_some()), signer.unwrap_or(Digest::ZERO));
        let (scope, id) = match self.scope {
            Scope::Vault(id) => (0_u32, id),
            Scope::Fleet(id) => (1, id),
        };
        let svns = (self.target.svn().to_le_bytes(), svn.to_le_bytes());
        let fields: [&[u8]; 12] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &scope.to_le_bytes(),
            &id.0,
            &self.target.canonical(),
            &svns.0,
            &[u8::from(box_kind == BoxKind::Open)],
            image_id.as_bytes(),
            &[signed],
            signer.as_bytes(),
            &svns.1,
            &[0; 5],
        ];
        let mut head = [0; HEAD];
        let bytes = fields.iter().flat_map(|field| field.iter()).chain(&self.salt);
        head.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        head
    }

    /// Exactly what [`Head::encode`] writes.
    fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        let (scope, rest) = bytes.get(12..)?.split_first_chunk::<4>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (target, rest) = rest.split_first_chunk::<33>()?;
        let (lowest, rest) = rest.split_first_chunk::<4>()?;
        let ([open], rest) = rest.split_first_chunk::<1>()?;
        let (image, rest) = rest.split_first_chunk::<32>()?;
        let ([signed], rest) = rest.split_first_chunk::<1>()?;
        let (signer, rest) = rest.split_first_chunk::<32>()?;
        let (svn, _) = rest.split_first_chunk::<4>()?;
        let sealer = Identity {
            box_kind: if *open == 1 { BoxKind::Open } else { BoxKind::Closed },
            image_id: Digest(*image),
            signer: (*signed == 1).then_some(Digest(*signer)),
            svn: u32::from_le_bytes(*svn),
        };
        let scope = match u32::from_le_bytes(*scope) {
            0 => Scope::Vault(InstanceId(*id)),
            1 => Scope::Fleet(InstanceId(*id)),
            _ => return None,
        };
        let target = Owner::from_canonical(target, u32::from_le_bytes(*lowest))?;
        let head = Self { scope, target, sealer, salt: *bytes.last_chunk()? };
        (head.encode() == *bytes).then_some(head)
    }
}
