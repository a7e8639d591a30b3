//! A tap device of the host as the network of a VM: frames go where the operator plugged it in (SPEC 6.6).
//!
//! It is attached here, once, and handed over as a descriptor. What it trusts: the kernel's rules of who may use or make
//! one. What it refuses: a device somebody uses already.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::launch_error::LaunchError;

/// Attaches to a tap device. One that was there is left as its owner set it up; one that is made goes up, and ends with
/// the descriptor.
pub fn open(name: &str) -> Result<OwnedFd, LaunchError> {
    let unusable = |why: &str, hint| LaunchError::Tap(name.into(), why.into(), hint);
    let tun = File::options().read(true).write(true).open("/dev/net/tun").map_err(|e| {
        let why = format!("needs /dev/net/tun, which does not open: {e}");
        unusable(&why, "load the module `tun`, and let the monitor open its device")
    })?;
    let there = nix::net::if_::if_nametoindex(name).is_ok();
    coffer_machine::attach_tap(tun.as_fd(), name).map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::PERM) if there => unusable("is another user's", MAKE_IT),
        Some(Errno::PERM) => unusable("is not there, and the monitor may not make it", MAKE_IT),
        Some(Errno::BUSY) => unusable("is in use", "use another: one tap device serves one VM"),
        Some(Errno::INVAL) => unusable("is no tap device with one queue", MAKE_IT),
        _ => unusable(&format!("cannot be used: {e}"), MAKE_IT),
    })?;
    if !there {
        coffer_pid1::network::link_up(name)
            .map_err(|e| unusable(&format!("does not go up: {e}"), MAKE_IT))?;
    }
    Ok(tun.into())
}

const MAKE_IT: &str =
    "make it with `ip tuntap add NAME mode tap user USER`, for the monitor's user";
