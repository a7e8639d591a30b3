//! Sessions: what makes an answer the TPM's, though the bus is anybody's (TPM 2.0 Part 1, 19 and 21).
//!
//! A session is salted: its key comes from a secret that only the holder of the storage key can read. Each command and
//! each answer carries an HMAC under that key and the auth value of what is used, over both sides' fresh nonces, the
//! parameters, and, in a command, the *names* of all it touches: with another object or index under the same handle
//! the TPM refuses it. A first parameter may travel encrypted.
//!
//! An answer that says failure carries no HMAC: whoever holds the bus can make anything fail, and nothing else.

use coffer_formats::Digest;
use coffer_formats::tpm::wire::{Reader, Writer};
use coffer_formats::tpm::{alg, command, response};
use hmac::Mac as _;
use zeroize::Zeroizing;

use crate::error::TpmError;
use crate::kdf::{self, Key, Way};
use crate::tpm::{Storage, Tpm};

/// What a session can do (TPM_SE).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Proves an auth value.
    Hmac = 0x00,
    /// Fulfils a policy.
    Policy = 0x01,
}

/// A session in the TPM.
pub(crate) struct Session {
    handle: u32,
    key: Key,
    /// nonceTPM, as of the last answer.
    nonce: Nonce,
}

type Nonce = [u8; 32];

/// A command under a session.
pub(crate) struct Call<'a> {
    pub doing: &'static str,
    pub code: u32,
    /// Handles and their names; the session authorises the first one that needs it.
    pub handles: &'a [(u32, &'a [u8])],
    /// Auth value of that one; empty if there is none.
    pub auth: &'a [u8],
    /// Contents of a TPM2B in front of the parameters, to be encrypted.
    pub secret: Option<Zeroizing<Vec<u8>>>,
    pub parameters: Vec<u8>,
    pub attributes: u8,
    /// The answer begins with a handle.
    pub makes_handle: bool,
}

/// What it answered.
pub(crate) struct Answer {
    /// Zero where none was expected.
    pub handle: u32,
    /// In clear.
    pub parameters: Zeroizing<Vec<u8>>,
}

impl Session {
    /// TPM2_StartAuthSession, salted and not bound.
    pub(crate) fn start(tpm: &mut Tpm, kind: Kind, storage: &Storage) -> Result<Self, TpmError> {
        let mut caller = [0; 32];
        tpm.draw(&mut caller)?;
        let (salt, encrypted) = salt(tpm, storage)?;
        let body = Writer::new()
            .u32(storage.handle)
            .u32(RH_NULL)
            .tpm2b(&caller)
            .tpm2b(&encrypted)
            .u8(kind as u8)
            .u16(alg::AES)
            .u16(128)
            .u16(alg::CFB)
            .u16(alg::SHA256);
        let answer = tpm.send("StartAuthSession", &command::plain(0x0176, body))?;
        let mut r = response::header(&answer).map_err(|_| TpmError::Malformed)?;
        let handle = r.u32()?;
        let nonce = nonce(&mut r)?;
        r.finish()?;
        let key = kdf::kdfa(&[&*salt], b"ATH", &nonce, &caller);
        Ok(Self { handle, key, nonce })
    }

