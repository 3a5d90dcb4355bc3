//! Beside the real flanneld on one etcd, and in its place: nodes of either kind reach each other,
//! and a node changes over, and back, while its pods are used.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd};
use cni_test_harness::observe::Family;
use cni_test_harness::stream::Stream;
use cni_test_harness::underlay::Shape;
use cni_test_harness::{flanneld, skip_unless, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const REPLY: Duration = Duration::from_secs(2);
const PREFIX: &str = "/coreos.com/network";
/// A peer that is nowhere; a daemon that follows the store has a route to it.
const EXTRA: (&str, &str) = (
    "10.244.250.0-24",
    r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#,
);

/// Which daemon a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flanneld,
    Twilld,
}

/// Nodes whose daemons share one etcd, which is where their default gateway is.
struct Mixed {
    cluster: Cluster,
    etcd: Etcd,
    flanneld: PathBuf,
}

fn v4_only() -> Value {
    json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}})
}

fn dual_stack() -> Value {
    json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}})
}

impl Mixed {
    /// Nodes without daemons.
    fn lay_out(flanneld: &Path, nodes: u8, net_conf: Value) -> Result<Self> {
        let spec = Spec {
            nodes,
            shape: Shape::Bridge,
            net_conf,
            ..Spec::default()
        };
        let (etcd, cluster) = Etcd::with_cluster("mixed", &spec, PREFIX)?;
        let mixed = Self {
            cluster,
            etcd,
            flanneld: flanneld.to_owned(),
        };
        mixed.configure(&spec.net_conf)?;
        Ok(mixed)
    }

    fn configure(&self, net_conf: &Value) -> Result<()> {
        self.etcd
            .put(&format!("{PREFIX}/config"), &net_conf.to_string(), None)
    }

    fn start(&mut self, index: usize, kind: Kind) -> Result<()> {
        let args = self.etcd.flags(PREFIX);
        let member = self.cluster.member_mut(index);
        match kind {
            Kind::Twilld => member.start_daemon()?,
            Kind::Flanneld => member.start_instead("flanneld", &self.flanneld, &args)?,
        }
        member.wait_ready(READY_DEADLINE)
    }

    fn in_sync(&mut self) -> Result<()> {
        self.cluster.wait_in_sync(READY_DEADLINE)
    }

    /// The keys and values of all leases.
    fn leases(&self) -> Result<Vec<(String, String)>> {
        let entries = self.etcd.entries(&format!("{PREFIX}/subnets/"))?;
        let pair = |entry: etcd::Entry| (entry.key, entry.value);
        Ok(entries.into_iter().map(pair).collect())
    }

    /// Waits until these nodes' daemons have been seen to take in a lease that comes and one that
    /// goes.
    fn seen_to_follow(&self, nodes: &[usize], (name, value): (&str, &str)) -> Result<()> {
        let key = format!("{PREFIX}/subnets/{name}");
        let subnet = name.split('&').next().unwrap_or_default().replace('-', "/");
        self.etcd.put(&key, value, None)?;
        for index in nodes {
            let what = format!("a route to {subnet}");
            self.cluster
                .member(*index)
                .wait_for(&what, SOON, |view| has_route(view, &subnet))?;
        }
        self.etcd.delete_all(&[key])?;
        for index in nodes {
            let what = format!("no route to {subnet}");
            self.cluster
                .member(*index)
                .wait_for(&what, SOON, |view| Ok(!has_route(view, &subnet)?))?;
        }
        Ok(())
    }
}

fn has_route(view: cni_test_harness::observe::View<'_>, subnet: &str) -> Result<bool> {
    Ok(view
        .routes(Family::V4)?
        .iter()
        .any(|route| route.dst == subnet))
}

/// What must stay when one daemon takes the other's place: the subnet file, and of devices their
/// number, MAC, MTU and addresses.
fn identity(member: &Member) -> Result<Value> {
    let view = member.view();
    let mut devices = Vec::new();
    for ifname in ["eth0", "flannel.1", "cni0"] {
        let link = view.link(ifname)?.unwrap_or_default();
        devices.push(json!({
            "ifname": ifname,
            "ifindex": link["ifindex"],
            "mac": link["address"],
            "mtu": link["mtu"],
            // A bridge's would tell its running timers, too.
            "vxlan": (ifname == "flannel.1").then(|| &link["linkinfo"]["info_data"]),
            "addresses": view.addresses_of(ifname)?,
        }));
    }
    Ok(json!({ "subnet.env": member.subnet_env()?, "devices": devices }))
}

