//! From the vault's key to the keys of all that it keeps (SPEC 11.14.2).
//!
//! ```text
//! sealed key --KDFa--+-> root key --HKDF--> keys of volumes, of sealed data, of transport
//!                    '-> key-file key: MAC of the key files
//! ```

use coffer_anchor::{CounterAuth, CounterIndex, PlainKey};
use coffer_disk::DiskKey;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hpke::kem::DhP256HkdfSha256;
use hpke::{Kem, Serializable as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::identity::Owner;

/// Bytes of a key.
pub(crate) const KEY: usize = 32;
/// 32 secret bytes, wiped.
pub(crate) type Key = Zeroizing<[u8; KEY]>;
/// How backups are encrypted to a vault: DHKEM(P-256, HKDF-SHA256).
pub(crate) type Transport = DhP256HkdfSha256;

const ROOT: &[u8] = b"coffer/vault-root/v1";
const FILE: &[u8] = b"coffer/vault-file/v1";
const VOLUME: &[u8] = b"coffer/vault-volume/v1\0";
const SEALED: &[u8] = b"coffer/vault-sealed/v1\0";
const TRANSPORT: &[u8] = b"coffer/vault-transport/v1\0";

/// The vault's key and all that follow from it. No `Debug`.
pub(crate) struct Keys {
    plain: PlainKey,
    root: Box<Key>,
}

impl Keys {
    pub(crate) fn of(plain: PlainKey) -> Self {
        let root = Box::new(plain.derive(ROOT));
        Self { plain, root }
    }

    /// Takes 32 bytes nobody can guess, and wipes them.
    pub(crate) fn new(bytes: &mut [u8; KEY]) -> Self {
        Self::of(PlainKey::new(bytes))
    }

    /// What is sealed to the TPM.
    pub(crate) fn plain(&self) -> &PlainKey {
        &self.plain
    }

    /// The vault's own disk's.
    pub(crate) fn disk(&self) -> DiskKey {
        self.plain.disk_key()
    }

    /// The vault's counter's.
    pub(crate) fn counter(&self, index: CounterIndex) -> CounterAuth {
        CounterAuth::of(&self.plain, index)
    }

    /// What authenticates a key file.
    pub(crate) fn file_mac(&self) -> Hmac<Sha256> {
        let key = self.plain.derive(FILE);
        Hmac::new_from_slice(&*key).expect("HMAC takes a key of any length")
    }

    /// The disk key of a volume. Of another owner, or another volume, another key: a record that lies opens nothing.
    pub(crate) fn volume(&self, id: &[u8; 16], generation: u32, owner: &Owner) -> Key {
        self.derive(None, &[VOLUME, id, &generation.to_le_bytes(), &owner.canonical()])
    }

    /// The key of one piece of sealed data: `salt` is drawn for it alone.
    pub(crate) fn sealed(&self, target: &Owner, salt: &[u8; 32]) -> Key {
        self.derive(Some(salt), &[SEALED, &target.canonical()])
    }

    /// What backups for this vault are encrypted to, and those of this vault authenticated by.
    pub(crate) fn transport(
        &self,
    ) -> (<Transport as Kem>::PrivateKey, <Transport as Kem>::PublicKey) {
        Transport::derive_keypair(&*self.derive(None, &[TRANSPORT]))
    }

    /// Its public half, an uncompressed point.
    pub(crate) fn transport_point(&self) -> [u8; 65] {
        self.transport().1.to_bytes().into()
    }

    fn derive(&self, salt: Option<&[u8]>, info: &[&[u8]]) -> Key {
        let mut key = Zeroizing::new([0; KEY]);
        Hkdf::<Sha256>::new(salt, &**self.root)
            .expand_multi_info(info, &mut *key)
            .expect("HKDF gives 32 bytes");
        key
    }
}

/// Whether a file's MAC is this one, in constant time.
pub(crate) fn mac_is(mac: Hmac<Sha256>, bytes: &[u8], tag: &[u8]) -> bool {
    mac.chain_update(bytes).verify_slice(tag).is_ok()
}

/// Random bytes of the system's.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, VaultError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|_| coffer_disk::DiskError::NoEntropy)?;
    Ok(bytes)
}
