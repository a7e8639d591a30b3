//! The program: run the stages in order; whatever happens, the machine ends powered off. Under the name `coffer-guest` it
//! is the workload's way to the agent.
#![forbid(unsafe_code)]

use std::path::Path;

use coffer_init::{boot, program};

fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    if std::process::id() != 1 && Path::new(&name).ends_with("coffer-guest") {
        std::process::exit(program::run(arguments));
    }
    if std::process::id() != 1 {
        // Everything below mounts over and deletes its root: on a running system that is a disaster.
        eprintln!("coffer-init: this is PID 1 of an appliance; it cannot be run by hand");
        std::process::exit(2);
    }
    boot::run_and_power_off();
}
