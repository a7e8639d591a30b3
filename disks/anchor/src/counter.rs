//! A counter of the host's TPM as the anchor of one disk (SPEC 11.12).
//!
//! An NV index of type counter, with an auth value that whoever holds the disk's key has, and nobody else: by that alone
//! it is read and incremented. All other ways (owner, platform, policy) are closed by its attributes, and those are in its
//! *name*, which every command here carries under its HMAC. The auth value is in the HMAC's key, of the answers too, so
//! a value read is that of an index made with this auth value, in this TPM, now.
//!
//! What somebody with owner auth can do is remove the index, and make it again. A counter begins, at its first increment,
//! one above the highest value that any counter of the TPM ever had (Part 1, NV Counters), removed ones included, so it is
//! never behind. Made again:
//! - as something else: [`CounterError::Foreign`];
//! - and not moved: [`CounterError::NotWritten`];
//! - with another auth value: [`CounterError::Redefined`] (the name does not hold the auth value, the HMAC does);
//! - with the same, by one who has the disk's key: it is ahead of the disk, which is then `stale`.
//!
//! So owner auth gains a refusal. (One ahead is where the one commit in flight would have moved it, and that then
//! counts: the same as a power cut after step 5 of SPEC 11.8.)

use coffer_disk::{Anchor, AnchorError, Entropy};
use coffer_formats::ObjectName;
use coffer_formats::tpm::command::{self, Hierarchy};
use coffer_formats::tpm::wire::{Reader, Writer};
use coffer_formats::tpm::{alg, response};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{CounterError, TpmError, code};
use crate::sealed::PlainKey;
use crate::session::{CONTINUE, Call, DECRYPT, Kind, Session};
use crate::tpm::Tpm;

/// Which counter: an NV index of the range this crate uses, 0x0180c000 to 0x0180c0ff, among those the TCG leaves to owners
/// (0x01800000 to 0x01bfffff, Registry of Reserved TPM 2.0 Handles).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CounterIndex(u8);

impl CounterIndex {
    /// The index with this number in the range.
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The NV index.
    pub const fn handle(self) -> u32 {
        FIRST + self.0 as u32
    }
}

/// What moves one counter: 32 secret bytes, wiped, never on the bus in clear.
pub struct CounterAuth(Box<Zeroizing<[u8; 32]>>);

impl CounterAuth {
    /// Takes 32 bytes nobody can guess; the caller's copy is wiped.
    pub fn new(bytes: &mut [u8; 32]) -> Self {
        let mut auth = Box::new(Zeroizing::new([0; 32]));
        auth.copy_from_slice(bytes);
        bytes.zeroize();
        Self(auth)
    }

    /// That of the disk with this key: who can open the disk can move its counter, and nobody else.
    pub fn of(key: &PlainKey, index: CounterIndex) -> Self {
        let index = index.handle().to_be_bytes();
        let mut auth = crate::kdf::kdfa(&[key.bytes()], b"coffer/disk-counter/v1", &index, &[]);
        Self::new(&mut auth)
    }

    /// Fresh.
    pub fn draw(entropy: &mut dyn Entropy) -> Result<Self, TpmError> {
        let mut bytes = [0; 32];
        entropy.fill(&mut bytes).map_err(|_| TpmError::NoEntropy)?;
        Ok(Self::new(&mut bytes))
    }

