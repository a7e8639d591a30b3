//! Makes an open `/dev/net/tun` the user of one tap device.
//!
//! Unsafe because TUNSETIFF has no safe wrapper among the crates we build on, and those that have one bring a runtime
//! or routes of their own along.
#![expect(unsafe_code, reason = "TUNSETIFF takes a raw structure")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attaches `tun` to the tap device `name`, which is made if it is not there: whole Ethernet frames, nothing before them.
pub fn attach_tap(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: a structure of integers, for which all zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One with a NUL after it, and no pattern: the kernel would choose, as it does for an empty name.
    if !(1..request.ifr_name.len()).contains(&name.len()) || name.contains(['\0', '%']) {
        return Err(io::Error::other("no interface has such a name"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open while it is borrowed, and the structure is the one TUNSETIFF reads and writes.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
