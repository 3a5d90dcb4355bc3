//! The udp data path between namespaces: what goes through, what does not, and what it looks like
//! from outside. The other end is a second data path, or a program that knows nothing of us.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_test_harness::node::Node;
use cni_test_harness::observe::Family;
use cni_test_harness::underlay::{Place, Shape, Underlay};
use cni_test_harness::wait::{self, Look};
use cni_test_harness::{packet, skip_unless, tools};
use ipnet::Ipv4Net;
use serde_json::Value;
use twilld::udp::{Count, DEVICE, DataPath, Ends, OVERHEAD, Options, PORT, Peers, device};

const WAIT: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(20);
const UNDERLAY_MTU: u32 = 1500;

const FAST: Options = Options {
    device: true,
    gso: true,
    gro: true,
    queues: 2,
};
const SLOW: Options = Options {
    device: false,
    gso: false,
    gro: false,
    queues: 1,
};

fn network() -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 5, 0, 0), 16).unwrap()
}

/// The subnet of the node at this place.
fn subnet(place: &Place) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 5, place.number * 10, 0), 24).unwrap()
}

fn peers(places: &[Place]) -> Peers {
    let peer = |place: &Place| (subnet(place), SocketAddrV4::new(place.v4.addr(), PORT));
    Peers::new(places.iter().map(peer))
}

