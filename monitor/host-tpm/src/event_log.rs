//! The firmware's event log of the host. It carries no trust of its own: the verifier replays it to the
//! quoted PCRs. Absence is an error with a name, never an empty log.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use coffer_formats::evidence::EVENT_LOG_MAX;

use crate::HostTpmError;

/// Where Linux shows it.
pub const DEFAULT_PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// Reads the log.
pub fn read(path: &Path) -> Result<Vec<u8>, HostTpmError> {
    let failed = |reason: String| HostTpmError::EventLog(path.to_owned(), reason);
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut log = Vec::new();
    // One byte more than allowed shows that there is more; securityfs files have no length to ask for.
    file.take(EVENT_LOG_MAX as u64 + 1).read_to_end(&mut log).map_err(|e| failed(e.to_string()))?;
    match log.len() {
        0 => Err(failed("it is empty".into())),
        n if n > EVENT_LOG_MAX => Err(failed(format!("it is larger than {EVENT_LOG_MAX} bytes"))),
        _ => Ok(log),
    }
}
