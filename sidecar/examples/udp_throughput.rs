//! What the udp data path carries, beside a VXLAN device and plain routing, between two namespaces:
//! TCP in one stream, round trips of one byte, and 64-byte datagrams.
//!
//! `cargo run --release -p twilld --example udp_throughput [SECONDS]`, as root, with iperf3.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cni_test_harness::node::Node;
use cni_test_harness::process::{self, Daemon};
use cni_test_harness::underlay::{IFNAME, Place, Shape, Underlay};
use cni_test_harness::wait::{self, Look};
use ipnet::Ipv4Net;
use serde_json::Value;
use twilld::udp::{Count, DEVICE, DataPath, Ends, Options, PORT, Peers, device};

const DEADLINE: Duration = Duration::from_secs(60);

/// How packets get from one node to the other.
#[derive(Debug, Clone, Copy)]
enum Way {
    Routing,
    Vxlan,
    Udp(Options),
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Routing => "plain routing".to_owned(),
            Self::Vxlan => "vxlan".to_owned(),
            Self::Udp(Options { offload, queues }) => match offload {
                true => format!("udp, {queues} queue(s)"),
                false => format!("udp, one packet per call, {queues} queue(s)"),
            },
        }
    }
}

fn main() -> Result<()> {
    let seconds: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse().context("seconds")?,
        None => 5,
    };
    let udp = |offload, queues| Way::Udp(Options { offload, queues });
    println!("| way | TCP Gb/s | round trips/s | 64-byte packets/s | packets per call out, in |");
    println!("|---|---:|---:|---:|---:|");
    for way in [
        Way::Routing,
        Way::Vxlan,
        udp(true, 1),
        udp(true, 2),
        udp(false, 1),
        udp(false, 2),
    ] {
        let site = Site::new(way)?;
        let tcp = site.tcp(seconds)?;
        let round_trips = site.round_trips(Duration::from_secs(seconds))?;
        let packets = site.small_packets(seconds)?;
        println!(
            "| {} | {:.2} | {round_trips:.0} | {packets:.0} | {} |",
            way.name(),
            tcp / 1e9,
            site.packets_per_call()
        );
    }
    Ok(())
}

/// Two nodes with an inner address each.
struct Site {
    _server: Daemon,
    paths: Vec<DataPath>,
    nodes: [Node; 2],
    _underlay: Underlay,
}

fn inner(place: &Place) -> Ipv4Addr {
    Ipv4Addr::new(10, 5, place.number, 0)
}

impl Site {
    fn new(way: Way) -> Result<Self> {
        let mut underlay = Underlay::new(Shape::Bridge)?;
        let nodes = [Node::new("a")?, Node::new("b")?];
        let places = [underlay.attach(&nodes[0])?, underlay.attach(&nodes[1])?];
        let mut paths = Vec::new();
        for at in [0, 1] {
            let (node, own, peer) = (&nodes[at], &places[at], &places[1 - at]);
            match way {
                Way::Routing => node.netns().ip_batch(&format!(
                    "addr add {}/32 dev lo\nroute add {}/24 via {} dev {IFNAME} src {}\n",
                    inner(own),
                    inner(peer),
                    peer.v4.addr(),
                    inner(own)
                ))?,
                Way::Vxlan => node.netns().ip_batch(&format!(
                    "link add vx0 address 02:00:00:00:00:{:02x} type vxlan id 1 dstport 8472 \
                     local {} dev {IFNAME} nolearning\n\
                     addr add {}/32 dev vx0\nlink set vx0 up\n\
                     neigh add {peer_ip} lladdr 02:00:00:00:00:{:02x} dev vx0\n\
                     route add {peer_ip}/24 via {peer_ip} dev vx0 onlink\n",
                    own.number,
                    own.v4.addr(),
                    inner(own),
                    peer.number,
                    peer_ip = inner(peer)
                ))?,
                Way::Udp(options) => paths.push(start(node, own, peer, options)?),
            }
            if matches!(way, Way::Vxlan) {
                let mac = format!("02:00:00:00:00:{:02x}", peer.number);
                let to = peer.v4.addr().to_string();
                node.exec("bridge", &["fdb", "add", &mac, "dev", "vx0", "dst", &to])?;
            }
        }
        let server = nodes[1].spawn("iperf3", Path::new("iperf3"), &["-s".to_owned()])?;
        let site = Self {
            _server: server,
            paths,
            nodes,
            _underlay: underlay,
        };
        wait::until("iperf3 to listen", DEADLINE, || {
            let listening = site.nodes[1].exec("ss", &["-ltn"])?.stdout_text();
            Ok(match listening.contains(":5201") {
                true => Look::Done(()),
                false => Look::NotYet(listening),
            })
        })?;
        Ok(site)
    }

