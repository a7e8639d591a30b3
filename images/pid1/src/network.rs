//! Static IPv4 over rtnetlink: link up, address, default route. No DHCP, no name service, no IPv6.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::Error;

/// Most bytes of one acknowledgement: an nlmsgerr with the request echoed.
const ACK_MAX: usize = 4096;

/// Brings up `lo` and `interface`, gives the interface its address and the machine its default route.
pub fn up(interface: &str, address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Result<(), Error> {
    loopback()?;
    let mut route = Route::open(interface)?;
    route.link_up()?;
    route.add_address(address, prefix)?;
    route.add_default(gateway)
}

/// Brings up `lo` alone.
pub fn loopback() -> Result<(), Error> {
    link_up("lo")
}

/// Brings up an interface, and gives it nothing.
pub fn link_up(interface: &str) -> Result<(), Error> {
    Route::open(interface)?.link_up()
}

/// The name of the only interface besides `lo`; refuses none and several.
pub fn only_interface() -> Result<String, Error> {
    let fail =
        |source| Error::Network { step: "find the interface", interface: "*".into(), source };
    let list = nix::net::if_::if_nameindex().map_err(|errno| fail(errno.into()))?;
    let mut names = list
        .iter()
        .filter_map(|entry| entry.name().to_str().ok().map(str::to_owned))
        .filter(|name| name != "lo");
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => Err(fail(io::Error::other("there is no network interface"))),
        (Some(_), Some(_)) => Err(fail(io::Error::other("there is more than one interface"))),
    }
}

/// A conversation with the kernel about one interface.
struct Route {
    socket: Socket,
    interface: String,
    index: u32,
    sequence: u32,
}

impl Route {
    fn open(interface: &str) -> Result<Self, Error> {
        let fail = |source| Error::Network {
            step: "open a netlink socket",
            interface: interface.into(),
            source,
        };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| Error::Network {
            step: "find the interface",
            interface: interface.into(),
            source: errno.into(),
        })?;
        Ok(Self { socket, interface: interface.into(), index, sequence: 0 })
    }

    fn link_up(&mut self) -> Result<(), Error> {
        let (index, flags, change_mask) = (self.index, LinkFlags::Up, LinkFlags::Up);
        let link = LinkHeader { index, flags, change_mask, ..LinkHeader::default() };
        self.ask("set the link up", Request::SetLink(link), 0)
    }

    fn add_address(&mut self, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = self.index;
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
        ];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.ask("set the address", Request::NewAddress(message), flags)
    }

    fn add_default(&mut self, gateway: Ipv4Addr) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Oif(self.index),
        ];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.ask("set the default route", Request::NewRoute(message), flags)
    }

    /// Sends one request and waits for its acknowledgement. What is there already is no error.
    fn ask(&mut self, step: &'static str, request: Request, flags: u16) -> Result<(), Error> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.exchange(&bytes).map_err(|source| Error::Network {
            step,
            interface: self.interface.clone(),
            source,
        })
    }

    fn exchange(&self, request: &[u8]) -> io::Result<()> {
        self.socket.send(request, 0)?;
        let mut buffer = Vec::with_capacity(ACK_MAX);
        self.socket.recv(&mut buffer, 0)?;
        let answer = NetlinkMessage::<Request>::deserialize(&buffer)
            .map_err(|_| io::Error::other("the kernel's answer does not parse"))?;
        match answer.payload {
            // An error message without a code is the acknowledgement (netlink(7)).
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => match error.to_io() {
                exists if exists.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                failure => Err(failure),
            },
            _ => Err(io::Error::other("the kernel did not acknowledge")),
        }
    }
}

/// The three requests made here. `RouteNetlinkMessage` would serve too, and would put parsers for every
/// kind of link, filter and rule into a program whose every byte is hashed at each launch.
#[derive(Debug)]
enum Request {
    SetLink(LinkHeader),
    NewAddress(AddressMessage),
    NewRoute(RouteMessage),
}

impl Request {
    fn body(&self) -> &dyn Emitable {
        match self {
            Self::SetLink(body) => body,
            Self::NewAddress(body) => body,
            Self::NewRoute(body) => body,
        }
    }
}

impl From<Request> for NetlinkPayload<Request> {
    fn from(request: Request) -> Self {
        Self::InnerMessage(request)
    }
}

impl NetlinkSerializable for Request {
    /// linux/rtnetlink.h: RTM_SETLINK, RTM_NEWADDR, RTM_NEWROUTE.
    fn message_type(&self) -> u16 {
        match self {
            Self::SetLink(_) => 19,
            Self::NewAddress(_) => 20,
            Self::NewRoute(_) => 24,
        }
    }

    fn buffer_len(&self) -> usize {
        self.body().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.body().emit(buffer);
    }
}

impl NetlinkDeserializable for Request {
    type Error = DecodeError;

    /// The kernel only acknowledges; whatever else it sends is refused.
    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> Result<Self, DecodeError> {
        Err("an answer that is not an acknowledgement".into())
    }
}
