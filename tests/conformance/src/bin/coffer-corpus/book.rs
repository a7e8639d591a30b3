//! Collects originals and cases, and writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use coffer_conformance::case::{Case, Expect, Files, Surface, Sweep};
use coffer_conformance::corpus;

use crate::diff;

pub struct Book {
    root: PathBuf,
    originals: BTreeMap<String, Files>,
    /// Paths below the root.
    out: BTreeMap<PathBuf, Vec<u8>>,
}

/// What a case is about, before its edits are known.
pub struct About<'a> {
    pub id: &'a str,
    pub slug: &'a str,
    pub title: &'a str,
    pub mutation: &'a str,
    pub resigned: bool,
    pub source: &'a [&'a str],
}

impl Book {
    /// Reads the recorded originals.
    pub fn open(root: &Path) -> Result<Self> {
        let mut originals = BTreeMap::new();
        let folder = root.join("originals");
        let entries = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let files = corpus::files(&entry.path())?;
            // What `mutate` made of another original is made again.
            if !files.contains_key(DERIVED) {
                originals.insert(entry.file_name().into_string().unwrap(), files);
            }
        }
        Ok(Self { root: root.into(), originals, out: BTreeMap::new() })
    }

    #[track_caller]
    pub fn original(&self, name: &str) -> Files {
        self.originals.get(name).unwrap_or_else(|| panic!("no original `{name}`")).clone()
    }

    /// Adds an original made of others.
    pub fn derive(&mut self, name: &str, from: &str, mut files: Files) {
        files.insert(DERIVED.into(), format!("{from}\n").into_bytes());
        for (file, bytes) in &files {
            self.out.insert(Path::new("originals").join(name).join(file), bytes.clone());
        }
        self.originals.insert(name.into(), files);
    }

    /// Adds a case that has to be refused with `code`.
    #[track_caller]
    pub fn refuse(
        &mut self,
        surface: Surface,
        original: &str,
        code: &str,
        about: &About<'_>,
        mutate: impl FnOnce(&mut Files),
    ) {
        self.add(surface, original, Expect::Reject(code.into()), about, mutate);
    }

    /// Adds a case that has to be accepted.
    #[track_caller]
    pub fn accept(
        &mut self,
        surface: Surface,
        original: &str,
        about: &About<'_>,
        mutate: impl FnOnce(&mut Files),
    ) {
        self.add(surface, original, Expect::Accept(true), about, mutate);
    }

    #[track_caller]
    fn add(
        &mut self,
        surface: Surface,
        original: &str,
        expect: Expect,
        about: &About<'_>,
        mutate: impl FnOnce(&mut Files),
    ) {
        let before = self.original(original);
        let mut after = before.clone();
        mutate(&mut after);
        let edits = diff::files(&before, &after);
        assert!(
            !edits.is_empty() || about.id.starts_with('V'),
            "{} {} changes nothing",
            about.id,
            about.slug
        );
        let mut check = before;
        corpus::apply(&mut check, &edits).unwrap();
        check.retain(|name, file| !file.is_empty() || after.contains_key(name));
        assert!(check == after, "{} {}: the edits do not make it", about.id, about.slug);
        self.case(about, surface, original, edits, None, expect);
    }

    /// Adds a case of one input for each offset.
    pub fn sweep(
        &mut self,
        surface: Surface,
        original: &str,
        code: &str,
        about: &About<'_>,
        sweep: Sweep,
        records: Vec<u8>,
    ) {
        if let Some(beside) = &sweep.beside {
            self.out.insert(folder(about).join(&beside.records), records);
        }
        self.case(about, surface, original, vec![], Some(sweep), Expect::Reject(code.into()));
    }

    #[track_caller]
    fn case(
        &mut self,
        about: &About<'_>,
        surface: Surface,
        original: &str,
        edits: Vec<coffer_conformance::case::Edit>,
        sweep: Option<Sweep>,
        expect: Expect,
    ) {
        let case = Case {
            id: about.id.into(),
            title: about.title.into(),
            surface,
            original: original.into(),
            mutation: about.mutation.into(),
            edits,
            sweep,
            resigned: about.resigned,
            expect,
            source: about.source.iter().map(|s| (*s).to_owned()).collect(),
        };
        let mut text = serde_json::to_vec_pretty(&case).unwrap();
        text.push(b'\n');
        let path = folder(about).join("case.json");
        assert!(self.out.insert(path, text).is_none(), "{} {} twice", about.id, about.slug);
    }

    /// Adds a file beside the cases.
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) {
        self.out.insert(path.into(), bytes);
    }

    /// Every case, in the order of its path.
    pub fn cases(&self) -> Vec<(String, Case)> {
        let case = |(path, bytes): (&PathBuf, &Vec<u8>)| {
            let case = serde_json::from_slice(bytes).ok()?;
            Some((path.parent()?.to_str()?.to_owned(), case))
        };
        let cases = self.out.iter().filter(|(path, _)| path.ends_with("case.json"));
        cases.filter_map(case).collect()
    }

    /// Writes everything and removes cases nobody makes any more.
    pub fn write(&self) -> Result<()> {
        for path in self.stale()? {
            fs::remove_file(&path)?;
            if let Some(folder) = path.parent() {
                // Fails while other files are in it.
                let _ = fs::remove_dir(folder);
            }
        }
        for (path, bytes) in &self.out {
            let path = self.root.join(path);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(&path, bytes)?;
        }
        println!("{} files", self.out.len());
        Ok(())
    }

    /// Files that are not what was made, or that nothing made.
    pub fn differing(&self) -> Result<Vec<PathBuf>> {
        let mut differing = self.stale()?;
        for (path, bytes) in &self.out {
            let path = self.root.join(path);
            if fs::read(&path).ok().as_ref() != Some(bytes) {
                differing.push(path);
            }
        }
        Ok(differing)
    }

    fn stale(&self) -> Result<Vec<PathBuf>> {
        let mut stale = Vec::new();
        for section in fs::read_dir(&self.root)? {
            let section = section?.path();
            if !section.is_dir() {
                continue;
            }
            for folder in fs::read_dir(section)? {
                let folder = folder?.path();
                let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
                let recorded = folder.parent().unwrap().ends_with("originals")
                    && self.originals.contains_key(&name);
                for file in fs::read_dir(&folder)? {
                    let file = file?.path();
                    let made = self.out.contains_key(file.strip_prefix(&self.root).unwrap());
                    if !made && !recorded {
                        stale.push(file);
                    }
                }
            }
        }
        Ok(stale)
    }
}

/// `A/A01-bad-magic`.
fn folder(about: &About<'_>) -> PathBuf {
    let (section, number) = about.id.split_at(1);
    let number: u32 = number.parse().unwrap();
    let name = format!("{section}{number:02}-{}", about.slug);
    let section = if section == "V" { "valid" } else { section };
    Path::new(section).join(name)
}

/// Marks a derived original; holds the name of what it was derived from.
const DERIVED: &str = "derived-from.txt";
