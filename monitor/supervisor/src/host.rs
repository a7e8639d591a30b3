//! What the supervisor holds for the whole host.

use std::sync::Arc;

use coffer_formats::InstanceId;
use coffer_formats::claims::VaultClaim;
use coffer_host_tpm::{HostTpm, HostTpmError, Tcti};
use coffer_monitor_wire::api::HostInfo;
use coffer_services::endorsement::{Endorsements, Link};
use coffer_services::{Services, ek_certificate::VtpmAuthority};
use coffer_vault::{Root, Vault, VaultError};
use coffer_vtpm::Walls;

use crate::group::{GroupError, Groups};
use crate::host_claims::{HostFacts, MONITOR_VERSION};
use crate::state::{StateDir, StateError};
use crate::vtpm_pool::{Maker, VtpmPool};
use crate::{
    boot_files::BootFiles, config::Config, evidence::host_link, history::History,
    process::spawn_apart, registry::Registry, uid,
};

/// The host.
pub struct Host {
    /// Flags.
    pub config: Config,
    /// VMs.
    pub registry: Arc<Registry>,
    /// vTPMs, and the state directory they lie in.
    pub vtpms: VtpmPool,
    /// Control groups of VMs; why there are none.
    pub groups: Result<Groups, GroupError>,
    /// What was launched from before.
    pub boot_files: BootFiles,
    /// The host's TPM, if there is one.
    pub tpm: Option<HostTpm>,
    vault: Result<Vault, String>,
    endorsements: Arc<Endorsements>,
    facts: HostFacts,
}

/// Why the host cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// State directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// What an earlier monitor kept.
    #[error("cannot read what is kept of VMs: {0}")]
    History(std::io::Error),
    /// swtpm does not run.
    #[error("`{0}` does not run: {1}")]
    Swtpm(String, std::io::Error),
    /// Host TPM.
    #[error(transparent)]
    Tpm(#[from] HostTpmError),
    /// CAs of vTPMs and of guests' keys.
    #[error("cannot make a CA: {0}")]
    Authority(String),
    /// The path of this program, which the TPM keeper runs too.
    #[error("cannot find this program: {0}")]
    Program(std::io::Error),
}

impl Host {
    /// Takes the state directory, starts the TPM keeper, looks around.
    pub fn open(config: Config) -> Result<Arc<Self>, HostError> {
        let state = StateDir::open(&config.state)?;
        let swtpm_version = coffer_vtpm::version(&config.swtpm)
            .map_err(|e| HostError::Swtpm(config.swtpm.display().to_string(), e))?;
        let vault = open_vault(&config);
        let claim = vault.as_ref().ok().map(|vault| VaultClaim {
            id: InstanceId(vault.id()),
            transport_key: vault.transport_key(),
        });
        let facts = HostFacts::gather(config.profile.as_str(), swtpm_version, claim);
        let (history, known) = History::open(&config.state).map_err(HostError::History)?;
        let registry = Arc::new(Registry::open(history, known));
        let tpm = match &config.tcti {
            None => None,
            Some(tcti) => {
                let program = std::env::current_exe().map_err(HostError::Program)?;
                let tpm = HostTpm::start(&program, tcti, &config.host_event_log)?;
                let (name, facts, registry) = (tpm.ak_name(), facts.clone(), Arc::clone(&registry));
                tpm.set_claims(Arc::new(move || {
                    facts.claims(name, registry.live(), registry.launch_log_head()).encode()
                }));
                Some(tpm)
            }
        };
        let confiner = config.vmm.clone();
        let maker = Maker {
            program: config.swtpm.clone(),
            walls: Box::new(move || {
                let (confiner, uid) = (confiner.clone(), uid::next()?);
                Ok(Walls::Around { confiner, uid, spawn: spawn_apart })
            }),
            state,
            authority: VtpmAuthority::new().map_err(HostError::Authority)?,
        };
        let vtpms = VtpmPool::new(maker);
        // A machine that runs no VM needs none.
        let groups = Groups::open(&config.images);
        let link = tpm.clone().map(|tpm| -> Link { Box::new(move |leaf| host_link(&tpm, leaf)) });
        let endorsements = Endorsements::new(link).map_err(HostError::Authority)?;
        Ok(Arc::new(Self {
            config,
            registry,
            vtpms,
            groups,
            boot_files: BootFiles::default(),
            tpm,
            vault,
            endorsements: Arc::new(endorsements),
            facts,
        }))
    }

    /// The host's sealed store.
    pub fn vault(&self) -> Result<Vault, VaultError> {
        self.vault.clone().map_err(VaultError::NoVault)
    }

    /// What one VM's guest may ask for.
    pub fn services(&self) -> Services {
        Services {
            vault: self.vault.clone(),
            endorsements: Arc::clone(&self.endorsements),
            pace: Arc::default(),
        }
    }

