//! `coffer-vmm`: one sealed VM. Started by the monitor with a control socket as standard input; not for people
//! (SPEC 1.3, 6.3).
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match coffer_vmm::process::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coffer-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
