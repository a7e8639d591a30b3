//! Waiting for a device node: polling in steps that start at a fraction of a millisecond.
//!
//! Drivers probe inside `finit_module` and devtmpfs makes nodes synchronously, so the first look nearly
//! always succeeds; what is left is probing that a driver put off to a work queue.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;

/// First pause between looks; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// Longest pause between looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// Returns as soon as `path` exists, or fails after `timeout`.
pub fn wait_for_path(path: &Path, timeout: Duration) -> Result<(), Error> {
    wait_for_any(&[path], timeout).map(|_| ())
}

/// Returns the first of `paths` that exists, preferring earlier ones, or fails after `timeout`.
pub fn wait_for_any<'a>(paths: &[&'a Path], timeout: Duration) -> Result<&'a Path, Error> {
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = paths.iter().find(|path| path.exists()) {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let path = paths.first().map(|path| path.to_path_buf()).unwrap_or_default();
            return Err(Error::Timeout { path, millis: timeout.as_millis() });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_at_once_what_exists() {
        let start = Instant::now();
        wait_for_path(Path::new("/"), Duration::from_secs(5)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn finds_what_appears_later() {
        let path = std::env::temp_dir().join(format!("coffer-wait-{}", std::process::id()));
        let late = path.clone();
        let maker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(late, b"").unwrap();
        });
        wait_for_path(&path, Duration::from_secs(10)).unwrap();
        maker.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn gives_up_and_names_the_path() {
        let error = wait_for_path(Path::new("/nowhere/vda"), Duration::from_millis(3)).unwrap_err();
        assert_eq!(error.to_string(), "`/nowhere/vda` did not appear within 3 ms");
    }
}
