//! vxlan on demand: among very many peers only those in use have entries, the first packet to each
//! arrives, and what is true of every backend's tables is true of these.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::netns;
use cni_test_harness::observe::{Family, View};
use cni_test_harness::pod::Pod;
use cni_test_harness::process::log_tail;
use cni_test_harness::wait;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(5);
const DEVICE: &str = "flannel.1";
const NETWORK: &str = "10.128.0.0/9";
/// Peers that are in the store and nowhere else, so that a node has very many.
const ELSEWHERE: u32 = 1500;
/// How many peers may be in use (`MOST` in the daemon).
const MOST: usize = 1024;

fn net_conf(timeout: u32, on_demand: bool) -> Value {
    json!({
        // Nodes take their subnets below those of the peers elsewhere.
        "Network": NETWORK, "SubnetMin": "10.128.1.0", "SubnetMax": "10.199.0.0",
        "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
        "Backend": {"Type": "vxlan", "OnDemand": on_demand, "OnDemandTimeout": timeout}
    })
}

struct Nodes {
    cluster: Cluster,
}

/// The subnet of a peer elsewhere.
fn subnet(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 0, 0).to_bits() + n * 256)
}

fn vtep(n: u32) -> String {
    let [_, _, high, low] = n.to_be_bytes();
    format!("02:01:00:00:{high:02x}:{low:02x}")
}

impl Nodes {
    fn start(on_demand: u8, ordinary: u8, timeout: u32) -> Result<Self> {
        let spec = Spec {
            nodes: on_demand + ordinary,
            net_conf: net_conf(timeout, true),
            ..Spec::default()
        };
        let name = netns::unique_name("demand");
        let cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
        fs::create_dir_all(cluster.store_dir().join("subnets"))?;
        let mut nodes = Self { cluster };
        for n in 0..ELSEWHERE {
            nodes.put(n, &vtep(n))?;
        }
        for index in 0..usize::from(on_demand) {
            nodes.start_daemon(index)?;
        }
        if ordinary > 0 {
            let config = nodes.cluster.store_dir().join("config");
            fs::write(config, net_conf(timeout, false).to_string())?;
        }
        for index in 0..usize::from(ordinary) {
            nodes.start_daemon(usize::from(on_demand) + index)?;
        }
        let peers = ELSEWHERE + u32::from(on_demand + ordinary) - 1;
        for index in 0..usize::from(on_demand + ordinary) {
            nodes.wait_in_sync(index, peers)?;
        }
        Ok(nodes)
    }

    fn start_daemon(&mut self, index: usize) -> Result<()> {
        let member = self.cluster.member_mut(index);
        member.start_daemon()?;
        member.wait_ready(SOON)
    }

    fn wait_in_sync(&self, index: usize, peers: u32) -> Result<()> {
        wait::until_true("every peer to be known", SOON, || {
            let daemon = self.cluster.member(index).daemon().context("it runs")?;
            let log = log_tail(daemon.log_path(), 1000);
            let told = log.lines().rev().find(|line| line.contains("in sync"));
            Ok(told.is_some_and(|line| line.contains(&format!("peers={peers} "))))
        })
    }

    fn lease(&self, n: u32) -> PathBuf {
        let dir = self.cluster.store_dir().join("subnets");
        dir.join(format!("{}-24", subnet(n)))
    }

    /// The lease of a peer elsewhere.
    fn put(&mut self, n: u32, mac: &str) -> Result<()> {
        let [_, _, high, low] = n.to_be_bytes();
        let value = format!(
            r#"{{"PublicIP":"198.18.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        let new = self.cluster.dir().join("lease");
        fs::write(&new, value)?;
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        fs::File::options()
            .write(true)
            .open(&new)?
            .set_modified(tomorrow)?;
        Ok(fs::rename(&new, self.lease(n))?)
    }

    fn view(&self) -> View<'_> {
        self.cluster.member(0).view()
    }

