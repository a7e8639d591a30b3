//! The `coffer` program, as a user runs it.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, Said};
use crate::workspace;

/// Longest a command may take; a launch in the lab is the longest.
const LIMIT: Duration = Duration::from_secs(120);

/// `coffer` with some environment.
#[derive(Clone, Default)]
pub struct Coffer {
    environment: Vec<(String, OsString)>,
}

/// What it said.
pub struct Answer {
    /// The command, for error messages.
    pub command: String,
    /// Its exit code and output.
    pub said: Said,
}

impl Coffer {
    /// Without any setting.
    pub fn plain() -> Self {
        Self::default()
    }

    /// With one more setting.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Runs a command; `more` adds arguments to it.
    pub fn run<const N: usize>(
        &self,
        words: [&str; N],
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Answer> {
        let mut command = Command::new(workspace::program("coffer")?);
        for name in [
            "COFFER_HOST",
            "COFFER_VERIFIER",
            "COFFER_CA",
            "COFFER_ADMIN_TOKEN_FILE",
            "COFFER_ENROLL_TOKEN",
        ] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        more(command.args(words));
        let said = process::run(&mut command, LIMIT)?;
        Ok(Answer { command: format!("coffer {}", words.join(" ")), said })
    }
}

impl Answer {
    /// Its output; an error if it failed.
    pub fn must(self) -> Result<String> {
        if !self.said.ok {
            bail!("`{}` failed: {}{}", self.command, self.said.out, self.said.err);
        }
        Ok(self.said.out)
    }

    /// Its output as JSON; an error if it failed.
    pub fn json(self) -> Result<serde_json::Value> {
        let command = self.command.clone();
        let text = self.must()?;
        serde_json::from_str(&text).with_context(|| format!("`{command}` printed no JSON: {text}"))
    }
}