    /// One that was started before, under a key that is known.
    #[cfg(fuzzing)]
    pub(crate) fn dangerously_known(handle: u32, key: [u8; 32], nonce: [u8; 32]) -> Self {
        Self { handle, key: Key::new(key), nonce }
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// Sends a command, and takes its answer only if the TPM made it for this command.
    pub(crate) fn call(&mut self, tpm: &mut Tpm, call: Call<'_>) -> Result<Answer, TpmError> {
        let mut caller = [0; 32];
        tpm.draw(&mut caller)?;
        let code = call.code.to_be_bytes();
        let key: [&[u8]; 2] = [&*self.key, call.auth];

        // 1. The command: its HMAC is over the parameters as they travel.
        let mut parameters = Writer::new();
        if let Some(mut secret) = call.secret {
            kdf::cfb(Way::ToTpm, &key, &caller, &self.nonce, &mut secret);
            parameters = parameters.tpm2b(&secret);
        }
        let parameters = parameters.bytes(&call.parameters).finish();
        let names = call.handles.iter().map(|(_, name)| *name);
        let covered: Vec<&[u8]> =
            [code.as_slice()].into_iter().chain(names).chain([parameters.as_slice()]).collect();
        let digest = Digest::of(&covered);
        let attributes = [call.attributes];
        let mac = kdf::hmac(&key, &[digest.as_bytes(), &caller, &self.nonce, &attributes]);
        let area = Writer::new()
            .u32(self.handle)
            .tpm2b(&caller)
            .u8(call.attributes)
            .tpm2b(&mac.finalize().into_bytes())
            .finish();
        let body = call
            .handles
            .iter()
            .fold(Writer::new(), |w, (handle, _)| w.u32(*handle))
            .u32(u32::try_from(area.len()).unwrap_or(u32::MAX))
            .bytes(&area)
            .bytes(&parameters)
            .finish();
        let answer =
            tpm.send(call.doing, &command::frame(command::ST_SESSIONS, call.code, &body))?;

        // 2. The answer.
        if answer.first_chunk() != Some(&command::ST_SESSIONS.to_be_bytes()) {
            return Err(TpmError::Forged);
        }
        let mut r = response::header(&answer).map_err(|_| TpmError::Malformed)?;
        let handle = if call.makes_handle { r.u32()? } else { 0 };
        let size = usize::try_from(r.u32()?).map_err(|_| TpmError::Malformed)?;
        let mut parameters = Zeroizing::new(r.bytes(size)?.to_vec());
        let newer = nonce(&mut r)?;
        let attributes = [r.u8()?];
        let mac = r.tpm2b(MAC)?;
        r.finish()?;
        let digest = Digest::of(&[&[0; 4], &code, &parameters]);
        kdf::hmac(&key, &[digest.as_bytes(), &newer, &caller, &attributes])
            .verify_slice(mac)
            .map_err(|_| TpmError::Forged)?;
        if call.attributes & ENCRYPT != 0 {
            let secret = parameters.get_mut(2..).ok_or(TpmError::Malformed)?;
            kdf::cfb(Way::FromTpm, &key, &newer, &caller, secret);
        }
        self.nonce = newer;
        Ok(Answer { handle, parameters })
    }
}

/// A salt and its encryption to the storage key: ECDH with a key made for this, and KDFe (Part 1, annex C.6).
fn salt(tpm: &mut Tpm, storage: &Storage) -> Result<(Key, Vec<u8>), TpmError> {
    let ephemeral = ephemeral(tpm)?;
    let z = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), storage.key.as_affine());
    let (own, theirs) = (ephemeral.public_key().to_sec1_bytes(), storage.key.to_sec1_bytes());
    let ((own_x, own_y), (their_x, _)) = (coordinates(&own)?, coordinates(&theirs)?);
    let salt = kdf::kdfe(z.raw_secret_bytes(), b"SECRET", own_x, their_x);
    Ok((salt, Writer::new().tpm2b(own_x).tpm2b(own_y).finish()))
}

/// Of 2^32 draws one is no scalar.
fn ephemeral(tpm: &mut Tpm) -> Result<p256::SecretKey, TpmError> {
    let mut bytes = Zeroizing::new([0; 32]);
    for _ in 0..4 {
        tpm.draw(&mut *bytes)?;
        if let Ok(key) = p256::SecretKey::from_slice(&*bytes) {
            return Ok(key);
        }
    }
    Err(TpmError::NoEntropy)
}

/// x and y of an uncompressed SEC 1 point.
fn coordinates(point: &[u8]) -> Result<(&[u8], &[u8]), TpmError> {
    match point.split_first() {
        Some((4, xy)) => xy.split_at_checked(xy.len() / 2).ok_or(TpmError::BadStorageKey),
        _ => Err(TpmError::BadStorageKey),
    }
}

/// As long as the caller's.
fn nonce(r: &mut Reader<'_>) -> Result<Nonce, TpmError> {
    r.tpm2b(MAC)?.try_into().map_err(|_| TpmError::Malformed)
}

/// TPMA_SESSION: the session goes on.
pub(crate) const CONTINUE: u8 = 1 << 0;
/// The first parameter of the command is encrypted.
pub(crate) const DECRYPT: u8 = 1 << 5;
/// The first parameter of the answer is encrypted.
pub(crate) const ENCRYPT: u8 = 1 << 6;
/// The session is there for its HMAC alone.
pub(crate) const AUDIT: u8 = 1 << 7;
/// TPM_RH_NULL.
const RH_NULL: u32 = 0x4000_0007;
/// Bytes of an HMAC and of a nonce.
const MAC: usize = 32;
