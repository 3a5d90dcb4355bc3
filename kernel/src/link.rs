//! Links: what every kind of device has in common.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use nix::errno::Errno;

use crate::attribute;
use crate::device;
use crate::error::Result;
use crate::ipip::Ipip;
use crate::mac::Mac;
use crate::socket::{Request, Socket};
use crate::vxlan::Vxlan;

/// linux/if_link.h and linux/ip.h: settings of IPv4, each an attribute of its own kind.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;

/// A network device as the kernel reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `vxlan`, `bridge`, `veth`, …; empty for hardware and the loopback.
    pub kind: String,
    /// Bytes of payload of one frame.
    pub mtu: u32,
    /// None for devices without Ethernet addresses.
    pub mac: Option<Mac>,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// `operstate` is `UP` or unknown (which is what devices without a notion of it say).
    pub running: bool,
    /// Promiscuous by its own setting (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Receives all multicast by its own setting (`IFF_ALLMULTI`).
    pub all_multicast: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// The device below it, or, for a veth, its peer.
    pub lower: Option<u32>,
    /// The peer's or lower device's namespace, if that is another one.
    pub lower_netnsid: Option<i32>,
    /// Its group (`ip link set group`).
    pub group: u32,
    /// Text for people, up to 255 bytes; twill names a veth's attachment in it.
    pub alias: Option<String>,
    /// Transmit queue length.
    pub txqlen: u32,
    /// The attributes of a VXLAN device.
    pub vxlan: Option<Vxlan>,
    /// The attributes of an IPv4-in-IPv4 tunnel.
    pub ipip: Option<Ipip>,
    /// Bridge ports: a frame may leave by the port it came by.
    pub hairpin: Option<bool>,
    /// Bridges: ports belong to VLANs, and frames go only where theirs does.
    pub filters_vlans: bool,
}

/// `ip link show dev NAME`; None if there is none, which costs no link message.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    match device::index(socket, name)? {
        Some(ifindex) => by_index(socket, ifindex),
        None => Ok(None),
    }
}

/// `ip link show`, the device with this number; None if there is none.
pub fn by_index(socket: &mut Socket, ifindex: u32) -> Result<Option<Link>> {
    let mut link = message(&[]);
    link.header.index = ifindex;
    get(socket, link)
}

fn get(socket: &mut Socket, mut link: LinkMessage) -> Result<Option<Link>> {
    link.attributes.push(without_statistics());
    let answer = socket.get(RouteNetlinkMessage::GetLink(link))?;
    Ok(answer.and_then(parse))
}

/// `ip link show`.
pub fn dump(socket: &mut Socket) -> Result<Vec<Link>> {
    let all = message(&[without_statistics()]);
    socket.dump(RouteNetlinkMessage::GetLink(all), parse)
}

/// `ip link show master BRIDGE`: its ports.
pub fn ports(socket: &mut Socket, bridge: u32) -> Result<Vec<Link>> {
    let ports = message(&[LinkAttribute::Controller(bridge), without_statistics()]);
    let mut ports = socket.dump(RouteNetlinkMessage::GetLink(ports), parse)?;
    // Kernels before 4.6 send every link.
    ports.retain(|port| port.master == Some(bridge));
    Ok(ports)
}

/// Statistics are most of an answer's bytes and nobody here reads them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// What to change about a device that is there. Starts out as "nothing".
#[derive(Debug, Clone)]
pub struct Change {
    link: LinkMessage,
}

/// `ip link set dev NAME …`, the device found by name when the change is made.
pub fn change(name: &str) -> Change {
    Change {
        link: message(&[LinkAttribute::IfName(name.to_owned())]),
    }
}

/// `ip link set …`, the device found by number.
pub fn change_index(ifindex: u32) -> Change {
    let mut link = message(&[]);
    link.header.index = ifindex;
    Change { link }
}

impl Change {
    /// `… up`.
    pub fn up(mut self) -> Change {
        set_flag(&mut self.link, LinkFlags::Up, true);
        self
    }

    /// `… down`.
    pub fn down(mut self) -> Change {
        set_flag(&mut self.link, LinkFlags::Up, false);
        self
    }

    /// `… promisc on|off`.
    pub fn promiscuous(mut self, on: bool) -> Change {
        set_flag(&mut self.link, LinkFlags::Promisc, on);
        self
    }

    /// `… allmulticast on|off`.
    pub fn all_multicast(mut self, on: bool) -> Change {
        set_flag(&mut self.link, LinkFlags::Allmulti, on);
        self
    }

    /// `… mtu N`.
    pub fn mtu(self, mtu: u32) -> Change {
        self.attribute(LinkAttribute::Mtu(mtu))
    }

    /// `… address MAC`.
    pub fn mac(self, mac: Mac) -> Change {
        self.attribute(LinkAttribute::Address(mac.0.to_vec()))
    }

    /// `… alias TEXT`, at most 255 bytes.
    pub fn alias(self, text: &str) -> Change {
        self.attribute(LinkAttribute::IfAlias(text.to_owned()))
    }