#[test]
fn nodes_with_flanneld_and_with_twilld_reach_each_other() -> Result<()> {
    skip_unless!(etcd::installed());
    let flanneld = skip_unless!(flanneld::installed());
    for net_conf in [v4_only(), dual_stack()] {
        let mut mixed = Mixed::lay_out(&flanneld, 3, net_conf.clone())?;
        // Each kind comes to a store in which the other is already.
        for (index, kind) in [(0, Kind::Flanneld), (1, Kind::Twilld), (2, Kind::Flanneld)] {
            mixed.start(index, kind)?;
        }
        mixed.in_sync()?;
        let pods = [0, 1, 2].map(|index| mixed.cluster.pod(index));
        let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
        for from in &pods {
            for to in &pods {
                for ip in to.added().ips() {
                    // IPv6 routes and addresses may come a moment after the IPv4 ones.
                    let what = format!("{} reaches {ip}", from.ip()?);
                    let reached = || Ok(from.view().ping(ip, 3, REPLY)?.complete());
                    wait::until_true(&what, SOON, reached)?;
                }
            }
        }
        let families = pods[0].added().ips().len();
        assert_eq!(families, if net_conf == dual_stack() { 2 } else { 1 });
        mixed.seen_to_follow(&[0, 1, 2], extra(&net_conf))?;
        // The three leases differ in nothing but what is each node's own.
        let leases = mixed.leases()?;
        assert_eq!(leases.len(), 3, "{leases:?}");
        let shape = |(_, value): &(String, String)| -> Result<Vec<String>> {
            let value: Value = serde_json::from_str(value)?;
            let keys = value.as_object().into_iter().flatten();
            Ok(keys.map(|(key, _)| key.clone()).collect())
        };
        let shapes = leases.iter().map(shape).collect::<Result<Vec<_>>>()?;
        assert!(
            shapes.iter().all(|shape| *shape == shapes[0]),
            "{leases:#?}"
        );
    }
    Ok(())
}

/// A peer whose key and value have the shape that a configuration asks for.
fn extra(net_conf: &Value) -> (&'static str, &'static str) {
    const DUAL: (&str, &str) = (
        "10.244.250.0-24&fd00:244:0:250::-64",
        r#"{"PublicIP":"192.168.50.77","PublicIPv6":"fd00:50::77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:77"}}"#,
    );
    match net_conf["EnableIPv6"] == true {
        true => DUAL,
        false => EXTRA,
    }
}

#[test]
fn a_node_changes_from_flanneld_to_twilld_and_back_without_losing_a_packet() -> Result<()> {
    skip_unless!(etcd::installed());
    let flanneld = skip_unless!(flanneld::installed());
    let mut mixed = Mixed::lay_out(&flanneld, 2, v4_only())?;
    mixed.start(0, Kind::Flanneld)?;
    mixed.start(1, Kind::Flanneld)?;
    mixed.in_sync()?;
    let (near, far) = (mixed.cluster.pod(0)?, mixed.cluster.pod(1)?);
    let leases = mixed.leases()?;
    let before = identity(mixed.cluster.member(0))?;
    let mut streams = [
        Stream::start(near.netns(), far.ip()?)?,
        Stream::start(far.netns(), near.ip()?)?,
    ];
    for kind in [Kind::Twilld, Kind::Flanneld] {
        mixed.cluster.member_mut(0).stop_daemon(SOON)?;
        mixed.start(0, kind)?;
        mixed.seen_to_follow(&[0, 1], EXTRA)?;
        for stream in &mut streams {
            stream.go_on(500)?;
            let answers = stream.answers()?;
            assert_eq!(answers.lost, Vec::<usize>::new(), "while {kind:?} came");
        }
        assert_eq!(
            identity(mixed.cluster.member(0))?,
            before,
            "after {kind:?} came"
        );
        assert_eq!(mixed.leases()?, leases, "after {kind:?} came");
        // A pod that is made now is reached as well.
        let new = mixed.cluster.pod(0)?;
        assert!(far.ping(&new, 3, REPLY)?.complete(), "{kind:?}");
    }
    for stream in streams {
        let answers = stream.end()?;
        assert!(
            answers.lost.is_empty() && answers.last > 1000,
            "{answers:?}"
        );
    }
    Ok(())
}

