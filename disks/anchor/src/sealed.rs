//! Sealing and unsealing (SPEC 11.13): TPM2_Create and TPM2_Unseal under a policy over PCRs.
//!
//! On its way to the TPM and back the key is encrypted in a salted session, so who listens on the bus learns nothing. One
//! who can *speak* on the bus while the registers are right needs no session of ours: he loads the blob and asks for it
//! himself, as can anything that runs on the host by then. That is what sealing to registers means; what such a one
//! cannot do is give us another key: its disk would not open with it.

use coffer_disk::DiskKey;
use coffer_formats::evidence::PcrValue;
use coffer_formats::tpm::command;
use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::pcr::Selections;
use coffer_formats::tpm::wire::{Reader, Writer};
use coffer_formats::{Digest, ObjectName};
use zeroize::{Zeroize as _, Zeroizing};

use crate::blob::{SealedKey, is_sealed_to, template};
use crate::error::{SealError, TpmError, code};
use crate::registers::{POLICY_PCR, Registers};
use crate::session::{AUDIT, CONTINUE, Call, DECRYPT, ENCRYPT, Kind, Session};
use crate::tpm::{Storage, Tpm};

/// 32 secret bytes, in one place, wiped when dropped. No `Debug`, no `Clone`.
pub struct PlainKey(Box<Zeroizing<[u8; KEY]>>);

impl PlainKey {
    /// Takes 32 bytes nobody can guess; the caller's copy is wiped.
    pub fn new(bytes: &mut [u8; KEY]) -> Self {
        let mut key = Box::new(Zeroizing::new([0; KEY]));
        key.copy_from_slice(bytes);
        bytes.zeroize();
        Self(key)
    }

    /// The disk key it is.
    pub fn disk_key(&self) -> DiskKey {
        let mut copy = Zeroizing::new(**self.0);
        DiskKey::new(&mut copy)
    }

