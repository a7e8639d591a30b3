//! A frame as bytes that claim to be something: what the filter looks at, and no more.
//!
//! What it trusts: nothing. What it refuses: an IPv4 header that does not fit its frame, and one with options: a source
//! route would name another destination than the one the filter sees (RFC 791, 3.1; RFC 7126, 4.3).

use std::net::Ipv4Addr;

/// Type of a frame with ARP in it.
pub const ARP: u16 = 0x0806;
/// Type of a frame with IPv4 in it.
pub const IPV4: u16 = 0x0800;
/// Version 4 and a header of five words.
const PLAIN: u8 = 0x45;
/// Fragment offset and "more fragments" (RFC 791, 3.1).
const FRAGMENT: u16 = 0x3fff;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where TCP has its flags, and two of them (RFC 9293, 3.1).
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Source, type and body of an Ethernet frame; a VLAN tag is a type of its own.
pub fn ethernet(frame: &[u8]) -> Option<([u8; 6], u16, &[u8])> {
    let ([_, _, _, _, _, _, source @ .., high, low], body) = frame.split_first_chunk::<14>()?;
    Some((*source, u16::from_be_bytes([*high, *low]), body))
}

/// Who an ARP packet says it is from: hardware and protocol address, if it is about Ethernet and IPv4 (RFC 826).
pub fn arp_sender(body: &[u8]) -> Option<([u8; 6], Ipv4Addr)> {
    let ([0, 1, 8, 0, 6, 4, 0, 1 | 2, mac @ .., a, b, c, d], rest) =
        body.split_first_chunk::<18>()?
    else {
        return None;
    };
    // The target follows: another two addresses.
    (rest.len() >= 10).then_some((*mac, Ipv4Addr::new(*a, *b, *c, *d)))
}

/// An IPv4 packet.
pub struct Packet<'a> {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Number of the protocol.
    pub protocol: u8,
    /// What follows the header; nothing if it is a fragment, as then it does not begin with a header.
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// None unless it has a plain header that fits.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (header, _) = body.split_first_chunk::<20>()?;
        let [PLAIN, _, l, m, _, _, f, o, _, protocol, _, _, s @ .., w, x, y, z] = *header else {
            return None;
        };
        let payload = body.get(header.len()..usize::from(u16::from_be_bytes([l, m])))?;
        let fragment = u16::from_be_bytes([f, o]) & FRAGMENT != 0;
        Some(Self {
            source: s.into(),
            destination: Ipv4Addr::new(w, x, y, z),
            protocol,
            payload: if fragment { &[] } else { payload },
        })
    }

    /// Source and destination port of TCP and UDP, where the whole of their header can be seen.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let header = match self.protocol {
            TCP => self.payload.get(..20)?,
            UDP => self.payload.get(..8)?,
            _ => return None,
        };
        let ([a, b, c, d], _) = header.split_first_chunk()?;
        Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
    }

    /// The ports, if it is TCP.
    pub fn tcp(&self) -> Option<(u16, u16)> {
        self.ports().filter(|_| self.protocol == TCP)
    }

    /// The port an answer within a TCP connection comes from: anything but a first segment.
    pub fn answers_from(&self) -> Option<u16> {
        let flags = self.payload.get(TCP_FLAGS)?;
        self.tcp().filter(|_| flags & (SYN | ACK) != SYN).map(|(from, _)| from)
    }

    /// True for what a DHCP client without an address says to any server (RFC 2131, 4.1).
    pub fn asks_dhcp(&self) -> bool {
        self.protocol == UDP
            && self.ports() == Some((68, 67))
            && self.source.is_unspecified()
            && self.destination.is_broadcast()
    }
}
