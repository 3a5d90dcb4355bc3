//! The network below the overlay: how nodes reach each other.
//!
//! Two shapes, because an overlay must not care: all nodes on one Ethernet segment, or each in a
//! subnet of its own behind a router. A node's end is called `eth0` and has an address and a
//! default route of each family. Nothing here leaves the namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::netns::{Netns, unique_name};
use crate::node::Node;

/// The name of a node's external interface.
pub const IFNAME: &str = "eth0";

/// How the nodes are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All on one segment: 192.168.50.0/24 and fd00:50::/64.
    Bridge,
    /// Node N in 192.168.(50+N).0/24 and fd00:(0x50+N)::/64, one router between them.
    Routed,
}

/// The switch or router that nodes are attached to.
#[derive(Debug)]
pub struct Underlay {
    shape: Shape,
    middle: Netns,
    attached: u8,
}

/// A node's place on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 1 for the first node.
    pub number: u8,
    /// Its IPv4 address with the prefix length.
    pub v4: Ipv4Net,
    /// Its IPv6 address with the prefix length.
    pub v6: Ipv6Net,
    /// The IPv4 router.
    pub v4_gateway: Ipv4Addr,
    /// The IPv6 router.
    pub v6_gateway: Ipv6Addr,
}

impl Place {
    fn new(shape: Shape, number: u8) -> Self {
        let (net4, net6) = match shape {
            Shape::Bridge => (50, 0x50),
            Shape::Routed => (50 + number, 0x50 + u16::from(number)),
        };
        let v4 = |host| Ipv4Addr::new(192, 168, net4, host);
        let v6 = |host| Ipv6Addr::new(0xfd00, net6, 0, 0, 0, 0, 0, host);
        Self {
            number,
            v4: Ipv4Net::new(v4(number), 24).expect("24 is a prefix length"),
            v6: Ipv6Net::new(v6(u16::from(number)), 64).expect("64 is a prefix length"),
            v4_gateway: v4(254),
            v6_gateway: v6(0xfe),
        }
    }
}

impl Underlay {
    /// An underlay with no nodes yet and a unique name.
    pub fn new(shape: Shape) -> Result<Self> {
        Self::create(shape, &unique_name("underlay"))
    }

    /// An underlay whose namespace is `name`.
    pub fn create(shape: Shape, name: &str) -> Result<Self> {
        let middle = Netns::create(name)?;
        middle.set_sysctl("ipv4/ip_forward", "1")?;
        middle.set_sysctl("ipv6/conf/all/forwarding", "1")?;
        if shape == Shape::Bridge {
            let place = Place::new(shape, 0);
            middle.ip_batch(&format!(
                "link add br0 type bridge\n\
                 link set br0 up\n\
                 addr add {}/24 dev br0\n\
                 addr add {}/64 dev br0 nodad\n",
                place.v4_gateway, place.v6_gateway,
            ))?;
        }
        Ok(Self {
            shape,
            middle,
            attached: 0,
        })
    }

    /// Joins a node: `eth0` with its addresses and default routes, up and usable.
    pub fn attach(&mut self, node: &Node) -> Result<Place> {
        ensure!(self.attached < 200, "an underlay takes 200 nodes");
        self.attached += 1;
        let place = Place::new(self.shape, self.attached);
        let port = self.port(&place);
        // Made in place: moving a link between namespaces costs milliseconds of RCU waiting.
        let mut middle = format!(
            "link add {port} type veth peer {IFNAME} netns {}\n",
            node.name()
        );
        middle += &match self.shape {
            Shape::Bridge => format!("link set {port} master br0\n"),
            Shape::Routed => format!(
                // The kernel makes a link-local address up to a second after the link is up, and
                // without one a router sends no neighbour solicitations.
                "link set {port} addrgenmode none\n\
                 addr add fe80::fe/64 dev {port} nodad\n\
                 addr add {}/24 dev {port}\n\
                 addr add {}/64 dev {port} nodad\n",
                place.v4_gateway, place.v6_gateway
            ),
        };
        self.middle
            .ip_batch(&format!("{middle}link set {port} up\n"))?;
        node.netns().ip_batch(&format!(
            "addr add {} brd + dev {IFNAME}\n\
             addr add {} dev {IFNAME} nodad\n\
             link set {IFNAME} up\n\
             route add default via {}\n\
             route add default via {} dev {IFNAME}\n",
            place.v4, place.v6, place.v4_gateway, place.v6_gateway,
        ))?;
        Ok(place)
    }

    /// Takes the node's cable out (`up` false) or puts it back.
    pub fn set_cable(&self, place: &Place, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.middle.ip(&["link", "set", &self.port(place), state])?;
        Ok(())
    }

    /// The name of the switch's or router's end of a node's cable.
    pub fn port(&self, place: &Place) -> String {
        format!("node{}", place.number)
    }

    /// The namespace of the switch or router.
    pub fn middle(&self) -> &Netns {
        &self.middle
    }

    /// Leaves it standing when this is dropped.
    pub fn keep(&mut self) {
        self.middle.keep();
    }
}
