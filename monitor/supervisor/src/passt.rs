//! The network backend of one VM: a `passt` process with its frame socket as standard input.
//!
//! It runs without privileges (where we are root, under a uid of its own), opens its sockets in the host's network
//! namespace, and so reaches whatever the host reaches, its loopback included. It does not keep a guest from the
//! host: `--no-map-gw` only stops the gateway from being another name for it. The VM process does that, before a
//! frame gets here: it drops what goes to loopback or to [`own_addresses`]. passt ends when the VM process closes
//! the other end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::{os::fd::OwnedFd, os::unix::net::UnixStream, path::Path};

use coffer_formats::launch::BoxKind;
use coffer_image::appliance::Network;
use coffer_monitor_wire::api::Publish;

use crate::{launch_error::LaunchError, plan::Plan, process::Owned, uid};

/// Ethernet's. The guest's driver needs no larger, and every step on the way bears it.
const MTU: &str = "1500";

/// Always so: in the foreground, its socket as standard input, TCP alone, and no configuration but the address.
const FIXED: &str = "--foreground --quiet --stderr --fd 0 --ipv4-only --udp-ports none --no-map-gw --no-dhcpv6 \
                     --no-ndp --no-ra --no-dhcp-dns --no-dhcp-search --mtu";

/// Starts one for the network of a plan, its standard error a pipe, and the VM's end of its socket; none for no network.
pub fn spawn(program: &Path, plan: &Plan) -> Result<Option<(Owned, OwnedFd)>, LaunchError> {
    let Network::Nat { address, prefix, gateway, .. } = &plan.network else { return Ok(None) };
    let failed = |e: std::io::Error| LaunchError::Network(e.to_string());
    let (frames, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(FIXED.split(' ').chain([MTU]))
        .args(["--address", &address.to_string(), "--netmask", &prefix.to_string()])
        .args(["--gateway", &gateway.to_string()])
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // A closed box's address is static: nothing in it may be steered by a lease.
    if plan.record.box_kind == BoxKind::Closed {
        command.arg("--no-dhcp");
    }
    for port in &plan.publish {
        command.arg("--tcp-ports").arg(format!("{}:{}", port.host, port.guest));
    }
    if plan.publish.is_empty() {
        command.args(["--tcp-ports", "none"]);
    }
    if rustix::process::geteuid().is_root() {
        let own = uid::next()?;
        command.arg("--runas").arg(format!("{own}:{own}"));
    }
    Ok(Some((Owned::spawn(&mut command).map_err(failed)?, frames.into())))
}

/// IPv4 addresses of all the host's interfaces, as they are now: one that the host gets later is not among them.
pub fn own_addresses() -> Result<Vec<Ipv4Addr>, LaunchError> {
    let interfaces = nix::ifaddrs::getifaddrs()
        .map_err(|e| LaunchError::Network(format!("cannot list the host's addresses: {e}")))?;
    let mut own: Vec<Ipv4Addr> = interfaces
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .collect();
    own.sort_unstable();
    own.dedup();
    Ok(own)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_hosts_own_addresses() {
        let own = own_addresses().unwrap();
        // Those the kernel delivers to itself, as it tells in another place.
        let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL") {
            let address: Ipv4Addr = pair[0].strip_prefix("|-- ").unwrap().parse().unwrap();
            assert!(own.contains(&address), "{address} is missing in {own:?}");
        }
        assert!(own.contains(&Ipv4Addr::LOCALHOST));
        assert!(!own.contains(&Ipv4Addr::new(203, 0, 113, 9)));
    }
}
