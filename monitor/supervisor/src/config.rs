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

    /// The registers that have to be as they are for the vault's key: on a sealed host all that say what was booted; on
    /// another the state of Secure Boot, since its kernels come and go and are nobody's promise.
    pub fn sealed_to(self) -> &'static [u8] {
        match self {
            Self::Sealed => &[0, 2, 3, 4, 7, 9],
            Self::Developer => &[7],
        }
    }
}

/// Flags as typed.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    plain: Config,
    /// The host's TPM: `device:/dev/tpmrm0` or `swtpm:host=H,port=P`. Without it `/dev/tpmrm0`, if there is one.
    #[arg(long)]
    tcti: Option<String>,
    /// Also serve the API on a TCP address, over TLS, to clients with a certificate.
    #[arg(long, requires_all = ["tls_cert", "tls_key", "client_ca"])]
    tls_listen: Option<SocketAddr>,
    /// Certificate chain of the API, PEM.
    #[arg(long, requires = "tls_listen")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "tls_listen")]
    tls_key: Option<PathBuf>,
    /// CA of those who may use the API, PEM: whoever has a certificate of it manages this host.
    #[arg(long, requires = "tls_listen")]
    client_ca: Option<PathBuf>,
}

/// What `serve` does: flags that hold as they are typed, once they are checked, and what is made of the others.
#[derive(Debug, Clone, Args)]
pub struct Config {
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
    /// Folder of the host's sealed store: volumes, and what guests seal. Without it there is none.
    #[arg(long)]
    pub vault: Option<PathBuf>,
    /// Keeps the store's key and counter in files: whoever has the folder reads it, and turns it back.
    #[arg(long, requires = "vault")]
    pub dangerously_software_vault: bool,
    /// Release key of the verifier that permits what changes whom the store opens for, an uncompressed point in hex.
    #[arg(long, requires = "vault", value_name = "HEX", value_parser = coffer_vault::release_key)]
    pub vault_verifier: Option<[u8; 65]>,
    /// Flushes a second that each volume and each vTPM keeps up for long; 3000 more may be saved up. Each writes to the
    /// NV memory of the host's TPM, which wears out.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub flushes_per_second: u32,
    /// Moves a second of the TPM's counter that all of them keep up together; 10,000 more may be saved up. Flushes that
    /// wait share one.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub counter_moves_per_second: u32,
    /// The coffer-vmm program.
    #[arg(long, default_value = "/usr/bin/coffer-vmm")]
    pub vmm: PathBuf,
    /// The swtpm program.
    #[arg(long, default_value = "/usr/bin/swtpm")]
    pub swtpm: PathBuf,
    /// The passt program.
    #[arg(long, default_value = "/usr/bin/passt")]
    pub passt: PathBuf,
    /// The firmware's event log.
    #[arg(long, default_value = event_log::DEFAULT_PATH)]
    pub host_event_log: PathBuf,
    /// What this host claims to be; a verifier believes the PCRs, not this.
    #[arg(long, value_enum, default_value = "developer")]
    pub profile: Profile,
    /// Also serve the API on a TCP address, without authentication: whoever reaches it manages this host.
    #[arg(long)]
    pub dangerously_listen_tcp: Option<SocketAddr>,
    /// The host's TPM, if there is one.
    #[arg(skip)]
    pub tcti: Option<Tcti>,
    /// Where and as whom the API is served over TLS, if it is.
    #[arg(skip)]
    pub tls: Option<Tls>,
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
    /// A vault is the TPM's, and that is a device, or says that it is nobody's.
    #[error("--vault: the host's TPM is no device")]
    VaultTpm,
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
            Self::VaultTpm => {
                "name a TPM device with --tcti, or try things out with --dangerously-software-vault"
            }
        }
    }
}

