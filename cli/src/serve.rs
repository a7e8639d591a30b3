//! `coffer verifier serve`: runs the service of `coffer-verifier` until a signal ends it.
//!
//! The bound address goes to standard output, so that whoever asked for port 0 learns the port; the log
//! goes to standard error.

use std::io::IsTerminal;

use coffer_verifier::{Handle, ServeConfig, ServeError, policy_source, serve};
use tracing_subscriber::EnvFilter;

use crate::args::VerifierServeArgs;
use crate::error::Error;
use crate::output;
use crate::vm::Interrupts;

/// `coffer verifier serve`.
pub fn run(args: VerifierServeArgs) -> Result<(), Error> {
    let config = plan(args).map_err(|e| failed(&e))?;
    start_log()?;
    tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { action: "start the event loop", source })?
        .block_on(async {
            let interrupts = Interrupts::listen()?;
            let handle = serve(config).await.map_err(|e| failed(&e))?;
            output::line(handle.local_addr())?;
            until_interrupted(handle, interrupts).await
        })
}

/// The default policy stands unless policies are named; then those and no other.
fn plan(args: VerifierServeArgs) -> Result<ServeConfig, ServeError> {
    let mut config = ServeConfig::new(args.dir, args.listen);
    if !args.policies.is_empty() {
        config.policies =
            args.policies.iter().map(|p| policy_source(p)).collect::<Result<_, _>>()?;
    }
    Ok(config)
}

/// A filter that does not parse is refused: it must not silence the log.
fn start_log() -> Result<(), Error> {
    let filter = match std::env::var("COFFER_LOG") {
        Ok(text) => EnvFilter::try_new(&text).map_err(|e| {
            Error::usage(
                format!("COFFER_LOG is not a log filter: {e}"),
                "write a level such as `info` or `debug`",
            )
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    let stderr = std::io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    Ok(())
}

async fn until_interrupted(mut handle: Handle, mut interrupts: Interrupts) -> Result<(), Error> {
    let ended = tokio::select! {
        ended = handle.wait() => ended,
        () = interrupts.next() => handle.shutdown().await,
    };
    ended.map_err(|e| failed(&e))
}

fn failed(error: &ServeError) -> Error {
    Error::Verifier { message: error.to_string(), hint: error.hint().to_owned() }
}