    /// A key of the caller's own, for what the label says.
    pub fn derive(&self, label: &[u8]) -> Zeroizing<[u8; KEY]> {
        crate::kdf::kdfa(&[self.bytes()], label, &[], &[])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl SealedKey {
    /// Seals to the values the registers have now.
    pub fn seal(tpm: &mut Tpm, key: &PlainKey, registers: &Registers) -> Result<Self, SealError> {
        tpm.with_storage(|tpm, storage| {
            tpm.with_session(Kind::Hmac, storage, |tpm, session| {
                let values = read(tpm, session, registers)?;
                create(tpm, session, storage, key, registers, &values)
            })
        })
    }

    /// Seals to values the registers are to have, after an update of what the host boots: all of them, ascending.
    pub fn seal_to(tpm: &mut Tpm, key: &PlainKey, values: &[PcrValue]) -> Result<Self, SealError> {
        let registers = Registers::of(&values.iter().map(|v| v.index).collect::<Vec<_>>())?;
        tpm.with_storage(|tpm, storage| {
            tpm.with_session(Kind::Hmac, storage, |tpm, session| {
                create(tpm, session, storage, key, &registers, values)
            })
        })
    }

    /// Asks the TPM for the key.
    pub fn unseal(&self, tpm: &mut Tpm) -> Result<PlainKey, SealError> {
        tpm.with_storage(|tpm, storage| {
            if storage.name != self.storage {
                return Err(SealError::OtherTpm);
            }
            let object = tpm.with_session(Kind::Hmac, storage, |tpm, session| {
                self.load(tpm, session, storage)
            })?;
            let key = tpm
                .with_session(Kind::Policy, storage, |tpm, session| self.ask(tpm, session, object));
            tpm.flush(object);
            key
        })
    }

    pub(crate) fn load(
        &self,
        tpm: &mut Tpm,
        session: &mut Session,
        storage: &Storage,
    ) -> Result<u32, SealError> {
        let loaded = session.call(
            tpm,
            Call {
                doing: "Load",
                code: 0x0157,
                handles: &[(storage.handle, storage.name.as_bytes())],
                auth: &[],
                secret: None,
                parameters: Writer::new().tpm2b(&self.private).tpm2b(&self.public).finish(),
                attributes: CONTINUE,
                makes_handle: true,
            },
        );
        let answer = loaded.map_err(|error| match error {
            // A parameter is refused, for its integrity or already for its form.
            TpmError::Code { code, .. } if code & PARAMETER == PARAMETER => SealError::Altered,
            error if error.kind() == Some(code::INTEGRITY) => SealError::Altered,
            error => error.into(),
        })?;
        Ok(answer.handle)
    }

    /// TPM2_PolicyPCR needs no HMAC: of another policy the TPM takes no unsealing.
    pub(crate) fn ask(
        &self,
        tpm: &mut Tpm,
        session: &mut Session,
        object: u32,
    ) -> Result<PlainKey, SealError> {
        let name = ObjectName::of(&self.public);
        let body =
            Writer::new().u32(session.handle()).tpm2b(&[]).bytes(&self.registers.selection());
        tpm.send("PolicyPCR", &command::plain(POLICY_PCR, body))?;
        let unsealed = session.call(
            tpm,
            Call {
                doing: "Unseal",
                code: 0x015e,
                handles: &[(object, name.as_bytes())],
                auth: &[],
                secret: None,
                parameters: Vec::new(),
                attributes: ENCRYPT,
                makes_handle: false,
            },
        );
        let answer = unsealed.map_err(|error| match error.kind() {
            Some(code::POLICY_FAIL | code::PCR_CHANGED) => SealError::PcrsMoved,
            _ => error.into(),
        })?;
        let mut r = Reader::new(&answer.parameters);
        let bytes = r.tpm2b(KEY).map_err(TpmError::from)?;
        r.finish().map_err(TpmError::from)?;
        let mut key = Zeroizing::new([0; KEY]);
        if bytes.len() != KEY {
            // Sealed by somebody else, who has our TPM.
            return Err(SealError::Altered);
        }
        key.copy_from_slice(bytes);
        Ok(PlainKey::new(&mut key))
    }
}

/// TPM2_Create.
pub(crate) fn create(
    tpm: &mut Tpm,
    session: &mut Session,
    storage: &Storage,
    key: &PlainKey,
    registers: &Registers,
    values: &[PcrValue],
) -> Result<SealedKey, SealError> {
    let policy = registers.policy(values)?;
    // TPMS_SENSITIVE_CREATE: no auth value, and the key. Made in one piece, so that no copy of it stays behind.
    let mut sensitive = Zeroizing::new(vec![0; 4 + KEY]);
    let parts = [0, 0, 0, 32].iter().chain(key.bytes());
    sensitive.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    let public = template(&policy).tpm2b(&[]).finish();
    let answer = session.call(
        tpm,
        Call {
            doing: "Create",
            code: 0x0153,
            handles: &[(storage.handle, storage.name.as_bytes())],
            auth: &[],
            secret: Some(sensitive),
            // outsideInfo empty, no creation PCRs.
            parameters: Writer::new().tpm2b(&public).tpm2b(&[]).u32(0).finish(),
            attributes: CONTINUE | DECRYPT,
            makes_handle: false,
        },
    )?;
    let mut r = Reader::new(&answer.parameters);
    let private = r.tpm2b(PART_MAX).map_err(TpmError::from)?.to_vec();
    let public = r.tpm2b(PART_MAX).map_err(TpmError::from)?.to_vec();
    if !is_sealed_to(&public, &policy) {
        return Err(TpmError::Malformed.into());
    }
    Ok(SealedKey { registers: registers.clone(), storage: storage.name, policy, private, public })
}

/// TPM2_PCR_Read in portions, under the session's HMAC: a bus that lies here would have the key sealed to a host of its
/// choice.
pub(crate) fn read(
    tpm: &mut Tpm,
    session: &mut Session,
    registers: &Registers,
) -> Result<Vec<PcrValue>, SealError> {
    let (mut values, mut counter) = (Vec::new(), None);
    for portion in registers.numbers().chunks(PCRS_AT_ONCE) {
        let asked = Selections::of(&[(HashAlg::Sha256, portion)]);
        let answer = session.call(
            tpm,
            Call {
                doing: "PCR_Read",
                code: 0x017e,
                handles: &[],
                auth: &[],
                secret: None,
                parameters: asked.write(Writer::new()).finish(),
                attributes: CONTINUE | AUDIT,
                makes_handle: false,
            },
        )?;
        let (at, answered) = read_portion(&answer.parameters, &asked, portion)?;
        if counter.is_some_and(|counter| counter != at) {
            return Err(SealError::PcrsUnstable);
        }
        counter = Some(at);
        values.extend(answered);
    }
    Ok(values)
}

/// pcrUpdateCounter, and the registers asked for, all of them.
fn read_portion(
    parameters: &[u8],
    asked: &Selections,
    portion: &[u8],
) -> Result<(u32, Vec<PcrValue>), SealError> {
    let malformed = |_| TpmError::Malformed;
    let mut r = Reader::new(parameters);
    let counter = r.u32().map_err(malformed)?;
    let answered = Selections::read(&mut r).map_err(malformed)?;
    let count = r.u32().map_err(malformed)?;
    if answered != *asked || usize::try_from(count) != Ok(portion.len()) {
        return Err(SealError::NoBank);
    }
    let mut values = Vec::new();
    for index in portion {
        let digest = Digest::from_slice(r.tpm2b(Digest::LEN).map_err(malformed)?);
        values.push(PcrValue { index: *index, digest: digest.ok_or(TpmError::Malformed)? });
    }
    r.finish().map_err(malformed)?;
    Ok((counter, values))
}

/// Bytes of a key.
const KEY: usize = 32;
/// Registers a TPM answers at once.
const PCRS_AT_ONCE: usize = 8;
/// Most bytes of what TPM2_Create answers in one part.
const PART_MAX: usize = 1024;
/// Format one, and about a parameter (Part 2, 6.6.2).
const PARAMETER: u32 = 0xc0;
