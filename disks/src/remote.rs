//! The anchor of a disk that runs in another process (SPEC 11.14.6), over a stream socket.
//!
//! ```text
//! first   keeper -> disk   32 bytes: the disk key
//! then    disk -> keeper   u8 operation: 0 read, 1 advance | u64 (read: zero; advance: from)
//!         keeper -> disk   u8 status: 0 done, 1 moved, 2 failed | u64 (the value; failed: zero)
//! ```
//! Integers are little-endian; one question at a time. The socket is the keeper's and the disk's alone: who holds the
//! disk's end is that disk. Such a one, hostile, can move its own counter, which ends its own disk, and nothing else.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use zeroize::Zeroizing;

use crate::anchor::{Anchor, AnchorError};
use crate::bytes;
use crate::keys::DiskKey;

const READ: u8 = 0;
const ADVANCE: u8 = 1;
const DONE: u8 = 0;
const MOVED: u8 = 1;
const FAILED: u8 = 2;
/// Bytes of a question and of an answer.
const MESSAGE: usize = 9;

/// The disk's end.
pub struct RemoteAnchor(UnixStream);

impl RemoteAnchor {
    /// Waits for the keeper's key.
    pub fn connect(mut stream: UnixStream) -> io::Result<(DiskKey, Self)> {
        let mut key = Zeroizing::new([0; 32]);
        stream.read_exact(&mut *key)?;
        Ok((DiskKey::new(&mut key), Self(stream)))
    }

    fn ask(&mut self, operation: u8, value: u64) -> Result<(u8, u64), AnchorError> {
        let mut answer = [0; MESSAGE];
        let asked = self.0.write_all(&message(operation, value));
        asked.and_then(|()| self.0.read_exact(&mut answer)).map_err(|error| {
            // An answer that comes late would be taken for the next one's.
            let _ = self.0.shutdown(std::net::Shutdown::Both);
            AnchorError::Failed(error.into())
        })?;
        let [status] = bytes::get(&answer, 0);
        Ok((status, bytes::get_u64(&answer, 1)))
    }
}

impl Anchor for RemoteAnchor {
    fn read(&mut self) -> Result<u64, AnchorError> {
        match self.ask(READ, 0)? {
            (DONE, value) => Ok(value),
            _ => Err(failed()),
        }
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        match self.ask(ADVANCE, from)? {
            (DONE, _) => Ok(()),
            (MOVED, found) => Err(AnchorError::Moved { expected: from, found }),
            _ => Err(failed()),
        }
    }
}

/// The keeper's end: tells the key, then answers until the disk's end is closed. Why a counter failed is not told.
pub fn serve(
    mut stream: UnixStream,
    key: Zeroizing<[u8; 32]>,
    anchor: &mut dyn Anchor,
) -> io::Result<()> {
    stream.write_all(&*key)?;
    drop(key);
    let mut question = [0; MESSAGE];
    while next(&mut stream, &mut question)? {
        let ([operation], value) = (bytes::get(&question, 0), bytes::get_u64(&question, 1));
        let answer = match operation {
            READ if value == 0 => match anchor.read() {
                Ok(value) => message(DONE, value),
                Err(_) => message(FAILED, 0),
            },
            ADVANCE => match anchor.advance(value) {
                Ok(()) => message(DONE, value.saturating_add(1)),
                Err(AnchorError::Moved { found, .. }) => message(MOVED, found),
                Err(AnchorError::Failed(_)) => message(FAILED, 0),
            },
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// False if the other end was closed between two questions.
fn next(stream: &mut UnixStream, question: &mut [u8; MESSAGE]) -> io::Result<bool> {
    let (first, rest) = question.split_at_mut(1);
    loop {
        match stream.read(first) {
            Ok(0) => return Ok(false),
            Ok(_) => return stream.read_exact(rest).map(|()| true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn message(head: u8, value: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    bytes::put(&mut message, 0, &[head]);
    bytes::put(&mut message, 1, &value.to_le_bytes());
    message
}

fn failed() -> AnchorError {
    AnchorError::Failed("its keeper could not move or read it".into())
}