    fn iperf(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.nodes[0].command("iperf3")?;
        command.args(["-J", "-c", "10.5.2.0"]).args(args);
        let output = process::check_with(&mut command, b"", DEADLINE)?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Bits per second.
    fn tcp(&self, seconds: u64) -> Result<f64> {
        let said = self.iperf(&["-O", "1", "-t", &seconds.to_string()])?;
        let rate = &said["end"]["sum_received"]["bits_per_second"];
        rate.as_f64().context("iperf3 said no rate")
    }

    /// 64-byte packets that arrived, each second.
    fn small_packets(&self, seconds: u64) -> Result<f64> {
        // 64 bytes with IP and UDP header.
        let args = ["-u", "-b", "0", "-l", "36", "-t", &seconds.to_string()];
        let said = self.iperf(&args)?;
        let sum = &said["end"]["sum"];
        let sent = sum["packets"].as_f64().context("iperf3 said no packets")?;
        let lost = sum["lost_packets"]
            .as_f64()
            .context("iperf3 said no losses")?;
        Ok((sent - lost) / seconds as f64)
    }

    fn round_trips(&self, time: Duration) -> Result<f64> {
        let listen = || Ok(TcpListener::bind("10.5.2.0:7000")?);
        let listener = self.nodes[1].netns().run(listen)?;
        let server = std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let count = self.nodes[0].netns().run(|| {
            let mut stream = TcpStream::connect("10.5.2.0:7000")?;
            stream.set_nodelay(true)?;
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < time {
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
                count += 1;
            }
            Ok(count)
        })?;
        let _ = server.join();
        Ok(f64::from(count) / time.as_secs_f64())
    }

    fn packets_per_call(&self) -> String {
        let ratio = |at: usize, packets, calls| {
            let counters = self.paths.get(at)?.counters();
            Some(counters.get(packets) as f64 / counters.get(calls).max(1) as f64)
        };
        let out = ratio(0, Count::PacketsOut, Count::SendsOut);
        let into = ratio(1, Count::PacketsIn, Count::WritesIn);
        match out.zip(into) {
            Some((out, into)) => format!("{out:.1}, {into:.1}"),
            None => "–".to_owned(),
        }
    }
}

fn start(node: &Node, own: &Place, peer: &Place, options: Options) -> Result<DataPath> {
    let ends = Ends {
        device: DEVICE.to_owned(),
        listen: SocketAddrV4::new(own.v4.addr(), PORT),
    };
    let subnet = Ipv4Net::new(inner(peer), 24)?;
    let peers = Peers::new([(subnet, SocketAddrV4::new(peer.v4.addr(), PORT))]);
    node.netns().run(|| {
        let path = DataPath::start(&ends, options, peers)?;
        let mut socket = kernel::Socket::open()?;
        let link = kernel::link::by_name(&mut socket, path.device())?.context("no device")?;
        let network = Ipv4Net::new(Ipv4Addr::new(10, 5, 0, 0), 16)?;
        socket.apply_all(&device::setup(link.ifindex, 1472, inner(own), network))?;
        Ok(path)
    })
}
