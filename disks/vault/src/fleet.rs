//! Fleets: vaults that share a key, so that what one seals for its fleet each of them opens (SPEC 11.19).
//!
//! ```text
//!  operator's key file --HPKE, to the vault's transport key--> grant, signed by the verifier --> record `fleet`
//! ```
//! The operator makes the key and keeps it; the verifier signs who gets it and never has it; who manages a host only
//! carries the grant. A fleet's id is of its key, so a grant cannot pass another key for it. Trusts each host of the
//! fleet: any of them opens all that is sealed for it, and says who sealed it.

use coffer_formats::{Digest, InstanceId, cbor};
use hkdf::Hkdf;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::{Deserializable as _, HpkeError, Kem, OpModeR, OpModeS, Serializable as _};
use minicbor::{Decode, Encode};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::VaultError;
use crate::identity::Owner;
use crate::keys::{KEY, Key, Transport, random};
use crate::permit::Leave;
use crate::vault::{Vault, panicked};

const FLEET_ID: &[u8] = b"coffer/fleet-id/v1\0";
const INFO: &[u8] = b"coffer/fleet-key/v1\0";
const SEALED: &[u8] = b"coffer/fleet-sealed/v1\0";
const RECORD: &str = "fleet";
const VERSION: u8 = 1;
/// Most bytes of the record.
const RECORD_MAX: usize = 128;
const MAGIC: &[u8; 12] = b"COFFERFK\x01\0\0\0";
/// Bytes of a fleet's key file.
pub const FLEET_KEY_FILE: usize = MAGIC.len() + 16 + KEY;

/// The key of a fleet, wiped. No `Debug`.
pub struct FleetKey(Box<Key>);

/// A fleet's key on its way to one vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedFleetKey {
    /// HPKE encapsulated key.
    pub encapsulated: [u8; 65],
    /// The key and a tag.
    pub sealed: [u8; KEY + 16],
}

/// What a verifier signs for a host that is to join a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Grant {
    #[n(0)]
    pub version: u8,
    #[n(1)]
    pub fleet: InstanceId,
    /// The vault, by its id.
    #[n(2)]
    pub vault: InstanceId,
    /// Its transport key.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub recipient: [u8; 65],
    #[cbor(n(4), with = "minicbor::bytes")]
    pub encapsulated: [u8; 65],
    #[cbor(n(5), with = "minicbor::bytes")]
    pub sealed: [u8; KEY + 16],
    /// Its name in the verifier's log.
    #[n(6)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds; by the host's clock.
    #[n(7)]
    pub expiry: u64,
}

impl Leave for Grant {
    const LABEL: &'static [u8] = b"coffer/fleet-grant/v1\0";

    fn version(&self) -> u8 {
        self.version
    }

    fn expiry(&self) -> u64 {
        self.expiry
    }
}

/// The fleet of a vault.
#[derive(Encode, Decode)]
#[cbor(map)]
struct FleetRecord {
    #[n(0)]
    version: u8,
    #[n(1)]
    fleet: InstanceId,
    #[cbor(n(2), with = "minicbor::bytes")]
    key: [u8; KEY],
}

impl Drop for FleetRecord {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl FleetKey {
    /// A fresh one.
    pub fn draw() -> Result<Self, VaultError> {
        Ok(Self(Box::new(random()?)))
    }

    /// Names the fleet, and fixes its key.
    pub fn id(&self) -> InstanceId {
        let Digest(digest) = Digest::of(&[FLEET_ID, &**self.0]);
        InstanceId(*digest.first_chunk().expect("a digest has 32 bytes"))
    }

