//! What the workload finds: its scratch directories, a complete `/dev`, its environment.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use coffer_image::appliance::Workload;
use coffer_pid1::{mount_device_directories, mount_tmpfs};

use crate::Failure;
use crate::secrets::SECRETS_PATH;

/// What a program may expect if the image says nothing else.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Kernel file systems and what the agent keeps: nothing is mounted over or below them.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run/coffer"];

/// Prepares the running root, which is the image's, for the workload.
pub fn prepare(workload: &Workload) -> Result<(), Failure> {
    mount_device_directories()?;
    for directory in &workload.tmpfs {
        let target = scratch_target(Path::new(directory))?;
        mount_tmpfs(&target, scratch_mode(&target))?;
    }
    Ok(())
}

/// The workload's environment: as declared, with a `PATH` if it declares none.
pub fn environment(workload: &Workload) -> Vec<String> {
    environment_of(&workload.env)
}

/// The same for a program of the root file system that is not the workload.
pub fn environment_of(declared: &[String]) -> Vec<String> {
    let mut env = declared.to_vec();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.into());
    }
    env
}

/// Where a scratch directory is mounted.
pub fn scratch_target(directory: &Path) -> Result<PathBuf, Failure> {
    mount_target("tmpfs", directory)
}

/// Resolves the image's symbolic links (`/var/run` is one) and refuses a directory that would hide the secrets, the
/// kernel's file systems or the root. `what` names it in errors.
pub fn mount_target(what: &str, directory: &Path) -> Result<PathBuf, Failure> {
    let target = resolve(directory)
        .map_err(|error| Failure::Workload(format!("{what} `{}`: {error}", directory.display())))?;
    let hides = Path::new(SECRETS_PATH).starts_with(&target);
    let reserved = RESERVED.iter().any(|reserved| target.starts_with(reserved));
    if hides || reserved {
        let (from, to) = (directory.display(), target.display());
        return Err(Failure::Workload(format!(
            "{what} `{from}` leads to `{to}`, which is reserved"
        )));
    }
    Ok(target)
}

/// Resolves what exists of a path and appends the rest.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // A dangling link is found, but leads nowhere: appending its name would follow it at mount time.
            if path.is_symlink() {
                return Err(error);
            }
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(resolve(parent)?.join(name)),
                _ => Err(error),
            }
        }
        result => result,
    }
}

fn scratch_mode(target: &Path) -> u32 {
    match target.to_str() {
        Some("/tmp" | "/var/tmp") => 0o1777,
        _ => 0o755,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_cannot_hide_secrets_or_the_kernel() {
        for path in ["/", "/run", "/run/coffer", "/run/coffer/secrets", "/run/coffer/secrets/x"] {
            assert!(scratch_target(Path::new(path)).is_err(), "{path}");
        }
        for path in ["/proc", "/sys/kernel", "/dev/coffer"] {
            assert!(scratch_target(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(scratch_target(Path::new("/tmp")).unwrap(), Path::new("/tmp"));
        assert_eq!(scratch_target(Path::new("/nowhere/a/b")).unwrap(), Path::new("/nowhere/a/b"));
    }

    #[test]
    fn a_link_to_a_reserved_directory_is_followed_and_refused() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("run");
        std::os::unix::fs::symlink("/run", &link).unwrap();
        let error = scratch_target(&link).unwrap_err();
        assert!(error.to_string().contains("leads to `/run`, which is reserved"), "{error}");
        // The same through a parent, and a link that dangles.
        assert!(scratch_target(&link.join("coffer/new")).is_err());
        let dangling = directory.path().join("dangling");
        std::os::unix::fs::symlink("/run/coffer/later", &dangling).unwrap();
        assert!(scratch_target(&dangling).is_err());
    }

    #[test]
    fn the_environment_is_what_was_declared_and_a_path() {
        let mut workload =
            Workload { argv: vec![], env: vec!["A=b".into()], tmpfs: vec![], restart: false };
        assert_eq!(environment(&workload), ["A=b", DEFAULT_PATH]);
        workload.env = vec!["PATH=/x".into()];
        assert_eq!(environment(&workload), ["PATH=/x"]);
    }
}
