//! What a start, an idle minute and a minute of kubelets' heartbeats cost in a cluster of thousands
//! of Nodes, life-size, in the real API server: twilld beside flanneld.
//!
//! As [`super::peers`], with Kubernetes as the store; the connection goes through a relay that
//! counts what the API server sends.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::idle::{cpu_ms, status_kib};
use super::peers::{DEADLINE, clear, flanneld_version, look, subscribe_in};
use super::relay::Relay;
use super::report;
use crate::cluster::{Cluster, Member, Spec};
use crate::flanneld;
use crate::kubernetes::{ApiServer, Change, Programs, node};
use crate::netns;
use crate::progress::Progress;
use crate::tools;
use crate::underlay::IFNAME;
use crate::wait;

const OWN: &str = "self";
const NODES: &str = "/api/v1/nodes";
/// How often a kubelet writes its Node although nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(5 * 60);
/// Bytes per MiB.
const MIB: f64 = 1_048_576.0;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// So many Nodes beside our own.
    pub nodes: u16,
    /// How long nothing happens.
    pub idle: Duration,
    /// The folder for `nodes.md`.
    pub out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 5_000,
            idle: Duration::from_secs(60),
            out: "bench".into(),
        }
    }
}

/// What was seen of one daemon.
struct Outcome {
    name: &'static str,
    wall_ms: f64,
    start: Phase,
    idle: Phase,
    heartbeats: Phase,
}

/// A part of a daemon's life.
struct Phase {
    /// Read from the API server.
    bytes: u64,
    cpu_ms: f64,
    /// Since the daemon was started.
    peak_kib: u64,
}

/// What is looked at, and what it was when the last part ended.
struct Look<'a> {
    pid: u32,
    relay: &'a Relay,
    cpu_ms: f64,
}

impl Look<'_> {
    fn end_of_phase(&mut self) -> Result<Phase> {
        let before = std::mem::replace(&mut self.cpu_ms, cpu_ms(self.pid)?);
        Ok(Phase {
            bytes: self.relay.take_received(),
            cpu_ms: self.cpu_ms - before,
            peak_kib: status_kib(self.pid, "VmHWM:")?,
        })
    }
}

/// Measures everything and writes `nodes.md`. Without Kubernetes' programs it says so.
pub fn run(options: &Options, command: &str) -> Result<()> {
    let progress = Progress::new();
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            progress.line(&format!("  left out: thousands of Nodes: {missing}"));
            return Ok(());
        }
    };
    let mut server = progress.step("an API server", || ApiServer::start(&programs))?;
    let what = format!("{} Nodes of {} bytes", options.nodes, node_bytes());
    progress.step(&what, || fill(&mut server, options.nodes))?;
    let name = netns::unique_name("nodes");
    let spec = Spec {
        nodes: 1,
        ..Spec::default()
    };
    let cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
    let member = cluster.member(0);
    let mut daemons = vec![("twilld", tools::built("twilld")?)];
    match flanneld::installed() {
        Ok(path) => daemons.insert(0, ("flanneld", path)),
        Err(missing) => progress.line(&format!("  left out: {missing}")),
    }
    let mut outcomes = Vec::new();
    for (name, program) in daemons {
        let outcome = progress.step(name, || one(member, &mut server, name, &program, options))?;
        outcomes.push(outcome);
    }
    let text = markdown(&outcomes, options, command)?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let path = options.out.join("nodes.md");
    std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    progress.line(&format!("written: {}\n\n{text}", path.display()));
    Ok(())
}

fn node_bytes() -> usize {
    node::life_size(node::peer(1)).to_string().len()
}

fn fill(server: &mut ApiServer, count: u16) -> Result<()> {
    let own = node::life_size(node::node(OWN, &["10.255.0.0/24"], &[]));
    let peers = (0..count).map(|n| node::life_size(node::peer(n)));
    let changes: Vec<Change> = peers
        .chain([own])
        .map(|node| Change::Create(NODES.to_owned(), node))
        .collect();
    server.change(&changes)
}

