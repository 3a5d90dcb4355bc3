//! What vxlan on demand costs a node that knows very many peers and talks to few, beside a node that
//! has entries for all: the tables, the first packet to a peer, and a scan of the network.
//!
//! Both are the same node, one after the other, with the same leases in a folder. The peer that
//! answers is a second node; behind the other leases stands nobody.

mod report;
mod scan;

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::idle::status_kib;
use super::numbers::Series;
use super::peers::{DEVICE, PREFIX, lease, subscribe_in};
use crate::cluster::{Cluster, Member, Spec};
use crate::observe::Family;
use crate::progress::Progress;
use crate::wait;

use scan::Scan;

const NETWORK: &str = "10.0.0.0/8";
const DEADLINE: Duration = Duration::from_secs(120);
/// Seconds until who is not in use loses its entries, and as few as there can be.
const TIMEOUT: u32 = 300;
const SHORTEST: u32 = 1;
/// First packets to the same peer.
const FIRSTS: usize = 20;
/// So many peers are talked to, one more than the other.
const IN_USE: [usize; 2] = [10, 100];

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many peers there are.
    pub peers: usize,
    /// How long the network is scanned.
    pub scan: Duration,
    /// The folder for `demand.md`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: 10_000,
            scan: Duration::from_secs(20),
            out: "bench".into(),
        }
    }
}

/// The tables at one time.
#[derive(Debug)]
struct Row {
    what: String,
    /// Routes, neighbours and forwarding entries.
    entries: usize,
    /// From the daemon's start, or the first packet, to the last entry.
    took_ms: f64,
    rss_kib: u64,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    rows: Vec<Row>,
    /// Round trips of first packets, with entries for all and on demand, in ms.
    first_of_all: Series,
    first_on_demand: Series,
    scan: Scan,
}

/// Measures everything and writes the report; says on stdout how it goes.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    let mut seen = Seen::default();
    let peers = options.peers;
    let mut stage = progress.step(&format!("{peers} leases"), || Stage::new(peers))?;
    progress.step("entries for all", || {
        stage.start(false, TIMEOUT, Some(&mut seen.rows))?;
        stage.first_packets(&mut seen.first_of_all, false)
    })?;
    progress.step("on demand", || {
        stage.start(true, SHORTEST, None)?;
        stage.first_packets(&mut seen.first_on_demand, true)
    })?;
    progress.step("peers in use", || {
        stage.start(true, TIMEOUT, Some(&mut seen.rows))?;
        let mut already = 0;
        for n in IN_USE {
            seen.rows.push(stage.talk_to(n, already)?);
            already = n;
        }
        Ok(())
    })?;
    seen.scan = progress.step("a scan of the network", || {
        scan::run(stage.cluster.member(0), options.scan)
    })?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let text = report::markdown(&seen, options, command)?;
    let path = options.out.join("demand.md");
    std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    progress.line(&format!("written: {}\n\n{text}", path.display()));
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn net_conf(on_demand: bool, timeout: u32) -> Value {
    json!({"Network": NETWORK, "SubnetLen": 24, "SubnetMin": "10.200.0.0",
        "Backend": {"Type": "vxlan", "OnDemand": on_demand, "OnDemandTimeout": timeout}})
}

/// The base address of peer `n`'s subnet, as its lease has it.
fn base(n: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    Ipv4Addr::new(10, high + 1, low, 0)
}

/// How many routes, neighbours and forwarding entries a node's device has.
fn entries(member: &Member) -> Result<usize> {
    let view = member.view();
    let routes = view.routes(Family::V4)?.into_iter();
    let routes = routes.filter(|route| route.dev == DEVICE && route.protocol != "kernel");
    let neighbours = view.neighbours(DEVICE)?.into_iter();
    let neighbours = neighbours.filter(|entry| entry.state == "PERMANENT");
    Ok(routes.count() + neighbours.count() + view.fdb(DEVICE)?.len())
}

/// The node that is measured, the one that answers, and the leases of all.
struct Stage {
    cluster: Cluster,
    peers: usize,
}

