//! What a start among many peers costs: twilld beside flanneld, their leases in one etcd.
//!
//! Both run on the same node, one after the other, in turns; between two runs the node loses its
//! VXLAN device, with everything on it, and its firewall rules. A run is over with the last peer's
//! route, neighbour and forwarding entry (`arrivals`); its time and memory are read then.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::arrivals::Arrivals;
use super::idle::{cpu_ms, status_kib};
use super::numbers::Series;
use super::report;
use crate::cluster::{Cluster, Member, Spec};
use crate::etcd::{self, Etcd};
use crate::flanneld;
use crate::observe::Family;
use crate::progress::Progress;

pub(super) const PREFIX: &str = "/coreos.com/network";
pub(super) const DEVICE: &str = "flannel.1";
/// flanneld takes 7 s for 10,000 peers on a machine at rest.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);
/// Leases that share a time to live.
const CHUNK: usize = 100;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// So many peers, each in rounds of its own.
    pub peers: Vec<usize>,
    /// How often each daemon is started for each number of peers.
    pub rounds: usize,
    /// The folder for `peers.md`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: vec![10, 1_000, 5_000, 10_000],
            rounds: 3,
            out: "bench".into(),
        }
    }
}

/// What was seen of one daemon with one number of peers.
#[derive(Debug, Default)]
struct Outcome {
    /// From before the start to the last entry, in ms.
    wall: Series,
    /// User and system time until then, in ms.
    cpu: Series,
    /// Resident memory at its largest, in KiB.
    peak: Series,
}

/// The daemons side by side.
struct Row {
    peers: usize,
    twilld: Outcome,
    flanneld: Option<Outcome>,
}

/// A node without a daemon, and an etcd at its gateway.
struct Stage {
    cluster: Cluster,
    etcd: Etcd,
    flanneld: Option<PathBuf>,
}

/// Measures everything and writes `peers.md`; says on stdout how it goes.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    etcd::installed()?;
    let flanneld = flanneld::installed();
    if let Err(missing) = &flanneld {
        progress.line(&format!("  left out: {missing}"));
    }
    let mut stage = progress.step("a node and an etcd", || Stage::new(flanneld.ok()))?;
    let mut rows = Vec::new();
    let mut peers = options.peers.clone();
    peers.sort_unstable();
    let mut there = 0;
    for peers in peers {
        progress.step(&format!("{peers} leases in etcd"), || {
            let result = stage.add_leases(there..peers);
            there = there.max(peers);
            result
        })?;
        let row = progress.step(&format!("{} starts among them", options.rounds), || {
            stage.measure(peers, options.rounds)
        })?;
        rows.push(row);
    }
    let text = markdown(&rows, options, command)?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let path = options.out.join("peers.md");
    std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    progress.line(&format!("written: {}\n\n{text}", path.display()));
    Ok(())
}

