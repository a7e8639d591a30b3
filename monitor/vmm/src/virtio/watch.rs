//! An epoll instance inside the device loop's: a device changes what it waits for without the loop knowing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

/// Readable whenever a watched descriptor is what somebody wants it to be.
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `descriptor` for `flags`, or not at all if there are none: epoll reports hang-ups asked or not,
    /// and a peer that is gone must not keep the loop awake.
    pub fn want(&self, descriptor: impl AsFd, flags: EventFlags) {
        let data = EventData::new_u64(0);
        // Errors here mean the descriptor is (not) in the set already; out of memory would fail everything else too.
        let _ = match (flags.is_empty(), epoll::modify(&self.0, &descriptor, data, flags)) {
            (true, _) => epoll::delete(&self.0, &descriptor),
            (false, Err(Errno::NOENT)) => epoll::add(&self.0, &descriptor, data, flags),
            (false, other) => other,
        };
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
