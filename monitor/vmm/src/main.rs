//! `coffer-vmm`: one sealed VM. Started by the monitor with a control socket as standard input; not for people
//! (SPEC 1.3, 6.3). With the word `confine` it becomes a program that serves one VM (SPEC 6.3.1).
#![forbid(unsafe_code)]

use std::process::ExitCode;

use coffer_vmm::jail::companion;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((word, rest)) if word == companion::WORD => companion::run(rest),
        _ => coffer_vmm::process::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coffer-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