impl Stage {
    fn new(flanneld: Option<PathBuf>) -> Result<Self> {
        let spec = Spec {
            nodes: 1,
            net_conf: json!({"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}),
            ..Spec::default()
        };
        let (etcd, cluster) = Etcd::with_cluster("peers", &spec, PREFIX)?;
        etcd.put(
            &format!("{PREFIX}/config"),
            &spec.net_conf.to_string(),
            None,
        )?;
        Ok(Self {
            cluster,
            etcd,
            flanneld,
        })
    }

    fn add_leases(&self, numbers: std::ops::Range<usize>) -> Result<()> {
        let leases: Vec<(String, String)> = numbers.map(lease).collect();
        leases
            .chunks(CHUNK)
            .try_for_each(|chunk| self.etcd.put_all(chunk, Some(24 * 60 * 60)))
    }

    fn measure(&mut self, peers: usize, rounds: usize) -> Result<Row> {
        let mut row = Row {
            peers,
            twilld: Outcome::default(),
            flanneld: self.flanneld.is_some().then(Outcome::default),
        };
        for _ in 0..rounds {
            if let (Some(program), Some(outcome)) = (self.flanneld.clone(), &mut row.flanneld) {
                let args = self.etcd.flags(PREFIX);
                let start = |member: &mut Member| member.start_instead("flanneld", &program, &args);
                self.one(peers, start, outcome).context("flanneld")?;
            }
            self.one(peers, Member::start_daemon, &mut row.twilld)
                .context("twilld")?;
        }
        Ok(row)
    }

    fn one(
        &mut self,
        peers: usize,
        start: impl FnOnce(&mut Member) -> Result<()>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let member = self.cluster.member_mut(0);
        let arrivals = subscribe_in(member)?;
        let began = Instant::now();
        start(member)?;
        let ended = arrivals
            .wait_for(peers, DEADLINE)
            .with_context(|| daemon_log(member))?;
        let pid = member.daemon().context("it runs")?.pid();
        outcome.cpu.push(cpu_ms(pid)?);
        outcome.peak.push(status_kib(pid, "VmHWM:")? as f64);
        outcome.wall.push((ended - began).as_secs_f64() * 1e3);
        look(member, peers)?;
        member.kill_daemon();
        clear(member)
    }
}

fn daemon_log(member: &Member) -> String {
    let log = member.daemon().map(|daemon| daemon.log_tail(10));
    format!("the end of its log:\n{}", log.unwrap_or_default())
}

/// Subscribes in the node's namespace, by a thread of its own: this one stays where it is.
pub(super) fn subscribe_in(member: &Member) -> Result<Arrivals> {
    let netns = member.node().netns();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            netns.enter()?;
            Arrivals::subscribe()
        });
        let joined = inside.join();
        joined.map_err(|_| anyhow!("the subscribing thread panicked"))?
    })
}

/// That what was counted is there, for other people's tools as well.
pub(super) fn look(member: &Member, peers: usize) -> Result<()> {
    let view = member.view();
    let routes = view.routes(Family::V4)?;
    let counts = [
        routes.iter().filter(|route| route.dev == DEVICE).count(),
        view.neighbours(DEVICE)?.len(),
        view.fdb(DEVICE)?.len(),
    ];
    ensure!(
        counts.iter().all(|count| *count >= peers),
        "of {peers} peers there are {counts:?} routes, neighbours and forwarding entries"
    );
    Ok(())
}

/// As if no daemon had ever run there, but for the lease.
pub(super) fn clear(member: &Member) -> Result<()> {
    let node = member.node();
    node.exec("ip", &["link", "delete", DEVICE])?;
    node.exec("nft", &["flush", "ruleset"])?;
    let path = member.subnet_file()?;
    match std::fs::remove_file(&path) {
        // Written behind the last entry, which is when the daemon was killed.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        deleted => deleted.with_context(|| format!("delete {}", path.display())),
    }
}

/// The key and value of peer `n`: 10.1.0.0/24 and on.
pub(super) fn lease(n: usize) -> (String, String) {
    let [_, _, high, low] = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    let high_net = high + 1;
    (
        format!("{PREFIX}/subnets/10.{high_net}.{low}.0-24"),
        format!(
            r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
        ),
    )
}

