//! A TPM as far as the host's store needs one within its sessions (TPM 2.0 Parts 1 and 3): a counter, registers, and sealing; written
//! from the specification, not from the host's side. Whoever has the bus may send it anything.

use std::collections::BTreeMap;

use aes::Aes128;
use aes::cipher::KeyIvInit as _;
use cfb_mode::{Decryptor, Encryptor};
use coffer_anchor::fuzzing::Begun;

use crate::kdf::{hmac, kdfa, sha256};

/// The counter's NV index, its name and its auth value.
pub struct Counter {
    /// NV index.
    pub index: u32,
    /// What it needs.
    pub auth: [u8; 32],
    /// Where it is.
    pub value: u64,
}

/// A sealed object as the chip made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// TPM2B_PRIVATE's content.
    pub private: Vec<u8>,
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
}

struct Session {
    key: [u8; 32],
    nonce: [u8; 32],
    policy: [u8; 32],
    /// Changes of registers when the policy was made.
    at: Option<u32>,
}

/// The chip.
pub struct Chip {
    /// The one counter.
    pub counter: Counter,
    /// Handle and name of the storage key.
    pub parent: (u32, [u8; 34]),
    /// Registers of the SHA-256 bank.
    pub pcrs: [[u8; 32]; 24],
    /// How often one changed.
    pub changes: u32,
    /// What it sealed, and the secret in it.
    pub made: Vec<(Made, Vec<u8>)>,
    sessions: BTreeMap<u32, Session>,
    loaded: BTreeMap<u32, Made>,
    nonces: u8,
}

type Answer = Result<Vec<u8>, u32>;

const OBJECT: u32 = 0x8000_0001;
const SEED: &[u8] = b"what only the chip knows";
/// TPM_RC of what has no better name here.
const FAILURE: u32 = 0x101;
const AUTH_FAIL: u32 = 0x98e;
const INTEGRITY: u32 = 0x1df;
const POLICY_FAIL: u32 = 0x99d;
const PCR_CHANGED: u32 = 0x128;
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;

impl Chip {
    /// One with these sessions begun.
    pub fn new(counter: Counter, parent: (u32, [u8; 34]), sessions: &[Begun]) -> Self {
        let session = |begun: &Begun| {
            let Begun { handle, key, nonce } = *begun;
            (handle, Session { key, nonce, policy: [0; 32], at: None })
        };
        Self {
            counter,
            parent,
            pcrs: std::array::from_fn(|n| [n as u8; 32]),
            changes: 7,
            made: Vec::new(),
            sessions: sessions.iter().map(session).collect(),
            loaded: BTreeMap::new(),
            nonces: 0x80,
        }
    }

    /// TPM2_PCR_Extend.
    pub fn extend(&mut self, index: usize) {
        self.pcrs[index] = sha256(&[&self.pcrs[index], &[1; 32]]);
        self.changes += 1;
    }

    /// The policy that these registers are as they are.
    pub fn policy(&self, selection: &[u8], registers: &[usize]) -> [u8; 32] {
        let values: Vec<&[u8]> = registers.iter().map(|n| self.pcrs[*n].as_slice()).collect();
        sha256(&[&[0; 32], &[0, 0, 1, 0x7f], selection, &sha256(&values)])
    }