/// Starts a data path on a node and sets its device up.
fn start(node: &Node, place: &Place, options: Options, peers: Peers) -> Result<DataPath> {
    let own = subnet(place).addr();
    let ends = Ends {
        device: DEVICE.to_owned(),
        listen: SocketAddrV4::new(place.v4.addr(), PORT),
    };
    node.netns().run(|| {
        // A child that another test forks right now holds our sockets until it becomes a program.
        let path = wait::until("the port to be free", WAIT, || {
            Ok(match DataPath::start(&ends, options, peers.clone()) {
                Ok(path) => Look::Done(path),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        let mut socket = kernel::Socket::open()?;
        let link = kernel::link::by_name(&mut socket, path.device())?.context("no device")?;
        let mtu = UNDERLAY_MTU - OVERHEAD;
        socket.apply_all(&device::setup(link.ifindex, mtu, own, network()))?;
        Ok(path)
    })
}

/// Two nodes, not yet joined by anything but the underlay.
struct Pair {
    nodes: [Node; 2],
    places: [Place; 2],
    _underlay: Underlay,
}

impl Pair {
    fn new() -> Result<Self> {
        let mut underlay = Underlay::new(Shape::Bridge)?;
        let nodes = [Node::new("a")?, Node::new("b")?];
        let places = [underlay.attach(&nodes[0])?, underlay.attach(&nodes[1])?];
        Ok(Self {
            nodes,
            places,
            _underlay: underlay,
        })
    }

    /// A data path on each.
    fn start(&self, options: [Options; 2]) -> Result<[DataPath; 2]> {
        let start = |at: usize| {
            start(
                &self.nodes[at],
                &self.places[at],
                options[at],
                peers(&self.places),
            )
        };
        Ok([start(0)?, start(1)?])
    }

    fn inner(&self, at: usize) -> IpAddr {
        subnet(&self.places[at]).addr().into()
    }

    fn ping(&self, args: &[&str]) -> Result<bool> {
        let to = self.inner(1).to_string();
        let all = [&["-n", "-c", "2", "-i", "0.05", "-W", "1"], args, &[&to]].concat();
        Ok(self.nodes[0]
            .try_exec("ping", &all, DEADLINE)?
            .status
            .success())
    }

    /// Sends `length` patterned bytes by TCP from node 0 to node 1, and what came.
    fn transfer(&self, length: usize) -> Result<()> {
        let listen = || Ok(TcpListener::bind((self.inner(1), 7000))?);
        let listener = self.nodes[1].netns().run(listen)?;
        let sent: Vec<u8> = (0..length).map(|n| (n / 7 + n / 4096) as u8).collect();
        let receiver = std::thread::spawn(move || -> Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(DEADLINE))?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            Ok(received)
        });
        let to = (self.inner(1), 7000);
        self.nodes[0].netns().run(|| {
            let mut stream = TcpStream::connect_timeout(&to.into(), DEADLINE)?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream.write_all(&sent)?)
        })?;
        let received = receiver.join().unwrap()?;
        ensure!(
            received == sent,
            "{} of {length} bytes came",
            received.len()
        );
        Ok(())
    }
}

#[test]
fn streams_and_pings_pass_whatever_either_side_can_do() -> Result<()> {
    let pair = Pair::new()?;
    // What kernels came to know one after the other, and may lack one by one.
    let without_device = Options {
        device: false,
        ..FAST
    };
    let without_gso = Options { gso: false, ..FAST };
    let without_gro = Options { gro: false, ..FAST };
    for options in [
        [FAST, FAST],
        [FAST, SLOW],
        [SLOW, FAST],
        [SLOW, SLOW],
        [FAST, without_device],
        [without_device, without_gso],
        [without_gso, without_gro],
        [without_gro, FAST],
    ] {
        let paths = pair.start(options)?;
        assert!(pair.ping(&[])?, "{options:?}");
        // The largest that fits is not fragmented: 1472 less 28 bytes of headers.
        assert!(pair.ping(&["-M", "do", "-s", "1444"])?, "{options:?}");
        assert!(!pair.ping(&["-M", "do", "-s", "1445"])?, "{options:?}");
        assert!(pair.ping(&["-s", "4000"])?, "fragments, {options:?}");
        pair.transfer(20_000_000)
            .with_context(|| format!("{options:?}"))?;
        for path in &paths {
            let counters = path.counters();
            for count in [
                Count::Spoofed,
                Count::NoRoute,
                Count::SendFailed,
                Count::WriteFailed,
            ] {
                assert_eq!(counters.get(count), 0, "{count:?}, {options:?}");
            }
        }
    }
    Ok(())
}

/// The kernel refuses to send many datagrams at once that are larger than what the underlay carries.
#[test]
fn an_underlay_that_carries_less_than_it_did_gets_fragments() -> Result<()> {
    let pair = Pair::new()?;
    let paths = pair.start([FAST, FAST])?;
    for node in &pair.nodes {
        node.netns().ip(&["link", "set", "eth0", "mtu", "1300"])?;
    }
    assert!(pair.ping(&["-M", "do", "-s", "1444"])?);
    pair.transfer(2_000_000)?;
    for path in &paths {
        assert_eq!(path.counters().get(Count::SendFailed), 0);
    }
    Ok(())
}

#[test]
fn a_stream_takes_many_packets_for_each_system_call() -> Result<()> {
    let pair = Pair::new()?;
    let paths = pair.start([FAST, FAST])?;
    let [abilities, _] = [paths[0].abilities(), paths[1].abilities()];
    skip_unless!(
        abilities.gso && abilities.gro && abilities.device != kernel::tun::Offload::Off,
        "this kernel cannot: {abilities:?}"
    );
    pair.transfer(20_000_000)?;
    let per_call = |path: &DataPath, packets, calls| {
        path.counters().get(packets) / path.counters().get(calls).max(1)
    };
    let out = per_call(&paths[0], Count::PacketsOut, Count::SendsOut);
    let into = per_call(&paths[1], Count::PacketsIn, Count::WritesIn);
    assert!(out >= 10, "{out} packets in a send");
    assert!(into >= 10, "{into} packets in a write");
    Ok(())
}

#[test]
fn a_peer_that_only_knows_the_bare_format_is_understood() -> Result<()> {
    let socat = skip_unless!(tools::program("socat"));
    let pair = Pair::new()?;
    let [here, there] = &pair.places;
    // The format is a packet in a datagram, so a program that joins the two is a peer.
    let ends = [
        format!(
            "UDP4-DATAGRAM:{}:{PORT},bind={}:{PORT}",
            here.v4.addr(),
            there.v4.addr()
        ),
        "TUN,tun-name=bare0,iff-no-pi,iff-up".to_owned(),
    ];
    let mut args = vec!["-b".to_owned(), "65536".to_owned()];
    args.extend(ends);
    let mut bare = pair.nodes[1].spawn("socat", &socat, &args)?;
    let view = pair.nodes[1].view();
    bare.wait_until("the device bare0", DEADLINE, || {
        Ok(match view.link("bare0")? {
            Some(_) => Look::Done(()),
            None => Look::NotYet("not there".to_owned()),
        })
    })?;
    pair.nodes[1].netns().ip_batch(&format!(
        "link set bare0 mtu 1472\n\
         addr add {}/32 dev bare0\n\
         route add {} dev bare0\n",
        pair.inner(1),
        network(),
    ))?;
    for options in [FAST, SLOW] {
        let path = start(&pair.nodes[0], here, options, peers(&pair.places))?;
        assert!(pair.ping(&[])?, "{options:?}");
        pair.transfer(2_000_000)
            .with_context(|| format!("{options:?}"))?;
        assert_eq!(path.counters().get(Count::Spoofed), 0);
    }
    Ok(())
}

#[test]
fn a_packet_from_a_host_that_does_not_hold_its_source_is_dropped_and_counted() -> Result<()> {
    let pair = Pair::new()?;
    let [here, there] = &pair.places;
    let path = start(&pair.nodes[0], here, FAST, peers(&pair.places))?;
    let target = subnet(here).addr();
    let heard = pair.nodes[0]
        .netns()
        .run(|| Ok(UdpSocket::bind((target, 9000))?))?;
    heard.set_read_timeout(Some(WAIT))?;
    let from = |source: Ipv4Addr| {
        let packet = packet::udp(source, target, b"hello");
        let send =
            || Ok(UdpSocket::bind((there.v4.addr(), 0))?.send_to(&packet, (here.v4.addr(), PORT))?);
        pair.nodes[1].netns().run(send)
    };
    // Its own subnet, from any port: heard. Somebody else's, ours, nobody's: not.
    from(Ipv4Addr::new(10, 5, 20, 9))?;
    let mut buffer = [0; 100];
    let (length, sender) = heard.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"hello");
    assert_eq!(sender.ip(), IpAddr::from([10, 5, 20, 9]));
    for source in [[10, 5, 10, 9], [10, 5, 77, 9], [192, 168, 50, 2]] {
        from(source.into())?;
    }
    wait::until_true("three drops", DEADLINE, || {
        Ok(path.counters().get(Count::Spoofed) == 3)
    })?;
    heard.set_nonblocking(true)?;
    assert_eq!(
        heard.recv_from(&mut buffer).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    Ok(())
}

#[test]
fn what_no_lease_covers_is_unreachable_at_once() -> Result<()> {
    let pair = Pair::new()?;
    let path = start(&pair.nodes[0], &pair.places[0], FAST, peers(&pair.places))?;
    // A UDP socket is not told of it unless it asks (IP_RECVERR); a connection attempt ends by it.
    let connect = || {
        let nobody = SocketAddrV4::new(Ipv4Addr::new(10, 5, 99, 1), 9);
        Ok(TcpStream::connect_timeout(&nobody.into(), DEADLINE)
            .unwrap_err()
            .kind())
    };
    let refused = pair.nodes[0].netns().run(connect)?;
    assert_eq!(refused, ErrorKind::NetworkUnreachable);
    wait::until_true("the drop to be counted", DEADLINE, || {
        Ok(path.counters().get(Count::NoRoute) == 1)
    })
}

#[test]
fn each_side_counts_a_hop_and_drops_in_silence_what_is_over() -> Result<()> {
    let pair = Pair::new()?;
    let paths = pair.start([FAST, FAST])?;
    let over = |at: usize| paths[at].counters().get(Count::TimeOver);
    assert!(pair.ping(&["-t", "3"])?);
    assert_eq!((over(0), over(1)), (0, 0));
    assert!(!pair.ping(&["-t", "2"])?);
    assert_eq!((over(0), over(1)), (0, 2));
    let to = pair.inner(1).to_string();
    let args = ["-n", "-c", "2", "-i", "0.05", "-W", "1", "-t", "1", &to];
    let said = pair.nodes[0].try_exec("ping", &args, DEADLINE)?;
    assert!(
        !said.status.success() && !said.stdout_text().contains("exceeded"),
        "{}",
        said.stdout_text()
    );
    assert_eq!((over(0), over(1)), (2, 2));
    Ok(())
}

#[test]
fn peers_come_and_go_while_it_runs() -> Result<()> {
    let pair = Pair::new()?;
    let paths = pair.start([FAST, FAST])?;
    assert!(pair.ping(&[])?);
    paths[0].set_peers(Peers::default());
    assert!(!pair.ping(&[])?);
    paths[0].set_peers(peers(&pair.places));
    assert!(pair.ping(&[])?);
    Ok(())
}

#[test]
fn the_device_lives_as_long_as_the_data_path() -> Result<()> {
    let pair = Pair::new()?;
    let path = start(&pair.nodes[0], &pair.places[0], FAST, Peers::default())?;
    assert_eq!(path.device(), "flannel0");
    assert!(pair.nodes[0].view().link("flannel0")?.is_some());
    drop(path);
    assert!(pair.nodes[0].view().link("flannel0")?.is_none());
    let routes = pair.nodes[0].view().routes(Family::V4)?;
    assert!(
        routes.iter().all(|route| route.dst != "10.5.0.0/16"),
        "{routes:?}"
    );
    Ok(())
}

#[test]
fn a_deleted_device_is_noticed() -> Result<()> {
    let pair = Pair::new()?;
    let path = start(&pair.nodes[0], &pair.places[0], FAST, Peers::default())?;
    assert_eq!(path.failure(), None);
    pair.nodes[0].netns().ip(&["link", "del", "flannel0"])?;
    wait::until_true("the failure to be told", DEADLINE, || {
        Ok(path.failure().is_some())
    })
}

#[test]
fn a_taken_port_and_a_taken_device_are_told_with_what_to_do() -> Result<()> {
    let pair = Pair::new()?;
    let _path = start(&pair.nodes[0], &pair.places[0], FAST, Peers::default())?;
    let again = |listen: SocketAddrV4, device: &str| {
        let ends = Ends {
            device: device.to_owned(),
            listen,
        };
        let start = || {
            Ok(DataPath::start(&ends, FAST, Peers::default())
                .unwrap_err()
                .to_string())
        };
        pair.nodes[0].netns().run(start)
    };
    let address = pair.places[0].v4.addr();
    let said = again(SocketAddrV4::new(address, PORT), DEVICE)?;
    assert!(
        said.contains("8285") && said.contains("Backend.Port"),
        "{said}"
    );
    let said = again(SocketAddrV4::new(address, PORT + 1), "flannel0")?;
    assert!(said.contains("flannel0"), "{said}");
    Ok(())
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden_udp")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The fields of a golden document that are not meant to be equal, and why.
const DIFFERENT: [(&str, &str); 8] = [
    ("ifindex", "the namespace's"),
    ("qdisc", "mq: one for each queue"),
    ("vnet_hdr", "flanneld reads one packet at a time"),
    ("multi_queue", "flanneld has one thread"),
    ("numqueues", "the same"),
    ("numdisabled", "the same"),
    ("num_tx_queues", "the same"),
    ("num_rx_queues", "the same"),
];

fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| DIFFERENT.iter().all(|(name, _)| name != key))
            .map(|(key, value)| (key.clone(), pruned(value)))
            .collect(),
        Value::Array(items) => items.iter().map(pruned).collect(),
        other => other.clone(),
    }
}

