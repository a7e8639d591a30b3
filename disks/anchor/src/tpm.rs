//! A TPM behind a link: its storage key, and sessions salted to that.
//!
//! The owner hierarchy has an empty auth value here; a host where it has another is refused by name. Nothing stays in the
//! TPM: what is loaded for an operation is flushed after it, failed or not. That is 1 object and 1 session for a
//! counter, 2 and 1 for a sealed key, of the 3 that each TPM has.

use std::thread::sleep;
use std::time::Duration;

use coffer_disk::Entropy;
use coffer_formats::tpm::command::{self, Hierarchy};
use coffer_formats::tpm::made::MadeKey;
use coffer_formats::tpm::wire::Writer;
use coffer_formats::tpm::{alg, response};
use coffer_formats::{Digest, ObjectName};

use crate::error::{TpmError, code};
use crate::link::Link;
use crate::session::{Kind, Session};

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt (TPMA_OBJECT, Part 2, 8.3).
const STORAGE_ATTRIBUTES: u32 = 0x0003_0472;

/// A TPM in use.
pub struct Tpm {
    link: Box<dyn Link>,
    entropy: Box<dyn Entropy + Send>,
    /// Name of the storage key it is to have.
    expected: Option<ObjectName>,
}

/// The storage key, loaded.
pub(crate) struct Storage {
    pub handle: u32,
    pub name: ObjectName,
    pub key: p256::PublicKey,
}

impl Tpm {
    /// Takes the way to it.
    pub fn new(link: Box<dyn Link>, entropy: Box<dyn Entropy + Send>) -> Self {
        Self { link, entropy, expected: None }
    }

    /// Holds it to the storage key it had before. A counter's secret is told to whoever has the storage key when the
    /// counter is made: with a name remembered from enrolment no impostor on the bus is told.
    #[must_use]
    pub fn expecting(mut self, name: ObjectName) -> Self {
        self.expected = Some(name);
        self
    }

    /// Name of the storage key: says which TPM this is, and whether its owner's seed is still the same; see
    /// [`Tpm::expecting`].
    pub fn storage_name(&mut self) -> Result<ObjectName, TpmError> {
        self.with_storage(|_, storage| Ok(storage.name))
    }

    /// Loads the storage key for as long as `work` takes.
    pub(crate) fn with_storage<T, E: From<TpmError>>(
        &mut self,
        work: impl FnOnce(&mut Self, &Storage) -> Result<T, E>,
    ) -> Result<T, E> {
        let template = storage_template();
        let command = command::create_primary(Hierarchy::Owner, &template);
        let answer = self.send("CreatePrimary", &command).map_err(|error| match error.kind() {
            Some(code::AUTH_FAIL | code::BAD_AUTH) => TpmError::OwnerAuth,
            _ => error,
        })?;
        let (handle, public) =
            response::create_primary(&answer).map_err(|_| TpmError::Malformed)?;
        let done = storage(&template, handle, public)
            .and_then(|storage| match self.expected {
                Some(expected) if expected != storage.name => Err(TpmError::Other),
                _ => Ok(storage),
            })
            .map_err(E::from)
            .and_then(|storage| work(self, &storage));
        self.flush(handle);
        done
    }

    /// Starts a session for as long as `work` takes.
    pub(crate) fn with_session<T, E: From<TpmError>>(
        &mut self,
        kind: Kind,
        storage: &Storage,
        work: impl FnOnce(&mut Self, &mut Session) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut session = Session::start(self, kind, storage)?;
        let done = work(self, &mut session);
        self.flush(session.handle());
        done
    }

    /// Gives back what a handle holds, if anything: a policy session ends with its use.
    pub(crate) fn flush(&mut self, handle: u32) {
        let _ = self.send("FlushContext", &command::flush_context(handle));
    }

    /// Sends a command until the TPM takes it, and gives its answer if that says success. What a TPM puts off it has not
    /// begun, so the same bytes go again.
    pub(crate) fn send(
        &mut self,
        doing: &'static str,
        command: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let mut waits = WAITS.iter();
        loop {
            let answer = self.link.exchange(command).map_err(TpmError::Gone)?;
            let failed = match response::header(&answer).map(drop) {
                Ok(()) => return Ok(answer),
                Err(response::TpmError::Malformed) => return Err(TpmError::Malformed),
                Err(response::TpmError::Code(code)) => code,
            };
            match (failed, waits.next()) {
                (code::NV_RATE | code::RETRY | code::TESTING | code::YIELDED, Some(wait)) => {
                    sleep(*wait);
                }
                _ => return Err(TpmError::answered(doing, failed)),
            }
        }
    }

    /// Fresh random bytes.
    pub(crate) fn draw(&mut self, bytes: &mut [u8]) -> Result<(), TpmError> {
        self.entropy.fill(bytes).map_err(|_| TpmError::NoEntropy)
    }
}

/// Holds the answer to the template: attributes and all are what was asked for, and the point is one of the curve.
fn storage(template: &[u8], handle: u32, public: Vec<u8>) -> Result<Storage, TpmError> {
    let made = MadeKey::new(template, public).map_err(|_| TpmError::BadStorageKey)?;
    let key = p256::PublicKey::from_sec1_bytes(made.point());
    let key = key.map_err(|_| TpmError::BadStorageKey)?;
    Ok(Storage { handle, name: made.object_name(), key })
}

/// The storage key (SPEC 10): as the TCG's ECC storage root key, under a label of ours. Deterministic: the same on one
/// TPM until its owner's seed changes (TPM2_Clear).
fn storage_template() -> Vec<u8> {
    Writer::new()
        .u16(alg::ECC)
        .u16(alg::SHA256)
        .u32(STORAGE_ATTRIBUTES)
        .tpm2b(&[])
        .u16(alg::AES)
        .u16(128)
        .u16(alg::CFB)
        .u16(alg::NULL)
        .u16(CURVE_P256)
        .u16(alg::NULL)
        .tpm2b(Digest::of(&[LABEL]).as_bytes())
        .tpm2b(&[0; 32])
        .finish()
}

const LABEL: &[u8] = b"coffer/disk-storage/v1\0";
/// TPM_ECC_NIST_P256.
const CURVE_P256: u16 = 0x0003;
/// How long a TPM that puts a command off is waited for: 3 s in all, of which a chip that limits its NV writes to
/// a few a second needs the first half.
const WAITS: [Duration; 6] = {
    let ms = Duration::from_millis;
    [ms(50), ms(100), ms(200), ms(400), ms(800), ms(1600)]
};
