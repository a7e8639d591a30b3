//! An event counter that KVM and the device loop ring for each other.
//!
//! Unsafe here because the event type KVM's wrapper takes has no borrowed-descriptor view, and the safe
//! epoll interface above wants one.
#![expect(unsafe_code, reason = "lends the descriptor inside EventFd, which lacks AsFd")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A non-blocking eventfd: rung by one side, cleared by the other.
pub struct Doorbell(pub(crate) EventFd);

impl Doorbell {
    /// A silent doorbell.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Rings. The counter saturating (2^64 - 2 rings unheard) is the only failure, and harmless: it is ringing.
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// Silences it; false if it was silent already.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }

    /// A second handle to the same counter.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by `self.0`, which the returned borrow keeps alive and open.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
