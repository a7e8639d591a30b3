//! What passes between a guest and its network: ARP and IPv4 of its own addresses, to where its image may send (SPEC 6.6).
//!
//! passt answers a guest by opening sockets in the host's own network namespace, and a tap may be bridged to others, so
//! this decides before either sees the frame. It keeps no state but the gate, which opens once.
//!
//! What it trusts: nothing in a frame; the rules, which come from the supervisor. What it refuses: addresses that are not
//! the guest's, every other protocol (IPv6 with its neighbour discovery, VLAN tags), the host, and what the descriptor
//! does not let out. A client on the host reaches a published port through loopback, which passt shows to the guest as
//! the gateway; through the host's own outer address it gets no answer, as that address is denied.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_image::reach::Reach;
use coffer_monitor_wire::{NetSpec, Refusal};

use super::packet::{ARP, IPV4, Packet, arp_sender, ethernet};

/// Whether the guest attested: false at first, and once true for good.
pub type Gate = Arc<AtomicBool>;

/// The rules of one interface.
pub struct Filter {
    mac: [u8; 6],
    address: Ipv4Addr,
    deny: Vec<Ipv4Addr>,
    reach: Reach,
    verifier: Option<SocketAddrV4>,
    dhcp: bool,
    gate: Gate,
}

impl Filter {
    /// The rules of a spec.
    pub fn new(spec: NetSpec, gate: Gate) -> Self {
        let NetSpec { mac, address, mut deny, reach, verifier, dhcp, .. } = spec;
        deny.sort_unstable();
        Self { mac, address, deny, reach, verifier, dhcp, gate }
    }

    /// Whether a frame of the guest may leave.
    pub fn leaves(&self, frame: &[u8]) -> Result<(), Refusal> {
        let (source, kind, body) = ethernet(frame).ok_or(Refusal::FrameMalformed)?;
        require(source == self.mac, Refusal::FrameMac)?;
        match kind {
            ARP => require(arp_sender(body) == Some((self.mac, self.address)), Refusal::FrameArp),
            IPV4 => self.packet_leaves(&Packet::parse(body).ok_or(Refusal::FrameMalformed)?),
            _ => Err(Refusal::FrameProtocol),
        }
    }

    fn packet_leaves(&self, packet: &Packet<'_>) -> Result<(), Refusal> {
        if self.dhcp && packet.asks_dhcp() {
            return require(self.is_open(), Refusal::FrameClosed);
        }
        require(packet.source == self.address, Refusal::FrameAddress)?;
        require(!self.is_host(packet.destination), Refusal::FrameHost)?;
        if self.is_verifier(packet.destination, packet.tcp().map(|(_, to)| to)) {
            return Ok(());
        }
        require(self.is_open(), Refusal::FrameClosed)?;
        require(self.is_listed(packet), Refusal::FrameEgress)
    }

    /// Whether a frame may reach the guest.
    pub fn enters(&self, frame: &[u8]) -> Result<(), Refusal> {
        if self.is_open() {
            return Ok(());
        }
        let (_, kind, body) = ethernet(frame).ok_or(Refusal::FrameMalformed)?;
        let packet = Packet::parse(body).filter(|_| kind == IPV4);
        let verifiers =
            packet.is_some_and(|p| self.is_verifier(p.source, p.tcp().map(|(from, _)| from)));
        require(kind == ARP || verifiers, Refusal::FrameClosed)
    }

    fn is_open(&self) -> bool {
        !self.reach.until_attested || self.gate.load(Ordering::Acquire)
    }

    fn is_verifier(&self, address: Ipv4Addr, port: Option<u16>) -> bool {
        self.verifier.is_some_and(|it| *it.ip() == address && Some(it.port()) == port)
    }

    fn is_listed(&self, packet: &Packet<'_>) -> bool {
        let Some(rules) = &self.reach.egress else { return true };
        let port = packet.ports().map(|(_, to)| to);
        rules.iter().any(|rule| rule.allows(packet.destination, packet.protocol, port))
            || packet.answers_from().is_some_and(|port| self.reach.listens(port))
    }

    fn is_host(&self, to: Ipv4Addr) -> bool {
        let [first, ..] = to.octets();
        // 0/8 means this host (RFC 1122, 3.2.1.3) and Linux takes 0.0.0.0 for itself; 240/4 holds the broadcast.
        let nowhere = first == 0 || first >= 240;
        let never = nowhere || to.is_loopback() || to.is_link_local() || to.is_multicast();
        never || self.deny.binary_search(&to).is_ok()
    }
}

fn require(holds: bool, refusal: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal) }
}

#[cfg(test)]
mod tests;