    /// For the API.
    pub fn info(&self) -> HostInfo {
        HostInfo {
            monitor_version: MONITOR_VERSION.into(),
            profile: self.facts.profile.into(),
            kernel_release: self.facts.kernel_release.clone(),
            nested_paging: self.facts.nested_paging.into(),
            swtpm_version: self.facts.swtpm_version.clone(),
            hak_name: self.tpm.as_ref().map(|tpm| tpm.ak_name().to_hex()),
            live_vms: self.registry.live(),
            ready_vtpms: self.vtpms.ready(),
        }
    }
}

/// A host whose vault does not open serves what needs none, and says why to whoever wants it.
fn open_vault(config: &Config) -> Result<Vault, String> {
    let folder = config.vault.as_ref().ok_or("this host keeps no sealed store")?;
    let root = match config.tcti.as_ref().and_then(Tcti::device) {
        Some(device) if !config.dangerously_software_vault => {
            Root::device(device, config.profile.sealed_to())
        }
        _ => Ok(Root::DangerouslySoftware),
    };
    let vault = root.and_then(|root| Vault::open_under(folder, root, config.vault_verifier));
    let vault = vault.inspect(|vault| {
        vault.set_flushes_per_second(config.flushes_per_second);
        vault.set_moves_per_second(config.counter_moves_per_second);
    });
    vault.map_err(|error| {
        let said = format!("{}: {error}", error.code());
        tracing::error!(%said, hint = error.hint(), "the vault does not open");
        said
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

    use std::time::{Duration, Instant};

    use clap::Parser;
    use coffer_formats::{Digest, launch::BoxKind};
    use coffer_vault::{AttachedDisk, Identity, NewKind, NewVolume, Owner, VtpmState};

    use super::*;
    use crate::config::ServeArgs;

    /// Files in memory.
    const MEMORY: &str = "/dev/shm";

    #[derive(Parser)]
    struct Served {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// The vault of a monitor that is served with these flags more. In memory where there is room: each move is flushed,
    /// and thousands on a disk take half a minute.
    fn served(more: &[&str]) -> (tempfile::TempDir, Vault) {
        let room = rustix::fs::statvfs(MEMORY).map_or(0, |it| it.f_bavail * it.f_frsize);
        let folder = if room > 1 << 30 { MEMORY.into() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(folder).unwrap();
        let vault = folder.path().join("vault").to_str().unwrap().to_owned();
        let programs = ["--vmm=/bin/true", "--swtpm=/bin/true", "--passt=/bin/true"];
        let kept = ["serve", "--dangerously-software-vault", "--vault", &vault];
        let words = [&kept[..], &programs, more].concat();
        let config = Served::try_parse_from(words).unwrap().args.resolve().unwrap();
        let vault = open_vault(&config).unwrap();
        (folder, vault)
    }

    fn attached(vault: &Vault) -> VtpmState {
        let (name, kind, owner) = ("tpm".to_owned(), NewKind::Vtpm, Owner::Open);
        vault.create_volume(&NewVolume { name, kind, owner, verifier_key: None }).unwrap();
        let (box_kind, image_id) = (BoxKind::Open, Digest::ZERO);
        let user = Identity { box_kind, image_id, signer: None, svn: 0 };
        match vault.attach("tpm", &user).unwrap().disk {
            AttachedDisk::Vtpm(state) => state,
            _ => panic!("no vTPM's"),
        }
    }

    /// Moves the counter as often as may be saved up, and more often than one a second makes up for since: what those that
    /// are more took.
    fn beyond_what_was_saved(flags: &[&str]) -> Duration {
        let (_folder, vault) = served(flags);
        let state = attached(&vault);
        let start = Instant::now();
        (0..3000).for_each(|_| state.store(&[1; 9]).unwrap());
        let made_up_for = start.elapsed().as_secs() + 1;
        let start = Instant::now();
        (0..made_up_for + 4).for_each(|_| state.store(&[2; 9]).unwrap());
        start.elapsed()
    }

    #[test]
    fn what_the_flag_says_of_moves_is_the_vaults_pace() {
        let every = |flags: &[&str]| served(flags).1.moves_every();
        assert_eq!(every(&[]), Duration::from_millis(100));
        assert_eq!(every(&["--counter-moves-per-second", "2"]), Duration::from_millis(500));
    }

    #[test]
    fn what_the_flag_says_of_flushes_is_the_vaults_pace() {
        let held_up = Duration::from_secs(3);
        let (slow, ordinary) =
            (beyond_what_was_saved(&["--flushes-per-second", "1"]), beyond_what_was_saved(&[]));
        assert!(slow >= held_up, "{slow:?}");
        assert!(ordinary < slow, "{ordinary:?}, {slow:?}");
    }
}
