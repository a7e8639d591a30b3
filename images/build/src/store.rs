//! An image in a folder or in a tar. Monitors read folders only; tars are for people who inspect and verify.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use coffer_image::blob::Blob;
use coffer_image::layout::{Folder, Layout, LayoutError, Store};

/// Most entries of a tar: an image has ten or so.
const ENTRIES_MAX: usize = 4096;

/// Opens an image wherever it is.
pub fn open_image(path: &Path) -> Result<Layout<AnyStore>, LayoutError> {
    let open = |source| LayoutError::Open { path: path.into(), source };
    let store = match std::fs::metadata(path).map_err(open)?.is_dir() {
        true => AnyStore::Folder(Folder::open(path)?),
        false => AnyStore::Tar(TarStore::open(path)?),
    };
    Layout::from_store(store)
}

/// A folder or a tar.
#[derive(Debug)]
pub enum AnyStore {
    /// A folder.
    Folder(Folder),
    /// A tar.
    Tar(TarStore),
}

impl Store for AnyStore {
    fn open(&self, what: &str, name: &str) -> Result<Blob, LayoutError> {
        match self {
            Self::Folder(store) => store.open(what, name),
            Self::Tar(store) => store.open(what, name),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(store) => store.path(),
            Self::Tar(store) => store.path(),
        }
    }
}

/// A layout in a tar: where each plain file begins and how long it is. Nothing is unpacked.
#[derive(Debug)]
pub struct TarStore {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    File {
        start: u64,
        size: u64,
    },
    /// A link, a directory, or a name used twice: which of the two is meant, tools disagree.
    NotPlain,
}

impl TarStore {
    /// Lists the archive.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let file =
            File::open(path).map_err(|source| LayoutError::Open { path: path.into(), source })?;
        let entries = list(&file).map_err(|_| LayoutError::NotALayout(path.into()))?;
        Ok(Self { path: path.into(), file, entries })
    }
}

impl Store for TarStore {
    fn open(&self, what: &str, name: &str) -> Result<Blob, LayoutError> {
        let (what, name) = (what.to_owned(), name.to_owned());
        match self.entries.get(&name) {
            None => Err(LayoutError::Missing { what, name }),
            Some(Place::NotPlain) => Err(LayoutError::NotPlain { what, name }),
            Some(Place::File { start, size }) => {
                let file =
                    self.file.try_clone().map_err(|source| LayoutError::Read { what, source })?;
                Ok(Blob::new(file, *start, *size))
            }
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn list(file: &File) -> io::Result<BTreeMap<String, Place>> {
    let mut archive = tar::Archive::new(file);
    let mut entries = BTreeMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?;
        let plain: Option<Vec<&str>> = path
            .components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| part.as_os_str().to_str())
            .collect();
        let name = plain.unwrap_or_default().join("/");
        let place = match entry.header().entry_type() {
            tar::EntryType::Regular => {
                Place::File { start: entry.raw_file_position(), size: entry.size() }
            }
            _ => Place::NotPlain,
        };
        entries.entry(name).and_modify(|old| *old = Place::NotPlain).or_insert(place);
        if entries.len() > ENTRIES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(entries)
}
