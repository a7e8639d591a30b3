//! The initrd of a host: programs with the libraries they need, kernel modules in load order, files, links.
//!
//! Everything is named by the caller and taken from the machine it runs on, which it trusts. The archive is
//! the same for the same inputs. Libraries keep the paths the dynamic loader reports, so it finds them again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Archive, ArchiveError, BuildError, ModuleTree, SealedArchive, tool};

/// Where modules are put.
const MODULES: &str = "coffer/modules";
/// Their file names, one a line, in load order.
const MODULE_LIST: &str = "coffer/modules.list";

/// Why a host initrd cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A module or tool is missing.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The archive cannot be made.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A program needs a library that is not installed.
    #[error("`{program}` needs the library `{library}`, which is not installed")]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// Name of the library.
        library: String,
    },
    /// A library that was asked for by name is not installed.
    #[error("the library `{0}` is not installed")]
    NoSuchLibrary(String),
    /// Modules were named, but no kernel.
    #[error("kernel modules are named, but no kernel to take them from")]
    NoKernel,
}

/// A host initrd in the making: calls gather, [`HostInitrd::write`] does the work.
#[derive(Debug, Default)]
pub struct HostInitrd<'a> {
    programs: Vec<(PathBuf, String)>,
    libraries: Vec<String>,
    files: Vec<(PathBuf, String, u32)>,
    bytes: Vec<(Vec<u8>, String, u32)>,
    directories: Vec<(String, u32)>,
    links: Vec<(String, String)>,
    tree: Option<&'a ModuleTree>,
    modules: Vec<String>,
}

/// A written host initrd.
#[derive(Debug, Clone, Serialize)]
pub struct SealedHost {
    /// Size and digest.
    pub archive: SealedArchive,
    /// File names of the modules in load order, as in `/coffer/modules.list`.
    pub modules: Vec<String>,
    /// Libraries that were added.
    pub libraries: Vec<PathBuf>,
}

impl<'a> HostInitrd<'a> {
    /// Nothing but the directories every PID 1 mounts on.
    pub fn new() -> Self {
        let directories =
            ["dev", "proc", "sys", "run", "tmp", "root"].map(|name| (name.to_owned(), 0o755));
        Self { directories: directories.into(), ..Self::default() }
    }

    /// Adds a program, mode 0755, with all libraries it is linked to.
    pub fn binary(mut self, path: impl Into<PathBuf>, dest: impl Into<String>) -> Self {
        self.programs.push((path.into(), dest.into()));
        self
    }

    /// Adds a library that a program loads by name when it runs, such as `libtss2-tcti-device.so.0`.
    pub fn library(mut self, name: impl Into<String>) -> Self {
        self.libraries.push(name.into());
        self
    }

    /// Adds a file.
    pub fn file(mut self, path: impl Into<PathBuf>, dest: impl Into<String>, mode: u32) -> Self {
        self.files.push((path.into(), dest.into(), mode));
        self
    }

    /// Adds a file with these bytes.
    pub fn data(mut self, bytes: impl Into<Vec<u8>>, dest: impl Into<String>, mode: u32) -> Self {
        self.bytes.push((bytes.into(), dest.into(), mode));
        self
    }

    /// Adds an empty directory.
    pub fn directory(mut self, dest: impl Into<String>, mode: u32) -> Self {
        self.directories.push((dest.into(), mode));
        self
    }

    /// Adds a symbolic link at `dest`.
    pub fn symlink(mut self, target: impl Into<String>, dest: impl Into<String>) -> Self {
        self.links.push((target.into(), dest.into()));
        self
    }

    /// The kernel's modules, for [`Self::module`].
    pub fn kernel_modules(mut self, tree: &'a ModuleTree) -> Self {
        self.tree = Some(tree);
        self
    }

    /// Adds a module and what it needs to `/coffer/modules`, in the order of the calls.
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }

    /// Writes the archive to `out`, which must not exist.
    pub fn write(self, out: &Path) -> Result<SealedHost, HostError> {
        let mut archive = Archive::new();
        for (dest, mode) in &self.directories {
            archive.directory(dest, *mode)?;
        }
        for (path, dest) in &self.programs {
            archive.copy(dest, 0o755, path)?;
        }
        for (path, dest, mode) in &self.files {
            archive.copy(dest, *mode, path)?;
        }
        let libraries = self.all_libraries()?;
        for path in &libraries {
            let name =
                path.to_str().ok_or_else(|| ArchiveError::Path(path.display().to_string()))?;
            archive.copy(name, 0o755, path)?;
        }
        let modules = self.add_modules(&mut archive)?;
        for (bytes, dest, mode) in self.bytes {
            archive.bytes(&dest, mode, bytes)?;
        }
        for (target, dest) in &self.links {
            archive.link(dest, target)?;
        }
        let sealed = archive.write_new(out)?;
        Ok(SealedHost { archive: sealed, modules, libraries: libraries.into_iter().collect() })
    }

    fn add_modules(&self, archive: &mut Archive) -> Result<Vec<String>, HostError> {
        let modules = match self.tree {
            Some(tree) => tree.closure(&self.modules)?,
            None if self.modules.is_empty() => Vec::new(),
            None => return Err(HostError::NoKernel),
        };
        let names: Vec<String> = modules.iter().map(|module| module.file_name.clone()).collect();
        let list: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        archive.bytes(MODULE_LIST, 0o644, list.into_bytes())?;
        archive.directory(MODULES, 0o755)?;
        for module in modules {
            archive.bytes(&format!("{MODULES}/{}", module.file_name), 0o644, module.bytes)?;
        }
        Ok(names)
    }

    fn all_libraries(&self) -> Result<BTreeSet<PathBuf>, HostError> {
        let mut found = BTreeSet::new();
        for (program, _) in &self.programs {
            found.extend(linked_libraries(program)?);
        }
        for name in &self.libraries {
            let path = find_library(name)?;
            found.extend(linked_libraries(&path)?);
            found.insert(path);
        }
        Ok(found)
    }
}

/// What the dynamic loader would load for a program, itself included; nothing for a static one.
fn linked_libraries(program: &Path) -> Result<Vec<PathBuf>, HostError> {
    // ldd wants to see a readable file, and says it in words only.
    fs::metadata(program).map_err(BuildError::input("program", program))?;
    let output = match tool::run("ldd", tool::command("ldd").arg(program)) {
        Ok(output) => output,
        // ldd's way to say "static".
        Err(BuildError::Tool { message, .. }) if message.contains("not a dynamic executable") => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.into()),
    };
    parse_ldd(&String::from_utf8_lossy(&output))
        .map_err(|library| HostError::NoLibrary { program: program.into(), library })
}

/// Paths in what ldd printed; `Err` names a library that was not found.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, path) = line.split_once(" => ").unwrap_or(("", line));
        if path.trim() == "not found" {
            return Err(name.into());
        }
        // linux-vdso has no path: the kernel brings it.
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path).trim();
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// Looks where the dynamic loader of an x86_64 Debian looks without a cache.
fn find_library(name: &str) -> Result<PathBuf, HostError> {
    [
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.is_file())
    .ok_or_else(|| HostError::NoSuchLibrary(name.into()))
}