fn one(
    member: &Member,
    server: &mut ApiServer,
    name: &'static str,
    program: &Path,
    options: &Options,
) -> Result<Outcome> {
    let address = server.url();
    let address: SocketAddr = address.trim_start_matches("https://").parse()?;
    let relay = Relay::start(member.node().netns(), address)?;
    let net_conf = member.node().dir().join("net-conf.json");
    let text = json!({"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}});
    std::fs::write(&net_conf, text.to_string())?;
    let mut args = vec![
        format!("NODE_NAME={OWN}"),
        program.display().to_string(),
        "--kube-subnet-mgr".to_owned(),
        format!("--kubeconfig-file={}", server.admin_kubeconfig().display()),
        format!("--kube-api-url=https://127.0.0.1:{}", relay.port()),
        format!("--net-config-path={}", net_conf.display()),
        format!("--subnet-file={}", member.subnet_file()?.display()),
        format!("--iface={IFNAME}"),
        "--ip-masq".to_owned(),
    ];
    if name == "twilld" {
        let state = member.node().make_dir("state")?;
        args.push(format!("--state-dir={}", state.display()));
    }
    let arrivals = subscribe_in(member)?;
    let began = Instant::now();
    let daemon = member.node().spawn(name, &tools::program("env")?, &args)?;
    let peers = usize::from(options.nodes);
    let ended = arrivals
        .wait_for(peers, DEADLINE)
        .with_context(|| daemon.log_tail(10))?;
    let mut seen = Look {
        pid: daemon.pid(),
        relay: &relay,
        cpu_ms: 0.0,
    };
    let mut start = seen.end_of_phase()?;
    look(member, peers)?;
    // What belongs to the start is over: the Node is told that its network is there.
    wait::pause_for(Duration::from_secs(5));
    start.bytes += seen.end_of_phase()?.bytes;
    wait::pause_for(options.idle);
    let idle = seen.end_of_phase()?;
    let began_beating = Instant::now();
    server.change(&heartbeats(name, options))?;
    wait::pause_for(options.idle.saturating_sub(began_beating.elapsed()));
    let outcome = Outcome {
        name,
        wall_ms: (ended - began).as_secs_f64() * 1e3,
        start,
        idle,
        heartbeats: seen.end_of_phase()?,
    };
    daemon.kill();
    clear(member)?;
    Ok(outcome)
}

fn heartbeat_count(options: &Options) -> u16 {
    let share = options.idle.as_secs_f64() / HEARTBEAT.as_secs_f64();
    (f64::from(options.nodes) * share.min(1.0)) as u16
}

/// What the kubelets write in as much time, whatever daemon of ours is looking on.
fn heartbeats(name: &str, options: &Options) -> Vec<Change> {
    let change = |n| {
        let node = node::peer(n)["metadata"]["name"].take();
        let path = format!("{NODES}/{}/status", node.as_str().unwrap_or_default());
        // One that has not been there before: what changes nothing is no event.
        let beat = json!({"status": {"nodeInfo": {"bootID": format!("{name}-{n}")}}});
        Change::Merge(path, beat)
    };
    (0..heartbeat_count(options)).map(change).collect()
}

fn markdown(outcomes: &[Outcome], options: &Options, command: &str) -> Result<String> {
    let mut out = String::from("# A cluster of thousands of Nodes, measured\n\n");
    writeln!(out, "- **when, on what**: {}", report::machine()?)?;
    let (nodes, size) = (options.nodes, node_bytes());
    writeln!(
        out,
        "- **how many**: {nodes} Nodes of {size} bytes as JSON in the real API server, once each"
    )?;
    writeln!(out, "- **beside**: {}", flanneld_version())?;
    writeln!(out, "- **command**: `{command}`\n")?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    out.push_str("| start | until the last entry (ms) | CPU (ms) | read from the API server (MiB) | peak RSS (MiB) |\n|---|---:|---:|---:|---:|\n");
    for Outcome {
        name,
        wall_ms,
        start,
        ..
    } in outcomes
    {
        writeln!(
            out,
            "| {name} | {wall_ms:.0} | {:.0} | {:.2} | {:.1} |",
            start.cpu_ms,
            start.bytes as f64 / MIB,
            mib(start.peak_kib),
        )?;
    }
    let (idle, beats) = (options.idle.as_secs(), heartbeat_count(options));
    writeln!(
        out,
        "\n| {idle} s afterwards | nothing changes: read (kB) | CPU (ms) | peak RSS (MiB) | {beats} heartbeats of kubelets: read (kB) | CPU (ms) | peak RSS (MiB) |"
    )?;
    out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
    for outcome in outcomes {
        write!(out, "| {} |", outcome.name)?;
        for phase in [&outcome.idle, &outcome.heartbeats] {
            write!(
                out,
                " {:.1} | {:.1} | {:.1} |",
                phase.bytes as f64 / 1e3,
                phase.cpu_ms,
                mib(phase.peak_kib),
            )?;
        }
        out.push('\n');
    }
    out.push('\n');
    let of_twilld = outcomes.iter().find(|outcome| outcome.name == "twilld");
    if let Some(twilld) = of_twilld {
        let peak = mib(twilld.heartbeats.peak_kib);
        let verdict = if peak <= 16.0 {
            "reached"
        } else {
            "not reached"
        };
        writeln!(out, "- at most 16 MiB ({peak:.1}): {verdict}")?;
    }
    out.push_str("\nBytes are counted on the wire, TLS included, from the API server to the daemon. Both daemons ask for lists that are zipped, and these Nodes, which differ in little, are zipped to less than real ones would be. A kubelet writes its Node every five minutes though nothing has changed, and every change of a Node goes whole and not zipped to everybody who watches: the heartbeats are as many as kubelets would write in the time, and they come as fast as the API server takes them.\n");
    Ok(out)
}
