//! What demo and tests share: a verifier with a secret, an appliance and its forgeries, a host.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::appliance::{self, Image, PAGE, Part, SITE_KEY_ID, SITE_NAME, SiteKey};
use crate::host::{LabConfig, LabHost};
use crate::host_tpm::HostTpm;
use crate::initrd::Extras;
use crate::needle::{self, Needle};
use crate::process;
use crate::verifier::Verifier;
use crate::workdir::Workdir;

/// Port of the host at which the site is published.
pub const PUBLISHED: u16 = 8443;
/// Name the host has at the verifier.
pub const HOST_NAME: &str = "lab-a";

/// Everything but the host itself.
pub struct Scene {
    /// Where it all is; dropped last.
    pub workdir: Workdir,
    /// The host's TPM.
    pub tpm: HostTpm,
    /// The verifier.
    pub verifier: Verifier,
    /// The site's key: the secret.
    pub key: SiteKey,
    /// A key that is on the host, for the search to find.
    pub decoy: PathBuf,
    /// The site.
    pub site: Image,
    /// The same root file system sealed again with another command line.
    pub resealed: Image,
    /// Folder that becomes the hosts' image store.
    pub images: PathBuf,
    /// Id of the decision `last_refusal` told last.
    counted: RefCell<String>,
}

impl Scene {
    /// Makes TPM, verifier, key.
    pub fn prepare() -> Result<Stage> {
        let workdir = Workdir::new()?;
        let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
        let verifier = Verifier::start(&workdir.folder("verifier-side")?, &[&tpm])?;
        let operator = workdir.folder("operator")?;
        let key = SiteKey::make(&operator)?;
        let decoy = operator.join("decoy.pem");
        needle::make_key(&decoy)?;
        Ok(Stage { workdir, tpm, verifier, key, decoy })
    }

    /// Gives the verifier the secret, for the site's image alone.
    pub fn put_secret(&self) -> Result<()> {
        self.verifier
            .operator()
            .run(["secret", "put", SITE_KEY_ID], |c| {
                c.arg("--from-file").arg(&self.key.key).args(["--image", &self.site.id])
            })?
            .must()
            .map(drop)
    }

    /// Boots a host with the scene's TPM and image store.
    pub fn boot_host(&self, name: &str, marker: Option<&str>) -> Result<LabHost> {
        self.boot_host_with(name, self.config(marker))
    }

    /// What an ordinary host gets.
    pub fn config(&self, marker: Option<&str>) -> LabConfig {
        let (decoy, marker) = (Some(self.decoy.clone()), marker.map(str::to_owned));
        LabConfig { extras: Extras { decoy, marker, ..Extras::default() }, ..LabConfig::default() }
    }

    /// The same with what `config` says beside TPM, images and verifier.
    pub fn boot_host_with(&self, name: &str, config: LabConfig) -> Result<LabHost> {
        let config = LabConfig {
            images: Some(self.images.clone()),
            publish: [PUBLISHED].into_iter().chain(config.publish).collect(),
            verifier_port: Some(self.verifier.port()),
            ..config
        };
        LabHost::boot(&self.workdir.path().join(name), &self.tpm, &config)
    }

    /// Makes the verifier accept what this host booted: predicted from its files, its firmware as found.
    pub fn trust(&self, host: &LabHost, name: &str) -> Result<()> {
        self.verifier.trust(host, name)
    }

    /// Enrols the host's TPM.
    pub fn enrol(&self, host: &LabHost, name: &str) -> Result<String> {
        self.verifier.enrol(host, name)
    }

    /// Fetches the site's page through the published port, as a visitor who checks the certificate.
    pub fn fetch(&self, host: &LabHost) -> Result<String> {
        let port = host.port(PUBLISHED)?;
        let said = process::run(
            Command::new("curl")
                .args(["-sS", "--fail", "--max-time", "15", "--retry", "10", "--retry-all-errors"])
                .args(["--retry-delay", "1", "--resolve", &format!("{SITE_NAME}:{port}:127.0.0.1")])
                .arg("--cacert")
                .arg(&self.key.certificate)
                .arg(format!("https://{SITE_NAME}:{port}/")),
            Duration::from_secs(60),
        )?;
        ensure!(said.ok, "the page cannot be fetched: {}", said.err.trim());
        ensure!(said.out.contains(PAGE), "the page is not the site's: {}", said.out);
        Ok(said.out)
    }

    /// The newest decision of a kind, with all its rows.
    pub fn last_release(&self) -> Result<serde_json::Value> {
        let decisions = self.verifier.decisions()?;
        let newest = decisions
            .iter()
            .find(|d| d["kind"] == "release")
            .context("the verifier has decided on no release")?;
        self.verifier.decision(newest["id"].as_str().context("a decision without id")?)
    }

    /// The verifier's own reason for its newest decision on a release; `released` if it refused nothing. Each
    /// decision counts once: an earlier refusal for the same reason must not stand in for one that was never made.
    pub fn last_refusal(&self) -> Result<String> {
        let decision = self.last_release()?;
        let id = decision["id"].as_str().unwrap_or_default().to_owned();
        ensure!(self.counted.replace(id.clone()) != id, "the verifier has decided nothing since");
        match (decision["allowed"].as_bool(), decision["code"].as_str()) {
            (Some(true), None) => Ok("released".to_owned()),
            (Some(false), Some(code)) => Ok(code.to_owned()),
            _ => bail!("a decision that makes no sense: {decision}"),
        }
    }

    /// The secret key's forms, and the decoy's.
    pub fn needles(&self) -> Result<(Needle, Needle)> {
        Ok((Needle::of(&self.key.key)?, Needle::of(&self.decoy)?))
    }
}

/// The scene before its images are built.
pub struct Stage {
    workdir: Workdir,
    tpm: HostTpm,
    verifier: Verifier,
    key: SiteKey,
    decoy: PathBuf,
}

impl Stage {
    /// Builds the site, its resealed twin and its forgeries.
    pub fn build_images(self) -> Result<Scene> {
        let pin = self.verifier.pin()?;
        let rootfs = self.workdir.path().join("rootfs");
        appliance::site_rootfs(&rootfs, &self.key.certificate)?;
        let images = self.workdir.folder("images")?;
        let site =
            appliance::build(&appliance::site_recipe(&pin, &[]), &rootfs, &images.join("site"))?;
        let resealed = appliance::build(
            &appliance::site_recipe(&pin, &["loglevel=4"]),
            &rootfs,
            &images.join("resealed"),
        )?;
        for (part, name) in FORGERIES {
            site.tampered(part, &images.join(name))?;
        }
        let Self { workdir, tpm, verifier, key, decoy } = self;
        Ok(Scene {
            workdir,
            tpm,
            verifier,
            key,
            decoy,
            site,
            resealed,
            images,
            counted: RefCell::default(),
        })
    }
}

/// Forged images and their names in the store.
pub const FORGERIES: [(Part, &str); 3] = [
    (Part::RootFs, "forged-rootfs"),
    (Part::Initrd, "forged-initrd"),
    (Part::Cmdline, "forged-cmdline"),
];
