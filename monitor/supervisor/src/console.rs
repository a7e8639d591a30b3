//! What a guest prints, as far as its image lets the host see it: the last bytes, in memory. And what is typed into an
//! open box.
//!
//! The volume is the guest's choice, so it is a ring: it costs no disk and never grows. Bytes are kept as
//! they came; who shows them on a terminal must make them harmless. Any number of callers read; one types, and what the
//! guest has not read yet is held in a pipe, as much as the kernel gives it: who types faster waits.

use std::{collections::VecDeque, future::poll_fn, io, os::fd::OwnedFd, pin::Pin, sync::OnceLock};

use axum::body::{Body, HttpBody};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::sync::Notify;

use crate::{api_error::ApiError, guarded::Guarded};

/// Bytes kept.
const RING_MAX: usize = 256 << 10;

/// A console.
#[derive(Debug, Default)]
pub struct Console {
    ring: Guarded<Ring>,
    changed: Notify,
    /// Where what is typed goes; never set for a closed box.
    input: OnceLock<tokio::sync::Mutex<OwnedFd>>,
}

#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes ever written; the ring holds the last of them.
    written: u64,
    closed: bool,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Bytes, and the position to ask for next.
    Bytes(Vec<u8>, u64),
    /// Nothing new yet.
    Nothing,
    /// Nothing will come any more.
    End,
}

impl Console {
    /// Makes the way in; what comes out of it is for the VM process.
    pub fn open_input(&self) -> io::Result<OwnedFd> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        self.input.set(ours.into()).map_err(|_| io::ErrorKind::AlreadyExists)?;
        Ok(theirs)
    }

    /// Passes on what is typed, until it ends or the guest is gone. Who types faster than the guest reads waits.
    pub async fn type_in(&self, mut typed: Body) -> Result<(), ApiError> {
        let ours =
            self.input.get().ok_or_else(|| ApiError::closed_box("a closed box has no input"))?;
        let ours = ours.try_lock().map_err(|_| ApiError::busy("somebody types already"))?;
        let pipe = ours.try_clone().and_then(Sender::from_owned_fd);
        let mut pipe = pipe.map_err(|e| ApiError::internal(format!("no way to the guest: {e}")))?;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut typed).poll_frame(cx)).await {
            let bytes = frame.into_data().unwrap_or_default();
            if pipe.write_all(&bytes).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Appends; drops the oldest bytes if it must.
    pub fn push(&self, bytes: &[u8]) {
        let mut ring = self.ring.lock();
        ring.written += bytes.len() as u64;
        ring.bytes.extend(bytes);
        let excess = ring.bytes.len().saturating_sub(RING_MAX);
        ring.bytes.drain(..excess);
        drop(ring);
        self.changed.notify_waiters();
    }

    /// Bytes ever written.
    pub fn written(&self) -> u64 {
        self.ring.lock().written
    }

    /// The guest is gone.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// What was written from `position` on; older bytes than are kept are skipped.
    pub fn read(&self, position: u64) -> Chunk {
        let ring = self.ring.lock();
        let first = ring.written - ring.bytes.len() as u64;
        let skip = usize::try_from(position.saturating_sub(first)).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = ring.bytes.iter().skip(skip).copied().collect();
        match (bytes.is_empty(), ring.closed) {
            (false, _) => Chunk::Bytes(bytes, ring.written),
            (true, false) => Chunk::Nothing,
            (true, true) => Chunk::End,
        }
    }

    /// As [`Console::read`], but waits for something new.
    pub async fn next(&self, position: u64) -> Chunk {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before looking, so that nothing written in between is missed.
            changed.as_mut().enable();
            match self.read(position) {
                Chunk::Nothing => changed.await,
                chunk => return chunk,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_bytes_and_resumes_where_a_reader_was() {
        let console = Console::default();
        assert_eq!(console.read(0), Chunk::Nothing);
        console.push(b"hello ");
        assert_eq!(console.read(0), Chunk::Bytes(b"hello ".to_vec(), 6));
        console.push(b"world");
        assert_eq!(console.read(6), Chunk::Bytes(b"world".to_vec(), 11));
        console.close();
        assert_eq!(console.read(11), Chunk::End);
        console.push(&vec![b'x'; RING_MAX + 5]);
        let Chunk::Bytes(bytes, next) = console.read(0) else { panic!() };
        assert_eq!((bytes.len(), next), (RING_MAX, 11 + RING_MAX as u64 + 5));
    }
}
