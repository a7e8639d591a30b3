//! Kernel modules, by file, in the order given: no dependency search, no aliases, no parameters.

use std::fs::File;
use std::path::{Component, Path};

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::Error;

/// MODULE_INIT_COMPRESSED_FILE (linux/module.h): the kernel unpacks the module itself.
const COMPRESSED: i32 = 4;

/// Loads the modules `names` below `directory`, in that order.
pub fn load_modules<S: AsRef<str>>(directory: &Path, names: &[S]) -> Result<(), Error> {
    names.iter().try_for_each(|name| load_module(&module_path(directory, name.as_ref())?))
}

/// The path of a module; refuses names that would leave the directory.
pub fn module_path(directory: &Path, name: &str) -> Result<std::path::PathBuf, Error> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(directory.join(name)),
        _ => Err(Error::ModuleName { name: name.into() }),
    }
}

/// Loads one module. One that is loaded already is no error.
///
/// Returns when the module's init has run, so devices it drives have been probed.
pub fn load_module(path: &Path) -> Result<(), Error> {
    let fail = |source: std::io::Error| Error::Module { path: path.into(), source };
    let file = File::open(path).map_err(fail)?;
    match finit_module(&file, c"", flags_for(path)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(fail(errno.into())),
    }
}

/// Forbids loading any further module until the machine is off. A kernel without the switch has no modules.
pub fn forbid_more() -> Result<(), Error> {
    let path = Path::new("/proc/sys/kernel/modules_disabled");
    match std::fs::write(path, "1") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::file("write", path)),
    }
}

fn flags_for(path: &Path) -> i32 {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz" | "zst" | "gz") => COMPRESSED,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_leave_the_directory() {
        for name in ["", ".", "..", "../a.ko", "/a.ko", "a/b.ko", "a.ko/", "a.ko/."] {
            let result = module_path(Path::new("/m"), name);
            assert!(matches!(result, Err(Error::ModuleName { .. })), "{name:?} was taken");
        }
        assert_eq!(module_path(Path::new("/m"), "a.ko").unwrap(), Path::new("/m/a.ko"));
    }

    #[test]
    fn names_the_missing_module() {
        let error = load_modules(Path::new("/nowhere"), &["virtio.ko"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot load module `/nowhere/virtio.ko`: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn asks_the_kernel_to_unpack_compressed_modules() {
        assert_eq!(flags_for(Path::new("a.ko")), 0);
        assert_eq!(flags_for(Path::new("a.ko.xz")), COMPRESSED);
    }
}
