//! `cargo xtask bench verify`: a program of its own, since it counts allocations and nothing else should.
#![forbid(unsafe_code)]

use std::alloc::System;
use std::process::ExitCode;

use clap::Parser;
use coffer_lab::bench::verify;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[derive(Parser)]
struct Cli {
    /// Turns of each loop
    #[arg(long, default_value_t = 20)]
    rounds: u32,
}

fn main() -> ExitCode {
    match verify::run(Cli::parse().rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
