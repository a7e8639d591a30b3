//! Files the user names: read with a limit, written whole or not at all.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use coffer_attestation::host_reference::HostReference;

use crate::error::Error;

/// Most bytes of a reference value.
const REFERENCE_MAX: u64 = 64 << 10;

/// Reads a host reference value.
pub fn reference(path: &Path) -> Result<HostReference, Error> {
    let bytes = read(path, REFERENCE_MAX, "a host reference value")?;
    serde_json::from_slice(&bytes).map_err(|e| Error::BadFile {
        path: path.to_owned(),
        expected: "a host reference value",
        detail: e.to_string(),
        hint: "`coffer host reference` makes one".into(),
    })
}

/// Reads a file of at most `max` bytes; `expected` names what it should be.
pub fn read(path: &Path, max: u64, expected: &'static str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::file("read", path))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    if bytes.len() as u64 > max {
        return Err(Error::BadFile {
            path: path.to_owned(),
            expected,
            detail: format!("it has more than {max} bytes"),
            hint: "check that it is the file you mean".into(),
        });
    }
    Ok(bytes)
}

/// Writes a file beside its place and renames it there: a failure leaves what was there before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(Error::file("create", path))?;
    file.write_all(bytes).map_err(Error::file("write", path))?;
    file.as_file().sync_all().map_err(Error::file("write", path))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(Error::file("write", path))?;
    file.persist(path).map_err(|e| Error::File {
        action: "write",
        path: path.to_owned(),
        source: e.error,
    })?;
    Ok(())
}
