//! The backend udp beside the real flanneld's, and what the daemon says of packets that are not what
//! they claim to be.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::netns;
use cni_test_harness::pod::Pod;
use cni_test_harness::process::log_tail;
use cni_test_harness::{flanneld, packet, skip_unless, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(2);
const PREFIX: &str = "/coreos.com/network";

fn net_conf(backend: &Value) -> Value {
    json!({"Network": "10.244.0.0/16", "Backend": backend})
}

fn log(cluster: &Cluster, index: usize) -> String {
    let daemon = cluster.member(index).daemon().expect("it runs");
    log_tail(daemon.log_path(), 1000)
}

/// Pings both ways, in the largest packets that go in one piece and in larger ones, and a stream
/// each way that arrives as it was sent.
fn reach_each_other(pods: &[Pod; 2], mtu: usize) -> Result<()> {
    let largest = (mtu - 28).to_string();
    for [from, to] in [[0, 1], [1, 0]] {
        let (from, to) = (&pods[from], &pods[to]);
        let ip = to.ip()?;
        let what = format!("{} reaches {ip}", from.ip()?);
        wait::until_true(&what, SOON, || Ok(from.ping(to, 1, REPLY)?.complete()))?;
        let ip_text = ip.to_string();
        for more in [["-M", "do", "-s", &largest], ["-M", "dont", "-s", "4000"]] {
            let args = [
                &["-n", "-c", "3", "-i", "0.05", "-W", "2"],
                &more[..],
                &[&ip_text],
            ];
            from.netns()
                .exec("ping", &args.concat())
                .with_context(|| what.clone())?;
        }
        stream(from, to, ip).with_context(|| what)?;
    }
    Ok(())
}

fn stream(from: &Pod, to: &Pod, ip: IpAddr) -> Result<()> {
    let sent: Vec<u8> = (0..4_000_000).map(|n| (n / 7 + n / 4096) as u8).collect();
    let listener = to.netns().run(|| Ok(TcpListener::bind((ip, 7000))?))?;
    let receiver = std::thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(SOON))?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    });
    from.netns().run(|| {
        let mut stream = TcpStream::connect_timeout(&(ip, 7000).into(), SOON)?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(stream.write_all(&sent)?)
    })?;
    let received = receiver.join().expect("the receiver does not panic")?;
    ensure!(received == sent, "{} bytes came", received.len());
    Ok(())
}

#[test]
fn a_node_with_flannelds_udp_and_one_with_ours_reach_each_other() -> Result<()> {
    skip_unless!(etcd::installed());
    let flanneld = skip_unless!(flanneld::installed());
    // The daemon with offloads and the one without, each beside flanneld.
    for offload in [true, false] {
        let spec = Spec {
            net_conf: net_conf(&json!({"Type": "udp", "Offload": offload})),
            ..Spec::default()
        };
        let (etcd, mut cluster) = Etcd::with_cluster("udp", &spec, PREFIX)?;
        let config = spec.net_conf.to_string();
        etcd.put(&format!("{PREFIX}/config"), &config, None)?;
        let flags = etcd.flags(PREFIX);
        let theirs = cluster.member_mut(0);
        theirs.start_instead("flanneld", &flanneld, &flags)?;
        theirs.wait_ready(READY_DEADLINE)?;
        cluster.member_mut(1).start_daemon()?;
        cluster.member_mut(1).wait_ready(READY_DEADLINE)?;
        let pods = [cluster.pod(0)?, cluster.pod(1)?];
        reach_each_other(&pods, 1472).with_context(|| log(&cluster, 1))?;
        let mtus = [0, 1].map(|index| cluster.member(index).view().mtu("flannel0"));
        for mtu in mtus {
            assert_eq!(mtu?, 1472);
        }
        let leases = etcd.entries(&format!("{PREFIX}/subnets/"))?;
        let shape = |value: &str| -> Result<Vec<String>> {
            let value: Value = serde_json::from_str(value)?;
            Ok(value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect())
        };
        assert_eq!(leases.len(), 2, "{leases:?}");
        assert_eq!(shape(&leases[0].value)?, shape(&leases[1].value)?);
    }
    Ok(())
}