    /// A packet from the first node to each of these.
    fn send(&self, to: &[Ipv4Addr]) -> Result<()> {
        self.cluster.member(0).node().netns().run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for ip in to {
                // Where an earlier one was refused this one is told.
                let _ = socket.send_to(b"x", (*ip, 9));
            }
            Ok(())
        })
    }

    /// Sends to each, a few at a time: the kernel's room for packets that wait is the whole
    /// machine's.
    fn scan(&self, to: &[Ipv4Addr], mut between: impl FnMut() -> Result<()>) -> Result<()> {
        for some in to.chunks(100) {
            self.send(some)?;
            self.nothing_waits()?;
            between()?;
        }
        Ok(())
    }

    fn nothing_waits(&self) -> Result<()> {
        wait::until_true("every question to be answered", SOON, || {
            let all = self.view().neighbours(DEVICE)?;
            Ok(all.iter().all(|entry| entry.state == "PERMANENT"))
        })
    }

    fn in_use(&self) -> Result<Tables> {
        tables(self.view(), DEVICE, Family::V4)
    }

    fn wait_for(&self, what: &str, is: impl Fn(&Tables) -> bool) -> Result<()> {
        wait::until_true(what, SOON, || Ok(is(&self.in_use()?)))
    }
}

/// What is on a device, and leads out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tables {
    routes: BTreeSet<String>,
    neighbours: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Tables {
    /// Of the whole network's route and `n` peers.
    fn is_of(&self, n: usize) -> bool {
        let Self {
            routes,
            neighbours,
            nodes,
        } = self;
        (routes.len(), neighbours.len(), nodes.len()) == (n + 1, n, n)
    }
}

fn tables(view: View<'_>, device: &str, family: Family) -> Result<Tables> {
    let routes = view.routes(family)?.into_iter();
    let routes = routes.filter(|route| route.dev == device && route.protocol != "kernel");
    let neighbours = view.neighbours(device)?.into_iter();
    let neighbours = neighbours.filter(|entry| entry.state == "PERMANENT");
    let nodes = view.fdb(device)?.into_iter();
    Ok(Tables {
        routes: routes
            .map(|route| format!("{} via {}", route.dst, route.via))
            .collect(),
        neighbours: neighbours
            .map(|entry| format!("{} {}", entry.ip, entry.mac))
            .collect(),
        nodes: nodes
            .map(|entry| format!("{} {} {}", entry.mac, entry.dst, entry.state))
            .collect(),
    })
}

/// A pod's address of a family.
fn address(pod: &Pod, family: Family) -> Result<IpAddr> {
    let all = pod.view().addresses_of("eth0")?;
    let parsed = all
        .iter()
        .filter_map(|net| net.split('/').next()?.parse().ok());
    let of = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
    parsed
        .into_iter()
        .find(of)
        .context("a pod of both families")
}

#[test]
fn the_first_packet_to_a_peer_arrives_and_only_those_in_use_have_entries() -> Result<()> {
    // The last node gives every peer its entries: on the wire there is no difference.
    let nodes = Nodes::start(2, 1, 300)?;
    let pods: Vec<Pod> = (0..3)
        .map(|n| nodes.cluster.pod(n))
        .collect::<Result<_>>()?;
    // The last node asks the others about checksum offload, and to answer is to use an entry.
    let asked = nodes.in_use()?;
    assert!(asked.is_of(0) || asked.is_of(1), "{asked:?}");
    let others = tables(nodes.cluster.member(2).view(), DEVICE, Family::V4)?;
    assert_eq!(others.nodes.len(), ELSEWHERE as usize + 2);
    let link = nodes.view().link(DEVICE)?.context(DEVICE)?;
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(
        (&data["l2miss"], &data["l3miss"]),
        (&json!(true), &json!(true))
    );
    for (family, device, network) in [
        (Family::V4, DEVICE, NETWORK),
        (Family::V6, "flannel-v6.1", "fd00:244::/48"),
    ] {
        for (from, to) in [(0, 1), (2, 0), (0, 2)] {
            let ip = address(&pods[to], family)?;
            let ping = pods[from].view().ping(ip, 1, REPLY)?;
            assert!(ping.complete(), "{from} to {to}, {ip}: {ping:?}");
        }
        let first = tables(nodes.view(), device, family)?;
        assert!(first.is_of(2), "{first:?}");
        assert!(
            first.routes.contains(&format!("{network} via ")),
            "{first:?}"
        );
        let second = tables(nodes.cluster.member(1).view(), device, family)?;
        assert!(second.is_of(1) || second.is_of(2), "{second:?}");
    }
    // An address that nobody has: the sender is told at once, where it would wait for seconds.
    let nobody = pods[0].view().ping("10.250.0.9".parse()?, 1, REPLY)?;
    assert!(!nobody.complete());
    nodes.nothing_waits()
}

