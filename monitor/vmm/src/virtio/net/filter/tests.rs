//! Each rule with its neighbours, and all of them against another reader of frames.

use super::*;
use coffer_image::reach::EgressRule;
use coffer_monitor_wire::NetBackend;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, Ethernet2HeaderSlice, IpNumber,
    Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use proptest::prelude::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GUEST: [u8; 4] = [192, 168, 76, 2];
const GATEWAY: [u8; 4] = [192, 168, 76, 1];
const VERIFIER: [u8; 4] = [198, 51, 100, 7];
/// Documentation addresses stand for the host's own (RFC 5737).
const OWN: [[u8; 4]; 2] = [[203, 0, 113, 9], [192, 0, 2, 2]];
const PEER: [u8; 4] = [192, 0, 2, 1];
const SYN: u8 = 2;
const ACK: u8 = 16;

fn spec(reach: Reach) -> NetSpec {
    NetSpec {
        mac: MAC,
        address: GUEST.into(),
        backend: NetBackend::Passt,
        deny: OWN.map(Into::into).into(),
        reach,
        verifier: Some(SocketAddrV4::new(VERIFIER.into(), 8443)),
        dhcp: false,
        limit: Default::default(),
    }
}

fn filter(reach: Reach) -> Filter {
    Filter::new(spec(reach), Gate::default())
}

fn rules(json: &str) -> Reach {
    let rules: Vec<EgressRule> = serde_json::from_str(json).unwrap();
    Reach { egress: Some(rules), ..Reach::default() }
}

fn frame(source: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &kind.to_be_bytes(), body].concat()
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let header = [0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
    frame(MAC, IPV4, &[&header[..], &from, &to, payload].concat())
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut header = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat();
    (header[12], header[13]) = (0x50, flags);
    header
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

fn syn(to: [u8; 4], port: u16) -> Vec<u8> {
    ipv4(GUEST, to, 6, &tcp(40_000, port, SYN))
}

fn arp(operation: u8, mac: [u8; 6], from: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    frame(MAC, ARP, &[&head[..], &mac, &from, &[0; 6], &target].concat())
}

#[track_caller]
fn check(filter: &Filter, frame: &[u8], expected: Result<(), Refusal>) {
    assert_eq!(filter.leaves(frame), expected, "{frame:02x?}");
}

/// Under the rules of an image that says nothing.
#[track_caller]
fn plain(frame: &[u8], expected: Result<(), Refusal>) {
    check(&filter(Reach::default()), frame, expected);
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
        OWN[0],
        OWN[1],
    ];
    for to in refused {
        plain(&syn(to, 80), Err(Refusal::FrameHost));
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
        // Where answers to clients on the host go.
        GATEWAY,
        // Where QEMU's user network has its clients.
        [10, 0, 2, 2],
    ];
    for to in passed {
        plain(&syn(to, 80), Ok(()));
    }
}

#[test]
fn refuses_other_protocols() {
    let body = &syn(GATEWAY, 80)[14..];
    plain(&frame(MAC, IPV4, body), Ok(()));
    // IPv6, VLAN tags, 802.3 with a length, and what IPv4 is not.
    for kind in [0x86dd, 0x8100, 0x88a8, 0x9100, 0x002e, 0x0801] {
        plain(&frame(MAC, kind, body), Err(Refusal::FrameProtocol));
    }
}

#[test]
fn refuses_what_is_not_from_the_guest() {
    let good = syn(GATEWAY, 80);
    let strange = [OTHER_MAC, [0xff; 6], [0; 6], [3, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 0]];
    for mac in strange {
        plain(&frame(mac, IPV4, &good[14..]), Err(Refusal::FrameMac));
        plain(&frame(mac, ARP, &arp(1, MAC, GUEST, GATEWAY)[14..]), Err(Refusal::FrameMac));
    }
    for from in [[192, 168, 76, 3], GATEWAY, [0; 4], [127, 0, 0, 1], OWN[0], [192, 168, 76, 255]] {
        plain(&ipv4(from, PEER, 6, &tcp(1, 80, SYN)), Err(Refusal::FrameAddress));
    }
    plain(&good, Ok(()));
}