    /// The operator's key file.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut file = Zeroizing::new(Vec::with_capacity(FLEET_KEY_FILE));
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&self.id().0);
        file.extend_from_slice(&**self.0);
        file
    }

    /// Exactly what [`FleetKey::encode`] writes.
    pub fn decode(file: &[u8]) -> Option<Self> {
        let key = Self::of(file.last_chunk()?);
        (*key.encode() == *file).then_some(key)
    }

    /// For the vault of this id and transport key alone.
    pub fn wrap(
        &self,
        vault: &InstanceId,
        transport: &[u8; 65],
    ) -> Result<WrappedFleetKey, VaultError> {
        let sealed = || -> Result<_, HpkeError> {
            let recipient = <Transport as Kem>::PublicKey::from_bytes(transport)?;
            let aad = aad(&self.id(), vault);
            hpke::single_shot_seal::<AesGcm256, HkdfSha256, Transport>(
                &OpModeS::Base,
                &recipient,
                INFO,
                &**self.0,
                &aad,
            )
        };
        let (encapsulated, sealed) = sealed().map_err(|_| VaultError::BadTransportKey)?;
        let sealed = sealed.try_into().map_err(|_| VaultError::BadTransportKey)?;
        Ok(WrappedFleetKey { encapsulated: encapsulated.to_bytes().into(), sealed })
    }

    /// The key of one piece of data that is sealed for the fleet: `salt` is drawn for it alone.
    pub(crate) fn sealed(&self, target: &Owner, salt: &[u8; 32]) -> Key {
        let mut key = Zeroizing::new([0; KEY]);
        Hkdf::<Sha256>::new(Some(salt), &**self.0)
            .expand_multi_info(&[SEALED, &target.canonical()], &mut *key)
            .expect("HKDF gives 32 bytes");
        key
    }

    fn of(bytes: &[u8; KEY]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; KEY]));
        key.copy_from_slice(bytes);
        Self(key)
    }
}

impl Vault {
    /// Joins the fleet that the verifier's grant names, for good. Asked again, nothing more is done.
    pub fn join(&self, grant: &[u8]) -> Result<(), VaultError> {
        let _one = self.0.changing.lock().map_err(|_| panicked())?;
        let grant: Grant = self.permitted(grant)?;
        if grant.vault.0 != self.id() || grant.recipient != self.transport_key() {
            return Err(VaultError::BadPermit("is for another vault"));
        }
        match self.fleet()? {
            Some(key) if key.id() == grant.fleet => return Ok(()),
            Some(_) => return Err(VaultError::OtherFleet),
            None => {}
        }
        let key = self.unwrap_key(&grant)?;
        let record = FleetRecord { version: VERSION, fleet: grant.fleet, key: **key.0 };
        self.0.records.put(RECORD, &Zeroizing::new(cbor::encode(&record)))
    }

    /// The key of the vault's fleet, if it is in one.
    pub(crate) fn fleet(&self) -> Result<Option<FleetKey>, VaultError> {
        let Some(bytes) = self.0.records.get(RECORD)? else { return Ok(None) };
        read_record(&bytes).map(Some).ok_or_else(|| VaultError::Record(RECORD.into()))
    }

    fn unwrap_key(&self, grant: &Grant) -> Result<FleetKey, VaultError> {
        let opened = || -> Result<_, HpkeError> {
            let (ours, _) = self.0.keys.transport();
            hpke::single_shot_open::<AesGcm256, HkdfSha256, Transport>(
                &OpModeR::Base,
                &ours,
                &<Transport as Kem>::EncappedKey::from_bytes(&grant.encapsulated)?,
                INFO,
                &grant.sealed,
                &aad(&grant.fleet, &grant.vault),
            )
        };
        let bytes = opened().map(Zeroizing::new).unwrap_or_default();
        let key = bytes.as_slice().try_into().ok().map(FleetKey::of);
        let key = key.filter(|key| key.id() == grant.fleet);
        key.ok_or(VaultError::BadPermit("holds no key of its fleet"))
    }
}

pub(crate) fn read_record(bytes: &[u8]) -> Option<FleetKey> {
    let record: FleetRecord = cbor::decode(bytes, RECORD_MAX).ok()?;
    let key = FleetKey::of(&record.key);
    (record.version == VERSION && record.fleet == key.id()).then_some(key)
}

fn aad(fleet: &InstanceId, vault: &InstanceId) -> [u8; 32] {
    let mut aad = [0; 32];
    aad.iter_mut().zip(fleet.0.iter().chain(&vault.0)).for_each(|(to, from)| *to = *from);
    aad
}
