//! swtpm's control channel: a stream socket, big-endian; a request is `u32 command | body`, an answer
//! `u32 result | body`, and on failure only the four bytes of the result (swtpm 0.7.1 `ctrlchannel.c`).

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::VtpmError;

/// How long swtpm may think: key generation on an emulated CPU takes a second or two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The control channel. Whoever holds it can export the TPM's state, so there is one owner, ever.
pub(crate) struct Control {
    socket: UnixStream,
}

/// Control commands (swtpm `tpm_ioctl.h`).
#[derive(Clone, Copy)]
struct Command(u32, &'static str);

const GET_CAPABILITY: Command = Command(0x01, "GET_CAPABILITY");
const INIT: Command = Command(0x02, "INIT");
const SET_LOCALITY: Command = Command(0x05, "SET_LOCALITY");
const HASH_START: Command = Command(0x06, "HASH_START");
const HASH_DATA: Command = Command(0x07, "HASH_DATA");
const HASH_END: Command = Command(0x08, "HASH_END");
const STOP: Command = Command(0x0e, "STOP");
const GET_CONFIG: Command = Command(0x0f, "GET_CONFIG");
const SET_DATAFD: Command = Command(0x10, "SET_DATAFD");

/// Capabilities a vTPM is made with: INIT, SET_LOCALITY, HASHING, STOP, GET_CONFIG, SET_DATAFD
/// (PTM_CAP_* in `tpm_ioctl.h`).
const NEEDED: u32 = 1 | 1 << 3 | 1 << 4 | 1 << 10 | 1 << 11 | 1 << 12;
/// GET_CONFIG: state encrypted with a file key, exports encrypted with a migration key.
const CONFIG_KEYS: [(u32, &str); 2] = [(1, "state"), (2, "migration")];
/// Bytes sent in one HASH_DATA: the least buffer a TPM offers is larger (MAX_DIGEST_BUFFER, 1024).
const HASH_CHUNK: usize = 1024;

impl Control {
    /// Takes the channel and bounds how long it may be silent.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Checks that this swtpm can do what is needed and holds no key it was not given.
    pub(crate) fn check(&mut self) -> Result<(), VtpmError> {
        let [capabilities] = self.ask(GET_CAPABILITY, &[])?;
        if capabilities & NEEDED != NEEDED {
            return Err(VtpmError::Lacks("a control command the vTPM needs"));
        }
        let [config] = self.ask(GET_CONFIG, &[])?;
        match CONFIG_KEYS.into_iter().find(|(key, _)| config & key != 0) {
            Some((_, what)) => Err(VtpmError::UnexpectedKey(what)),
            None => Ok(()),
        }
    }

    /// Gives swtpm its end of the data channel. It takes one for life.
    pub(crate) fn set_data_channel(&mut self, data: BorrowedFd<'_>) -> Result<(), VtpmError> {
        let Command(code, what) = SET_DATAFD;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [data];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(VtpmError::Malformed(what));
        }
        let body = code.to_be_bytes();
        rustix::net::sendmsg(
            self.socket.as_fd(),
            &[IoSlice::new(&body)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(|e| broken(what, e.into()))?;
        let [] = self.answer(what)?;
        Ok(())
    }

    /// Starts the TPM anew, dropping volatile state: a TPM reset (`_TPM_Init`).
    pub(crate) fn init(&mut self) -> Result<(), VtpmError> {
        const DELETE_VOLATILE: u32 = 1;
        self.ask::<0>(INIT, &DELETE_VOLATILE.to_be_bytes()).map(drop)
    }

    /// Stops the TPM; it can be initialised again.
    pub(crate) fn stop(&mut self) -> Result<(), VtpmError> {
        self.ask::<0>(STOP, &[]).map(drop)
    }

    /// Sets the locality of later commands.
    pub(crate) fn set_locality(&mut self, locality: u8) -> Result<(), VtpmError> {
        self.ask::<0>(SET_LOCALITY, &[locality]).map(drop)
    }

    /// The DRTM hash sequence: resets PCR 17 to 22, extends 17 with the SHA-256 of `data`. No TPM command
    /// can do this (TPM Library Part 1, 11.4.11).
    pub(crate) fn hash_sequence(&mut self, data: &[u8]) -> Result<(), VtpmError> {
        self.ask::<0>(HASH_START, &[])?;
        for chunk in data.chunks(HASH_CHUNK) {
            let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_be_bytes();
            self.ask::<0>(HASH_DATA, &[&length, chunk].concat())?;
        }
        self.ask::<0>(HASH_END, &[]).map(drop)
    }

    /// Sends a command and reads its result and `N` further words.
    fn ask<const N: usize>(
        &mut self,
        command: Command,
        body: &[u8],
    ) -> Result<[u32; N], VtpmError> {
        let Command(code, what) = command;
        let request = [&code.to_be_bytes(), body].concat();
        self.socket.write_all(&request).map_err(|e| broken(what, e))?;
        self.answer(what)
    }

    fn answer<const N: usize>(&mut self, what: &'static str) -> Result<[u32; N], VtpmError> {
        let result = self.word(what)?;
        if result != 0 {
            return Err(VtpmError::Control(what, result));
        }
        let mut words = [0; N];
        for word in &mut words {
            *word = self.word(what)?;
        }
        Ok(words)
    }

    fn word(&mut self, what: &'static str) -> Result<u32, VtpmError> {
        let mut bytes = [0; 4];
        self.socket.read_exact(&mut bytes).map_err(|e| broken(what, e))?;
        Ok(u32::from_be_bytes(bytes))
    }
}

fn broken(what: &'static str, source: io::Error) -> VtpmError {
    VtpmError::Channel("control", what, source)
}