#[test]
fn arp_speaks_in_the_guests_own_name_only() {
    // Questions, answers, and announcements to everybody (RFC 5227, 3).
    for operation in [1, 2] {
        plain(&arp(operation, MAC, GUEST, GATEWAY), Ok(()));
        plain(&arp(operation, MAC, GUEST, GUEST), Ok(()));
        plain(&arp(operation, OTHER_MAC, GUEST, GATEWAY), Err(Refusal::FrameArp));
        plain(&arp(operation, MAC, GATEWAY, GATEWAY), Err(Refusal::FrameArp));
        plain(&arp(operation, MAC, [0; 4], GUEST), Err(Refusal::FrameArp));
    }
    for operation in [0, 3, 8, 9] {
        plain(&arp(operation, MAC, GUEST, GATEWAY), Err(Refusal::FrameArp));
    }
    let good = arp(1, MAC, GUEST, GATEWAY);
    plain(&[&good[..], &[0; 18]].concat(), Ok(()));
    // Another hardware, protocol, or length of an address; and one cut short.
    for (offset, byte) in [(0, 1), (1, 6), (2, 0x86), (3, 1), (4, 8), (5, 16), (6, 1)] {
        let mut bad = good.clone();
        bad[14 + offset] = byte;
        plain(&bad, Err(Refusal::FrameArp));
    }
    for length in 14..good.len() {
        plain(&good[..length], Err(Refusal::FrameArp));
    }
}

#[test]
fn refuses_a_header_that_does_not_fit_or_has_options() {
    let good = ipv4(GUEST, PEER, 6, b"data");
    let with = |offset: usize, byte: u8| {
        let mut frame = good.clone();
        frame[14 + offset] = byte;
        frame
    };
    // As it is; with padding, as short frames have.
    plain(&with(0, 0x45), Ok(()));
    plain(&with(3, 20), Ok(()));
    // Version 6; too short a header; one with options; a packet shorter than its header, and longer than the frame.
    for (offset, byte) in [(0, 0x65), (0, 0x44), (0, 0x46), (0, 0x4f), (3, 19), (3, 25), (2, 1)] {
        plain(&with(offset, byte), Err(Refusal::FrameMalformed));
    }
    for length in 0..good.len() {
        plain(&good[..length], Err(Refusal::FrameMalformed));
    }
}

