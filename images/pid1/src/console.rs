//! Standard input, output and error of PID 1.

use std::fs::OpenOptions;
use std::path::Path;

use crate::Error;

/// Points standard output and error at `/dev/console` and standard input at `/dev/null`.
///
/// A closed box without a console has no `/dev/console` to open (ENODEV): output then goes to `/dev/null`.
/// Standard input is never the console: nobody types at a sealed machine.
pub fn become_console() -> Result<(), Error> {
    let null_path = Path::new("/dev/null");
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let null = open(null_path).map_err(Error::file("open", null_path))?;
    let output = match open(Path::new("/dev/console")) {
        Ok(console) => console,
        Err(_) => null.try_clone().map_err(Error::file("open", null_path))?,
    };
    let fail = Error::file("use", Path::new("/dev/console"));
    nix::unistd::dup2_stdin(&null).map_err(&fail)?;
    nix::unistd::dup2_stdout(&output).map_err(&fail)?;
    nix::unistd::dup2_stderr(&output).map_err(&fail)
}
