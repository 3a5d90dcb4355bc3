//! The main job: a pod on one node reaches a pod on another over VXLAN, through the entries that
//! flannel would make; only the routes' metric is twilld's own.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::observe::Family;
use cni_test_harness::pod::Pod;
use cni_test_harness::underlay::Shape;
use ipnet::IpNet;

const REPLY: Duration = Duration::from_secs(2);

fn every_pod_reaches_every_other(shape: Shape) -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 3,
        shape,
        ..Spec::default()
    })?;
    let pods: Vec<Pod> = [0, 0, 1, 1, 2, 2]
        .into_iter()
        .map(|node| cluster.pod(node))
        .collect::<Result<_>>()?;
    for from in &pods {
        for to in &pods {
            let ping = from.ping(to, 2, REPLY)?;
            assert!(ping.complete(), "{} to {}: {ping:?}", from.ip()?, to.ip()?);
        }
    }
    Ok(())
}

#[test]
fn pods_of_three_nodes_on_one_link_reach_each_other() -> Result<()> {
    every_pod_reaches_every_other(Shape::Bridge)
}

#[test]
fn pods_of_three_nodes_behind_a_router_reach_each_other() -> Result<()> {
    every_pod_reaches_every_other(Shape::Routed)
}

#[test]
fn a_pod_reaches_its_own_address_and_its_gateway_and_the_other_node() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let pod = cluster.pod(0)?;
    let gateway = cluster.member(0).subnet()?.addr();
    let other_node = cluster.member(1).subnet()?.addr();
    let far_pod = cluster.pod(1)?;
    for target in [pod.ip()?, gateway, far_pod.ip()?, other_node] {
        let ping = pod.view().ping(target, 2, REPLY)?;
        assert!(ping.complete(), "{target}: {ping:?}");
    }
    Ok(())
}

#[test]
fn a_peer_is_one_route_one_neighbour_and_one_fdb_entry() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let base = there.subnet()?.trunc();
    let peer_ip = base.addr().to_string();
    let peer_mac = there.view().mac("flannel.1")?;
    let view = here.view();

    let routes = view.routes(Family::V4)?;
    let route = routes.iter().find(|route| route.dst == base.to_string());
    let route = route.expect("a route to the peer's subnet");
    assert_eq!((&*route.via, &*route.dev), (&*peer_ip, "flannel.1"));
    assert_eq!(route.flags, ["onlink"]);
    // The metric is the subnet's number among those of its size.
    let IpNet::V4(v4) = base else {
        panic!("{base} is IPv4");
    };
    let metric = u64::from(v4.network().to_bits() >> (32 - v4.prefix_len()));
    assert_eq!((&*route.protocol, route.metric), ("boot", metric));

    let neighbours = view.neighbours("flannel.1")?;
    assert_eq!(neighbours.len(), 1, "{neighbours:?}");
    assert_eq!(neighbours[0].ip, peer_ip);
    assert_eq!(neighbours[0].mac, peer_mac);
    assert_eq!(neighbours[0].state, "PERMANENT");

    let fdb = view.fdb("flannel.1")?;
    assert_eq!(fdb.len(), 1, "{fdb:?}");
    assert_eq!(fdb[0].mac, peer_mac);
    assert_eq!(fdb[0].dst, there.place().v4.addr().to_string());
    assert_eq!(fdb[0].state, "permanent");
    Ok(())
}

#[test]
fn the_device_is_flannels_but_for_the_local_address() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let link = member.view().link("flannel.1")?.expect("flannel.1");
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    assert_eq!(link["mtu"], 1450);
    assert_eq!((&data["id"], &data["port"]), (&1.into(), &8472.into()));
    assert_eq!(data["link"], "eth0");
    assert_eq!(data["local"], member.place().v4.addr().to_string());
    assert_eq!(data["learning"], false);
    assert_eq!(data["ageing"], 300);
    assert_eq!(data["udp_csum"], true);
    let base = member.subnet()?.trunc().addr();
    let addresses = member.view().addresses_of("flannel.1")?;
    assert_eq!(addresses, [format!("{base}/32")]);
    Ok(())
}

#[test]
fn subnet_env_is_flannels_byte_for_byte() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let text = std::fs::read_to_string(member.subnet_file()?)?;
    let subnet = member.subnet()?;
    assert_eq!(
        text,
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
    );
    assert_eq!(subnet.prefix_len(), 24);
    // The gateway: the first address of the subnet.
    assert!(subnet.addr().to_string().ends_with(".1"), "{subnet}");
    // The first subnet of the network is not given out.
    assert_ne!(subnet.trunc().addr().to_string(), "10.244.0.0");
    Ok(())
}
