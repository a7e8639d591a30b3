//! A verifier on 127.0.0.1, set up and served by `coffer` itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::coffer::Coffer;
use crate::host::LabHost;
use crate::host_tpm::HostTpm;
use crate::machine::VERIFIER_ADDRESS;
use crate::process::{self, Running};
use crate::{wait, workspace};

/// The lab's TPM is software, which the default policy refuses: this one says what it gives up in its name.
pub const POLICY: &str = "policies/policies/dangerous-software-tpm.cedar";
/// The same for hosts that are none that are sealed.
pub const DEVELOPER_POLICY: &str = "policies/policies/dangerous-developer-host.cedar";

/// A verifier that runs.
pub struct Verifier {
    folder: PathBuf,
    port: u16,
    _service: Running,
}

impl Verifier {
    /// Initialises a verifier in `folder` that trusts the CAs of these software TPMs, and serves it.
    pub fn start(folder: &Path, tpms: &[&HostTpm]) -> Result<Self> {
        Self::start_under(POLICY, folder, tpms)
    }

    /// The same under another policy.
    pub fn start_under(policy: &str, folder: &Path, tpms: &[&HostTpm]) -> Result<Self> {
        let data = folder.join("verifier");
        Coffer::plain()
            .run(["verifier", "init", "--dir"], |c| {
                c.arg(&data).args(["--url", &format!("https://{VERIFIER_ADDRESS}")]).args([
                    "--name",
                    VERIFIER_ADDRESS,
                    "--name",
                    "127.0.0.1",
                ])
            })?
            .must()?;
        let roots = data.join("ek-roots/dangerous-software");
        for (at, root) in tpms.iter().flat_map(|tpm| tpm.roots()).enumerate() {
            std::fs::copy(&root, roots.join(format!("lab-{at}.pem")))
                .with_context(|| format!("cannot copy `{}`", root.display()))?;
        }
        Self::serve(policy, folder, &data)
    }

    fn serve(policy: &str, folder: &Path, data: &Path) -> Result<Self> {
        let log = folder.join("verifier.log");
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut service = Running::start(
            Command::new(workspace::program("coffer")?)
                .args(["verifier", "serve", "--listen", &format!("127.0.0.1:{port}"), "--dir"])
                .arg(data)
                .arg("--policy")
                .arg(workspace::root().join(policy)),
            &log,
        )?;
        wait::until("the verifier's answer", Duration::from_secs(15), || {
            service.must_live()?;
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        Ok(Self { folder: data.to_path_buf(), port, _service: service })
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL for programs on this machine.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its CA certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A `coffer` that talks to it as its operator.
    pub fn operator(&self) -> Coffer {
        Coffer::plain()
            .env("COFFER_VERIFIER", self.url())
            .env("COFFER_CA", self.ca())
            .env("COFFER_ADMIN_TOKEN_FILE", self.folder.join("admin-token"))
    }

    /// What image authors pin.
    pub fn pin(&self) -> Result<serde_json::Value> {
        self.operator().run(["verifier", "pin"], |c| c)?.json()
    }

    /// Makes it accept what this host booted: predicted from its files, its firmware as found.
    pub fn trust(&self, host: &LabHost, name: &str) -> Result<()> {
        let log = host.folder().join("firmware.log");
        host.event_log(&log)?;
        let reference = host.folder().join("reference.json");
        host.predict(name, &log, &reference)?;
        let trusted = self.operator().run(["verifier", "trust-host"], |c| c.arg(&reference));
        trusted?.must().map(drop)
    }

    /// Enrols the host's TPM.
    pub fn enrol(&self, host: &LabHost, name: &str) -> Result<String> {
        let operator = self.operator().env("COFFER_HOST", host.api()?);
        operator.run(["host", "enroll", "--name", name], |c| c)?.must()
    }

    /// Every decision, newest first.
    pub fn decisions(&self) -> Result<Vec<serde_json::Value>> {
        let listed = self.operator().run(["verifier", "decisions", "--json"], |c| c)?.json()?;
        let list = listed.get("decisions").cloned().unwrap_or(listed);
        serde_json::from_value(list).context("the list of decisions is not a list")
    }

    /// One decision with all its rows.
    pub fn decision(&self, id: &str) -> Result<serde_json::Value> {
        self.operator().run(["verifier", "decisions", "--json", id], |c| c)?.json()
    }

    /// The evidence of a decision, as received.
    pub fn evidence(&self, id: &str) -> Result<Vec<u8>> {
        let into = self.folder.join("evidence.download");
        let token = std::fs::read_to_string(self.folder.join("admin-token"))?;
        let status = self.curl(
            &format!("/v1/admin/decisions/{id}/evidence"),
            &[
                "-H",
                &format!("Authorization: Bearer {}", token.trim()),
                "-o",
                &into.display().to_string(),
            ],
        )?;
        ensure!(
            status.0 == 200,
            "the verifier did not give out the evidence: {} {}",
            status.0,
            status.1
        );
        let bytes = std::fs::read(&into)?;
        std::fs::remove_file(&into)?;
        Ok(bytes)
    }

    /// A fresh nonce, hex.
    pub fn challenge(&self) -> Result<String> {
        let (status, body) = self.curl("/v1/challenge", &["-X", "POST"])?;
        ensure!(status == 200, "no challenge: {status} {body}");
        let answer: serde_json::Value = serde_json::from_str(&body)?;
        Ok(answer["nonce"].as_str().context("the challenge has no nonce")?.to_owned())
    }

    /// Sends evidence as a guest would; returns the reject code.
    pub fn submit(&self, cmw: &[u8]) -> Result<String> {
        let file = self.folder.join("evidence.upload");
        std::fs::write(&file, cmw)?;
        let (status, body) = self.curl(
            "/v1/release",
            &[
                "-H",
                "Content-Type: application/cmw+cbor",
                "--data-binary",
                &format!("@{}", file.display()),
            ],
        )?;
        std::fs::remove_file(&file)?;
        if status == 200 {
            return Ok("released".to_owned());
        }
        let answer: serde_json::Value = serde_json::from_str(&body)
            .with_context(|| format!("the verifier answered {status} `{body}`"))?;
        Ok(answer["code"].as_str().unwrap_or_default().to_owned())
    }

    /// curl, which knows nothing of Coffer, with the verifier's CA as its only trust anchor.
    fn curl(&self, path: &str, more: &[&str]) -> Result<(u16, String)> {
        let said = process::run(
            Command::new("curl")
                .args(["-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"])
                .arg(self.ca())
                .args(more)
                .arg(format!("{}{path}", self.url())),
            Duration::from_secs(30),
        )?;
        ensure!(said.ok, "curl failed: {}", said.err);
        let (body, status) = said.out.rsplit_once('\n').context("curl printed no status")?;
        Ok((status.trim().parse()?, body.to_owned()))
    }
}
