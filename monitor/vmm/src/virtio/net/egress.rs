//! What may leave a guest: ARP, and IPv4 to anywhere but the host (SPEC 6.6).
//!
//! passt answers a guest by opening sockets in the host's own network namespace, so a frame to a loopback address
//! or to one the host owns would reach the host's services. This decides before passt sees the frame.
//!
//! What it trusts: nothing in the frame; the deny list, which comes from the supervisor. What it refuses: every
//! other protocol (IPv6, VLAN tags), a header that does not fit its frame, and the addresses that never name
//! another machine. A client on the host reaches a published port through loopback, which passt shows to the guest
//! as the gateway; through the host's own outer address it gets no answer, as that address is denied.

use std::net::Ipv4Addr;

/// Destination and source MAC address, then the type.
const ETHERNET: usize = 14;
const TYPE_OFFSET: usize = 12;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// An IPv4 header without options (RFC 791, 3.1).
const HEADER_MIN: usize = 20;

/// The filter of one interface, and how much it dropped.
#[derive(Debug)]
pub struct Egress {
    deny: Vec<Ipv4Addr>,
    dropped: u64,
}

impl Egress {
    /// A filter that also refuses the addresses in `deny`.
    pub fn new(mut deny: Vec<Ipv4Addr>) -> Self {
        deny.sort_unstable();
        Self { deny, dropped: 0 }
    }

    /// True if the frame may leave; counts it if not.
    pub fn passes(&mut self, frame: &[u8]) -> bool {
        let passes = match frame.get(TYPE_OFFSET..ETHERNET).and_then(|t| t.try_into().ok()) {
            Some(ARP) => true,
            Some(IPV4) => destination(frame).is_some_and(|to| self.allows(to)),
            _ => false,
        };
        self.dropped += u64::from(!passes);
        passes
    }

    /// Frames refused so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn allows(&self, to: Ipv4Addr) -> bool {
        let [first, ..] = to.octets();
        // 0/8 means this host (RFC 1122, 3.2.1.3) and Linux takes 0.0.0.0 for itself; 240/4 holds the broadcast.
        let nowhere = first == 0 || first >= 240;
        let never = nowhere || to.is_loopback() || to.is_link_local() || to.is_multicast();
        !never && self.deny.binary_search(&to).is_err()
    }
}

/// Where a frame of type IPv4 goes, if its header is whole.
fn destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let packet = frame.get(ETHERNET..)?;
    let header: &[u8; HEADER_MIN] = packet.first_chunk()?;
    let [version_ihl, _, total_high, total_low, .., a, b, c, d] = *header;
    let header_size = usize::from(version_ihl & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([total_high, total_low]));
    let sane = version_ihl >> 4 == 4
        && (HEADER_MIN..=total).contains(&header_size)
        && total <= packet.len();
    sane.then_some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documentation addresses stand for the host's own (RFC 5737).
    const OWN: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(192, 0, 2, 2)];

    fn frame(kind: [u8; 2], body: &[u8]) -> Vec<u8> {
        [&[0xff; 12][..], &kind, body].concat()
    }

    fn packet(to: [u8; 4]) -> Vec<u8> {
        let fixed = [0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 192, 168, 76, 2];
        [&fixed[..], &to, b"data"].concat()
    }

    #[track_caller]
    fn check(frame: &[u8], expected: bool) {
        let mut egress = Egress::new(OWN.into());
        assert_eq!(egress.passes(frame), expected, "{frame:02x?}");
        assert_eq!(egress.dropped(), u64::from(!expected));
    }

    #[test]
    fn refuses_addresses_that_mean_the_host_and_passes_their_neighbours() {
        let refused = [
            [0, 0, 0, 0],
            [0, 255, 255, 255],
            [127, 0, 0, 1],
            [127, 255, 255, 255],
            [169, 254, 0, 0],
            [169, 254, 169, 254],
            [224, 0, 0, 1],
            [239, 255, 255, 255],
            [240, 0, 0, 0],
            [255, 255, 255, 255],
            [192, 0, 2, 2],
            [203, 0, 113, 9],
        ];
        for to in refused {
            check(&frame(IPV4, &packet(to)), false);
        }
        let passed = [
            [1, 0, 0, 0],
            [126, 255, 255, 255],
            [128, 0, 0, 0],
            [169, 253, 255, 255],
            [169, 255, 0, 0],
            [223, 255, 255, 255],
            [192, 0, 2, 1],
            [192, 0, 2, 3],
            // The gateway: where answers to clients on the host go.
            [192, 168, 76, 1],
            // Where QEMU's user network has its clients.
            [10, 0, 2, 2],
        ];
        for to in passed {
            check(&frame(IPV4, &packet(to)), true);
        }
    }

    #[test]
    fn refuses_other_protocols() {
        check(&frame(ARP, &[0; 28]), true);
        for kind in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x00, 0x2e], [0x08, 0x01]] {
            check(&frame(kind, &packet([192, 168, 76, 1])), false);
        }
    }

    #[test]
    fn refuses_a_header_that_does_not_fit() {
        let good = packet([192, 168, 76, 1]);
        let with = |offset: usize, byte: u8| {
            let mut packet = good.clone();
            packet[offset] = byte;
            frame(IPV4, &packet)
        };
        // As it is; with one word of options; with padding, as short frames have.
        check(&with(0, 0x45), true);
        check(&with(0, 0x46), true);
        check(&with(3, 20), true);
        // Version 6; too short a header; one longer than the packet; a packet shorter than its header, and longer
        // than the frame.
        for (offset, byte) in [(0, 0x65), (0, 0x44), (0, 0x47), (3, 19), (3, 25), (2, 1)] {
            check(&with(offset, byte), false);
        }
        let whole = frame(IPV4, &good);
        for length in 0..whole.len() {
            check(&whole[..length], false);
        }
    }
}