#[test]
fn from_outside_it_looks_as_flannelds() -> Result<()> {
    let mut underlay = Underlay::new(Shape::Bridge)?;
    let node = Node::new("a")?;
    let place = Place {
        number: 2,
        ..underlay.attach(&node)?
    };
    let _path = start(&node, &place, FAST, Peers::default())?;
    let of = |args: &str| -> Result<Value> {
        let output = node.exec("ip", &args.split(' ').collect::<Vec<_>>())?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let link: Value = serde_json::from_str(&golden("link.json"))?;
    assert_eq!(pruned(&of("-d -j link show flannel0")?), pruned(&link));
    let v4 = |value: &Value| {
        let all = value[0]["addr_info"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.into_iter()
            .filter(|info| info["family"] == "inet")
            .collect::<Vec<_>>()
    };
    let address: Value = serde_json::from_str(&golden("addr.json"))?;
    assert_eq!(v4(&of("-j addr show flannel0")?), v4(&address));
    let routes = node.exec(
        "ip",
        &[
            "-N", "-d", "route", "show", "table", "all", "dev", "flannel0",
        ],
    )?;
    let routes = routes.stdout_text();
    let ours: Vec<&str> = routes.lines().map(str::trim_end).collect();
    for line in golden("route.txt").lines() {
        // `1` is unicast, `2` local; `ip` leaves the device out where it was asked for.
        let (kind, rest) = line.split_once(' ').context("a kind")?;
        let rest = rest.replace(" dev flannel0", "");
        let found = ours.iter().any(|own| {
            let own = own.strip_prefix(&format!("{kind} ")).unwrap_or(own);
            own.replace(" dev flannel0", "") == rest
        });
        assert!(found, "{line}\nnot in\n{routes}");
    }
    Ok(())
}