#[test]
fn a_list_lets_out_what_it_names_and_nothing_else() {
    let web = filter(rules(
        r#"[{"cidr":"192.0.2.0/31","protocol":"tcp","ports":{"min":443,"max":444}},
            {"cidr":"198.51.100.0/24","protocol":"icmp"}, {"cidr":"10.0.0.0/8"}]"#,
    ));
    check(&web, &syn(PEER, 443), Ok(()));
    check(&web, &syn([192, 0, 2, 0], 444), Ok(()));
    check(&web, &syn(PEER, 442), Err(Refusal::FrameEgress));
    check(&web, &syn(PEER, 445), Err(Refusal::FrameEgress));
    check(&web, &syn([192, 0, 2, 3], 443), Err(Refusal::FrameEgress));
    check(&web, &ipv4(GUEST, PEER, 17, &udp(443, 443)), Err(Refusal::FrameEgress));
    check(&web, &ipv4(GUEST, VERIFIER, 1, &[8, 0]), Ok(()));
    check(&web, &ipv4(GUEST, PEER, 1, &[8, 0]), Err(Refusal::FrameEgress));
    check(&web, &ipv4(GUEST, [10, 1, 2, 3], 132, &[]), Ok(()));
    // A list widens nothing.
    let all = filter(rules(r#"[{"cidr":"0.0.0.0/0"}]"#));
    check(&all, &syn(PEER, 443), Ok(()));
    check(&all, &syn(OWN[0], 443), Err(Refusal::FrameHost));
    check(&all, &syn([127, 0, 0, 1], 443), Err(Refusal::FrameHost));
    let none = filter(rules("[]"));
    check(&none, &syn(PEER, 443), Err(Refusal::FrameEgress));
    check(&none, &arp(1, MAC, GUEST, GATEWAY), Ok(()));
    plain(&syn(PEER, 443), Ok(()));
}

#[test]
fn ports_that_cannot_be_seen_are_no_ports() {
    let web = filter(rules(
        r#"[{"cidr":"192.0.2.0/24","protocol":"tcp","ports":{"min":1,"max":65535}}]"#,
    ));
    let any_tcp = filter(rules(r#"[{"cidr":"192.0.2.0/24","protocol":"tcp"}]"#));
    let whole = syn(PEER, 443);
    let fragment = |flags: u8, offset: u8| {
        let mut frame = whole.clone();
        (frame[20], frame[21]) = (flags, offset);
        frame
    };
    check(&web, &fragment(0x40, 0), Ok(())); // Don't fragment.
    for (flags, offset) in [(0x20, 0), (0, 1), (0x20, 1), (0x1f, 0xff)] {
        check(&web, &fragment(flags, offset), Err(Refusal::FrameEgress));
        check(&any_tcp, &fragment(flags, offset), Ok(()));
    }
    for length in 0..20 {
        check(&web, &ipv4(GUEST, PEER, 6, &tcp(1, 443, SYN)[..length]), Err(Refusal::FrameEgress));
    }
    check(&web, &ipv4(GUEST, PEER, 6, &tcp(1, 443, SYN)), Ok(()));
    // The ports of what has none are not read.
    check(&web, &ipv4(GUEST, PEER, 47, &tcp(1, 443, SYN)), Err(Refusal::FrameEgress));
}

#[test]
fn the_verifier_is_within_reach_whatever_the_list_says() {
    let none = filter(rules("[]"));
    check(&none, &syn(VERIFIER, 8443), Ok(()));
    check(&none, &syn(VERIFIER, 8444), Err(Refusal::FrameEgress));
    check(&none, &syn([198, 51, 100, 8], 8443), Err(Refusal::FrameEgress));
    check(&none, &ipv4(GUEST, VERIFIER, 17, &udp(1, 8443)), Err(Refusal::FrameEgress));
    // Except where it is the host.
    let mut at_home = spec(Reach::default());
    at_home.verifier = Some(SocketAddrV4::new(OWN[0].into(), 8443));
    check(&Filter::new(at_home, Gate::default()), &syn(OWN[0], 8443), Err(Refusal::FrameHost));
}

#[test]
fn answers_leave_from_ports_that_listen_and_open_nothing() {
    let answer = |from, flags| ipv4(GUEST, PEER, 6, &tcp(from, 50_000, flags));
    let reach = Reach { listen: Some(vec![443]), ..rules("[]") };
    let listening = filter(reach);
    for flags in [SYN | ACK, ACK, ACK | 1, 4, ACK | 4] {
        check(&listening, &answer(443, flags), Ok(()));
        check(&listening, &answer(442, flags), Err(Refusal::FrameEgress));
        check(&filter(rules("[]")), &answer(443, flags), Err(Refusal::FrameEgress));
    }
    for flags in [SYN, SYN | 1, SYN | 4, SYN | 0x40] {
        check(&listening, &answer(443, flags), Err(Refusal::FrameEgress));
    }
    check(&listening, &ipv4(GUEST, PEER, 17, &udp(443, 50_000)), Err(Refusal::FrameEgress));
    check(&listening, &ipv4(GUEST, OWN[0], 6, &tcp(443, 1, ACK)), Err(Refusal::FrameHost));
}

#[test]
fn until_it_attested_a_guest_and_its_verifier_are_alone() {
    let gate = Gate::default();
    let reach = Reach { until_attested: true, ..Reach::default() };
    let closed = Filter::new(spec(reach), gate.clone());
    let from = |address, port| ipv4(address, GUEST, 6, &tcp(port, 40_000, ACK));
    let both_ways = |others: Result<(), Refusal>| {
        check(&closed, &syn(VERIFIER, 8443), Ok(()));
        check(&closed, &arp(1, MAC, GUEST, GATEWAY), Ok(()));
        check(&closed, &syn(PEER, 443), others);
        check(&closed, &syn(VERIFIER, 8444), others);
        check(&closed, &ipv4(GUEST, VERIFIER, 1, &[8, 0]), others);
        assert_eq!(closed.enters(&from(VERIFIER, 8443)), Ok(()));
        assert_eq!(closed.enters(&arp(2, OTHER_MAC, GATEWAY, GUEST)), Ok(()));
        assert_eq!(closed.enters(&from(VERIFIER, 8444)), others);
        assert_eq!(closed.enters(&from(PEER, 8443)), others);
        assert_eq!(closed.enters(&frame(OTHER_MAC, 0x86dd, &[0; 40])), others);
    };
    both_ways(Err(Refusal::FrameClosed));
    gate.store(true, Ordering::Release);
    both_ways(Ok(()));
    // An image that does not ask for it is open from the start.
    assert_eq!(filter(Reach::default()).enters(&from(PEER, 8443)), Ok(()));
}

#[test]
fn only_an_open_box_asks_for_an_address_and_only_so() {
    let mut open = spec(rules("[]"));
    open.dhcp = true;
    let open = Filter::new(open, Gate::default());
    let ask = |from, to, ports: (u16, u16)| ipv4(from, to, 17, &udp(ports.0, ports.1));
    check(&open, &ask([0; 4], [255; 4], (68, 67)), Ok(()));
    plain(&ask([0; 4], [255; 4], (68, 67)), Err(Refusal::FrameAddress));
    check(&open, &ask([0; 4], PEER, (68, 67)), Err(Refusal::FrameAddress));
    check(&open, &ask([0; 4], [255; 4], (67, 68)), Err(Refusal::FrameAddress));
    check(&open, &ask([0; 4], [255; 4], (68, 53)), Err(Refusal::FrameAddress));
    check(&open, &ipv4([0; 4], [255; 4], 6, &tcp(68, 67, SYN)), Err(Refusal::FrameAddress));
    check(&open, &ask(GUEST, [255; 4], (68, 67)), Err(Refusal::FrameHost));
    // As a guest with an address does (RFC 2131, 4.4.5): to one server, and like any other packet.
    check(&open, &ask(GUEST, GATEWAY, (68, 67)), Err(Refusal::FrameEgress));
    plain(&ask(GUEST, GATEWAY, (68, 67)), Ok(()));
}

/// SPEC 6.6 once more, over what etherparse reads in a frame.
fn may_leave(spec: &NetSpec, open: bool, frame: &[u8]) -> bool {
    let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else { return false };
    let body = &frame[14..];
    if ethernet.source() != spec.mac {
        return false;
    }
    match ethernet.ether_type() {
        EtherType::ARP => ArpPacketSlice::from_slice(body).is_ok_and(|arp| {
            arp.hw_addr_type() == ArpHardwareId::ETHERNET
                && arp.proto_addr_type() == EtherType::IPV4
                && matches!(arp.operation(), ArpOperation::REQUEST | ArpOperation::REPLY)
                && arp.sender_hw_addr() == spec.mac
                && arp.sender_protocol_addr() == spec.address.octets()
        }),
        EtherType::IPV4 => Ipv4HeaderSlice::from_slice(body)
            .is_ok_and(|header| packet_may_leave(spec, open, &header, body)),
        _ => false,
    }
}

fn packet_may_leave(spec: &NetSpec, open: bool, ip: &Ipv4HeaderSlice<'_>, body: &[u8]) -> bool {
    if !ip.options().is_empty()
        || ip.payload_len().is_err()
        || usize::from(ip.total_len()) > body.len()
    {
        return false;
    }
    let payload = &body[20..usize::from(ip.total_len())];
    let to = ip.destination_addr();
    let seen = !ip.is_fragmenting_payload();
    let mut whole_tcp = payload.to_vec();
    // Where TCP's data begins is the receiver's business.
    whole_tcp.get_mut(12).into_iter().for_each(|offset| *offset = 0x50);
    let tcp = TcpHeaderSlice::from_slice(&whole_tcp)
        .ok()
        .filter(|_| seen && ip.protocol() == IpNumber::TCP);
    let udp =
        UdpHeaderSlice::from_slice(payload).ok().filter(|_| seen && ip.protocol() == IpNumber::UDP);
    let port =
        tcp.as_ref().map(|t| t.destination_port()).or(udp.as_ref().map(|u| u.destination_port()));
    let dhcp = udp.is_some_and(|u| u.source_port() == 68 && u.destination_port() == 67);
    if spec.dhcp && dhcp && ip.source() == [0; 4] && ip.destination() == [255; 4] {
        return open;
    }
    let nowhere = matches!(to.octets(), [0 | 127 | 224..=255, ..] | [169, 254, ..]);
    if ip.source_addr() != spec.address || nowhere || spec.deny.contains(&to) {
        return false;
    }
    let verifier = |at: SocketAddrV4| {
        *at.ip() == to && tcp.as_ref().is_some_and(|t| t.destination_port() == at.port())
    };
    if spec.verifier.is_some_and(verifier) {
        return true;
    }
    let Some(rules) = &spec.reach.egress else { return open };
    let listed = rules.iter().any(|rule| rule.allows(to, ip.protocol().0, port));
    let listen = spec.reach.listen.as_deref().unwrap_or_default();
    let answer = tcp.is_some_and(|t| listen.contains(&t.source_port()) && (!t.syn() || t.ack()));
    open && (listed || answer)
}

fn any_reach() -> impl Strategy<Value = Reach> {
    let list = r#"[{"cidr":"192.0.2.0/24","protocol":"tcp","ports":{"min":443,"max":444}},
                   {"cidr":"203.0.113.0/24"}, {"cidr":"198.51.100.0/24","protocol":"udp"}]"#;
    let egress =
        proptest::option::of(prop_oneof![Just(rules("[]").egress), Just(rules(list).egress)]);
    let listen = proptest::option::of(Just(vec![443, 80]));
    (egress, listen, any::<bool>()).prop_map(|(egress, listen, until_attested)| Reach {
        egress: egress.flatten(),
        listen,
        until_attested,
    })
}

/// Frames near the rules: mostly right, wrong somewhere.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let address = || {
        proptest::sample::select(vec![
            GUEST,
            GUEST,
            GUEST,
            GATEWAY,
            VERIFIER,
            PEER,
            OWN[0],
            OWN[1],
            [203, 0, 113, 10],
            [0; 4],
            [255; 4],
            [127, 0, 0, 1],
        ])
    };
    let port = || proptest::sample::select(vec![67u16, 68, 80, 443, 444, 445, 8443, 40_000]);
    let mac = || proptest::sample::select(vec![MAC, MAC, MAC, MAC, OTHER_MAC]);
    let payload = (
        proptest::sample::select(vec![6u8, 6, 17, 17, 1, 47]),
        port(),
        port(),
        any::<u8>(),
        0usize..40,
    )
        .prop_map(|(protocol, from, to, flags, cut)| {
            let mut payload = if protocol == 17 { udp(from, to) } else { tcp(from, to, flags) };
            payload.truncate(payload.len().saturating_sub(cut.saturating_sub(30)));
            (protocol, payload)
        });
    let ip =
        (mac(), address(), address(), payload).prop_map(|(mac, from, to, (protocol, payload))| {
            frame(mac, IPV4, &ipv4(from, to, protocol, &payload)[14..])
        });
    let arp = (mac(), 0u8..4, mac(), address(), address()).prop_map(
        |(mac, operation, sender, from, to)| {
            frame(mac, ARP, &arp(operation, sender, from, to)[14..])
        },
    );
    let bytes = proptest::collection::vec(any::<u8>(), 0..80);
    let near = prop_oneof![6 => ip, 2 => arp, 1 => bytes];
    let change = proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let cut = proptest::option::weighted(0.1, any::<prop::sample::Index>());
    (near, change, cut).prop_map(|(mut frame, change, cut)| {
        if let Some((at, byte)) = change
            && !frame.is_empty()
        {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Some(cut) = cut
            && !frame.is_empty()
        {
            frame.truncate(cut.index(frame.len()));
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_passes_is_what_another_reader_finds_within_the_rules(
        reach in any_reach(),
        dhcp in any::<bool>(),
        attested in any::<bool>(),
        frame in any_frame(),
    ) {
        let (mut spec, gate) = (spec(reach), Gate::default());
        spec.dhcp = dhcp;
        if attested {
            gate.store(true, Ordering::Release);
        }
        let open = attested || !spec.reach.until_attested;
        let expected = may_leave(&spec, open, &frame);
        let verdict = Filter::new(spec, gate).leaves(&frame);
        prop_assert_eq!(verdict.is_ok(), expected, "{:?} {:02x?}", verdict, frame);
    }
}
