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
