//! What an appliance's network may be used for: the part of `network` that narrows it (SPEC 3.2, 6.6).
//!
//! The VM process asks [`EgressRule::allows`] about every packet, so a rule has one spelling and one reading. Nothing here
//! can widen what the monitor refuses anyway.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::appliance::VerifierPin;
use crate::rules::{Invalid, require};

/// Most rules of a list, and most ports that clients may connect to.
pub const RULES_MAX: usize = 32;

/// How far a network reaches; the default narrows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Where the guest may open connections and send packets to; absent means anywhere, an empty list nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
    /// TCP ports of the guest that clients may connect to; absent means any, unless there is a list of `egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<u16>>,
    /// Until the guest attested only its verifier is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub until_attested: bool,
}

/// Somewhere packets may go: where every part that is given holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// Destination.
    pub cidr: Cidr,
    /// Protocol; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Destination ports; absent means any. For a packet whose ports cannot be seen, none hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
}

/// A protocol by its name; its value is its number (IANA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// ICMP for IPv4.
    Icmp = 1,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// Lowest.
    pub min: u16,
    /// Highest.
    pub max: u16,
}

/// `ADDRESS/PREFIX`, no bit of the address set beyond the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Reach {
    /// True if clients may connect to `port`. A list of `egress` without one of ports lets no answer out.
    pub fn listens(&self, port: u16) -> bool {
        match &self.listen {
            Some(ports) => ports.contains(&port),
            None => self.egress.is_none(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let rules = self.egress.as_deref().unwrap_or_default();
        require(rules.len() <= RULES_MAX, "network.egress", "must be at most 32 rules")?;
        for (n, EgressRule { protocol, ports: range, .. }) in rules.iter().enumerate() {
            let field = || format!("network.egress[{n}].ports");
            let Some(Ports { min, max }) = *range else { continue };
            let has_ports = matches!(protocol, Some(Protocol::Tcp | Protocol::Udp));
            require(has_ports, field(), "must come with the protocol `tcp` or `udp`")?;
            require(1 <= min && min <= max, field(), "must go from 1 or more upwards")?;
        }
        let ports = self.listen.as_deref().unwrap_or_default();
        let plain = ports.len() <= RULES_MAX && !ports.contains(&0);
        require(plain, "network.listen", "must be at most 32 ports, none of them 0")
    }
}

impl EgressRule {
    /// Whether a packet of protocol number `protocol` may go to `to`; `port` is none where it is hidden or there is none.
    pub fn allows(&self, to: Ipv4Addr, protocol: u8, port: Option<u16>) -> bool {
        self.cidr.contains(to)
            && self.protocol.is_none_or(|wanted| wanted as u8 == protocol)
            && self.ports.is_none_or(|Ports { min, max }| {
                port.is_some_and(|port| (min..=max).contains(&port))
            })
    }
}

impl Cidr {
    /// True if `address` is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }
}

/// The netmask of a prefix of at most 32.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// Not a [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not ADDRESS/PREFIX with an IPv4 address that has no bit set beyond the prefix")]
pub struct NotACidr(String);

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let cidr = Self { network: address.parse().ok()?, prefix: prefix.parse().ok()? };
            let sound = cidr.prefix <= 32 && cidr.contains(cidr.network);
            (sound && cidr.to_string() == text).then_some(cidr)
        });
        parsed.ok_or_else(|| NotACidr(text.into()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = NotACidr;

    fn try_from(text: String) -> Result<Self, NotACidr> {
        text.parse()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        match self.protocol {
            None => Ok(()),
            Some(Protocol::Icmp) => write!(f, " icmp"),
            Some(Protocol::Tcp) => write!(f, " tcp"),
            Some(Protocol::Udp) => write!(f, " udp"),
        }?;
        match self.ports {
            None => Ok(()),
            Some(Ports { min, max }) if min == max => write!(f, " {min}"),
            Some(Ports { min, max }) => write!(f, " {min}-{max}"),
        }
    }
}

impl VerifierPin {
    /// Where the verifier is: what `url` says, or 443. None for a URL that breaks its rule.
    pub fn endpoint(&self) -> Option<SocketAddrV4> {
        let authority = self.url.strip_prefix("https://")?;
        let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
        Some(SocketAddrV4::new(host.parse().ok()?, port.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rule(json: &str) -> EgressRule {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_cidr_has_one_spelling() {
        for good in ["0.0.0.0/0", "128.0.0.0/1", "192.0.2.0/24", "192.0.2.1/32"] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        let bad = [
            "",
            "/",
            "192.0.2.0",
            "192.0.2.0/",
            "192.0.2.1/24",
            "192.0.2.0/33",
            "192.0.2.0/024",
            "192.0.2/24",
            "192.0.2.0/+24",
            " 192.0.2.0/24",
            "::/0",
            "192.0.2.0/256",
            "1.0.0.0/0",
        ];
        for bad in bad {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cidr_holds_its_addresses_and_not_their_neighbours() {
        let cidr: Cidr = "192.0.2.128/25".parse().unwrap();
        for (address, inside) in [
            ([192, 0, 2, 128], true),
            ([192, 0, 2, 255], true),
            ([192, 0, 2, 127], false),
            ([192, 0, 3, 0], false),
        ] {
            assert_eq!(cidr.contains(address.into()), inside, "{address:?}");
        }
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST) && all.contains(Ipv4Addr::UNSPECIFIED));
    }

    #[test]
    fn every_part_of_a_rule_that_is_given_has_to_hold() {
        let to = Ipv4Addr::new(192, 0, 2, 1);
        let anything = rule(r#"{"cidr":"192.0.2.0/24"}"#);
        assert!(anything.allows(to, 47, None) && anything.allows(to, 6, Some(1)));
        assert!(!anything.allows([192, 0, 3, 1].into(), 6, Some(1)));
        let udp = rule(r#"{"cidr":"192.0.2.0/24","protocol":"udp"}"#);
        assert!(udp.allows(to, 17, None) && !udp.allows(to, 6, None));
        let web = rule(r#"{"cidr":"192.0.2.0/24","protocol":"tcp","ports":{"min":80,"max":443}}"#);
        for (port, allowed) in [(79, false), (80, true), (443, true), (444, false)] {
            assert_eq!(web.allows(to, 6, Some(port)), allowed, "{port}");
        }
        assert!(!web.allows(to, 17, Some(80)) && !web.allows(to, 6, None));
        assert_eq!(web.to_string(), "192.0.2.0/24 tcp 80-443");
    }

    #[test]
    fn answers_leave_where_clients_may_come_in() {
        let reach = |egress: bool, listen: Option<Vec<u16>>| Reach {
            egress: egress.then(Vec::new),
            listen,
            until_attested: false,
        };
        assert!(reach(false, None).listens(443));
        assert!(!reach(true, None).listens(443));
        assert!(
            reach(true, Some(vec![443])).listens(443) && reach(false, Some(vec![443])).listens(443)
        );
        assert!(
            !reach(true, Some(vec![443])).listens(80) && !reach(false, Some(vec![443])).listens(80)
        );
    }

    #[test]
    fn a_verifier_is_where_its_url_says() {
        let pin = |url: &str| {
            VerifierPin { url: url.into(), ca: String::new(), release_key: String::new() }
                .endpoint()
        };
        assert_eq!(pin("https://192.0.2.7"), Some(SocketAddrV4::new([192, 0, 2, 7].into(), 443)));
        assert_eq!(
            pin("https://192.0.2.7:8443"),
            Some(SocketAddrV4::new([192, 0, 2, 7].into(), 8443))
        );
        assert_eq!(pin("http://192.0.2.7"), None);
        assert_eq!(pin("https://verifier.example"), None);
    }
}
