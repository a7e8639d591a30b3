//! Waiting with a limit.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` until it answers or `limit` has passed. An error of `probe` ends the wait.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come in {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
