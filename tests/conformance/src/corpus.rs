//! Reads a corpus from a folder and makes its inputs.
//!
//! The folder is read as data of unknown origin: names lead nowhere outside it, sizes are bounded.

use std::fs;
use std::path::{Path, PathBuf};

use crate::case::{Case, Edit, Files, Sweep, SweepKind};
use crate::judge::Input;

/// Most bytes of a file as stored; the largest recorded log is under 200 KiB.
const STORED_MAX: u64 = 4 << 20;
/// Most bytes an edit may insert: the 100 MB log of case F21 and change.
const INSERT_MAX: usize = 128 << 20;

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The operating system refused.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("`{}`: {detail}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// How.
        detail: String,
    },
}

/// A corpus on disk.
pub struct Corpus {
    root: PathBuf,
    cases: Vec<Located>,
}

/// A case and where it lies.
#[derive(Debug, Clone)]
pub struct Located {
    /// Section: the folder above, `A` to `J` or `valid`.
    pub section: String,
    /// Name of its folder.
    pub name: String,
    /// The case.
    pub case: Case,
}

impl Corpus {
    /// Reads every `SECTION/NAME/case.json` under `root`, in order of section and name.
    pub fn open(root: &Path) -> Result<Self, CorpusError> {
        let mut cases = Vec::new();
        for section in folders(root)? {
            if section == ORIGINALS {
                continue;
            }
            for name in folders(&root.join(&section))? {
                let path = root.join(&section).join(&name).join("case.json");
                let case = serde_json::from_slice(&read(&path)?)
                    .map_err(|error| damaged(&path, error.to_string()))?;
                cases.push(Located { section: section.clone(), name, case });
            }
        }
        if cases.is_empty() {
            return Err(damaged(root, "holds no case".into()));
        }
        Ok(Self { root: root.to_owned(), cases })
    }

    /// Every case.
    pub fn cases(&self) -> &[Located] {
        &self.cases
    }

    /// The files of an original.
    pub fn original(&self, name: &str) -> Result<Files, CorpusError> {
        let folder = self.root.join(ORIGINALS).join(plain(name, &self.root)?);
        files(&folder)
    }

    /// Calls `each` with every input of a case; one, unless it is a sweep.
    pub fn inputs(
        &self,
        located: &Located,
        mut each: impl FnMut(Input),
    ) -> Result<(), CorpusError> {
        let Located { section, name, case } = located;
        let folder = self.root.join(section).join(name);
        let mut files = self.original(&case.original)?;
        apply(&mut files, &case.edits).map_err(|detail| damaged(&folder, detail))?;
        let input = |files| Input { surface: case.surface, files };
        let Some(sweep) = &case.sweep else {
            each(input(files));
            return Ok(());
        };
        let records = match &sweep.beside {
            Some(beside) => Some((beside, read(&folder.join(plain(&beside.records, &folder)?))?)),
            None => None,
        };
        for offset in sweep.from..sweep.to {
            let mut swept = files.clone();
            let step = step(&mut swept, sweep, offset).and_then(|()| {
                let Some((beside, records)) = &records else { return Some(()) };
                let start = (offset - sweep.from).checked_mul(beside.size)?;
                let record = records.get(start..start.checked_add(beside.size)?)?;
                swept.insert(beside.file.clone(), record.to_vec());
                Some(())
            });
            step.ok_or_else(|| damaged(&folder, format!("the sweep has no offset {offset}")))?;
            each(input(swept));
        }
        Ok(())
    }
}

/// Replaces bytes; offsets are those of the files as they come in.
pub fn apply(files: &mut Files, edits: &[Edit]) -> Result<(), String> {
    // From the back, so that offsets before an edit stay what they were.
    for edit in edits.iter().rev() {
        let insert = match (edit.insert.is_empty(), edit.text.is_empty()) {
            (_, true) => hex::decode(&edit.insert).map_err(|e| format!("`insert`: {e}"))?,
            (true, false) => edit.text.clone().into_bytes(),
            (false, false) => return Err("`insert` and `text` in one edit".into()),
        };
        if insert.len().saturating_mul(edit.repeat) > INSERT_MAX {
            return Err(format!("an edit of `{}` is too large", edit.file));
        }
        let file = files.entry(edit.file.clone()).or_default();
        let end = edit.at.checked_add(edit.remove).filter(|end| *end <= file.len());
        let end = end.ok_or_else(|| format!("an edit leaves the end of `{}`", edit.file))?;
        file.splice(edit.at..end, insert.repeat(edit.repeat));
    }
    Ok(())
}

fn step(files: &mut Files, sweep: &Sweep, offset: usize) -> Option<()> {
    let file = files.get_mut(&sweep.file)?;
    match sweep.kind {
        SweepKind::Truncate if offset <= file.len() => file.truncate(offset),
        SweepKind::Truncate => return None,
        SweepKind::FlipBit => *file.get_mut(offset)? ^= 1 << (offset % 8),
    }
    Some(())
}

/// Files of one folder; folders in it are left out.
pub fn files(folder: &Path) -> Result<Files, CorpusError> {
    let mut files = Files::new();
    for entry in entries(folder)? {
        let path = folder.join(&entry);
        if path.is_file() {
            files.insert(entry, read(&path)?);
        }
    }
    Ok(files)
}

fn folders(path: &Path) -> Result<Vec<String>, CorpusError> {
    Ok(entries(path)?.into_iter().filter(|name| path.join(name).is_dir()).collect())
}

fn entries(path: &Path) -> Result<Vec<String>, CorpusError> {
    let io = |source| CorpusError::Io { path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.push(name.into_string().map_err(|_| damaged(path, "a name is not UTF-8".into()))?);
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>, CorpusError> {
    let io = |source| CorpusError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > STORED_MAX {
        return Err(damaged(path, "is too large".into()));
    }
    fs::read(path).map_err(io)
}

/// A name that is one component of a path.
fn plain<'a>(name: &'a str, at: &Path) -> Result<&'a str, CorpusError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(damaged(at, format!("`{name}` is not a name of a file here")))
    }
}

fn damaged(path: &Path, detail: String) -> CorpusError {
    CorpusError::Damaged { path: path.to_owned(), detail }
}

/// Folder of the originals.
const ORIGINALS: &str = "originals";
