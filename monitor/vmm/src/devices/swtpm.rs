//! swtpm's data channel: raw TPM commands and responses on a stream socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::devices::tpm_crb::{BUFFER_SIZE, HEADER, TpmBackend};

/// The channel whose other end swtpm was given with `CMD_SET_DATAFD`.
pub struct SwtpmChannel(UnixStream);

impl SwtpmChannel {
    /// Uses the descriptor the supervisor sent.
    pub fn new(descriptor: std::os::fd::OwnedFd) -> io::Result<Self> {
        let stream = UnixStream::from(descriptor);
        // The worker thread may wait as long as a command takes (key generation: seconds).
        stream.set_nonblocking(false)?;
        Ok(Self(stream))
    }
}

impl TpmBackend for SwtpmChannel {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        // One write: swtpm reads once after the first ten bytes and takes what it got for the whole command.
        if self.0.write(command)? != command.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "swtpm took part of a command"));
        }
        let mut response = vec![0; HEADER];
        self.0.read_exact(&mut response)?;
        let size =
            response.get(2..6).and_then(|s| s.first_chunk().copied()).map_or(0, u32::from_be_bytes)
                as usize;
        if !(HEADER..=BUFFER_SIZE).contains(&size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "swtpm answered with an impossible size",
            ));
        }
        response.resize(size, 0);
        self.0.read_exact(response.get_mut(HEADER..).unwrap_or_default())?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(answer: &[u8]) -> io::Result<Vec<u8>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        SwtpmChannel::new(ours.into()).unwrap().execute(&[0; 10])
    }

    #[test]
    fn reads_one_response_by_its_header() {
        let response = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];
        assert_eq!(answered(&[&response[..], &[9, 9]].concat()).unwrap(), response);
    }

    #[test]
    fn refuses_impossible_sizes_and_short_answers() {
        let sized = |size: u32| [&[0x80, 1][..], &size.to_be_bytes(), &[0; 4]].concat();
        assert_eq!(answered(&sized(9)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(answered(&sized(u32::MAX)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(answered(&sized(11)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(answered(&[]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
