//! `about.json`: what booted, in which versions, and what its log therefore has to tell.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use coffer_attestation::Digest;
use serde::Serialize;

use super::boot_path::BootPath;
use super::recording::Recording;
use crate::{process, workspace};

/// Facts about a recording that do not come from its log.
#[derive(Debug, Serialize)]
pub struct About {
    path: &'static str,
    boots: &'static str,
    /// Debian packages, with versions, of what ran and what was measured.
    packages: Vec<String>,
    /// `/proc/version` of what booted.
    kernel: String,
    /// `/proc/cmdline` of what booted.
    command_line: String,
    /// Qualifying data of the quote.
    nonce: Digest,
    /// Which of the TPM's keys quotes.
    ak: &'static str,
    /// Banks and registers of the quote.
    quoted: BTreeMap<String, Vec<u8>>,
    secure_boot: SecureBoot,
    /// Digests computed from the files that booted.
    measured: Vec<Fact>,
}

#[derive(Debug, Serialize)]
struct SecureBoot {
    state: &'static str,
    seen: &'static str,
}

/// A digest that some event of a register has to have in the SHA-256 bank.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    pcr: u8,
    what: String,
    sha256: Digest,
}

impl Fact {
    /// It.
    pub fn new(pcr: u8, what: impl Into<String>, sha256: Digest) -> Self {
        Self { pcr, what: what.into(), sha256 }
    }
}

impl About {
    /// Puts it together; fails if Secure Boot was not what the path is about.
    pub fn new(
        path: BootPath,
        recording: &Recording,
        installed: &[&str],
        measured: Vec<Fact>,
    ) -> Result<Self> {
        let secure_boot = SecureBoot::of(recording.secure_boot)?;
        let on = path == BootPath::OvmfSecurebootShimGrub;
        ensure!((secure_boot.state == "on") == on, "Secure Boot is {}", secure_boot.state);
        let mut packages: Vec<String> =
            installed.iter().map(|name| version(name)).collect::<Result<_>>()?;
        packages.extend(unpacked(path)?);
        Ok(Self {
            path: path.name(),
            boots: path.title(),
            packages,
            kernel: recording.kernel.clone(),
            command_line: recording.command_line.clone(),
            nonce: path.nonce(),
            ak: match path {
                BootPath::CofferGuest => "vAK (SPEC section 10)",
                _ => "hAK (SPEC section 10)",
            },
            quoted: recording.quoted.clone(),
            secure_boot,
            measured,
        })
    }
}

impl SecureBoot {
    fn of(variable: Option<u8>) -> Result<Self> {
        let seen = "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c, read in the machine";
        Ok(match variable {
            Some(1) => Self { state: "on", seen },
            Some(0) => Self { state: "off", seen },
            None => Self { state: "none", seen: "no EFI variables: not a UEFI machine" },
            Some(other) => bail!("the variable `SecureBoot` is {other}"),
        })
    }
}

fn version(package: &str) -> Result<String> {
    let query = ["-W", "-f", "${Package} ${Version}", package];
    let said = process::run(Command::new("dpkg-query").args(query), Duration::from_secs(20))?;
    ensure!(said.ok, "`{package}` is not installed; run `cargo xtask setup`");
    Ok(said.out)
}

/// The loaders of the path that were unpacked and not installed.
fn unpacked(path: BootPath) -> Result<Vec<String>> {
    let loaders: &[&str] = match path {
        BootPath::OvmfSecurebootShimGrub => &["shim-signed", "grub-efi-amd64-signed"],
        BootPath::UkiSystemdStub => &["systemd-boot-efi"],
        BootPath::OvmfDirectKernel | BootPath::Seabios | BootPath::CofferGuest => &[],
    };
    if loaders.is_empty() {
        return Ok(Vec::new());
    }
    // Lines as sha256sum writes them, of files as apt names them: NAME_VERSION_ARCHITECTURE.deb.
    let listing = std::fs::read_to_string(workspace::boot_loaders()?.join("coffer-packages"))?;
    let find = |name: &&str| {
        let parts = |line: &str| -> Option<String> {
            let (package, rest) = line.split_once("  ")?.1.split_once('_')?;
            let version = rest.split('_').next()?;
            (package == *name).then(|| format!("{package} {version}"))
        };
        listing.lines().find_map(parts).with_context(|| format!("`{name}` is not in the cache"))
    };
    loaders.iter().map(find).collect()
}
