//! Kernel modules: finding them, what they need, and in which order they load.
//!
//! Debian's packages hold no `modules.dep` (it is made when a package is installed), so dependencies are read
//! from the modules themselves: `depends` and `softdep: pre` of `.modinfo`. Nothing is executed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{BuildError, elf, tool};

/// The modules of one kernel: a folder like `lib/modules/6.1.0-56-cloud-amd64`.
#[derive(Debug)]
pub struct ModuleTree {
    /// Files by module name, `-` written as `_`.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module to load.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its file name without compression suffix, such as `virtio_blk.ko`.
    pub file_name: String,
    /// Its bytes, uncompressed.
    pub bytes: Vec<u8>,
}

impl ModuleTree {
    /// Lists the modules below `directory`.
    pub fn open(directory: &Path) -> Result<Self, BuildError> {
        let mut files = BTreeMap::new();
        list(directory, &mut files).map_err(BuildError::input("kernel modules", directory))?;
        let path = directory.join("modules.builtin");
        let built_in = match fs::read_to_string(&path) {
            Ok(text) => text.lines().filter_map(|line| module_name(Path::new(line))).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(BuildError::input("list of built-in modules", &path)(error)),
        };
        Ok(Self { files, built_in })
    }

    /// The modules named and all they need, each after what it needs. Built-in ones are left out.
    pub fn closure<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<Module>, BuildError> {
        let mut search = Search { tree: self, seen: BTreeSet::new(), order: Vec::new() };
        names.iter().try_for_each(|name| search.add(&normal(name.as_ref())))?;
        Ok(search.order)
    }

    /// True if a module of that name is built into the kernel.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&normal(name))
    }
}

fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // `build` and `source` are symbolic links out of the folder.
        if entry.file_type()?.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.entry(name).or_insert(path);
        }
    }
    Ok(())
}

/// The name of the module in a file; the kernel takes `-` and `_` for the same.
fn module_name(path: &Path) -> Option<String> {
    Some(normal(uncompressed_name(path)?.strip_suffix(".ko")?))
}

fn uncompressed_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(".xz").unwrap_or(name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Depth first, dependencies before dependents.
struct Search<'a> {
    tree: &'a ModuleTree,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Search<'_> {
    fn add(&mut self, name: &str) -> Result<(), BuildError> {
        if self.tree.built_in.contains(name) || !self.seen.insert(name.into()) {
            return Ok(());
        }
        let path = self.tree.files.get(name).ok_or_else(|| BuildError::NoModule(name.into()))?;
        let module = read(path)?;
        let info = elf::module_info(&module.bytes)
            .map_err(|why| BuildError::BadModule { path: path.clone(), why })?;
        for (key, value) in &info {
            match key.as_str() {
                "depends" => {
                    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                    names.map(normal).try_for_each(|name| self.add(&name))?;
                }
                "softdep" => self.add_soft(value)?,
                _ => {}
            }
        }
        self.order.push(module);
        Ok(())
    }

    /// `pre: a b post: c`. A soft dependency may be missing: here it is wanted only as a module of that very
    /// name. (libcrc32c's `crc32c` is an algorithm that Debian's kernels have built in.)
    fn add_soft(&mut self, text: &str) -> Result<(), BuildError> {
        let mut before = false;
        for word in text.split_ascii_whitespace() {
            match word {
                "pre:" => before = true,
                "post:" => before = false,
                name if before && self.tree.files.contains_key(&normal(name)) => {
                    self.add(&normal(name))?
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Module, BuildError> {
    let bytes = match path.extension().is_some_and(|extension| extension == "xz") {
        true => tool::run("xz", tool::command("xz").arg("-dc").arg("--").arg(path))?,
        false => fs::read(path).map_err(BuildError::input("kernel module", path))?,
    };
    let file_name = uncompressed_name(path).unwrap_or_default().to_owned();
    Ok(Module { file_name, bytes })
}
