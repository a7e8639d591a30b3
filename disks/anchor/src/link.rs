//! The way to the TPM: one command, one answer. Nothing on it is trusted; see `session`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Carries a command to a TPM and brings back the answer. May lose, alter, replay: then commands fail.
pub trait Link: Send {
    /// One command, one answer. After an error the link is to give nothing but errors: an answer that comes late would
    /// be taken for the next one's.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// A TPM behind a stream: a character device, or the data channel of a swtpm.
pub struct Stream<S>(Option<S>);

impl<S: Read + Write + Send> Stream<S> {
    /// Takes an open stream. A limit of time is the stream's own to have.
    pub fn new(stream: S) -> Self {
        Self(Some(stream))
    }
}

impl Stream<File> {
    /// Opens a device, such as `/dev/tpmrm0`: the kernel's resource manager gives each opener sessions of its own.
    pub fn device(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self::new)
    }
}

impl<S: Read + Write + Send> Link for Stream<S> {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.0.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let answer = exchange(&mut stream, command)?;
        self.0 = Some(stream);
        Ok(answer)
    }
}

fn exchange(stream: &mut (impl Read + Write), command: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(command)?;
    let (mut answer, mut filled) = (vec![0; ANSWER_MAX], 0);
    loop {
        // A device gives an answer to one read, if the buffer is long enough; a socket in any portions.
        let rest = answer.get_mut(filled..).filter(|rest| !rest.is_empty());
        match stream.read(rest.ok_or(io::ErrorKind::InvalidData)?) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match alleged_size(answer.get(..filled).unwrap_or_default()) {
            Some(size) if filled == size => {
                answer.truncate(filled);
                return Ok(answer);
            }
            Some(size) if filled > size => return Err(io::ErrorKind::InvalidData.into()),
            _ => {}
        }
    }
}

/// responseSize, behind a tag of two bytes.
fn alleged_size(answer: &[u8]) -> Option<usize> {
    let size = answer.get(2..6)?.first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*size)).ok()
}

/// Largest answer of a PC Client TPM (TPM2_MAX_RESPONSE_SIZE).
const ANSWER_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has in these portions.
    struct Portions(Vec<Vec<u8>>);

    impl Read for Portions {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let portion = self.0.remove(0);
            buffer[..portion.len()].copy_from_slice(&portion);
            Ok(portion.len())
        }
    }

    impl Write for Portions {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const ANSWER: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 7];

    #[test]
    fn takes_an_answer_in_any_portions() {
        for portion in 1..=ANSWER.len() {
            let portions = ANSWER.chunks(portion).map(<[u8]>::to_vec).collect();
            let mut stream = Stream::new(Portions(portions));
            assert_eq!(stream.exchange(&[1]).unwrap(), ANSWER);
        }
    }

    #[track_caller]
    fn check(portions: &[&[u8]], expected: io::ErrorKind) {
        let portions = portions.iter().map(|part| part.to_vec()).collect();
        let mut stream = Stream::new(Portions(portions));
        assert_eq!(stream.exchange(&[1]).unwrap_err().kind(), expected);
        // Whatever comes now may be late, and another command's.
        assert_eq!(stream.exchange(&[1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn gives_nothing_more_after_an_answer_that_is_none() {
        check(&[], io::ErrorKind::UnexpectedEof);
        check(&[&ANSWER[..11]], io::ErrorKind::UnexpectedEof);
        check(&[&ANSWER, &ANSWER].map(|_| &[0x80, 1, 0, 0, 0, 4][..]), io::ErrorKind::InvalidData);
        check(&[&[&ANSWER[..], &[0]].concat()], io::ErrorKind::InvalidData);
        check(&[&[0xff; ANSWER_MAX]], io::ErrorKind::InvalidData);
    }
}
