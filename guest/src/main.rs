//! The program: run the stages in order; whatever happens, the machine ends powered off.
#![forbid(unsafe_code)]

use coffer_init::boot;

fn main() {
    if std::process::id() != 1 {
        // Everything below mounts over and deletes its root: on a running system that is a disaster.
        eprintln!("coffer-init: this is PID 1 of an appliance; it cannot be run by hand");
        std::process::exit(2);
    }
    boot::run_and_power_off();
}
