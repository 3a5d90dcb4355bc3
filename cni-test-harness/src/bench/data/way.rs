//! The ways from one node to the other, and two nodes for each.
//!
//! Traffic goes from the first node to an address in the second one's subnet. There are no pods:
//! their veth pairs and bridges cost the same in every way, and would hide what differs.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cluster::{Cluster, READY_DEADLINE, Spec};
use crate::etcd::{self, Etcd};
use crate::flanneld;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::process;
use crate::tools::Missing;
use crate::underlay::{IFNAME, Place, Shape, Underlay};
use crate::wait;

const DEADLINE: Duration = Duration::from_secs(30);
const PREFIX: &str = "/coreos.com/network";

/// How packets get from one node to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Two routes made by hand.
    Plain,
    /// VXLAN devices made by hand.
    ByHand,
    /// twilld's backends.
    Vxlan,
    HostGw,
    Udp,
    /// The same with all offloads off.
    UdpOneByOne,
    /// flanneld's udp backend.
    Flanneld,
}

impl Way {
    pub(super) const ALL: [Self; 7] = [
        Self::Plain,
        Self::ByHand,
        Self::Vxlan,
        Self::HostGw,
        Self::Udp,
        Self::UdpOneByOne,
        Self::Flanneld,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain routing",
            Self::ByHand => "VXLAN by hand",
            Self::Vxlan => "twilld, vxlan",
            Self::HostGw => "twilld, host-gw",
            Self::Udp => "twilld, udp",
            Self::UdpOneByOne => "twilld, udp, one by one",
            Self::Flanneld => "flanneld, udp",
        }
    }

    pub(super) fn ours(self) -> bool {
        matches!(self, Self::Vxlan | Self::HostGw | Self::Udp)
    }

    /// What must be on this machine for it.
    pub(super) fn needs(self) -> Result<(), Missing> {
        match self {
            Self::Flanneld => etcd::installed().and_then(|()| flanneld::installed().map(drop)),
            _ => Ok(()),
        }
    }
}

/// Two nodes joined in one way. What runs on them ends when it is dropped.
pub(super) struct Site {
    way: Way,
    ends: [Netns; 2],
    to: Ipv4Addr,
    /// What the nodes are made of and what runs on them.
    _held: Box<dyn Any>,
}

/// The nodes' namespaces, the address on the second one, and what to keep.
type Laid = ([Netns; 2], Ipv4Addr, Box<dyn Any>);

impl Site {
    pub(super) fn new(way: Way) -> Result<Self> {
        let (ends, to, held) = match way {
            Way::Plain => by_hand(routes)?,
            Way::ByHand => by_hand(vxlan)?,
            Way::Vxlan => twilld(&json!({"Type": "vxlan"}))?,
            Way::HostGw => twilld(&json!({"Type": "host-gw"}))?,
            Way::Udp => twilld(&json!({"Type": "udp"}))?,
            Way::UdpOneByOne => twilld(&json!({"Type": "udp", "Offload": false}))?,
            Way::Flanneld => flanneld()?,
        };
        let site = Self {
            way,
            ends,
            to,
            _held: held,
        };
        let to = to.to_string();
        wait::until_true("the other node to answer", DEADLINE, || {
            let mut ping = site.from().command("ping")?;
            ping.args(["-n", "-c", "1", "-W", "1", &to]);
            Ok(process::run(&mut ping, b"", DEADLINE)?.status.success())
        })?;
        Ok(site)
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Where packets come from.
    pub(super) fn from(&self) -> &Netns {
        &self.ends[0]
    }

    /// Where they go to.
    pub(super) fn there(&self) -> &Netns {
        &self.ends[1]
    }

    /// The address there.
    pub(super) fn to(&self) -> Ipv4Addr {
        self.to
    }
}

/// The first address of a node's subnet, which its overlay device has.
fn first(place: &Place) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, place.number, 0)
}

/// The address that packets go to: where a pod's would be.
fn inside(place: &Place) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, place.number, 1)
}

type Commands = fn(&Place, &Place) -> (String, Option<[String; 2]>);

