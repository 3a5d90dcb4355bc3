//! What a node's tables cost with very many peers: twilld beside bare netlink and beside flannel's
//! order of messages, for the same routes, neighbours and forwarding entries.
//!
//! In turns, in one run: bare messages in batches; bare messages one by one in flannel's order and
//! shape; and the real twilld, whose leases lie in a folder: its first look, the first look after a
//! restart, one peer that changes, one entry of each kind that somebody deletes, and all routes.

mod curve;
mod raw;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::arrivals::Counts;
use super::idle::{IDLE, cpu_ms, status_kib};
use super::numbers::Series;
use super::peers::{DEVICE, PREFIX, clear, lease, look, subscribe_in};
use crate::cluster::{Cluster, Member, Spec};
use crate::node::Node;
use crate::progress::Progress;
use crate::wait::{self, Look};

use raw::{Entry, Netlink, Peer};

const DEADLINE: Duration = Duration::from_secs(120);
/// Single changes per round.
const SINGLE: usize = 5;
/// After this twilld has nothing left to do.
const QUIET: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// So many peers, each in rounds of its own.
    pub peers: Vec<usize>,
    /// Rounds for each number of peers.
    pub rounds: usize,
    /// The folder for `tables.md` and `tables.svg`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: vec![1_000, 10_000, 20_000],
            rounds: 3,
            out: "bench".into(),
        }
    }
}

/// What was seen with one number of peers; times in ms.
#[derive(Debug, Default)]
struct Row {
    peers: usize,
    batched: Series,
    flannels: Series,
    dumps: Series,
    first: Series,
    restart: Series,
    /// Changes that a restart made, the largest of all rounds.
    written: f64,
    one_changed: Series,
    one_deleted: Series,
    all_flushed: Series,
    /// In KiB.
    rss: Series,
    /// In [`IDLE`].
    idle_cpu: Series,
}

/// Measures everything and writes the report; says on stdout how it goes.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    let bare = Bare::new()?;
    let mut rows = Vec::new();
    for peers in &options.peers {
        let mut row = Row {
            peers: *peers,
            ..Row::default()
        };
        let mut stage = progress.step(&format!("{peers} leases"), || Stage::new(*peers))?;
        for round in 1..=options.rounds {
            progress.step(&format!("round {round}"), || {
                bare.measure(&mut row).context("bare netlink")?;
                stage.measure(&mut row).context("twilld")
            })?;
        }
        rows.push(row);
    }
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let text = report::markdown(&rows, options.rounds, command)?;
    for (name, content) in [("tables.md", &text), ("tables.svg", &curve::svg(&rows))] {
        let path = options.out.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        progress.line(&format!("written: {}", path.display()));
    }
    progress.line(&format!("\n{text}"));
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn entries(
    kinds: &[Entry],
    numbers: std::ops::Range<usize>,
) -> impl Iterator<Item = (Entry, Peer)> {
    numbers.flat_map(|n| kinds.iter().map(move |kind| (*kind, Peer::number(n))))
}

/// A node without a daemon.
struct Bare {
    node: Node,
}

impl Bare {
    fn new() -> Result<Self> {
        let node = Node::new("bare")?;
        Ok(Self { node })
    }

    fn measure(&self, row: &mut Row) -> Result<()> {
        let (ifindex, mut netlink) = self.device()?;
        let began = Instant::now();
        // The kinds one after the other, as whoever batches would have them.
        for kind in [
            Entry::Forwarding,
            Entry::Neighbour,
            Entry::Route { metric: true },
        ] {
            netlink.put_batched(ifindex, entries(&[kind], 0..row.peers))?;
        }
        row.batched.push(ms(began.elapsed()));
        let began = Instant::now();
        netlink.dump(ifindex)?;
        row.dumps.push(ms(began.elapsed()));

        let (ifindex, mut netlink) = self.device()?;
        let flannels = [
            Entry::Neighbour,
            Entry::Forwarding,
            Entry::Route { metric: false },
        ];
        let began = Instant::now();
        netlink.put_each(ifindex, entries(&flannels, 0..row.peers))?;
        row.flannels.push(ms(began.elapsed()));
        self.node.exec("ip", &["link", "delete", DEVICE])?;
        Ok(())
    }

    /// A new VXLAN device, and a socket beside it.
    fn device(&self) -> Result<(u32, Netlink)> {
        let node = &self.node;
        let _ = node.exec("ip", &["link", "delete", DEVICE]);
        let batch = format!(
            "link add {DEVICE} type vxlan id 1 dstport 8472 nolearning\nlink set {DEVICE} up\n"
        );
        node.netns().ip_batch(&batch)?;
        let link = node.view().link(DEVICE)?.context("the device just made")?;
        let ifindex = link["ifindex"].as_u64().context("a link has a number")?;
        Ok((u32::try_from(ifindex)?, netlink_in(node)?))
    }
}

/// Opened by a thread of its own: this one stays where it is.
fn netlink_in(node: &Node) -> Result<Netlink> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            node.netns().enter()?;
            Netlink::open()
        });
        let joined = inside.join();
        joined.map_err(|_| anyhow!("the thread that opens a socket panicked"))?
    })
}

/// A node with twilld and its leases.
struct Stage {
    cluster: Cluster,
    peers: usize,
    /// What tells one change from the next.
    changes: u8,
    /// How often twilld was started: the log has them one behind the other.
    starts: usize,
}