#[test]
fn peers_that_are_not_used_any_more_lose_their_entries_and_get_them_again() -> Result<()> {
    let nodes = Nodes::start(2, 0, 1)?;
    let pods: Vec<Pod> = (0..2)
        .map(|n| nodes.cluster.pod(n))
        .collect::<Result<_>>()?;
    nodes.send(&[subnet(7), subnet(8)])?;
    for _ in 0..2 {
        assert!(pods[0].ping(&pods[1], 1, REPLY)?.complete());
        nodes.wait_for("nobody to be in use", |tables| tables.is_of(0))?;
    }
    // Who is in use stays, for longer than others.
    nodes.send(&[subnet(9)])?;
    let kept = tables(nodes.cluster.member(1).view(), DEVICE, Family::V4)?;
    nodes.wait_for("the other to be in use", |tables| tables.nodes.len() == 1)?;
    wait::until_true("the other to go", SOON, || {
        ensure!(pods[0].ping(&pods[1], 1, REPLY)?.complete(), "{kept:?}");
        Ok(nodes.in_use()?.is_of(1))
    })?;
    let left = nodes.in_use()?;
    assert!(
        !left.nodes.iter().any(|node| node.starts_with("02:01:")),
        "{left:?}"
    );
    Ok(())
}

#[test]
fn a_scan_of_the_whole_network_is_bounded_and_stops_nobody() -> Result<()> {
    let nodes = Nodes::start(2, 0, 300)?;
    let pods: Vec<Pod> = (0..2)
        .map(|n| nodes.cluster.pod(n))
        .collect::<Result<_>>()?;
    assert!(pods[0].ping(&pods[1], 1, REPLY)?.complete());
    // Addresses of nobody, then one of each peer.
    let nobody: Vec<Ipv4Addr> = (0..3000).map(|n| subnet(ELSEWHERE + n)).collect();
    nodes.scan(&nobody, || Ok(()))?;
    assert!(nodes.in_use()?.is_of(1), "{:?}", nodes.in_use()?);
    let everybody: Vec<Ipv4Addr> = (0..ELSEWHERE).map(subnet).collect();
    let mut most = 0;
    nodes.scan(&everybody, || {
        // This one is in use all the time, and never makes room.
        ensure!(
            pods[0].ping(&pods[1], 1, REPLY)?.complete(),
            "a flow in use"
        );
        most = most.max(nodes.view().fdb(DEVICE)?.len());
        Ok(())
    })?;
    assert!((MOST / 2..=MOST).contains(&most), "{most} in use at a time");
    // What somebody breaks is put right meanwhile.
    let netns = nodes.cluster.member(0).node().netns();
    netns.ip(&["route", "del", NETWORK, "dev", DEVICE])?;
    nodes.send(&everybody[..200])?;
    nodes.wait_for("the whole network's route", |tables| {
        tables.routes.contains(&format!("{NETWORK} via "))
    })
}