    /// `… txqueuelen N`.
    pub fn txqlen(self, length: u32) -> Change {
        self.attribute(LinkAttribute::TxQueueLen(length))
    }

    /// `… group N`.
    pub fn group(self, group: u32) -> Change {
        self.attribute(LinkAttribute::Group(group))
    }

    /// The device announces its IPv4 addresses when it comes up (`net.ipv4.conf.DEV.arp_notify`).
    /// A message of its own, before the one that brings it up: the kernel does flags first.
    pub fn announcing(self) -> Change {
        // The crate's type for it goes through all settings for each of its attributes' lengths.
        let arp_notify = DefaultNla::new(IPV4_DEVCONF_ARP_NOTIFY, 1_u32.to_ne_bytes().to_vec());
        let settings = attribute::nest(IFLA_INET_CONF, &[arp_notify]);
        let inet = AfSpecUnspec::Inet(vec![AfSpecInet::Other(settings)]);
        self.attribute(LinkAttribute::AfSpecUnspec(vec![inet]))
    }

    /// `… master BRIDGE`; 0 is `nomaster`.
    pub fn master(self, ifindex: u32) -> Change {
        self.attribute(LinkAttribute::Controller(ifindex))
    }

    pub(crate) fn attribute(mut self, attribute: LinkAttribute) -> Change {
        self.link.attributes.push(attribute);
        self
    }

    /// The request for [`Socket::apply`].
    pub fn request(self) -> Request {
        Request::new(RouteNetlinkMessage::NewLink(self.link), 0)
    }
}

/// `ip link del dev NAME`. A device that is gone already is deleted.
pub fn delete(name: &str) -> Request {
    let link = message(&[LinkAttribute::IfName(name.to_owned())]);
    Request::new(RouteNetlinkMessage::DelLink(link), 0).done_on(&[Errno::ENODEV])
}

/// `ip link del`, the device with this number.
pub fn delete_index(ifindex: u32) -> Request {
    let mut link = message(&[]);
    link.header.index = ifindex;
    Request::new(RouteNetlinkMessage::DelLink(link), 0).done_on(&[Errno::ENODEV])
}

/// `ip link del group N`: every device of the group, in one go.
pub fn delete_group(group: u32) -> Request {
    let link = message(&[LinkAttribute::Group(group)]);
    Request::new(RouteNetlinkMessage::DelLink(link), 0).done_on(&[Errno::ENODEV])
}

/// A new device of a kind. Fails if the name is taken.
pub(crate) fn create(
    kind: InfoKind,
    data: Option<InfoData>,
    attributes: Vec<LinkAttribute>,
    up: bool,
) -> Request {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    let mut link = message(&attributes);
    link.attributes.push(LinkAttribute::LinkInfo(info));
    if up {
        set_flag(&mut link, LinkFlags::Up, true);
    }
    create_from(link)
}

/// A new device, as the message says. Fails if the name is taken.
pub(crate) fn create_from(link: LinkMessage) -> Request {
    Request::new(
        RouteNetlinkMessage::NewLink(link),
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
    )
}

/// `ip link add NAME type KIND`, with nothing but its name. Fails if the name is taken.
pub(crate) fn create_plain(name: &str, kind: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned())];
    create(InfoKind::from(kind), None, attributes, false)
}

pub(crate) fn message(attributes: &[LinkAttribute]) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = attributes.to_vec();
    link
}

fn set_flag(link: &mut LinkMessage, flag: LinkFlags, on: bool) {
    link.header.flags.set(flag, on);
    link.header.change_mask |= flag;
}

fn parse(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up),
        running: true,
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = Mac::from_slice(&bytes),
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|i| *i != 0),
            LinkAttribute::Link(index) => link.lower = Some(index).filter(|i| *i != 0),
            LinkAttribute::LinkNetNsId(id) => link.lower_netnsid = Some(id).filter(|i| *i >= 0),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::IfAlias(text) => link.alias = Some(text),
            LinkAttribute::TxQueueLen(length) => link.txqlen = length,
            LinkAttribute::OperState(state) => {
                link.running = matches!(state, State::Up | State::Unknown);
            }
            LinkAttribute::LinkInfo(infos) => parse_info(&mut link, infos),
            _ => {}
        }
    }
    Some(link)
}

fn parse_info(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(Vxlan::parse(&data)),
            LinkInfo::Data(InfoData::Bridge(data)) => {
                link.filters_vlans = crate::bridge::filters_vlans(&data);
            }
            LinkInfo::Data(InfoData::IpTunnel(data)) if link.kind == "ipip" => {
                link.ipip = Some(Ipip::parse(&data));
            }
            LinkInfo::PortData(data) => link.hairpin = crate::bridge::hairpin_of(&data),
            _ => {}
        }
    }
}

/// The family of an address, as the kernel numbers it.
pub(crate) fn family(ip: IpAddr) -> netlink_packet_route::AddressFamily {
    match ip {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    }
}