impl Stage {
    fn new(peers: usize) -> Result<Self> {
        let name = crate::netns::unique_name("tables");
        let spec = Spec {
            nodes: 1,
            net_conf: json!({"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.200.0.0", "Backend": {"Type": "vxlan"}}),
            // The first look's time stands in the log.
            twilld_args: vec!["-v=2".to_owned()],
            ..Spec::default()
        };
        let cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
        let stage = Self {
            cluster,
            peers,
            changes: 0,
            starts: 0,
        };
        std::fs::create_dir_all(stage.cluster.store_dir().join("subnets"))?;
        (0..peers).try_for_each(|n| stage.write(n, &lease(n).1))?;
        Ok(stage)
    }

    fn write(&self, n: usize, value: &str) -> Result<()> {
        let (key, _) = lease(n);
        let name = key.strip_prefix(&format!("{PREFIX}/subnets/"));
        let folder = self.cluster.store_dir();
        let hidden = folder.join(".new");
        std::fs::write(&hidden, value)?;
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        let file = std::fs::File::options().write(true).open(&hidden)?;
        file.set_modified(tomorrow)?;
        let name = name.context("a lease's key")?;
        std::fs::rename(hidden, folder.join("subnets").join(name))?;
        Ok(())
    }

    fn measure(&mut self, row: &mut Row) -> Result<()> {
        let (first, _) = self.start()?;
        row.first.push(first);
        look(self.cluster.member(0), self.peers)?;
        self.cluster.member_mut(0).stop_daemon(DEADLINE)?;
        let (restart, written) = self.start()?;
        row.restart.push(restart);
        row.written = row.written.max(written);
        for _ in 0..SINGLE {
            wait::pause_for(QUIET / 5);
            row.one_changed.push(self.change_one()?);
        }
        wait::pause_for(QUIET);
        for kind in [
            Entry::Route { metric: true },
            Entry::Neighbour,
            Entry::Forwarding,
        ] {
            row.one_deleted.push(self.delete(kind, 1..2)?);
            wait::pause_for(QUIET);
        }
        let all = 0..self.peers;
        row.all_flushed
            .push(self.delete(Entry::Route { metric: true }, all)?);
        wait::pause_for(QUIET);
        look(self.cluster.member(0), self.peers)?;
        let pid = self.pid()?;
        if row.idle_cpu.len() == 0 {
            // A minute, and so not in every round.
            let before = cpu_ms(pid)?;
            wait::pause_for(IDLE);
            row.idle_cpu.push(cpu_ms(pid)? - before);
        }
        row.rss.push(status_kib(pid, "VmRSS:")? as f64);
        self.cluster.member_mut(0).kill_daemon();
        clear(self.cluster.member(0))
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.cluster.member(0).daemon().context("it runs")?.pid())
    }

    /// Starts twilld; the ms of its first look at everything, and the changes made by it.
    fn start(&mut self) -> Result<(f64, f64)> {
        let peers = format!("in sync peers={} ", self.peers);
        self.starts += 1;
        let start = self.starts;
        let member = self.cluster.member_mut(0);
        member.start_daemon()?;
        let daemon = member.daemon().context("it runs")?;
        let log = daemon.log_path().to_owned();
        let line = wait::until("the first look is over", DEADLINE, || {
            let text = std::fs::read_to_string(&log)?;
            let ours = text.split(" starting store=").nth(start);
            let ours = ours.filter(|text| text.contains(&peers));
            let line = ours.and_then(|text| text.lines().find(|line| line.contains(" round ")));
            Ok(match line {
                Some(line) => Look::Done(line.to_owned()),
                None => Look::NotYet("it goes on".to_owned()),
            })
        })
        .with_context(|| daemon.log_tail(10))?;
        let number = |key: &str| -> Result<f64> {
            let mut words = line.split_whitespace();
            let word = words.find_map(|word| word.strip_prefix(key));
            let number = word.and_then(|word| word.parse().ok());
            number.with_context(|| format!("no {key} in {line:?}"))
        };
        Ok((number("took_us=")? / 1e3, number("changes=")?))
    }

    /// One peer's VTEP gets another MAC; the ms until the kernel has it.
    fn change_one(&mut self) -> Result<f64> {
        self.changes += 1;
        let mac = format!("02:00:00:00:{:02x}:", 0);
        let other = format!("02:00:{:02x}:00:{:02x}:", self.changes, 0);
        let value = lease(7).1.replace(&mac, &other);
        ensure!(value != lease(7).1, "the MAC is not where it was thought");
        let arrivals = subscribe_in(self.cluster.member(0))?;
        let began = Instant::now();
        self.write(7, &value)?;
        let ended = arrivals.wait_until(DEADLINE, |counts| counts.neighbours > 0)?;
        Ok(ms(ended - began))
    }

    /// Deletes entries as somebody else would; the ms until they are back.
    fn delete(&self, kind: Entry, numbers: std::ops::Range<usize>) -> Result<f64> {
        let member = self.cluster.member(0);
        let link = member.view().link(DEVICE)?.context("the device")?;
        let ifindex = u32::try_from(link["ifindex"].as_u64().context("its number")?)?;
        let mut netlink = netlink_in(member.node())?;
        let arrivals = subscribe_in(member)?;
        let count = numbers.len();
        netlink.delete_batched(ifindex, entries(&[kind], numbers))?;
        let began = Instant::now();
        let ended = arrivals
            .wait_until(DEADLINE, |counts| back(kind, counts) >= count)
            .with_context(|| daemon_log(member))?;
        Ok(ms(ended.saturating_duration_since(began)))
    }
}

fn back(kind: Entry, counts: &Counts) -> usize {
    match kind {
        Entry::Route { .. } => counts.routes,
        Entry::Neighbour => counts.neighbours,
        Entry::Forwarding => counts.forwarding,
    }
}

fn daemon_log(member: &Member) -> String {
    let log = member.daemon().map(|daemon| daemon.log_tail(10));
    log.unwrap_or_default()
}