#[test]
fn who_is_in_use_is_repaired_followed_and_survives_a_restart() -> Result<()> {
    let mut nodes = Nodes::start(2, 0, 300)?;
    let pods: Vec<Pod> = (0..2)
        .map(|n| nodes.cluster.pod(n))
        .collect::<Result<_>>()?;
    assert!(pods[0].ping(&pods[1], 1, REPLY)?.complete());
    nodes.scan(&[subnet(3), subnet(4)], || Ok(()))?;
    let whole = nodes.in_use()?;
    assert!(whole.is_of(3), "{whole:?}");

    // Of this nobody is told: it is found when the loop looks at everything.
    let netns = nodes.cluster.member(0).node().netns();
    let setting = ["ntable", "change", "name", "arp_cache", "dev", DEVICE];
    netns.ip(&[&setting[..], &["app_probes", "0", "mcast_probes", "3"]].concat())?;
    netns.ip(&["route", "del", NETWORK, "dev", DEVICE])?;
    wait::until_true("the kernel to ask again", SOON, || {
        let shown = netns.ip(&["ntable", "show", "name", "arp_cache", "dev", DEVICE])?;
        Ok(shown.stdout_text().contains("app_probes 3 ")
            && shown.stdout_text().contains("mcast_probes 0"))
    })?;

    // Whatever is taken away or added comes back and goes.
    for breaks in [
        "ip route flush dev flannel.1",
        "ip neigh flush dev flannel.1 nud permanent",
        "bridge fdb del 02:01:00:00:00:03 dev flannel.1",
        "ip route add 10.200.9.0/24 via 10.200.9.0 dev flannel.1 onlink",
        "bridge fdb add 02:01:00:00:00:09 dev flannel.1 dst 198.18.0.9 self permanent",
        "ip link del flannel.1",
    ] {
        let words: Vec<&str> = breaks.split(' ').collect();
        let netns = nodes.cluster.member(0).node().netns();
        netns.exec(words[0], &words[1..])?;
        nodes.wait_for(breaks, |tables| *tables == whole)?;
    }
    assert!(pods[0].ping(&pods[1], 1, REPLY)?.complete());

    // Flows in use go on without the daemon; one that comes back changes nothing.
    let daemon = nodes.cluster.member(0).daemon().context("it runs")?;
    let log_path = daemon.log_path().to_owned();
    nodes.cluster.member_mut(0).kill_daemon();
    fs::remove_file(&log_path)?;
    assert!(pods[0].ping(&pods[1], 1, REPLY)?.complete());
    nodes
        .cluster
        .member_mut(0)
        .add_twilld_args(&["-v=2".to_owned()]);
    nodes.start_daemon(0)?;
    nodes.wait_in_sync(0, ELSEWHERE + 1)?;
    assert_eq!(nodes.in_use()?, whole);
    let log = log_tail(&log_path, 1000);
    let rounds: Vec<&str> = log.lines().filter(|line| line.contains("round ")).collect();
    assert!(
        !rounds.is_empty() && rounds.iter().all(|line| line.contains("changes=0 ")),
        "{log}"
    );

    // A peer that has another VTEP, and one that goes.
    let [moved, new] = ["02:01:00:00:00:03", "02:02:00:00:00:03"];
    nodes.put(3, new)?;
    nodes.wait_for("the new VTEP", |tables| {
        let has = |mac: &str| tables.nodes.iter().any(|node| node.starts_with(mac));
        has(new) && !has(moved) && tables.is_of(3)
    })?;
    fs::remove_file(nodes.lease(4))?;
    nodes.wait_for("the peer to go", |tables| tables.is_of(2))?;
    // One that nobody uses comes and goes unnoticed.
    fs::remove_file(nodes.lease(5))?;
    nodes.wait_in_sync(0, ELSEWHERE - 1)?;
    assert!(nodes.in_use()?.is_of(2));
    Ok(())
}