impl ServeArgs {
    /// Checks the flags.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let mut config = self.plain;
        let Config { socket, state, images, vault, vmm, swtpm, passt, .. } = &config;
        let programs = [("--vmm", vmm), ("--swtpm", swtpm), ("--passt", passt)];
        let paths = [("--socket", socket), ("--state", state), ("--images", images)];
        let vault = vault.iter().map(|path| ("--vault", path));
        for (flag, path) in paths.into_iter().chain(vault).chain(programs) {
            if !path.is_absolute() {
                return Err(ConfigError::NotAbsolute(flag, path.clone()));
            }
        }
        if let Some((flag, path)) = programs.into_iter().find(|(_, path)| !path.is_file()) {
            return Err(ConfigError::NoProgram(flag, path.clone()));
        }
        // Of a sealed host the TPM is a part, and its driver may come later than these flags.
        if config.profile == Profile::Developer
            && let Some(device) = self.tcti.as_deref().and_then(|t| t.strip_prefix("device:/"))
            && !Path::new("/").join(device).exists()
        {
            return Err(ConfigError::NoTpm(format!("/{device}")));
        }
        let tcti = self.tcti.as_deref().map(str::parse).transpose()?;
        config.tcti = tcti.or_else(|| default_tcti(config.profile));
        let device = config.tcti.as_ref().is_some_and(|tcti| tcti.device().is_some());
        let software = config.dangerously_software_vault;
        if config.profile == Profile::Sealed && (!device || software) {
            return Err(ConfigError::SoftwareTpm);
        }
        if config.vault.is_some() && !device && !software {
            return Err(ConfigError::VaultTpm);
        }
        config.tls = match (self.tls_listen, &self.tls_cert, &self.tls_key, &self.client_ca) {
            (Some(listen), Some(certificate), Some(key), Some(client_ca)) => {
                let tls = Tls::load(listen, certificate, key, client_ca);
                Some(tls.map_err(|e| ConfigError::Tls(e.to_string()))?)
            }
            _ => None,
        };
        Ok(config)
    }
}

/// A sealed host always asks for its TPM, so that its absence is an error; a developer's may have none.
fn default_tcti(profile: Profile) -> Option<Tcti> {
    const DEVICE: &str = "/dev/tpmrm0";
    let wanted = profile == Profile::Sealed || Path::new(DEVICE).exists();
    wanted.then(|| format!("device:{DEVICE}").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// As typed, with programs that are there on every machine where none is named.
    fn typed(more: &[&str]) -> Result<ServeArgs, clap::Error> {
        let programs = ["--vmm=/bin/true", "--swtpm=/bin/true", "--passt=/bin/true"];
        let programs = programs.iter().filter(|p| !more.iter().any(|flag| p.starts_with(flag)));
        Typed::try_parse_from(["serve"].iter().chain(programs).chain(more)).map(|typed| typed.args)
    }

    /// What the flags are refused for, if they are.
    #[track_caller]
    fn check(more: &[&str], expected: Result<(), &str>) {
        let config = typed(more).unwrap().resolve();
        let said = config.map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(said, expected.map_err(str::to_owned), "{more:?}");
    }

    #[test]
    fn flags_that_are_in_order_hold_as_typed() {
        let config = typed(&["--tcti", "swtpm:host=::1,port=7"]).unwrap().resolve().unwrap();
        assert_eq!(config.vmm, Path::new("/bin/true"));
        assert!(config.tcti.is_some_and(|tcti| tcti.is_software()));
        assert!(config.tls.is_none() && config.dangerously_listen_tcp.is_none());
    }

    #[test]
    fn a_vault_is_the_hosts_tpms_or_says_that_it_is_nobodys() {
        let (vault, swtpm) = (["--vault", "/vault"], ["--tcti", "swtpm:host=127.0.0.1,port=2321"]);
        let device = ["--tcti", "device:/dev/null"];
        let refusal = Err("--vault: the host's TPM is no device");
        check(&[&vault[..], &swtpm].concat(), refusal);
        check(&[&vault[..], &swtpm, &["--dangerously-software-vault"]].concat(), Ok(()));
        check(&[&vault[..], &device].concat(), Ok(()));
        let software = ["--profile", "sealed", "--dangerously-software-vault"];
        let refusal = Err("a sealed host cannot use a software TPM");
        check(&[&vault[..], &device, &software].concat(), refusal);
        check(&[&vault[..], &device, &software[..2]].concat(), Ok(()));
    }

    #[test]
    fn flags_that_contradict_the_machine_or_each_other_are_refused() {
        check(&[], Ok(()));
        check(&["--tcti", "device:/dev/null"], Ok(()));
        check(&["--tcti", "device:/dev/absent"], Err("--tcti: there is no `/dev/absent`"));
        let software = "swtpm:host=127.0.0.1,port=2321";
        check(&["--tcti", software], Ok(()));
        let refusal = "a sealed host cannot use a software TPM";
        check(&["--profile", "sealed", "--tcti", software], Err(refusal));
        // Its driver may come later than the flags.
        check(&["--profile", "sealed", "--tcti", "device:/dev/absent"], Ok(()));
        for flag in ["--socket", "--state", "--images", "--vmm", "--swtpm", "--passt"] {
            let refusal = format!("`{flag}`: `some/where` is not an absolute path");
            check(&[flag, "some/where"], Err(&refusal));
        }
        for flag in ["--vmm", "--swtpm", "--passt"] {
            let refusal = format!("`{flag}`: no program at `/absent`");
            check(&[flag, "/absent"], Err(&refusal));
        }
    }
}
