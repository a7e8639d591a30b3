//! What a recorded machine tells, on its way out of it, and the files it becomes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::about::About;

/// Line before a recording. Firmware and loaders write to every serial port, so it is not the first there.
const BEGIN: &str = "BEGIN COFFER RECORDING";
const END: &str = "END COFFER RECORDING";
/// Most bytes of one path's files: they are in the tree.
const FILES_MAX: usize = 100 << 10;

/// Registers of the banks, in hexadecimal, by the names Linux has for them.
pub type Banks = BTreeMap<String, BTreeMap<u8, String>>;

/// What the machine tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    #[serde(with = "hex")]
    pub log: Vec<u8>,
    #[serde(with = "hex")]
    pub attest: Vec<u8>,
    #[serde(with = "hex")]
    pub signature: Vec<u8>,
    #[serde(with = "hex")]
    pub ak: Vec<u8>,
    /// Every active bank, quoted or not.
    pub pcrs: Banks,
    /// Banks and registers of the quote's selection.
    pub quoted: BTreeMap<String, Vec<u8>>,
    /// `/proc/cmdline`.
    pub command_line: String,
    /// `/proc/version`: Debian names the package's version in it.
    pub kernel: String,
    /// The variable `SecureBoot`; none without UEFI.
    pub secure_boot: Option<u8>,
}

impl Recording {
    /// As it is printed.
    pub fn print(&self) -> Result<String> {
        Ok(format!("\n{BEGIN}\n{}\n{END}\n", serde_json::to_string_pretty(self)?))
    }

    /// Finds it among whatever else a machine printed.
    pub fn find(output: &str) -> Result<Self> {
        let output = output.replace('\r', "");
        let (_, rest) = output.split_once(&format!("\n{BEGIN}\n")).context("it told nothing")?;
        let (text, _) = rest.split_once(&format!("\n{END}\n")).context("it did not finish")?;
        serde_json::from_str(text).context("what it told does not parse")
    }

    /// Writes the files of a path.
    pub fn write(&self, folder: &Path, about: &About) -> Result<()> {
        let lines = |text: String| [text.into_bytes(), vec![b'\n']].concat();
        let files = [
            ("log.bin", self.log.clone()),
            ("quote.msg", self.attest.clone()),
            ("quote.sig", self.signature.clone()),
            ("ak.pub", self.ak.clone()),
            ("pcrs.json", lines(serde_json::to_string_pretty(&self.pcrs)?)),
            ("about.json", lines(serde_json::to_string_pretty(about)?)),
        ];
        let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        ensure!(size <= FILES_MAX, "{size} bytes are too many for the tree");
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make `{}`", folder.display()))?;
        for (name, bytes) in files {
            let path = folder.join(name);
            std::fs::write(&path, bytes)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(())
    }

    /// A few words.
    pub fn summary(&self) -> String {
        let banks: Vec<&str> = self.pcrs.keys().map(String::as_str).collect();
        format!("log of {} bytes, banks {}", self.log.len(), banks.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        Recording {
            log: vec![1, 2],
            attest: vec![3],
            signature: vec![],
            ak: vec![4],
            pcrs: Banks::new(),
            quoted: BTreeMap::new(),
            command_line: "quiet".to_owned(),
            kernel: String::new(),
            secure_boot: Some(1),
        }
    }

    #[test]
    fn is_found_behind_what_firmware_printed() {
        let printed = format!("\u{1b}[2JBooting\r\n{}", recording().print().unwrap());
        let found = Recording::find(&printed.replace('\n', "\r\n")).unwrap();
        assert_eq!((found.log, found.secure_boot), (vec![1, 2], Some(1)));
    }

    #[test]
    fn is_not_found_unless_whole() {
        let printed = recording().print().unwrap();
        assert!(Recording::find(printed.split_once(END).unwrap().0).is_err());
        assert!(Recording::find("Booting\n").is_err());
    }
}
