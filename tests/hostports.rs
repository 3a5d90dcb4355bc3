//! Host ports and bandwidth as parts of the network: a runtime that passes on what a pod asks for
//! needs no plugin behind twill.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::node::Node;
use cni_test_harness::runtime::{Added, Attachment};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(5);
const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;
const ANSWER: &str = "the pod";

/// The list in conf with what it declares, and every path below the node's folder.
fn list(member: &Member) -> Result<NetworkList> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf/10-twill.conflist");
    let mut list: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let plugin = &mut list["plugins"][0];
    plugin["subnetFile"] = json!(member.subnet_file()?);
    plugin["dataDir"] = json!(member.node().make_dir("cni/scratch")?);
    plugin["ipam"] = json!({"dataDir": member.node().make_dir("cni/networks")?});
    NetworkList::parse(list)
}

/// A sandbox on a node, attached with what a runtime offers; DEL when dropped.
struct Sandbox<'a> {
    member: &'a Member,
    list: Arc<NetworkList>,
    attachment: Attachment,
    added: Added,
    netns: Netns,
}

impl<'a> Sandbox<'a> {
    fn attach(member: &'a Member, offered: Value) -> Result<Self> {
        let name = netns::unique_name("pod");
        let netns = Netns::create(&name)?;
        let list = Arc::new(list(member)?);
        let mut attachment = Attachment::eth0(&name, &netns.path());
        attachment.capability_args = offered.as_object().context("an object")?.clone();
        Ok(Self {
            member,
            added: member.runtime().add(&list, &attachment)?,
            list,
            attachment,
            netns,
        })
    }

    fn check(&self) -> Result<()> {
        self.member.runtime().check(&self.list, &self.attachment)
    }

    fn del(&self) -> Result<()> {
        self.member.runtime().del(&self.list, &self.attachment)
    }

    /// Answers every connection from inside; ends with the test's process.
    fn serve(&self) -> Result<()> {
        let listener = (self.netns).run(|| Ok(TcpListener::bind(("0.0.0.0", POD_PORT))?))?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(ANSWER.as_bytes());
            }
        });
        Ok(())
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        let _ = self.del();
    }
}

/// What answers at an address, asked from a node; None if nobody does.
fn ask(from: &Node, to: SocketAddr) -> Result<Option<String>> {
    from.netns().run(|| {
        let mut stream = match TcpStream::connect_timeout(&to, DEADLINE) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) => bail!("connect to {to}: {error}"),
        };
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(Some(answer))
    })
}

/// As containerd writes them: Go structs without names for JSON.
fn port_mappings() -> Value {
    json!({"portMappings": [
        {"HostPort": HOST_PORT, "ContainerPort": POD_PORT, "Protocol": "tcp", "HostIP": ""}
    ]})
}

/// The queueing disciplines of a kind, as `tc -j qdisc` has them.
fn qdiscs(member: &Member, kind: &str) -> Result<Vec<Value>> {
    let said = member.node().exec("tc", &["-j", "qdisc"])?;
    let all: Vec<Value> = serde_json::from_slice(&said.stdout)?;
    Ok(all.into_iter().filter(|q| q["kind"] == kind).collect())
}

#[test]
fn a_host_port_leads_to_the_pod_until_del() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let address = SocketAddr::from((here.place().v4.addr(), HOST_PORT));
    assert_eq!(ask(there.node(), address)?, None, "before there is a pod");

    let pod = Sandbox::attach(here, port_mappings())?;
    pod.serve()?;
    for node in [there, here] {
        assert_eq!(ask(node.node(), address)?.as_deref(), Some(ANSWER));
    }
    let elements = |id: &str| Ok::<_, anyhow::Error>(here.view().nft_text()?.contains(id));
    let id = pod.attachment.container_id.clone();
    assert!(elements(&id)?);
    pod.check()?;

    pod.del()?;
    assert!(!elements(&id)?, "{}", here.view().nft_text()?);
    for node in [there, here] {
        assert_eq!(ask(node.node(), address)?, None);
    }
    pod.del()
}

#[test]
fn check_notices_a_lost_host_port() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let pod = Sandbox::attach(member, port_mappings())?;
    pod.check()?;
    let table = ["delete", "table", "inet", "twill-hostports"];
    member.node().exec("nft", &table)?;
    let error = format!("{:#}", pod.check().expect_err("the port is lost"));
    assert!(error.contains("host ports of"), "{error}");
    Ok(())
}

#[test]
fn gc_closes_the_ports_of_pods_that_nobody_knows() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let mut offered = port_mappings();
    offered["bandwidth"] = json!({"egressRate": 4_000_000, "egressBurst": 800_000});
    let pod = Sandbox::attach(member, offered)?;
    let id = pod.attachment.container_id.clone();
    let is_there = || Ok::<_, anyhow::Error>(member.view().nft_text()?.contains(&id));

    let kept = [(id.clone(), "eth0".to_owned())];
    member.runtime().gc(&pod.list, Some(&kept))?;
    assert!(is_there()?, "GC leaves what is known");
    assert_eq!(qdiscs(member, "tbf")?.len(), 1);
    // Without DEL: the runtime has forgotten it.
    member.runtime().forget(&pod.list, &pod.attachment);
    member.runtime().gc(&pod.list, Some(&[]))?;
    assert!(!is_there()?, "{}", member.view().nft_text()?);
    assert_eq!(qdiscs(member, "tbf")?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn an_add_that_fails_leaves_no_port_and_no_limit() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    // A table of somebody else's under our name, whose map has another type of key.
    let ruleset = "table inet twill-hostports { map ports4 { type mark : ipv4_addr; \
                   elements = { 1 : 192.0.2.1 }; }; }";
    member.node().exec("nft", &[ruleset])?;
    let mut offered = port_mappings();
    offered["bandwidth"] = json!({"egressRate": 4_000_000, "egressBurst": 800_000});
    let links = member.view().link_names()?;
    if Sandbox::attach(member, offered).is_ok() {
        bail!("the table was not in the way");
    }
    assert_eq!(qdiscs(member, "tbf")?, Vec::<Value>::new());
    let mut left = member.view().link_names()?;
    left.retain(|name| !links.contains(name) && name != "cni0");
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_pods_bandwidth_is_limited_both_ways_until_del() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let limits = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 4_000_000, "egressBurst": 800_000}});
    let pod = Sandbox::attach(member, limits)?;
    let interfaces = &pod.added.result["interfaces"];
    let name = |at: usize| interfaces[at]["name"].as_str().unwrap_or_default();
    let (host, ifb) = (name(1), name(3));
    assert!(ifb.starts_with("bwp"), "{interfaces}");

    let found = qdiscs(member, "tbf")?;
    let rate_of = |dev: &str| {
        let on = found.iter().find(|qdisc| qdisc["dev"] == dev);
        on.map(|qdisc| qdisc["options"]["rate"].clone())
    };
    // Bytes per second.
    assert_eq!(rate_of(host), Some(json!(1_000_000)), "{found:?}");
    assert_eq!(rate_of(ifb), Some(json!(500_000)), "{found:?}");
    pod.check()?;
    member
        .node()
        .exec("tc", &["qdisc", "del", "dev", host, "root"])?;
    let error = format!("{:#}", pod.check().expect_err("a limit is lost"));
    assert!(error.contains("has no limit"), "{error}");

    pod.del()?;
    assert_eq!(qdiscs(member, "tbf")?, Vec::<Value>::new());
    assert!(member.view().link(ifb)?.is_none());
    Ok(())
}