/// Nodes of one store with the backends given, each as its node read it.
fn start(backends: &[Value]) -> Result<Cluster> {
    let spec = Spec {
        nodes: u8::try_from(backends.len())?,
        net_conf: net_conf(&backends[0]),
        ..Spec::default()
    };
    let name = netns::unique_name("udp");
    let mut cluster = Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))?;
    for (index, backend) in backends.iter().enumerate() {
        let config = cluster.store_dir().join("config");
        std::fs::write(config, net_conf(backend).to_string())?;
        cluster.member_mut(index).start_daemon()?;
        cluster.member_mut(index).wait_ready(READY_DEADLINE)?;
    }
    Ok(cluster)
}

/// As on kernels that know nothing of many packets for each system call.
#[test]
fn a_node_without_offloads_takes_part() -> Result<()> {
    let slow = json!({"Type": "udp", "Offload": false});
    let cluster = start(&[slow, json!({"Type": "udp"})])?;
    let abilities = |index| {
        let log = log(&cluster, index);
        let line = log
            .lines()
            .find(|line| line.contains("the udp data path runs"));
        line.map(str::to_owned).context(log.clone())
    };
    let said = abilities(0)?;
    for none in ["device: Off", "gso: false", "gro: false"] {
        assert!(said.contains(none), "{said}");
    }
    let said = abilities(1)?;
    assert!(!said.contains("device: Off"), "{said}");
    reach_each_other(&[cluster.pod(0)?, cluster.pod(1)?], 1472)?;
    // What every host sends by itself, the search for IPv6 routers, is nothing to be told of.
    for index in [0, 1] {
        let log = log(&cluster, index);
        assert!(!log.contains("dropped_not_ipv4"), "{log}");
    }
    Ok(())
}

#[test]
fn forged_packets_are_dropped_and_the_log_says_from_where_once() -> Result<()> {
    let udp = json!({"Type": "udp"});
    let cluster = start(&[udp.clone(), udp])?;
    let pods = [cluster.pod(0)?, cluster.pod(1)?];
    reach_each_other(&pods, 1472)?;
    let IpAddr::V4(target) = pods[0].ip()? else {
        anyhow::bail!("an IPv4 pod");
    };
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let heard = || Ok(UdpSocket::bind((target, 9000))?);
    let heard = pods[0].netns().run(heard)?;
    let send = |source: Ipv4Addr| {
        let packet = packet::udp(source, target, b"hello");
        let (from, to) = (there.place().v4.addr(), here.place().v4.addr());
        let send = || Ok(UdpSocket::bind((from, 0))?.send_to(&packet, (to, 8285))?);
        there.node().netns().run(send)
    };
    // In the name of a pod whose node is not there, again and again.
    let forged = Ipv4Addr::new(10, 244, 250, 9);
    for _ in 0..50 {
        send(forged)?;
    }
    let words = "not in the sending peer's subnet";
    wait::until_true("the drop to be told", SOON, || {
        Ok(log(&cluster, 0).contains(words))
    })
    .with_context(|| log(&cluster, 0))?;
    // A packet of its own is heard, and is the first one that is.
    let IpAddr::V4(honest) = pods[1].ip()? else {
        anyhow::bail!("an IPv4 pod");
    };
    send(honest)?;
    heard.set_read_timeout(Some(SOON))?;
    let mut buffer = [0; 100];
    let (_, sender) = heard.recv_from(&mut buffer)?;
    assert_eq!(sender.ip(), IpAddr::V4(honest));
    let log = log(&cluster, 0);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(words)).collect();
    // What follows within a minute is told together.
    assert_eq!(lines.len(), 1, "{log}");
    let from = there.place().v4.addr();
    for field in [format!("source={forged}"), format!("from={from}")] {
        assert!(lines[0].contains(&field), "{}", lines[0]);
    }
    Ok(())
}
