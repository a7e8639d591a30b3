//! The network backend of one VM: a `passt` process with its frame socket as standard input.
//!
//! It runs without privileges (it drops to `nobody` where we are root) and reaches what the host reaches,
//! except the host itself: `--no-map-gw`. It ends when the VM process closes the other end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use coffer_image::appliance::Network;
use coffer_monitor_wire::api::Publish;

use crate::launch_error::LaunchError;
use crate::process::Owned;

/// A running passt and the VM's end of its socket.
pub struct Passt {
    /// The process; its standard error is a pipe.
    pub process: Owned,
    /// For the VM process.
    pub frames: OwnedFd,
}

/// uid and gid of `nobody`, by number: a sealed host has no user database.
const NOBODY: &str = "65534:65534";
/// Ethernet's. The guest's driver needs no larger, and every step on the way bears it.
const MTU: &str = "1500";

impl Passt {
    /// Starts one for a network; none for no network.
    pub fn spawn(
        program: &Path,
        network: &Network,
        publish: &[Publish],
    ) -> Result<Option<Self>, LaunchError> {
        let Network::Nat { address, prefix, gateway } = network else { return Ok(None) };
        let failed = |e: std::io::Error| LaunchError::Network(e.to_string());
        let (frames, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--stderr", "--fd", "0", "--ipv4-only", "--mtu", MTU])
            .args(arguments(*address, *prefix, *gateway))
            .args(["--udp-ports", "none", "--no-map-gw"])
            // The guest's address is static: nothing here may be steered by a lease or an advertisement.
            .args([
                "--no-dhcp",
                "--no-dhcpv6",
                "--no-ndp",
                "--no-ra",
                "--no-dhcp-dns",
                "--no-dhcp-search",
            ])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for port in publish {
            command.arg("--tcp-ports").arg(format!("{}:{}", port.host, port.guest));
        }
        if publish.is_empty() {
            command.args(["--tcp-ports", "none"]);
        }
        if rustix::process::geteuid().is_root() {
            command.args(["--runas", NOBODY]);
        }
        let process = Owned::spawn(&mut command).map_err(failed)?;
        Ok(Some(Self { process, frames: frames.into() }))
    }
}

fn arguments(address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> [String; 6] {
    [
        "--address".into(),
        address.to_string(),
        "--netmask".into(),
        prefix.to_string(),
        "--gateway".into(),
        gateway.to_string(),
    ]
}

/// Refuses ports somebody listens on already; passt would say so too, but later and in fewer words.
pub fn check_ports(publish: &[Publish]) -> Result<(), LaunchError> {
    for port in publish {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port.host);
        if let Err(e) = TcpListener::bind(address) {
            return Err(match e.kind() {
                std::io::ErrorKind::AddrInUse => LaunchError::PortInUse(port.host),
                _ => LaunchError::Network(format!("port {}: {e}", port.host)),
            });
        }
    }
    Ok(())
}