    /// One command, one answer.
    pub fn process(&mut self, command: &[u8]) -> Vec<u8> {
        match self.command(command) {
            Ok(answer) => answer,
            Err(code) => [&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat(),
        }
    }

    fn command(&mut self, command: &[u8]) -> Answer {
        let mut r = Bytes(command);
        let (tag, size, code) = (r.u16()?, r.u32()?, r.u32()?);
        if size as usize != command.len() {
            return Err(FAILURE);
        }
        match (tag, code) {
            (0x8001, 0x165) => {
                // A flushed session is gone; objects stay for the next try.
                self.sessions.remove(&r.u32()?);
                Ok(framed(0x8001, &[]))
            }
            (0x8001, 0x169) => self.read_public(r.u32()?),
            (0x8001, 0x17f) => self.policy_pcr(&mut r),
            (0x8002, 0x14e | 0x134) => self.authorised(code, 2, r),
            (0x8002, 0x153 | 0x157 | 0x15e) => self.authorised(code, 1, r),
            (0x8002, 0x17e) => self.authorised(code, 0, r),
            _ => Err(FAILURE),
        }
    }

    /// TPMS_NV_PUBLIC of the counter: SHA-256, its attributes, no policy, eight bytes.
    fn counter_public(&self) -> Vec<u8> {
        let attributes = 0x2204_0014_u32.to_be_bytes();
        let parts: [&[u8]; 4] =
            [&self.counter.index.to_be_bytes(), &[0, 0x0b], &attributes, &[0, 0, 0, 8]];
        parts.concat()
    }

    fn read_public(&self, index: u32) -> Answer {
        if index != self.counter.index {
            return Err(0x18b);
        }
        let public = self.counter_public();
        Ok(framed(0x8001, &[tpm2b(&public), tpm2b(&name(&public))].concat()))
    }

    fn policy_pcr(&mut self, r: &mut Bytes<'_>) -> Answer {
        let (handle, digest) = (r.u32()?, r.tpm2b()?);
        let selection = r.0;
        let registers = registers(selection)?;
        let policy = self.policy(selection, &registers);
        let session = self.sessions.get_mut(&handle).ok_or(FAILURE)?;
        if !digest.is_empty() || session.policy != [0; 32] {
            return Err(FAILURE);
        }
        (session.policy, session.at) = (policy, Some(self.changes));
        Ok(framed(0x8001, &[]))
    }

    /// A command with handles under one session: done if its HMAC holds, and answered under one.
    fn authorised(&mut self, code: u32, handles: usize, mut r: Bytes<'_>) -> Answer {
        let handles = (0..handles).map(|_| r.u32()).collect::<Result<Vec<_>, _>>()?;
        let area = r.u32()? as usize;
        let mut area = Bytes(r.take(area)?);
        let (handle, caller) = (area.u32()?, area.tpm2b()?);
        let (attributes, mac) = (area.u8()?, area.tpm2b()?);
        let mut parameters = r.0.to_vec();
        let names = handles.iter().map(|handle| self.name_of(*handle));
        let names = names.collect::<Result<Vec<_>, _>>()?.concat();
        let auth: &[u8] = if code == 0x14e || code == 0x134 { &self.counter.auth } else { &[] };
        let session = self.sessions.get(&handle).ok_or(FAILURE)?;
        let key = [&session.key, auth].concat();
        let digest = sha256(&[&code.to_be_bytes(), &names, &parameters]);
        if mac != hmac(&key, &[&digest, caller, &session.nonce, &[attributes]])
            || !area.0.is_empty()
        {
            return Err(AUTH_FAIL);
        }
        if attributes & DECRYPT != 0 {
            let length = usize::from(Bytes(&parameters).u16()?);
            let first = parameters.get_mut(2..2 + length).ok_or(FAILURE)?;
            cfb(true, &key, caller, &session.nonce, first);
        }
        let (out, mut answered) = self.execute(code, &handles, &parameters, handle)?;
        self.nonces = self.nonces.wrapping_add(1);
        let newer = sha256(&[&[self.nonces]]);
        if attributes & ENCRYPT != 0 {
            let first = answered.get_mut(2..).ok_or(FAILURE)?;
            cfb(false, &key, &newer, caller, first);
        }
        let digest = sha256(&[&[0; 4], &code.to_be_bytes(), &answered]);
        let mac = hmac(&key, &[&digest, &newer, caller, &[attributes]]);
        if let Some(session) = self.sessions.get_mut(&handle) {
            session.nonce = newer;
        }
        let size = (answered.len() as u32).to_be_bytes();
        let tail = [tpm2b(&newer), vec![attributes], tpm2b(&mac)].concat();
        Ok(framed(0x8002, &[&out[..], &size, &answered, &tail].concat()))
    }

    fn name_of(&self, handle: u32) -> Result<Vec<u8>, u32> {
        match handle {
            _ if handle == self.counter.index => Ok(name(&self.counter_public())),
            _ if handle == self.parent.0 => Ok(self.parent.1.to_vec()),
            _ => self.loaded.get(&handle).map(|object| name(&object.public)).ok_or(0x18b),
        }
    }

    /// Handles and parameters of the answer.
    fn execute(
        &mut self,
        code: u32,
        handles: &[u32],
        parameters: &[u8],
        session: u32,
    ) -> Result<(Vec<u8>, Vec<u8>), u32> {
        let mut r = Bytes(parameters);
        match code {
            0x14e => match (r.u16()?, r.u16()?) {
                (8, 0) => Ok((Vec::new(), tpm2b(&self.counter.value.to_be_bytes()))),
                _ => Err(FAILURE),
            },
            0x134 => {
                self.counter.value += 1;
                Ok((Vec::new(), Vec::new()))
            }
            0x17e => self.pcr_read(parameters).map(|answered| (Vec::new(), answered)),
            0x153 => {
                let (sensitive, public) = (r.tpm2b()?, r.tpm2b()?);
                let [0, 0, 0, 32, secret @ ..] = sensitive else { return Err(FAILURE) };
                let made = seal(secret, public.strip_suffix(&[0, 0]).ok_or(FAILURE)?);
                let answered = [tpm2b(&made.private), tpm2b(&made.public), vec![0; 4]].concat();
                self.made.push((made, secret.to_vec()));
                Ok((Vec::new(), answered))
            }
            0x157 => {
                let made = Made { private: r.tpm2b()?.to_vec(), public: r.tpm2b()?.to_vec() };
                open(&made)?;
                let answered = tpm2b(&name(&made.public));
                self.loaded.insert(OBJECT, made);
                Ok((OBJECT.to_be_bytes().to_vec(), answered))
            }
            _ => {
                let object = handles.first().and_then(|handle| self.loaded.get(handle));
                let object = object.ok_or(FAILURE)?;
                let session = self.sessions.get(&session).ok_or(FAILURE)?;
                // nameAlg and attributes are before the policy.
                if object.public.get(10..42) != Some(&session.policy) {
                    return Err(POLICY_FAIL);
                }
                if session.at != Some(self.changes) {
                    return Err(PCR_CHANGED);
                }
                Ok((Vec::new(), tpm2b(&open(object)?)))
            }
        }
    }

    fn pcr_read(&self, selection: &[u8]) -> Answer {
        let registers = registers(selection)?;
        if registers.len() > 8 {
            return Err(FAILURE);
        }
        let values = registers.iter().flat_map(|n| tpm2b(&self.pcrs[*n])).collect::<Vec<_>>();
        let count = (registers.len() as u32).to_be_bytes();
        Ok([&self.changes.to_be_bytes()[..], selection, &count, &values].concat())
    }
}

/// The secret, under the chip's own keys, and a public area with its digest.
fn seal(secret: &[u8], template: &[u8]) -> Made {
    let unique = sha256(&[SEED, secret]);
    let public = [template, &tpm2b(&unique)].concat();
    let hidden = hidden(secret);
    let mac = hmac(SEED, &[&hidden, &public]);
    Made { private: [&hidden[..], &mac].concat(), public }
}

fn open(made: &Made) -> Result<Vec<u8>, u32> {
    let (hidden_secret, mac) = made.private.split_last_chunk::<32>().ok_or(INTEGRITY)?;
    let good = hmac(SEED, &[hidden_secret, &made.public]) == *mac;
    if good { Ok(hidden(hidden_secret)) } else { Err(INTEGRITY) }
}

/// There and back.
fn hidden(secret: &[u8]) -> Vec<u8> {
    secret.iter().zip(sha256(&[SEED])).map(|(byte, pad)| byte ^ pad).collect()
}

/// The registers of a selection of the SHA-256 bank alone.
fn registers(selection: &[u8]) -> Result<Vec<usize>, u32> {
    let [0, 0, 0, 1, 0, 0x0b, 3, a, b, c] = *selection else { return Err(FAILURE) };
    let bits = u32::from_le_bytes([a, b, c, 0]);
    Ok((0..24).filter(|n| bits >> n & 1 == 1).collect())
}

fn name(public: &[u8]) -> Vec<u8> {
    [&[0, 0x0b], &sha256(&[public])[..]].concat()
}

fn tpm2b(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}

fn framed(tag: u16, body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u32 + 10).to_be_bytes();
    [&tag.to_be_bytes()[..], &size, &[0; 4], body].concat()
}

/// AES-128-CFB of a first parameter.
fn cfb(decrypt: bool, key: &[u8], newer: &[u8], older: &[u8], data: &mut [u8]) {
    let both = kdfa(key, "CFB", newer, older);
    let (key, iv) = both.split_at(16);
    let (key, iv): ([u8; 16], [u8; 16]) = (key.try_into().unwrap(), iv.try_into().unwrap());
    match decrypt {
        true => Decryptor::<Aes128>::new((&key).into(), (&iv).into()).decrypt(data),
        false => Encryptor::<Aes128>::new((&key).into(), (&iv).into()).encrypt(data),
    }
}

/// A cursor; what is missing is a failure.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], u32> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FAILURE)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, u32> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, u32> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> Result<u32, u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn tpm2b(&mut self) -> Result<&'a [u8], u32> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
