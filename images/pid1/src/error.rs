//! One error for every step of PID 1: which step, on what, and what the kernel said.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why PID 1 cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file system could not be mounted or moved.
    #[error("cannot mount `{}`: {source}", target.display())]
    Mount {
        /// Mount point.
        target: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A file system could not be unmounted.
    #[error("cannot unmount `{}`: {source}", target.display())]
    Unmount {
        /// Mount point.
        target: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A file or directory could not be made, read, copied or removed.
    #[error("cannot {step} `{}`: {source}", path.display())]
    File {
        /// Verb: `create`, `open`, `copy`, `remove`, `read`.
        step: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A kernel module could not be loaded.
    #[error("cannot load module `{}`: {source}", path.display())]
    Module {
        /// Module file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A module name that would leave its directory.
    #[error("module name `{name}` is not a plain file name")]
    ModuleName {
        /// The name.
        name: String,
    },
    /// The network could not be configured.
    #[error("cannot {step} on `{interface}`: {source}")]
    Network {
        /// What was being done.
        step: &'static str,
        /// Interface.
        interface: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A device or file did not appear.
    #[error("`{}` did not appear within {millis} ms", path.display())]
    Timeout {
        /// What was waited for.
        path: PathBuf,
        /// How long.
        millis: u128,
    },
    /// The root could not be switched.
    #[error("cannot {step} while changing the root to `{}`: {source}", path.display())]
    Root {
        /// What was being done.
        step: &'static str,
        /// New root.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A child could not be started or waited for.
    #[error("cannot {step} `{program}`: {source}")]
    Child {
        /// `start`, `wait for`, `signal`.
        step: &'static str,
        /// Program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn mount(target: &Path) -> impl Fn(Errno) -> Self + '_ {
        move |source| Self::Mount { target: target.into(), source }
    }

    pub(crate) fn file<E: Into<std::io::Error>>(
        step: &'static str,
        path: &Path,
    ) -> impl Fn(E) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { step, path: path.clone(), source: source.into() }
    }

    pub(crate) fn root<'a>(step: &'static str, path: &'a Path) -> impl Fn(Errno) -> Self + 'a {
        move |source| Self::Root { step, path: path.into(), source }
    }
}