impl Stage {
    fn new(peers: usize) -> Result<Self> {
        let name = crate::netns::unique_name("ondemand");
        let spec = Spec {
            net_conf: net_conf(true, TIMEOUT),
            ..Spec::default()
        };
        let cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
        // Where the peers' nodes would be nobody answers, and what is sent there must not wait for that.
        let nowhere = ["route", "add", "blackhole", "172.16.0.0/12"];
        cluster.member(0).node().exec("ip", &nowhere)?;
        let mut stage = Self { cluster, peers };
        let folder = stage.cluster.store_dir().join("subnets");
        std::fs::create_dir_all(&folder)?;
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        // But for the one that answers.
        for n in 1..peers {
            let (key, value) = lease(n);
            let name = key.strip_prefix(&format!("{PREFIX}/subnets/"));
            let path = folder.join(name.context("a lease's key")?);
            std::fs::write(&path, value)?;
            let file = std::fs::File::options().write(true).open(&path)?;
            file.set_modified(tomorrow)?;
        }
        let other = stage.cluster.member_mut(1);
        other.start_daemon()?;
        other.wait_ready(DEADLINE)?;
        Ok(stage)
    }

    /// Starts the daemon anew with its device, and tells of the start.
    fn start(&mut self, on_demand: bool, timeout: u32, rows: Option<&mut Vec<Row>>) -> Result<()> {
        let conf = net_conf(on_demand, timeout).to_string();
        std::fs::write(self.cluster.store_dir().join("config"), conf)?;
        let member = self.cluster.member_mut(0);
        if member.daemon().is_some() {
            member.stop_daemon(DEADLINE)?;
            member.node().exec("ip", &["link", "delete", DEVICE])?;
        }
        if let Ok(path) = member.subnet_file() {
            let _ = std::fs::remove_file(path);
        }
        let began = Instant::now();
        member.start_daemon()?;
        member.wait_ready(DEADLINE)?;
        let took_ms = ms(began.elapsed());
        let member = self.cluster.member(0);
        let entries = entries(member)?;
        let want = if on_demand { 1 } else { 3 * self.peers };
        // A peer that was asked about checksum offload is in use.
        ensure!(
            (want..=want + 3).contains(&entries),
            "{entries} entries, where {want} were expected"
        );
        if let Some(rows) = rows {
            let what = match on_demand {
                true => "none",
                false => "all have entries",
            };
            rows.push(self.row(what, entries, took_ms)?);
        }
        Ok(())
    }

    fn row(&self, what: &str, entries: usize, took_ms: f64) -> Result<Row> {
        let daemon = self.cluster.member(0).daemon().context("it runs")?;
        Ok(Row {
            what: what.to_owned(),
            entries,
            took_ms,
            rss_kib: status_kib(daemon.pid(), "VmRSS:")?,
        })
    }

    /// Pings the node that answers, each time as if it had not been talked to.
    fn first_packets(&self, series: &mut Series, forgotten: bool) -> Result<()> {
        let node = self.cluster.member(0);
        let to = self.cluster.member(1).subnet()?.network();
        // It hears of the new device by the store.
        wait::until_true("the peer to know the node", DEADLINE, || {
            let ping = node.view().ping(to, 1, Duration::from_secs(2))?;
            Ok(ping.complete())
        })?;
        for _ in 0..FIRSTS {
            if forgotten {
                wait::until_true("the peer to be forgotten", DEADLINE, || {
                    Ok(node.view().fdb(DEVICE)?.is_empty())
                })?;
            }
            let ping = node.view().ping(to, 1, DEADLINE)?;
            series.push(ping.avg_ms.context("the first packet got lost")?);
        }
        Ok(())
    }

    /// Sends one packet to each of so many peers, of which some are in use already.
    fn talk_to(&self, peers: usize, already: usize) -> Result<Row> {
        let member = self.cluster.member(0);
        let arrivals = subscribe_in(member)?;
        let began = member.node().netns().run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let began = Instant::now();
            for n in 1..=peers {
                socket.send_to(b"x", (base(n), 9))?;
            }
            Ok(began)
        })?;
        let new = peers - already;
        let ended = arrivals.wait_until(DEADLINE, |counts| {
            counts.forwarding >= new && counts.neighbours >= new && counts.routes >= new
        })?;
        let took_ms = ms(ended - began);
        self.row(&peers.to_string(), entries(member)?, took_ms)
    }
}