/// flanneld's event loop dies of a dual-stack key on a node without IPv6; ours does not, and our
/// own key is one that those who follow the same configuration can read.
#[test]
fn keys_of_the_other_shape_break_neither_twilld_nor_a_flanneld_beside_it() -> Result<()> {
    skip_unless!(etcd::installed());
    let flanneld = skip_unless!(flanneld::installed());
    let mut mixed = Mixed::lay_out(&flanneld, 2, dual_stack())?;
    mixed.start(0, Kind::Flanneld)?;
    let theirs = mixed.leases()?;
    // From here on nodes that start have IPv4 alone.
    mixed.configure(&v4_only())?;
    mixed.start(1, Kind::Twilld)?;
    mixed.in_sync()?;
    let (dual, ours) = (mixed.cluster.pod(0)?, mixed.cluster.pod(1)?);
    let v4 = |ips: Vec<IpAddr>| ips.into_iter().find(IpAddr::is_ipv4);
    let (to_dual, to_ours) = (v4(dual.added().ips()), v4(ours.added().ips()));
    let (to_dual, to_ours) = (to_dual.expect("IPv4"), to_ours.expect("IPv4"));
    assert!(ours.view().ping(to_dual, 3, REPLY)?.complete());
    assert!(dual.view().ping(to_ours, 3, REPLY)?.complete());
    mixed.seen_to_follow(&[0, 1], extra(&dual_stack()))?;
    mixed.seen_to_follow(&[0, 1], EXTRA)?;
    let leases = mixed.leases()?;
    assert!(
        leases.len() == 2 && leases.contains(&theirs[0]),
        "{leases:#?}"
    );
    Ok(())
}

/// A flanneld with IPv4 alone would die of the first dual-stack key, so twilld writes none while
/// there is one; when its node can do both, all have both, and no node's IPv4 subnet is another.
#[test]
fn a_dual_stack_twilld_beside_a_flanneld_with_ipv4_alone_holds_its_ipv6_back() -> Result<()> {
    skip_unless!(etcd::installed());
    let flanneld = skip_unless!(flanneld::installed());
    let mut mixed = Mixed::lay_out(&flanneld, 3, v4_only())?;
    mixed.start(0, Kind::Flanneld)?;
    let theirs = mixed.leases()?;
    // From here on nodes that start have both families.
    mixed.configure(&dual_stack())?;
    mixed.start(1, Kind::Twilld)?;
    mixed.start(2, Kind::Twilld)?;
    mixed.in_sync()?;
    let pods = [0, 1, 2].map(|index| mixed.cluster.pod(index));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let reach_each_other = || -> Result<()> {
        for from in &pods {
            for to in &pods {
                assert!(from.ping(to, 3, REPLY)?.complete());
            }
        }
        Ok(())
    };
    reach_each_other()?;
    mixed.seen_to_follow(&[0, 1, 2], EXTRA)?;
    let leases = mixed.leases()?;
    assert_eq!(leases.len(), 3, "{leases:#?}");
    assert!(leases.contains(&theirs[0]), "{leases:#?}");
    let is_dual = |(key, _): &(String, String)| key.contains('&');
    assert!(!leases.iter().any(is_dual), "{leases:#?}");

    // twilld comes in flanneld's place, with both families.
    let streams = [(1, 0), (2, 1)]
        .map(|(from, to): (usize, usize)| Stream::start(pods[from].netns(), pods[to].ip()?));
    mixed.cluster.member_mut(0).stop_daemon(SOON)?;
    mixed.start(0, Kind::Twilld)?;
    wait::until_true("leases of both families", SOON, || {
        let leases = mixed.leases()?;
        Ok(leases.len() == 3 && leases.iter().all(is_dual))
    })?;
    let v4 = |(key, _): &(String, String)| key.split('&').next().map(str::to_owned);
    let v4_of = |leases: &[(String, String)]| leases.iter().map(v4).collect::<Vec<_>>();
    assert_eq!(v4_of(&mixed.leases()?), v4_of(&leases));
    mixed.in_sync()?;
    reach_each_other()?;
    for stream in streams {
        assert_eq!(stream?.end()?.lost, Vec::<usize>::new());
    }
    let new = [mixed.cluster.pod(1)?, mixed.cluster.pod(2)?];
    for ip in new[1].added().ips() {
        let reached = || Ok(new[0].view().ping(ip, 3, REPLY)?.complete());
        wait::until_true(&format!("{ip} is reached"), SOON, reached)?;
    }
    assert_eq!(new[1].added().ips().len(), 2);
    Ok(())
}
