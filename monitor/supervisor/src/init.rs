//! PID 1 of a sealed host (SPEC 1.2): sets the machine up as `/etc/coffer/host.json` in the measured initrd
//! says, runs `serve` as its one service, reaps, and powers off when that ends. There is no shell, no login,
//! and no way in but the API.
//!
//! `serve` is a child, not PID 1 itself: reaping whatever ends up with PID 1 must not take away the exit
//! statuses the supervisor waits for.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, time::Duration};

use anyhow::{Context, bail};
use coffer_pid1::Cgroups;
use coffer_pid1::children::{reap, spawn_session};
use serde::{Deserialize, Serialize};

/// Where the configuration is.
pub const HOST_CONFIG: &str = "/etc/coffer/host.json";
/// Where this program is. Fixed: after the root has moved, `/proc/self/exe` names a file that is gone.
pub const PROGRAM: &str = "/usr/bin/coffer-monitor";
/// Where kernel modules are.
pub const MODULES: &str = "/etc/coffer/modules";
/// Where the image disk is mounted: the image store.
pub const IMAGES: &str = "/var/lib/coffer/images";
/// Where the vault's disk is mounted.
pub const VAULT: &str = "/var/lib/coffer/vault";
/// Certificate chain of the API over TLS.
pub const TLS_CERTIFICATE: &str = "/etc/coffer/tls.pem";
/// Its key.
pub const TLS_KEY: &str = "/etc/coffer/tls.key";
/// CA of those who may manage this host.
pub const CLIENT_CA: &str = "/etc/coffer/client-ca.pem";
/// Longest wait for a device: probing on an emulated CPU is slow.
const DEVICE_PATIENCE: Duration = Duration::from_secs(60);
/// Directories of the initramfs that the running host keeps.
const KEEP: [&str; 9] = ["bin", "etc", "lib", "lib32", "lib64", "sbin", "tmp", "usr", "var"];

/// `/etc/coffer/host.json`. Measured with the initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Format version, 1.
    pub version: u32,
    /// Kernel modules below [`MODULES`], in load order.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Network.
    pub network: Option<HostNetwork>,
    /// Block device with an erofs image store.
    pub images_disk: Option<PathBuf>,
    /// Block device with an ext4 file system for the vault; without it the host keeps nothing. Nothing of it is trusted but
    /// to be there.
    #[serde(default)]
    pub vault_disk: Option<PathBuf>,
    /// Keeps the vault's key and counter in files beside it: whoever has the disk reads it, and turns it back. Such a host is
    /// served as a developer's, and cannot pass for a sealed one.
    #[serde(default)]
    pub dangerously_software_vault: bool,
    /// Release key of the verifier that permits what changes whom the vault opens for, an uncompressed point in hex.
    #[serde(default)]
    pub vault_verifier: Option<String>,
    /// Flushes a second that each volume and each vTPM keeps up; 5 if absent.
    #[serde(default)]
    pub flushes_per_second: Option<u32>,
    /// Moves a second of the TPM's counter that all of them keep up together; 10 if absent.
    #[serde(default)]
    pub counter_moves_per_second: Option<u32>,
    /// Folder of raw disks, such as `/dev`; without it there are none.
    #[serde(default)]
    pub disks: Option<PathBuf>,
    /// TCP address of the API over TLS, with [`TLS_CERTIFICATE`], [`TLS_KEY`] and [`CLIENT_CA`]. The key is as secret
    /// as this initrd: whoever reads that can pass for this host to a client, and manage nothing.
    pub tls_listen: Option<SocketAddr>,
    /// TCP address of the API without authentication: whoever reaches it manages this host.
    pub dangerously_listen_tcp: Option<SocketAddr>,
    /// Host TPM; `device:/dev/tpmrm0` if absent.
    pub tcti: Option<String>,
}

/// The host's one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostNetwork {
    /// Name; the only one besides `lo` if absent.
    pub interface: Option<String>,
    /// Address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default route.
    pub gateway: Ipv4Addr,
}

/// Runs the host. Does not return on PID 1 but through power-off.
pub fn run() -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("`init` is for PID 1 of a sealed host; use `serve` here");
    }
    coffer_pid1::halt_on_panic("coffer-monitor");
    if let Err(error) = live() {
        eprintln!("coffer-monitor: {error:#}");
    }
    eprintln!("coffer-monitor: powering off");
    coffer_pid1::power::power_off_or_die()
}

fn live() -> anyhow::Result<()> {
    coffer_pid1::mount_base(Cgroups::Mount)?;
    coffer_pid1::become_console()?;
    // passt pivots its root away, which the initramfs' rootfs does not allow.
    coffer_pid1::move_root_to_tmpfs(Path::new("/new-root"), &KEEP)?;
    for directory in ["/tmp", "/run/coffer", IMAGES, VAULT] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make `{directory}`"))?;
    }
    let config = read_config()?;
    coffer_pid1::load_modules(Path::new(MODULES), &config.modules)?;
    bring_up(&config)?;
    // After the mounts: the kernel may look for a file system's module by itself when one is first used.
    coffer_pid1::modules::forbid_more()?;
    let service = spawn_session(&serve_command(&config), &["PATH=/usr/bin:/bin".into()])?;
    loop {
        match reap()? {
            Some(reaped) if reaped.pid == service => {
                eprintln!("coffer-monitor: the service ended: {:?}", reaped.ended);
                return Ok(());
            }
            Some(_) => {}
            None => bail!("the service is gone"),
        }
    }
}