fn markdown(rows: &[Row], options: &Options, command: &str) -> Result<String> {
    let mut out = String::from("# A start among many peers, measured\n\n");
    let on = report::machine()?;
    writeln!(out, "- **when, on what**: {on}")?;
    let (rounds, version) = (options.rounds, flanneld_version());
    writeln!(
        out,
        "- **rounds**: {rounds} of each daemon for each number of peers, in turns; medians"
    )?;
    writeln!(out, "- **beside**: {version}")?;
    writeln!(out, "- **command**: `{command}`\n")?;
    out.push_str("| peers | | until the last entry (ms) | CPU (ms) | peak RSS (MiB) |\n");
    out.push_str("|---:|---|---:|---:|---:|\n");
    for row in rows {
        let daemons = [("flanneld", row.flanneld.as_ref())];
        for (name, outcome) in daemons
            .into_iter()
            .chain([("twilld", Some(&row.twilld))])
            .filter_map(|(name, outcome)| Some((name, outcome?)))
        {
            let (wall, cpu) = (outcome.wall.median(), outcome.cpu.median());
            let (peers, peak) = (row.peers, outcome.peak.median() / 1024.0);
            writeln!(
                out,
                "| {peers} | {name} | {wall:.0} | {cpu:.0} | {peak:.1} |"
            )?;
        }
    }
    out.push_str("\n## twilld against flanneld\n\n| peers | time | CPU | peak RSS |\n|---:|---:|---:|---:|\n");
    for (row, flanneld) in rows
        .iter()
        .filter_map(|row| Some((row, row.flanneld.as_ref()?)))
    {
        let ratio = |of: fn(&Outcome) -> &Series| of(flanneld).median() / of(&row.twilld).median();
        let [wall, cpu, peak] = [ratio(|o| &o.wall), ratio(|o| &o.cpu), ratio(|o| &o.peak)];
        let peers = row.peers;
        writeln!(out, "| {peers} | 1/{wall:.1} | 1/{cpu:.1} | 1/{peak:.1} |")?;
    }
    out.push('\n');
    for (peers, aim, holds) in aims(rows) {
        let verdict = if holds { "reached" } else { "not reached" };
        writeln!(out, "- at {peers} peers {aim}: {verdict}")?;
    }
    out.push_str("\n## How\n\nBoth daemons run on one node (a network namespace), their leases in one etcd of one member. The time goes from before the start to the notification of the last peer's route, neighbour and forwarding entry, counted from the kernel's own messages and looked at with `ip` and `bridge` afterwards. CPU is user and system time of the daemon's threads until then; what flanneld's iptables children use is not in it, nor what etcd and the kernel's workers do. Between two starts the VXLAN device and all firewall rules are removed; the lease stays and is taken again.\n");
    Ok(out)
}

/// What the project wants to reach, and whether it did.
fn aims(rows: &[Row]) -> Vec<(usize, String, bool)> {
    let mut aims = Vec::new();
    for row in rows {
        let peak = row.twilld.peak.median() / 1024.0;
        let most = match row.peers {
            10 => 8.0,
            10_000 => 16.0,
            _ => continue,
        };
        let aim = format!("at most {most:.0} MiB ({peak:.1})");
        aims.push((row.peers, aim, peak <= most));
        let Some(flanneld) = row.flanneld.as_ref().filter(|_| row.peers == 10_000) else {
            continue;
        };
        let times = flanneld.wall.median() / row.twilld.wall.median();
        aims.push((
            row.peers,
            format!("20 times as fast ({times:.1})"),
            times >= 20.0,
        ));
        let times = flanneld.cpu.median() / row.twilld.cpu.median();
        aims.push((
            row.peers,
            format!("1/20 of the CPU (1/{times:.1})"),
            times >= 20.0,
        ));
    }
    aims
}

pub(super) fn flanneld_version() -> String {
    let path = flanneld::path().unwrap_or_else(|_| Path::new("no flanneld").to_owned());
    let folder = path.parent().and_then(Path::file_name);
    let name = folder.unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_leases_differ_in_subnet_address_and_mac() {
        let leases: Vec<_> = (0..10_000).map(lease).collect();
        let keys: std::collections::BTreeSet<_> = leases.iter().map(|(key, _)| key).collect();
        let values: std::collections::BTreeSet<_> = leases.iter().map(|(_, value)| value).collect();
        assert_eq!((keys.len(), values.len()), (10_000, 10_000));
        assert!(leases[0].0.ends_with("/10.1.0.0-24") && leases[257].0.ends_with("/10.2.1.0-24"));
    }

    #[test]
    fn an_aim_is_reached_or_not_by_the_medians() {
        let outcome = |wall: f64, cpu: f64, peak: f64| {
            let mut outcome = Outcome::default();
            outcome.wall.push(wall);
            outcome.cpu.push(cpu);
            outcome.peak.push(peak * 1024.0);
            outcome
        };
        let row = Row {
            peers: 10_000,
            twilld: outcome(300.0, 250.0, 15.0),
            flanneld: Some(outcome(6900.0, 4900.0, 60.0)),
        };
        let verdicts: Vec<bool> = aims(&[row]).iter().map(|(_, _, holds)| *holds).collect();
        assert_eq!(verdicts, [true, true, false]);
    }
}
