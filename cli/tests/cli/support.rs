//! What the tests share: a folder that is compared before and after, and the two-line rule.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

/// A private folder; everything the command might leave behind would be in it.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("create folders");
        std::fs::write(&path, content).expect("write a file");
        path
    }

    /// `coffer`, with its temporary files in this folder and none of the caller's settings.
    pub fn coffer(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.current_dir(self.dir.path()).env("TMPDIR", self.dir.path()).env("COLUMNS", "100");
        for name in [
            "COFFER_HOST",
            "COFFER_VERIFIER",
            "COFFER_CA",
            "COFFER_TLS_CA",
            "COFFER_TLS_CERT",
            "COFFER_TLS_KEY",
            "COFFER_ADMIN_TOKEN_FILE",
            "COFFER_ENROLL_TOKEN",
        ] {
            command.env_remove(name);
        }
        command.timeout(std::time::Duration::from_secs(120));
        command
    }

    /// Every path below, with the content of files.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(self.dir.path(), &mut found);
        found
    }

    /// Runs it and checks that it is refused in two lines and leaves nothing behind.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> Refusal {
        let before = self.snapshot();
        let output = self.coffer().args(args).output().expect("coffer starts");
        let refusal = Refusal::of(&output);
        assert!(self.snapshot() == before, "something was left behind or changed");
        refusal
    }
}

fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry")) {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.insert(entry.path(), b"folder".to_vec());
            collect(&entry.path(), found);
        } else if kind.is_file() {
            found.insert(entry.path(), std::fs::read(entry.path()).expect("a file"));
        } else {
            found.insert(entry.path(), b"other".to_vec());
        }
    }
}

/// What a refused command said.
#[derive(Debug)]
pub struct Refusal {
    pub code: i32,
    pub error: String,
    pub hint: String,
}

impl Refusal {
    /// Checks the form: nothing on standard output but what came before, two lines on standard error.
    #[track_caller]
    pub fn of(output: &Output) -> Self {
        let said = String::from_utf8(output.stderr.clone()).expect("UTF-8");
        let lines: Vec<_> = said.lines().collect();
        let [error, hint] = lines.as_slice() else { panic!("not two lines: {said}") };
        let error = error.strip_prefix("error: ").expect("an error line");
        let hint = hint.strip_prefix("hint: ").expect("a hint line");
        assert!(!hint.is_empty() && !error.ends_with('.'), "{said}");
        assert!(!error.contains("os error"), "{said}");
        assert!(!error.starts_with(|c: char| c.is_ascii_uppercase()), "{said}");
        let code = output.status.code().expect("no signal");
        Self { code, error: error.to_owned(), hint: hint.to_owned() }
    }

    /// Checks what it says.
    #[track_caller]
    pub fn says(&self, code: i32, error: &str, hint: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.error.contains(error), "{self:?}");
        assert!(self.hint.contains(hint), "{self:?}");
    }
}

/// Standard output of a command that must succeed.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("coffer starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
