//! The lab host's TPM 2.0: a swtpm whose EK certificate comes from a CA that lives in the lab's folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, Running};
use crate::wait;

/// State of a host TPM; outlives reboots of the host.
pub struct HostTpm {
    folder: PathBuf,
}

impl HostTpm {
    /// Makes a TPM with its EK certificates, in `folder`.
    pub fn manufacture(folder: &Path) -> Result<Self> {
        Self::manufacture_with_banks(folder, "sha256")
    }

    /// The same with these banks active, such as `sha1,sha256`.
    pub fn manufacture_with_banks(folder: &Path, banks: &str) -> Result<Self> {
        let (state, ca) = (folder.join("state"), folder.join("ca"));
        for path in [&state, &ca] {
            std::fs::create_dir_all(path)
                .with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        let (setup, options, local) =
            (ca.join("setup.conf"), ca.join("options"), ca.join("localca.conf"));
        let at = ca.display();
        std::fs::write(
            &local,
            format!(
                "statedir = {at}\nsigningkey = {at}/signkey.pem\nissuercert = {at}/issuercert.pem\n\
                 certserial = {at}/certserial\n"
            ),
        )?;
        std::fs::write(
            &options,
            "--platform-manufacturer Coffer\n--platform-version 1.0\n--platform-model Lab\n",
        )?;
        std::fs::write(
            &setup,
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\n\
                 create_certs_tool_options = {}\nactive_pcr_banks = {banks}\n",
                local.display(),
                options.display()
            ),
        )?;
        let said = process::run(
            Command::new("swtpm_setup")
                .args(["--tpm2", "--create-ek-cert", "--create-platform-cert", "--lock-nvram"])
                .args(["--pcr-banks", banks])
                .arg("--tpmstate")
                .arg(&state)
                .arg("--config")
                .arg(&setup),
            Duration::from_secs(60),
        )?;
        ensure!(said.ok, "`swtpm_setup` failed: {}{}", said.out, said.err);
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Starts it for one boot; it ends when QEMU closes its end.
    pub(crate) fn power_on(&self) -> Result<Running> {
        let (state, socket) = (self.folder.join("state"), self.socket());
        // A socket left by the boot before would look like one that answers.
        let _ = std::fs::remove_file(&socket);
        let mut swtpm = Running::start(
            Command::new("swtpm")
                .args(["socket", "--tpm2", "--terminate"])
                .arg("--tpmstate")
                .arg(format!("dir={}", state.display()))
                .arg("--ctrl")
                .arg(format!("type=unixio,path={}", socket.display())),
            &self.folder.join("swtpm.log"),
        )?;
        wait::until("the host TPM's socket", Duration::from_secs(10), || {
            swtpm.must_live()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(swtpm)
    }

    /// Socket QEMU controls it by.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    /// Certificates of the CA that signed its EK certificate.
    pub fn roots(&self) -> [PathBuf; 2] {
        let ca = self.folder.join("ca");
        [ca.join("swtpm-localca-rootca-cert.pem"), ca.join("issuercert.pem")]
    }
}
