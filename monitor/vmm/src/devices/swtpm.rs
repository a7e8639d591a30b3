//! swtpm's data channel: raw TPM commands and responses on a stream socket.
//!
//! Where the vTPM's state is to last, its keeper is asked after each answer, and nobody sees an answer before the state that
//! it tells of is kept (SPEC 3.7.1). A keeper that fails is a TPM that fails.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::devices::tpm_crb::{BUFFER_SIZE, HEADER, TpmBackend};

/// The channel whose other end swtpm was given with `CMD_SET_DATAFD`.
pub struct SwtpmChannel {
    swtpm: UnixStream,
    keeper: Option<UnixStream>,
    /// Its state is not kept yet.
    answer: Option<Vec<u8>>,
}

impl SwtpmChannel {
    /// Uses the descriptors the supervisor sent.
    pub fn new(swtpm: OwnedFd, keeper: Option<OwnedFd>) -> Self {
        Self { swtpm: swtpm.into(), keeper: keeper.map(UnixStream::from), answer: None }
    }

    /// swtpm writes a response at once, so all of it is there, and nothing else.
    fn response(&self) -> io::Result<Vec<u8>> {
        let mut response = vec![0; BUFFER_SIZE];
        let (length, _) = recv(&self.swtpm, &mut response[..], RecvFlags::DONTWAIT)?;
        response.truncate(length);
        let size = response.get(2..6).and_then(|s| s.first_chunk().copied());
        if length < HEADER || size.map(u32::from_be_bytes) != u32::try_from(length).ok() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "swtpm answered with no response",
            ));
        }
        Ok(response)
    }
}

/// True once there is something to read.
fn readable(stream: &UnixStream, within: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(within).map_err(io::Error::other)?;
    let mut ready = [PollFd::new(stream, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut ready, Some(&timeout)))? > 0)
}

/// The word to a keeper, and its answer once what swtpm had written by then is kept.
const KEEP: u8 = 1;

impl TpmBackend for SwtpmChannel {
    fn send(&mut self, command: &[u8]) -> io::Result<()> {
        // At once: swtpm reads once after the first ten bytes and takes what it got for the whole command. There is room:
        // it has read every command before.
        let sent = send(&self.swtpm, command, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != command.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "swtpm took part of a command"));
        }
        Ok(())
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        if within.is_zero() {
            return Ok(None);
        }
        let until = Instant::now() + within;
        if self.answer.is_none() {
            if !readable(&self.swtpm, within)? {
                return Ok(None);
            }
            self.answer = Some(self.response()?);
            if let Some(keeper) = &self.keeper {
                send(keeper, &[KEEP], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
            }
        }
        if let Some(keeper) = &self.keeper {
            if !readable(keeper, until.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
            let mut word = [0];
            let (length, _) = recv(keeper, &mut word[..], RecvFlags::DONTWAIT)?;
            if length != 1 || word != [KEEP] {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its state is not kept"));
            }
        }
        Ok(self.answer.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn answered(answer: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = SwtpmChannel::new(ours.into(), None);
        channel.send(&[0; 10])?;
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        channel.receive(Duration::from_secs(10))
    }

    #[test]
    fn reads_one_response() {
        let response = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];
        assert_eq!(answered(&response).unwrap().unwrap(), response);
    }

    #[test]
    fn refuses_what_is_not_one_response() {
        let sized = |size: u32| [&[0x80, 1][..], &size.to_be_bytes(), &[0; 4]].concat();
        let long = [&sized(4097)[..], &[0; 4087]].concat();
        let two = [sized(10), sized(10)].concat();
        for answer in [sized(9), sized(11), sized(u32::MAX), long, two, vec![0; 5], vec![]] {
            assert_eq!(answered(&answer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn no_answer_is_seen_before_its_state_is_kept() {
        let (ours, mut swtpm) = UnixStream::pair().unwrap();
        let (keeper, mut vault) = UnixStream::pair().unwrap();
        let mut channel = SwtpmChannel::new(ours.into(), Some(keeper.into()));
        let soon = Duration::from_millis(5);
        for response in
            [[0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0, 7], [0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0, 8]]
        {
            channel.send(&[0; 10]).unwrap();
            assert_eq!(channel.receive(soon).unwrap(), None);
            swtpm.write_all(&response).unwrap();
            assert_eq!(channel.receive(soon).unwrap(), None);
            assert_eq!(channel.receive(soon).unwrap(), None);
            let mut asked = [0; 1];
            vault.read_exact(&mut asked).unwrap();
            // Asked once.
            vault.set_nonblocking(true).unwrap();
            assert_eq!(vault.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            vault.set_nonblocking(false).unwrap();
            vault.write_all(&asked).unwrap();
            assert_eq!(channel.receive(Duration::from_secs(10)).unwrap().unwrap(), response);
        }
        channel.send(&[0; 10]).unwrap();
        swtpm.write_all(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]).unwrap();
        drop(vault);
        assert!(channel.receive(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn waits_no_longer_than_it_is_told_to() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = SwtpmChannel::new(ours.into(), None);
        for within in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(channel.receive(within).unwrap(), None);
        }
        drop(theirs);
        assert!(channel.send(&[0; 10]).is_err());
    }
}
