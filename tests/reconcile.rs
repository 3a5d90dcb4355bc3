//! What makes twilld look at everything and what does not, and that neither a storm of leases nor
//! one that the kernel refuses stands in the way of the others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::process::Daemon;
use cni_test_harness::{skip_unless, tools};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// One node, whose peers are leases in its store that nobody stands behind.
struct Alone {
    cluster: Cluster,
}

impl Alone {
    fn start(direct_routing: bool) -> Result<Self> {
        Self::start_with(direct_routing, &[])
    }

    fn start_with(direct_routing: bool, flags: &[&str]) -> Result<Self> {
        let backend = json!({"Type": "vxlan", "DirectRouting": direct_routing});
        let spec = Spec {
            nodes: 1,
            net_conf: json!({"Network": "10.244.0.0/16", "SubnetMax": "10.244.99.0", "Backend": backend}),
            twilld_args: [&["-v=2"], flags]
                .concat()
                .into_iter()
                .map(Into::into)
                .collect(),
            ..Spec::default()
        };
        Ok(Self {
            cluster: Cluster::start(&spec)?,
        })
    }

    /// The lease of 10.244.N.0/24.
    fn put(&self, n: u8, public_ip: &str, mac: &str) -> Result<()> {
        let store = self.cluster.store_dir();
        let hidden = store.join(".new");
        let value = format!(
            r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        fs::write(&hidden, value)?;
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        let file = fs::File::options().write(true).open(&hidden)?;
        file.set_modified(tomorrow)?;
        fs::rename(hidden, store.join(format!("subnets/10.244.{n}.0-24")))?;
        Ok(())
    }

    fn remove(&self, n: u8) -> Result<()> {
        let path = self.cluster.store_dir();
        let path = path.join(format!("subnets/10.244.{n}.0-24"));
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// The gateways of the peers' routes.
    fn routes(&self) -> Result<BTreeMap<String, String>> {
        let routes = self.cluster.member(0).view().routes(Family::V4)?;
        let peers = routes.into_iter().filter(|route| !route.via.is_empty());
        let peers = peers.filter(|route| route.dst.starts_with("10.244."));
        Ok(peers.map(|route| (route.dst, route.via)).collect())
    }

    fn wait_for_route(&self, n: u8, via: &str) -> Result<()> {
        let destination = format!("10.244.{n}.0/24");
        let what = format!("{destination} via {via}");
        self.cluster.member(0).wait_for(&what, SOON, |_| {
            Ok(self.routes()?.get(&destination).map(String::as_str) == Some(via))
        })
    }

    /// How often something stands in twilld's log.
    fn told(&self, words: &str) -> Result<usize> {
        let daemon = self.cluster.member(0).daemon().context("it runs")?;
        Ok(fs::read_to_string(daemon.log_path())?
            .matches(words)
            .count())
    }
}

#[test]
fn what_others_do_and_what_one_peer_does_is_no_reason_to_look_at_everything() -> Result<()> {
    let alone = Alone::start(false)?;
    let node = alone.cluster.member(0).node();
    // Behind these the start has been seen to.
    for n in [200, 201] {
        alone.put(n, "192.168.50.200", &format!("02:00:00:00:00:{}", n - 190))?;
        alone.wait_for_route(n, &format!("10.244.{n}.0"))?;
    }
    let before = alone.told(" round ")?;
    for n in 0..20 {
        let script = format!(
            "ip route add 10.99.{n}.0/24 via 192.168.50.254
             ip neigh add 192.168.50.{} lladdr 02:00:00:00:99:{n:02} dev eth0 nud permanent
             ip link add foreign{n} type bridge
             ip addr add 10.98.{n}.1/24 dev foreign{n}
             nft add table inet foreign{n}
             nft add chain inet foreign{n} c",
            100 + n
        );
        node.exec("sh", &["-e", "-c", &script])?;
    }
    let steps = alone.told(" step ")?;
    alone.put(202, "192.168.50.202", "02:00:00:00:00:22")?;
    alone.wait_for_route(202, "10.244.202.0")?;
    let rounds = alone.told(" round ")? - before;
    // Of 120 changes: the timer may have come by, and IPv6 addresses of our devices settle late.
    assert!(rounds <= 5, "{rounds} rounds");
    assert!(alone.told(" step ")? > steps, "the peer was a step");
    Ok(())
}

#[test]
fn a_lease_that_the_kernel_refuses_holds_up_no_other() -> Result<()> {
    let alone = Alone::start(true)?;
    // A broadcast address is no gateway, which only the kernel knows.
    alone.put(200, "192.168.50.255", "02:00:00:00:00:20")?;
    alone.cluster.member(0).wait_for("it is told", SOON, |_| {
        Ok(alone.told("replace route 10.244.200.0/24 via 192.168.50.255")? > 0)
    })?;
    for n in 201..211 {
        alone.put(
            n,
            "192.168.50.99",
            &format!("02:00:00:00:01:{:02}", n - 200),
        )?;
    }
    for n in 201..211 {
        alone.wait_for_route(n, "192.168.50.99")?;
    }
    assert!(!alone.routes()?.contains_key("10.244.200.0/24"));
    alone.put(200, "192.168.50.98", "02:00:00:00:00:20")?;
    alone.wait_for_route(200, "192.168.50.98")
}

#[test]
fn a_storm_of_leases_ends_in_what_the_store_says_last() -> Result<()> {
    let alone = Alone::start(false)?;
    let mac = |n: u8, time: u32| format!("02:00:00:{:02x}:{:02x}:{n:02x}", time >> 8, time & 0xff);
    let times = 0..3000u32;
    let last = |n: u8| times.clone().rev().find(|time| time % 50 == u32::from(n));
    for time in times.clone() {
        let n = (time % 50) as u8;
        alone.put(100 + n, "192.168.50.100", &mac(n, time))?;
    }
    for n in (0..50).filter(|n| n % 2 == 1) {
        alone.remove(100 + n)?;
    }
    let wanted: Vec<(String, String)> = (0..50)
        .filter(|n| n % 2 == 0)
        .filter_map(|n| Some((format!("10.244.{}.0", 100 + n), mac(n, last(n)?))))
        .collect();
    let member = alone.cluster.member(0);
    member.wait_for("the last word of each", SOON, |view| {
        let mut found: Vec<_> = view
            .neighbours("flannel.1")?
            .into_iter()
            .map(|entry| (entry.ip, entry.mac))
            .collect();
        found.sort();
        let macs: Vec<_> = view.fdb("flannel.1")?.into_iter().map(|e| e.mac).collect();
        Ok(found == wanted
            && alone.routes()?.len() == wanted.len()
            && wanted.iter().all(|(_, mac)| macs.contains(mac))
            && macs.len() == wanted.len())
    })
}

/// Delays what the daemon's loop sends to the kernel, each time so long.
fn slow_down(alone: &Alone, each: Duration) -> Result<Daemon> {
    let member = alone.cluster.member(0);
    let pid = member.daemon().context("it runs")?.pid().to_string();
    let mut command = Command::new(tools::program("strace")?);
    // Without -f: this is the first thread alone, which is the loop's.
    command.args(["-p", &pid, "-e", "trace=sendto"]);
    command.args([
        "-e",
        &format!("inject=sendto:delay_enter={}", each.as_micros()),
    ]);
    let log = member.node().dir().join("strace.log");
    let strace = Daemon::spawn("strace", &mut command, &log)?;
    member.wait_for("strace to be attached", SOON, |_| {
        Ok(fs::read_to_string(&log)?.contains("attached"))
    })?;
    Ok(strace)
}

/// Flannel waits for every operation by itself: with a kernel that takes a fifth of a second for
/// each, this would take it 84 seconds.
#[test]
fn a_slow_kernel_holds_up_a_batch_and_not_every_operation_in_it() -> Result<()> {
    skip_unless!(tools::program("strace"));
    let alone = Alone::start(false)?;
    let member = alone.cluster.member(0);
    let strace = slow_down(&alone, Duration::from_millis(200))?;
    let peers = 100..240;
    for n in peers.clone() {
        alone.put(n, "192.168.50.100", &format!("02:00:00:00:03:{n:02x}"))?;
    }
    member.wait_for("all peers", SOON, |_| {
        Ok(alone.routes()?.len() == peers.len())
    })?;
    let sends = fs::read_to_string(strace.log_path())?;
    let sends = sends.matches("(DELAYED)").count();
    strace.kill();
    // Three operations for each peer, and the looks at what is there.
    assert!((1..3 * peers.len() / 4).contains(&sends), "{sends} sends");
    Ok(())
}

/// Whoever probes a daemon kills one that does not answer for some seconds.
#[test]
fn probes_are_answered_while_the_kernel_does_not_answer_the_daemon() -> Result<()> {
    skip_unless!(tools::program("strace"));
    let alone = Alone::start_with(false, &["--healthz-ip=127.0.0.1", "--healthz-port=8471"])?;
    let member = alone.cluster.member(0);
    // Longer than anybody waits: until strace is gone.
    let strace = slow_down(&alone, Duration::from_secs(600))?;
    alone.put(200, "192.168.50.200", "02:00:00:00:00:10")?;
    member.wait_for("the daemon to wait for the kernel", SOON, |_| {
        Ok(fs::read_to_string(strace.log_path())?.contains("sendto("))
    })?;
    for (path, word) in [("/healthz", "is running"), ("/readyz", "is ready")] {
        let said = member.node().netns().run(|| probe(path))?;
        assert!(said.contains("200 OK") && said.contains(word), "{said}");
    }
    assert!(alone.routes()?.is_empty(), "the kernel was asked");
    strace.kill();
    alone.wait_for_route(200, "10.244.200.0")
}

fn probe(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", 8471))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}
