//! Doors for fuzz targets, which only cargo-fuzz's builds have: what the host does within sessions with its TPM (SPEC
//! 11.12, 11.13). Beginning one takes the time of a thousand answers, so here they have begun, under a key that is known.
//!
//! It trusts the targets with that key; what an answer has to be is judged where it always is.

use std::sync::LazyLock;

use coffer_formats::ObjectName;

use crate::blob::SealedKey;
use crate::counter::{CounterAuth, CounterIndex, NvAnchor};
use crate::error::SealError;
use crate::registers::Registers;
use crate::sealed::{PlainKey, create, read};
use crate::session::Session;
use crate::tpm::{Storage, Tpm};

/// A session that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// Its handle.
    pub handle: u32,
    /// Its key.
    pub key: [u8; 32],
    /// The TPM's nonce.
    pub nonce: [u8; 32],
}

impl Begun {
    fn session(self) -> Session {
        Session::dangerously_known(self.handle, self.key, self.nonce)
    }
}

/// The counter of a disk with this key.
pub fn counter(tpm: Tpm, key: &PlainKey, index: CounterIndex, session: Begun) -> NvAnchor {
    NvAnchor::within(tpm, index, CounterAuth::of(key, index), session.session())
}

/// As [`SealedKey::seal`], under a storage key with this handle and name.
pub fn seal(
    tpm: &mut Tpm,
    key: &PlainKey,
    registers: &Registers,
    parent: (u32, ObjectName),
    session: Begun,
) -> Result<SealedKey, SealError> {
    let (mut session, storage) = (session.session(), storage(parent));
    let values = read(tpm, &mut session, registers)?;
    create(tpm, &mut session, &storage, key, registers, &values)
}

/// As [`SealedKey::unseal`], in a session to load it and one under a policy.
pub fn unseal(
    blob: &SealedKey,
    tpm: &mut Tpm,
    parent: (u32, ObjectName),
    loading: Begun,
    policy: Begun,
) -> Result<PlainKey, SealError> {
    let object = blob.load(tpm, &mut loading.session(), &storage(parent))?;
    blob.ask(tpm, &mut policy.session(), object)
}

/// No salt is encrypted to it here: any point does.
fn storage((handle, name): (u32, ObjectName)) -> Storage {
    static KEY: LazyLock<p256::PublicKey> =
        LazyLock::new(|| p256::SecretKey::from_slice(&[1; 32]).expect("a scalar").public_key());
    Storage { handle, name, key: *KEY }
}
