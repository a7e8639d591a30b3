//! The host side of a network interface: a passt stream or a tap device, never waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coffer_monitor_wire::NetBackend;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::FRAME_MAX;
use crate::virtio::watch::Watch;

/// Bytes of length before each frame on a passt stream.
const PREFIX: usize = 4;
/// Frames held for a passt that does not read; further ones are dropped.
const OUTBOX_MAX: usize = 256 << 10;
/// Read from passt at once.
const CHUNK: usize = 64 << 10;

/// A backend with the descriptor the device loop watches: an epoll instance around it, so that interest
/// can change without the loop.
pub struct Backend {
    kind: NetBackend,
    link: Option<OwnedFd>,
    watch: Watch,
    inbox: Inbox,
    /// Bytes passt did not take yet.
    outbox: Vec<u8>,
    listening: bool,
}

impl Backend {
    /// Takes over the descriptor; silent until told to listen.
    pub fn new(kind: NetBackend, link: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&link, true)?;
        let watch = Watch::new()?;
        let (link, inbox, outbox) = (Some(link), Inbox::default(), Vec::new());
        Ok(Self { kind, link, watch, inbox, outbox, listening: false })
    }

    /// Whether arriving frames are wanted now.
    pub fn listen(&mut self, wanted: bool) {
        self.listening = wanted;
        self.update_interest();
    }

    /// Wants nothing until told to listen again. What passt did not take yet is kept: half a frame would be no frame.
    pub fn hush(&mut self) {
        self.listening = false;
        if let Some(link) = &self.link {
            self.watch.want(link, EventFlags::empty());
        }
    }

    /// Sends a frame, or drops it if the backend is behind.
    pub fn send(&mut self, frame: &[u8]) {
        match self.kind {
            // A tap takes a frame whole or not at all; one it does not take is lost.
            NetBackend::Tap => {
                let _ = self.link.as_ref().map(|link| rustix::io::write(link, frame));
            }
            NetBackend::Passt => {
                if self.outbox.len() + frame.len() + PREFIX <= OUTBOX_MAX {
                    // Frames are at most FRAME_MAX long.
                    self.outbox.extend((frame.len() as u32).to_be_bytes());
                    self.outbox.extend(frame);
                }
                self.flush();
            }
        }
    }

    /// Writes what is held, as far as the backend takes it.
    pub fn flush(&mut self) {
        let Some(link) = &self.link else { return self.outbox.clear() };
        let mut sent = 0;
        while let Some(rest) = self.outbox.get(sent..).filter(|rest| !rest.is_empty()) {
            // NOSIGNAL: a passt that is gone must not take the VM with it.
            match rustix::net::send(link, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.cut(),
            }
        }
        self.outbox.drain(..sent);
        self.update_interest();
    }

    /// The next frame.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        match self.kind {
            NetBackend::Tap => self.receive_from_tap(),
            NetBackend::Passt => self.receive_from_passt(),
        }
    }

    fn receive_from_passt(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.inbox.next_frame() {
                Ok(Some(frame)) => return Some(frame),
                Err(ImpossibleLength) => self.cut(),
                Ok(None) => {}
            }
            match rustix::io::read(self.link.as_ref()?, self.inbox.room()) {
                Ok(n @ 1..) => self.inbox.end += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Ok(0) | Err(_) => self.cut(),
            }
        }
    }

    fn receive_from_tap(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX];
        match rustix::io::read(self.link.as_ref()?, &mut *frame) {
            Ok(n @ 1..) => {
                frame.truncate(n);
                return Some(frame);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.cut(),
        }
        None
    }

    /// The link is dead for the rest of this VM's life.
    fn cut(&mut self) {
        if let Some(link) = self.link.take() {
            self.watch.want(&link, EventFlags::empty());
        }
        self.outbox.clear();
        self.inbox = Inbox::default();
    }

    fn update_interest(&self) {
        let Some(link) = &self.link else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.listening);
        flags.set(EventFlags::OUT, !self.outbox.is_empty());
        self.watch.want(link, flags);
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// Bytes of a passt stream on their way to frames.
#[derive(Default)]
struct Inbox {
    buffer: Vec<u8>,
    /// Consumed and filled parts of the buffer.
    start: usize,
    end: usize,
}

/// A length no frame has: the stream is not what we think it is.
#[derive(Debug, PartialEq, Eq)]
struct ImpossibleLength;

impl Inbox {
    fn next_frame(&mut self) -> Result<Option<Vec<u8>>, ImpossibleLength> {
        let held = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = held.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if !(1..=FRAME_MAX).contains(&len) {
            return Err(ImpossibleLength);
        }
        let frame = rest.get(..len).map(<[u8]>::to_vec);
        if frame.is_some() {
            self.start += PREFIX + len;
        }
        Ok(frame)
    }

    /// Space for the next read; the buffer holds one frame and one chunk at most.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.buffer.resize(PREFIX + FRAME_MAX + CHUNK, 0);
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn passt() -> (Backend, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Backend::new(NetBackend::Passt, ours.into()).unwrap(), theirs)
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        let (mut backend, mut theirs) = passt();
        let stream = [&[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 2], b"de"].concat();
        let mut frames = Vec::new();
        for byte in stream {
            theirs.write_all(&[byte]).unwrap();
            while let Some(frame) = backend.receive() {
                frames.push(frame);
            }
        }
        assert_eq!(frames, [b"abc".to_vec(), b"de".to_vec()]);
    }

    #[test]
    fn an_impossible_length_cuts_the_link() {
        for length in [0u32, FRAME_MAX as u32 + 1, u32::MAX] {
            let (mut backend, mut theirs) = passt();
            theirs.write_all(&length.to_be_bytes()).unwrap();
            assert_eq!(backend.receive(), None);
            assert!(backend.link.is_none(), "{length}");
        }
    }

    #[test]
    fn a_backend_that_does_not_read_loses_whole_frames_only() {
        let (mut backend, mut theirs) = passt();
        for _ in 0..1000 {
            backend.send(&[7; 1500]);
        }
        assert!(backend.outbox.len() <= OUTBOX_MAX);
        let mut received = Vec::new();
        theirs.set_nonblocking(true).unwrap();
        loop {
            let before = received.len();
            let _ = theirs.read_to_end(&mut received);
            backend.flush();
            if received.len() == before {
                break;
            }
        }
        assert!(received.len().is_multiple_of(1504) && received.len() < 1000 * 1504);
        assert!(received.chunks(1504).all(|frame| frame[..4] == 1500u32.to_be_bytes()));
    }

    #[test]
    fn a_backend_that_is_gone_is_silence() {
        let (mut backend, theirs) = passt();
        drop(theirs);
        backend.send(b"x");
        assert_eq!(backend.receive(), None);
    }
}
