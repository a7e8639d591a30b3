//! The flags of `coffer-monitor serve`, and the checked plan made of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use coffer_host_tpm::{HostTpmError, Tcti, event_log};

use crate::tls::Tls;

/// Who vouches for this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Our own measured image, with no other way in than the API.
    Sealed,
    /// Any Linux. Evidence says so; verifiers refuse it unless a policy names it.
    Developer,
}

impl Profile {
    /// As it stands in host claims.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Developer => "developer",
        }
    }
}

/// Flags as typed.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Unix socket of the API.
    #[arg(long, default_value = "/run/coffer/monitor.sock")]
    pub socket: PathBuf,
    /// Directory for what lives as long as a VM; one monitor each.
    #[arg(long, default_value = "/run/coffer/monitor")]
    pub state: PathBuf,
    /// Image store: images may be named relative to it.
    #[arg(long, default_value = "/var/lib/coffer/images")]
    pub images: PathBuf,
    /// Folder whose files and block devices open boxes may have as raw disks.
    #[arg(long, default_value = "/var/lib/coffer/disks")]
    pub disks: PathBuf,
    /// The coffer-vmm program.
    #[arg(long, default_value = "/usr/bin/coffer-vmm")]
    pub vmm: PathBuf,
    /// The swtpm program.
    #[arg(long, default_value = "/usr/bin/swtpm")]
    pub swtpm: PathBuf,
    /// The passt program.
    #[arg(long, default_value = "/usr/bin/passt")]
    pub passt: PathBuf,
    /// The host's TPM: `device:/dev/tpmrm0` or `swtpm:host=H,port=P`. Without it `/dev/tpmrm0`, if there is one.
    #[arg(long)]
    pub tcti: Option<String>,
    /// The firmware's event log.
    #[arg(long, default_value = event_log::DEFAULT_PATH)]
    pub host_event_log: PathBuf,
    /// What this host claims to be; a verifier believes the PCRs, not this.
    #[arg(long, value_enum, default_value = "developer")]
    pub profile: Profile,
    /// Also serve the API on a TCP address, over TLS, to clients with a certificate.
    #[arg(long, requires_all = ["tls_cert", "tls_key", "client_ca"])]
    pub tls_listen: Option<SocketAddr>,
    /// Certificate chain of the API, PEM.
    #[arg(long, requires = "tls_listen")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "tls_listen")]
    pub tls_key: Option<PathBuf>,
    /// CA of those who may use the API, PEM: whoever has a certificate of it manages this host.
    #[arg(long, requires = "tls_listen")]
    pub client_ca: Option<PathBuf>,
    /// Also serve the API on a TCP address, without authentication: whoever reaches it manages this host.
    #[arg(long)]
    pub dangerously_listen_tcp: Option<SocketAddr>,
}

/// Why flags make no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A flag's program that is not there.
    #[error("`{0}`: no program at `{1}`")]
    NoProgram(&'static str, PathBuf),
    /// A flag's path that must be absolute: children run elsewhere.
    #[error("`{0}`: `{1}` is not an absolute path")]
    NotAbsolute(&'static str, PathBuf),
    /// A TPM address that is not spoken.
    #[error("--tcti: {0}")]
    Tcti(#[from] HostTpmError),
    /// A device that was named and is not there: the TPM library would say so in no words at all.
    #[error("--tcti: there is no `{0}`")]
    NoTpm(String),
    /// Certificates or a key that cannot be used.
    #[error("--tls-listen: {0}")]
    Tls(String),
    /// A sealed host without a hardware TPM is a contradiction.
    #[error("a sealed host cannot use a software TPM")]
    SoftwareTpm,
}

impl ConfigError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoProgram(flag, _) => match *flag {
                "--swtpm" => "install the package `swtpm` or name the program with --swtpm",
                "--passt" => "install the package `passt` or name the program with --passt",
                _ => "build coffer-vmm or name the program with --vmm",
            },
            Self::Tcti(error) => error.hint(),
            Self::NoTpm(_) => "name the TPM's device, or leave --tcti out if the host has none",
            Self::NotAbsolute(..) => "give the path from the root",
            Self::Tls(_) => "name PEM files with a chain, its key, and the CA of the clients",
            Self::SoftwareTpm => "use --profile developer, or a TPM device",
        }
    }
}

/// What `serve` does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Socket of the API.
    pub socket: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// Image store.
    pub images: PathBuf,
    /// Folder of raw disks.
    pub disks: PathBuf,
    /// coffer-vmm.
    pub vmm: PathBuf,
    /// swtpm.
    pub swtpm: PathBuf,
    /// passt.
    pub passt: PathBuf,
    /// Host TPM.
    pub tcti: Option<Tcti>,
    /// Event log.
    pub host_event_log: PathBuf,
    /// Profile.
    pub profile: Profile,
    /// TCP address.
    pub tcp: Option<SocketAddr>,
    /// The same for whoever has a certificate.
    pub tls: Option<Tls>,
}

impl ServeArgs {
    /// Checks the flags.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let paths =
            [("--socket", &self.socket), ("--state", &self.state), ("--images", &self.images)];
        for (flag, path) in paths {
            absolute(flag, path)?;
        }
        for (flag, path) in
            [("--vmm", &self.vmm), ("--swtpm", &self.swtpm), ("--passt", &self.passt)]
        {
            absolute(flag, path)?;
            if !path.is_file() {
                return Err(ConfigError::NoProgram(flag, path.clone()));
            }
        }
        // Of a sealed host the TPM is a part, and its driver may come later than these flags.
        if self.profile == Profile::Developer
            && let Some(device) = self.tcti.as_deref().and_then(|t| t.strip_prefix("device:/"))
            && !Path::new("/").join(device).exists()
        {
            return Err(ConfigError::NoTpm(format!("/{device}")));
        }
        let tcti = self
            .tcti
            .as_deref()
            .map(str::parse)
            .transpose()?
            .or_else(|| default_tcti(self.profile));
        if self.profile == Profile::Sealed && tcti.as_ref().is_none_or(Tcti::is_software) {
            return Err(ConfigError::SoftwareTpm);
        }
        let tls = match (self.tls_listen, &self.tls_cert, &self.tls_key, &self.client_ca) {
            (Some(listen), Some(certificate), Some(key), Some(client_ca)) => {
                let tls = Tls::load(listen, certificate, key, client_ca);
                Some(tls.map_err(|e| ConfigError::Tls(e.to_string()))?)
            }
            _ => None,
        };
        Ok(Config {
            socket: self.socket,
            state: self.state,
            images: self.images,
            disks: self.disks,
            vmm: self.vmm,
            swtpm: self.swtpm,
            passt: self.passt,
            tcti,
            host_event_log: self.host_event_log,
            profile: self.profile,
            tcp: self.dangerously_listen_tcp,
            tls,
        })
    }
}

fn absolute(flag: &'static str, path: &Path) -> Result<(), ConfigError> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(ConfigError::NotAbsolute(flag, path.into())),
    }
}

/// A sealed host always asks for its TPM, so that its absence is an error; a developer's may have none.
fn default_tcti(profile: Profile) -> Option<Tcti> {
    const DEVICE: &str = "/dev/tpmrm0";
    let wanted = profile == Profile::Sealed || Path::new(DEVICE).exists();
    wanted.then(|| format!("device:{DEVICE}").parse().ok()).flatten()
}
