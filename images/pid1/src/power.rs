//! The only two ways out of a sealed machine.

use rustix::system::{RebootCommand, reboot as reboot_system};

/// Writes out file systems and powers the machine off.
///
/// Returns only if the kernel refuses, which happens when the caller lacks CAP_SYS_BOOT.
pub fn power_off() -> Result<std::convert::Infallible, std::io::Error> {
    leave(RebootCommand::PowerOff)
}

/// Writes out file systems and restarts the machine.
pub fn reboot() -> Result<std::convert::Infallible, std::io::Error> {
    leave(RebootCommand::Restart)
}

/// Powers off, and if even that fails ends the process: the kernel panics when PID 1 ends, and `panic=`
/// on the measured command line says what then. Either way nothing keeps running.
pub fn power_off_or_die() -> ! {
    match power_off() {
        Ok(never) => match never {},
        Err(_) => std::process::exit(1),
    }
}

/// From here on a panic in any thread prints its message and powers the machine off.
///
/// A half-dead PID 1 would be a machine that runs without the one who decides when it must stop.
pub fn halt_on_panic(name: &'static str) {
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{name}: {info}");
        power_off_or_die();
    }));
}

fn leave(command: RebootCommand) -> Result<std::convert::Infallible, std::io::Error> {
    rustix::fs::sync();
    match reboot_system(command) {
        // reboot(2) returns only with an error for these commands; PID 1 of a namespace is killed instead.
        Ok(()) => Err(std::io::Error::other("the kernel returned from reboot")),
        Err(errno) => Err(errno.into()),
    }
}