fn read_config() -> anyhow::Result<HostConfig> {
    let text = fs::read(HOST_CONFIG).with_context(|| format!("cannot read `{HOST_CONFIG}`"))?;
    let config: HostConfig = serde_json::from_slice(&text)
        .with_context(|| format!("`{HOST_CONFIG}` is not acceptable"))?;
    if config.version != 1 {
        bail!("`{HOST_CONFIG}` has version {}, this build knows 1", config.version);
    }
    Ok(config)
}

fn bring_up(config: &HostConfig) -> anyhow::Result<()> {
    match &config.network {
        Some(network) => {
            let interface = match &network.interface {
                Some(name) => name.clone(),
                None => coffer_pid1::network::only_interface()?,
            };
            let device = Path::new("/sys/class/net").join(&interface);
            coffer_pid1::wait_for_path(&device, DEVICE_PATIENCE)?;
            coffer_pid1::network::up(&interface, network.address, network.prefix, network.gateway)?;
        }
        None => coffer_pid1::network::loopback()?,
    }
    if let Some(disk) = &config.images_disk {
        coffer_pid1::wait_for_path(disk, DEVICE_PATIENCE)?;
        coffer_pid1::mount_data_read_only(disk, Path::new(IMAGES), "erofs")?;
    }
    if let Some(disk) = &config.vault_disk {
        coffer_pid1::wait_for_path(disk, DEVICE_PATIENCE)?;
        coffer_pid1::mount_untrusted_volume(disk, Path::new(VAULT), "ext4")?;
    }
    Ok(())
}

fn serve_command(config: &HostConfig) -> Vec<String> {
    let fixed = |value: &str| Some(value.to_owned());
    let listen = config.tls_listen.map(|address| address.to_string());
    let with_tls = |file: &str| listen.as_ref().map(|_| file.to_owned());
    let software = config.dangerously_software_vault;
    let flags = [
        ("--profile", fixed(if software { "developer" } else { "sealed" })),
        ("--images", fixed(IMAGES)),
        ("--tcti", fixed(config.tcti.as_deref().unwrap_or("device:/dev/tpmrm0"))),
        ("--disks", config.disks.as_ref().map(|folder| folder.to_string_lossy().into_owned())),
        ("--vault", config.vault_disk.as_ref().map(|_| format!("{VAULT}/vault"))),
        ("--vault-verifier", config.vault_verifier.clone()),
        ("--flushes-per-second", config.flushes_per_second.map(|count| count.to_string())),
        (
            "--counter-moves-per-second",
            config.counter_moves_per_second.map(|count| count.to_string()),
        ),
        ("--tls-cert", with_tls(TLS_CERTIFICATE)),
        ("--tls-key", with_tls(TLS_KEY)),
        ("--client-ca", with_tls(CLIENT_CA)),
        ("--tls-listen", listen),
        ("--dangerously-listen-tcp", config.dangerously_listen_tcp.map(|to| to.to_string())),
    ];
    let given = flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?]));
    let bare = software.then(|| "--dangerously-software-vault".to_owned());
    [PROGRAM, "serve"].map(str::to_owned).into_iter().chain(given.flatten()).chain(bare).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{Config, Profile, ServeArgs};

    #[derive(Parser)]
    struct Served {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// What `serve` makes of a configuration with these fields; programs are those of any machine.
    fn served(more: Value) -> Result<Config, String> {
        let mut fields = json!({
            "version": 1, "network": null, "images_disk": null, "tls_listen": null,
            "dangerously_listen_tcp": null, "tcti": "device:/dev/null",
        });
        let more = more.as_object().unwrap().clone();
        fields.as_object_mut().unwrap().extend(more);
        let config: HostConfig = serde_json::from_value(fields).map_err(|e| e.to_string())?;
        let programs = ["--vmm=/bin/true", "--swtpm=/bin/true", "--passt=/bin/true"];
        let words = serve_command(&config).into_iter().skip(1);
        let words = words.chain(programs.map(str::to_owned));
        let typed = Served::try_parse_from(words).map_err(|e| e.to_string())?;
        typed.args.resolve().map_err(|e| e.to_string())
    }

    #[test]
    fn a_vault_is_the_tpms_on_a_sealed_host_and_in_software_only_on_one_that_says_it_is_none() {
        let disk = json!({ "vault_disk": "/dev/vdb" });
        let config = served(disk.clone()).unwrap();
        assert_eq!((config.profile, config.dangerously_software_vault), (Profile::Sealed, false));
        assert_eq!(config.vault.as_deref(), Some(Path::new("/var/lib/coffer/vault/vault")));
        let software = json!({ "vault_disk": "/dev/vdb", "dangerously_software_vault": true });
        let config = served(software).unwrap();
        assert_eq!((config.profile, config.dangerously_software_vault), (Profile::Developer, true));
    }

    #[test]
    fn a_host_with_a_weak_chip_says_how_often_it_may_be_written() {
        let rates = |config: Config| (config.flushes_per_second, config.counter_moves_per_second);
        assert_eq!(rates(served(json!({})).unwrap()), (5, 10));
        let weak = json!({ "flushes_per_second": 1, "counter_moves_per_second": 2 });
        assert_eq!(rates(served(weak).unwrap()), (1, 2));
        let refused = served(json!({ "flushes_per_second": 0 })).unwrap_err();
        assert!(refused.contains("--flushes-per-second"), "{refused}");
    }

    #[test]
    fn a_vault_in_software_without_a_disk_is_refused_and_so_is_what_no_field_says() {
        let refused = served(json!({ "dangerously_software_vault": true })).unwrap_err();
        assert!(refused.contains("--vault"), "{refused}");
        let refused = served(json!({ "software_vault": true })).unwrap_err();
        assert!(refused.contains("unknown field `software_vault`"), "{refused}");
    }
}
