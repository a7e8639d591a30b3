//! swtpm's data channel: raw TPM commands and responses on a stream socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::devices::tpm_crb::{BUFFER_SIZE, HEADER, TpmBackend};

/// The channel whose other end swtpm was given with `CMD_SET_DATAFD`.
pub struct SwtpmChannel(UnixStream);

impl SwtpmChannel {
    /// Uses the descriptor the supervisor sent.
    pub fn new(descriptor: std::os::fd::OwnedFd) -> Self {
        Self(UnixStream::from(descriptor))
    }
}

impl TpmBackend for SwtpmChannel {
    fn send(&mut self, command: &[u8]) -> io::Result<()> {
        // At once: swtpm reads once after the first ten bytes and takes what it got for the whole command. There is room:
        // it has read every command before.
        let sent = send(&self.0, command, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != command.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "swtpm took part of a command"));
        }
        Ok(())
    }

    fn receive(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        if within.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(within).map_err(io::Error::other)?;
        let mut answered = [PollFd::new(&self.0, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut answered, Some(&timeout)))? == 0 {
            return Ok(None);
        }
        // swtpm writes a response at once, so all of it is there, and nothing else.
        let mut response = vec![0; BUFFER_SIZE];
        let (length, _) = recv(&self.0, &mut response[..], RecvFlags::DONTWAIT)?;
        response.truncate(length);
        let size = response.get(2..6).and_then(|s| s.first_chunk().copied());
        if length < HEADER || size.map(u32::from_be_bytes) != u32::try_from(length).ok() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "swtpm answered with no response",
            ));
        }
        Ok(Some(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn answered(answer: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = SwtpmChannel::new(ours.into());
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
    fn waits_no_longer_than_it_is_told_to() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = SwtpmChannel::new(ours.into());
        for within in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(channel.receive(within).unwrap(), None);
        }
        drop(theirs);
        assert!(channel.send(&[0; 10]).is_err());
    }
}