    /// Zeros at its end, which a TPM drops, make no difference: with a session's key before it this is 64 bytes, and up
    /// to there HMAC fills its key with zeros (RFC 2104).
    fn value(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// A counter of the host's TPM, held for one disk.
pub struct NvAnchor {
    tpm: Tpm,
    index: CounterIndex,
    auth: CounterAuth,
    session: Option<Session>,
    /// The highest value read or made.
    seen: u64,
}

impl NvAnchor {
    /// Makes the counter, and moves it once, so that it has a value. The auth value travels encrypted to the storage key
    /// the TPM shows (see [`Tpm::storage_name`]).
    pub fn define(tpm: Tpm, index: CounterIndex, auth: CounterAuth) -> Result<Self, CounterError> {
        let mut anchor = Self { tpm, index, auth, session: None, seen: 0 };
        let owner = (Hierarchy::Owner as u32).to_be_bytes();
        let secret = Zeroizing::new(anchor.auth.value().to_vec());
        let public = public(index, ATTRIBUTES);
        anchor
            .call(Call {
                doing: "NV_DefineSpace",
                code: 0x012a,
                handles: &[(Hierarchy::Owner as u32, &owner)],
                auth: &[],
                secret: Some(secret),
                parameters: Writer::new().tpm2b(&public).finish(),
                attributes: CONTINUE | DECRYPT,
                makes_handle: false,
            })
            .map_err(|error| match error.kind() {
                Some(code::NV_DEFINED) => CounterError::Taken { index: index.handle() },
                Some(code::NV_SPACE) => CounterError::Full,
                _ => error.into(),
            })?;
        anchor.increment(ATTRIBUTES)?;
        anchor.value()?;
        Ok(anchor)
    }

    /// The counter in a session that was started before.
    #[cfg(fuzzing)]
    pub(crate) fn within(
        tpm: Tpm,
        index: CounterIndex,
        auth: CounterAuth,
        session: Session,
    ) -> Self {
        Self { tpm, index, auth, session: Some(session), seen: 0 }
    }

    /// Takes the counter that is there, if it is this disk's.
    pub fn open(tpm: Tpm, index: CounterIndex, auth: CounterAuth) -> Result<Self, CounterError> {
        let mut anchor = Self { tpm, index, auth, session: None, seen: 0 };
        match anchor.attributes()? {
            attributes if attributes == ATTRIBUTES | WRITTEN => {}
            ATTRIBUTES => return Err(CounterError::NotWritten { index: index.handle() }),
            _ => return Err(CounterError::Foreign { index: index.handle() }),
        }
        anchor.value()?;
        Ok(anchor)
    }

    /// Removes a counter of the range, whoever's it is; its disk opens no more.
    pub fn undefine(tpm: &mut Tpm, index: CounterIndex) -> Result<(), CounterError> {
        let command = command::nv_undefine(Hierarchy::Owner, index.handle());
        match tpm.send("NV_UndefineSpace", &command) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Some(code::HANDLE) => {
                Err(CounterError::Missing { index: index.handle() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The value.
    pub fn value(&mut self) -> Result<u64, CounterError> {
        let name = name(self.index, ATTRIBUTES | WRITTEN);
        let index = self.index.handle();
        let (auth, handles) =
            (Zeroizing::new(self.auth.value().to_vec()), [(index, name.as_bytes()); 2]);
        let read = || Call {
            doing: "NV_Read",
            code: 0x014e,
            handles: &handles,
            auth: &auth,
            secret: None,
            parameters: Writer::new().u16(SIZE).u16(0).finish(),
            attributes: CONTINUE,
            makes_handle: false,
        };
        // Reading twice does no harm: a TPM that was started anew is asked again in a new session.
        let answer = match self.call(read()) {
            Err(TpmError::SessionLost) => self.call(read()),
            other => other,
        };
        let parameters = answer.map_err(|error| self.refused(error))?;
        let mut r = Reader::new(&parameters);
        let value = r.tpm2b(usize::from(SIZE)).map_err(TpmError::from)?;
        r.finish().map_err(TpmError::from)?;
        let value = u64::from_be_bytes(value.try_into().map_err(|_| TpmError::Malformed)?);
        if value < self.seen {
            return Err(CounterError::Behind { expected: self.seen, found: value });
        }
        self.seen = value;
        Ok(value)
    }

    /// Holds the counter to what somebody remembers of it.
    pub fn expect_at(&mut self, expected: u64) -> Result<(), CounterError> {
        match self.value()? {
            found if found > expected => Err(CounterError::Ahead { expected, found }),
            found if found < expected => Err(CounterError::Behind { expected, found }),
            _ => Ok(()),
        }
    }

    fn increment(&mut self, attributes: u32) -> Result<(), CounterError> {
        let (index, name) = (self.index.handle(), name(self.index, attributes));
        let auth = Zeroizing::new(self.auth.value().to_vec());
        let moved = self.call(Call {
            doing: "NV_Increment",
            code: 0x0134,
            handles: &[(index, name.as_bytes()); 2],
            auth: &auth,
            secret: None,
            parameters: Vec::new(),
            attributes: CONTINUE,
            makes_handle: false,
        });
        moved.map(drop).map_err(|error| self.refused(error))
    }

    /// What the refusal of a command on the index means. The TPM's word is not authenticated, so it is only worded
    /// after what is to be seen in public.
    fn refused(&mut self, error: TpmError) -> CounterError {
        let index = self.index.handle();
        match error.kind() {
            Some(code::HANDLE) => CounterError::Missing { index },
            Some(code::NV_UNINITIALIZED) => CounterError::NotWritten { index },
            Some(code::AUTH_FAIL | code::BAD_AUTH) => match self.attributes() {
                Ok(ATTRIBUTES) => CounterError::NotWritten { index },
                Ok(attributes) if attributes != ATTRIBUTES | WRITTEN => {
                    CounterError::Foreign { index }
                }
                Ok(_) => CounterError::Redefined { index },
                Err(error) => error,
            },
            _ => error.into(),
        }
    }

    /// What the index is, by its public area; other than in its attributes it has to be as ours are.
    fn attributes(&mut self) -> Result<u32, CounterError> {
        let index = self.index.handle();
        let command = command::plain(0x0169, Writer::new().u32(index));
        let answer =
            self.tpm.send("NV_ReadPublic", &command).map_err(|error| match error.kind() {
                Some(code::HANDLE) => CounterError::Missing { index },
                _ => error.into(),
            })?;
        let (attributes, name) = read_public(&answer, index)?;
        if name != Some(self::name(self.index, attributes)) {
            return Err(CounterError::Foreign { index });
        }
        Ok(attributes)
    }

    fn call(&mut self, call: Call<'_>) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                self.tpm.with_storage(|tpm, storage| Session::start(tpm, Kind::Hmac, storage))?
            }
        };
        match session.call(&mut self.tpm, call) {
            Ok(answer) => {
                self.session = Some(session);
                Ok(answer.parameters)
            }
            // Whether the TPM is still in step with it nobody authenticated says: the next command has a new one.
            Err(error) => {
                self.tpm.flush(session.handle());
                Err(error)
            }
        }
    }
}

impl Anchor for NvAnchor {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.value().map_err(failed)
    }

    /// An increment is never sent again in another session: a TPM that was started anew under it is read first.
    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let mut again = true;
        loop {
            match self.expect_at(from) {
                Ok(()) => {}
                Err(
                    CounterError::Ahead { expected, found }
                    | CounterError::Behind { expected, found },
                ) => return Err(AnchorError::Moved { expected, found }),
                Err(error) => return Err(failed(error)),
            }
            match self.increment(ATTRIBUTES | WRITTEN) {
                Ok(()) => {
                    self.seen = from.saturating_add(1);
                    return Ok(());
                }
                Err(CounterError::Tpm(TpmError::SessionLost)) if again => again = false,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for NvAnchor {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.tpm.flush(session.handle());
        }
    }
}

fn failed(error: CounterError) -> AnchorError {
    AnchorError::Failed(error.into())
}

/// TPMS_NV_PUBLIC of a counter of ours (Part 2, 13.5): no policy, eight bytes.
fn public(index: CounterIndex, attributes: u32) -> Vec<u8> {
    let w = Writer::new().u32(index.handle()).u16(alg::SHA256).u32(attributes);
    w.tpm2b(&[]).u16(SIZE).finish()
}

/// Its name: of a digest made of the public area (Part 1, 16).
fn name(index: CounterIndex, attributes: u32) -> ObjectName {
    ObjectName::of(&public(index, attributes))
}

/// TPM2_NV_ReadPublic: attributes and name. Of an index under another hash the name has another length: none.
fn read_public(answer: &[u8], index: u32) -> Result<(u32, Option<ObjectName>), TpmError> {
    let mut r = response::header(answer).map_err(|_| TpmError::Malformed)?;
    let mut public = Reader::new(r.tpm2b(PUBLIC_MAX)?);
    if public.u32()? != index {
        return Err(TpmError::Malformed);
    }
    let _name_alg = public.u16()?;
    let attributes = public.u32()?;
    let name = ObjectName::from_slice(r.tpm2b(PUBLIC_MAX)?);
    r.finish()?;
    Ok((attributes, name))
}

/// TPMA_NV (Part 2, 13.4): TPM_NT_COUNTER; written and read by its auth value; guessing that is hopeless, so a wrong one
/// does not count towards a lockout that would stop other users of the TPM. Not ORDERLY: an increment is in NV when it
/// is answered.
const ATTRIBUTES: u32 = AUTHWRITE | NT_COUNTER | AUTHREAD | NO_DA;
const AUTHWRITE: u32 = 1 << 2;
const NT_COUNTER: u32 = 1 << 4;
const AUTHREAD: u32 = 1 << 18;
const NO_DA: u32 = 1 << 25;
/// The TPM's to set, at the first increment.
const WRITTEN: u32 = 1 << 29;
/// First index of the range.
const FIRST: u32 = 0x0180_c000;
/// Bytes of a counter.
const SIZE: u16 = 8;
/// Most bytes of TPMS_NV_PUBLIC with the longest policy, and more than a name.
const PUBLIC_MAX: usize = 128;