fn by_hand(commands: Commands) -> Result<Laid> {
    let mut underlay = Underlay::new(Shape::Bridge)?;
    let nodes = [Node::new("hand-a")?, Node::new("hand-b")?];
    let places = [underlay.attach(&nodes[0])?, underlay.attach(&nodes[1])?];
    for (at, node) in nodes.iter().enumerate() {
        let (own, peer) = (&places[at], &places[1 - at]);
        let (links, forwarding) = commands(own, peer);
        let own = inside(own);
        node.netns()
            .ip_batch(&format!("addr add {own}/32 dev lo\n{links}"))?;
        if let Some([mac, to]) = forwarding {
            node.exec("bridge", &["fdb", "add", &mac, "dev", "vx0", "dst", &to])?;
        }
    }
    let ends = [Netns::open(nodes[0].name())?, Netns::open(nodes[1].name())?];
    Ok((ends, inside(&places[1]), Box::new((nodes, underlay))))
}

fn routes(_own: &Place, peer: &Place) -> (String, Option<[String; 2]>) {
    let (subnet, via) = (first(peer), peer.v4.addr());
    let route = format!("route add {subnet}/24 via {via} dev {IFNAME}\n");
    (route, None)
}

/// As twilld makes it, and nothing besides.
fn vxlan(own: &Place, peer: &Place) -> (String, Option<[String; 2]>) {
    let mac = |place: &Place| format!("02:00:00:00:00:{:02x}", place.number);
    let (own_mac, peer_mac) = (mac(own), mac(peer));
    let (local, to) = (own.v4.addr(), peer.v4.addr());
    let (own, peer) = (first(own), first(peer));
    let links = format!(
        "link add vx0 mtu 1450 address {own_mac} type vxlan id 1 dstport 8472 local {local} \
         dev {IFNAME} nolearning\n\
         addr add {own}/32 dev vx0\n\
         link set vx0 up\n\
         neigh add {peer} lladdr {peer_mac} dev vx0\n\
         route add {peer}/24 via {peer} dev vx0 onlink\n"
    );
    (links, Some([peer_mac, to.to_string()]))
}

fn spec(backend: &Value) -> Spec {
    Spec {
        net_conf: json!({"Network": "10.244.0.0/16", "Backend": backend}),
        // Masquerading costs connection tracking, which is not the tunnel's.
        twilld_args: vec!["--ip-masq=false".to_owned()],
        ..Spec::default()
    }
}

fn twilld(backend: &Value) -> Result<Laid> {
    let name = netns::unique_name("data");
    let dir = std::env::temp_dir().join(&name);
    let mut cluster = Cluster::lay_out(&spec(backend), &name, &dir)?;
    for at in [0, 1] {
        cluster.member_mut(at).start_daemon()?;
    }
    let (ends, to) = inhabit(&mut cluster)?;
    Ok((ends, to, Box::new(cluster)))
}

fn flanneld() -> Result<Laid> {
    let spec = spec(&json!({"Type": "udp"}));
    let (etcd, mut cluster) = Etcd::with_cluster("data", &spec, PREFIX)?;
    etcd.put(
        &format!("{PREFIX}/config"),
        &spec.net_conf.to_string(),
        None,
    )?;
    let mut args = etcd.flags(PREFIX);
    args.push("--ip-masq=false".to_owned());
    let program = flanneld::installed()?;
    for at in [0, 1] {
        let member = cluster.member_mut(at);
        member.start_instead("flanneld", &program, &args)?;
    }
    let (ends, to) = inhabit(&mut cluster)?;
    // The daemons end before their store does.
    Ok((ends, to, Box::new((cluster, etcd))))
}

/// Waits for the daemons and gives each node an address in its subnet; the second one's comes back.
fn inhabit(cluster: &mut Cluster) -> Result<([Netns; 2], Ipv4Addr)> {
    let mut inhabit = |at| {
        let member = cluster.member_mut(at);
        member.wait_ready(READY_DEADLINE)?;
        let subnet = member.subnet()?;
        let IpAddr::V4(address) = subnet.addr() else {
            bail!("{subnet} is no IPv4 subnet");
        };
        let netns = Netns::open(member.node().name())?;
        netns.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
        Ok((netns, address))
    };
    let ((near, _), (far, to)) = (inhabit(0)?, inhabit(1)?);
    Ok(([near, far], to))
}
