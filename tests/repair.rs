//! What somebody else breaks in twilld's tables is put right, and what is not twilld's is left.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::observe::Family;

const REPAIRED: Duration = Duration::from_secs(5);
/// Peers hear of it through the store.
const MOVED: Duration = Duration::from_secs(30);

/// The parts of a node's state that twilld keeps.
fn tables(cluster: &Cluster) -> Result<String> {
    let view = cluster.member(0).view();
    let link = view.link("flannel.1")?.unwrap_or_default();
    Ok(format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{} {} {}\n{}",
        view.routes(Family::V4)?,
        view.neighbours("flannel.1").unwrap_or_default(),
        view.fdb("flannel.1").unwrap_or_default(),
        view.addresses_of("flannel.1")?,
        link["mtu"],
        link["address"],
        link["operstate"],
        view.nft_text()?,
    ))
}

/// Damage by a script, in which what differs from run to run is written in capitals.
fn repairs(script: &str) -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let (here, there) = (cluster.member(0), cluster.member(1));
    // Pods make the check end to end.
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let before = tables(&cluster)?;
    let peer = there.subnet()?.trunc();
    let script = script
        .replace("PEER_SUBNET", &peer.to_string())
        .replace("PEER_IP", &peer.addr().to_string())
        .replace("PEER_MAC", &there.view().mac("flannel.1")?)
        .replace("GATEWAY", &here.place().v4_gateway.to_string())
        .replace("OWN_IP", &here.subnet()?.trunc().addr().to_string());
    here.node().exec("sh", &["-c", &script])?;
    let what = format!("{script} is repaired");
    here.wait_for(&what, REPAIRED, |_| Ok(tables(&cluster)? == before))?;
    assert!(near.ping(&far, 3, Duration::from_secs(2))?.complete());
    Ok(())
}

#[test]
fn a_deleted_route_comes_back() -> Result<()> {
    repairs("ip route del PEER_SUBNET")
}

#[test]
fn a_changed_route_is_put_right() -> Result<()> {
    repairs("ip route replace PEER_SUBNET via 192.168.50.254")
}

#[test]
fn flushed_routes_come_back() -> Result<()> {
    repairs("ip route flush dev flannel.1")
}

#[test]
fn a_deleted_neighbour_comes_back() -> Result<()> {
    repairs("ip neigh del PEER_IP dev flannel.1")
}

#[test]
fn a_changed_neighbour_is_put_right() -> Result<()> {
    repairs("ip neigh replace PEER_IP lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent")
}

#[test]
fn a_deleted_fdb_entry_comes_back() -> Result<()> {
    repairs("bridge fdb del PEER_MAC dev flannel.1 self")
}

#[test]
fn a_changed_fdb_entry_is_put_right() -> Result<()> {
    repairs("bridge fdb replace PEER_MAC dev flannel.1 dst 192.168.50.99 self permanent")
}

#[test]
fn a_foreign_entry_on_the_device_is_removed() -> Result<()> {
    repairs("bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 192.168.50.99 self permanent")
}

#[test]
fn a_second_destination_of_a_forwarding_entry_is_removed() -> Result<()> {
    repairs("bridge fdb append PEER_MAC dev flannel.1 dst 192.168.50.99 self permanent")
}

#[test]
fn a_foreign_neighbour_on_the_device_is_removed() -> Result<()> {
    repairs("ip neigh add 10.244.99.9 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent")
}

#[test]
fn a_foreign_route_out_of_the_device_is_removed() -> Result<()> {
    repairs("ip route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink")
}

#[test]
fn a_foreign_address_of_the_network_on_the_device_is_removed() -> Result<()> {
    repairs("ip addr add 10.244.99.9/32 dev flannel.1")
}

#[test]
fn what_a_network_manager_takes_for_foreign_comes_back() -> Result<()> {
    // systemd-networkd does so with ManageForeignRoutes= when a device that it manages comes up.
    repairs("ip route flush proto boot dev flannel.1; ip addr flush dev flannel.1")
}

#[test]
fn an_underlay_that_goes_down_and_up_changes_nothing() -> Result<()> {
    repairs("ip link set eth0 down; ip link set eth0 up; ip route add default via GATEWAY")
}

#[test]
fn flushed_neighbours_and_forwarding_entries_come_back() -> Result<()> {
    repairs(
        "ip neigh flush dev flannel.1 nud permanent; bridge fdb del PEER_MAC dev flannel.1 self",
    )
}

#[test]
fn a_deleted_address_comes_back() -> Result<()> {
    repairs("ip addr del OWN_IP/32 dev flannel.1")
}

#[test]
fn a_changed_mtu_is_put_right() -> Result<()> {
    repairs("ip link set flannel.1 mtu 1300")
}

#[test]
fn a_device_that_was_taken_down_comes_up_with_its_routes() -> Result<()> {
    repairs("ip link set flannel.1 down")
}

#[test]
fn a_changed_mac_is_put_right() -> Result<()> {
    repairs("ip link set flannel.1 address 02:00:00:00:00:77")
}

#[test]
fn a_deleted_device_comes_back_with_all_its_peers() -> Result<()> {
    repairs("ip link del flannel.1")
}

#[test]
fn a_device_with_other_attributes_is_made_anew() -> Result<()> {
    repairs(
        "ip link del flannel.1; ip link add flannel.1 type vxlan id 77 dev eth0 dstport 9999 && ip link set flannel.1 up || true",
    )
}

#[test]
fn a_flushed_ruleset_comes_back() -> Result<()> {
    repairs("nft flush ruleset")
}

#[test]
fn a_flushed_chain_and_a_strange_rule_in_our_table_are_put_right() -> Result<()> {
    repairs("nft flush chain inet twilld postrouting")?;
    repairs("nft add rule inet twilld postrouting counter drop")
}

#[test]
fn what_is_not_twillds_is_left_alone() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let node = cluster.member(0).node();
    for command in [
        "ip route add 10.99.0.0/16 via 192.168.50.254",
        "ip route add 10.244.0.0/16 via 192.168.50.254 metric 900",
        "ip neigh add 192.168.50.77 lladdr 02:00:00:00:00:55 dev eth0 nud permanent",
        "nft add table inet somebody",
        "nft 'add chain inet somebody input { type filter hook input priority 0; }'",
    ] {
        node.exec("sh", &["-c", command])?;
    }
    // A change of twilld's own makes it look at everything once more.
    node.exec("ip", &["route", "flush", "dev", "flannel.1"])?;
    let subnet = cluster.member(1).subnet()?.trunc().to_string();
    cluster
        .member(0)
        .wait_for("the routes come back", REPAIRED, |view| {
            Ok(view.routes(Family::V4)?.iter().any(|r| r.dst == subnet))
        })?;
    let view = cluster.member(0).view();
    let routes = view.routes(Family::V4)?;
    assert!(routes.iter().any(|r| r.dst == "10.99.0.0/16"), "{routes:?}");
    assert!(
        routes.iter().any(|r| r.dst == "10.244.0.0/16"),
        "{routes:?}"
    );
    let neighbours = view.neighbours("eth0")?;
    assert!(
        neighbours.iter().any(|n| n.ip == "192.168.50.77"),
        "{neighbours:?}"
    );
    assert!(view.nft_text()?.contains("table inet somebody"));
    Ok(())
}

/// Whether node 1 sends what is for node 0's pods to this address.
fn is_followed(cluster: &Cluster, address: &str) -> Result<bool> {
    let mac = cluster.member(0).view().mac("flannel.1")?;
    let fdb = cluster.member(1).view().fdb("flannel.1")?;
    Ok(fdb
        .iter()
        .any(|entry| entry.mac == mac && entry.dst == address))
}

#[test]
fn an_underlay_that_changes_its_address_is_followed_here_and_by_the_peers() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let (old, gateway) = {
        let place = cluster.member(0).place();
        (place.v4, place.v4_gateway)
    };
    let script = format!(
        "ip addr del {old} dev eth0; ip addr add 192.168.50.101/24 dev eth0; ip route add default via {gateway}"
    );
    cluster.member(0).node().exec("sh", &["-c", &script])?;
    let what = "the device and the peers have the new address";
    cluster.member(0).wait_for(what, MOVED, |view| {
        let link = view.link("flannel.1")?.unwrap_or_default();
        let local = &link["linkinfo"]["info_data"]["local"];
        Ok(local == "192.168.50.101" && is_followed(&cluster, "192.168.50.101")?)
    })?;
    let what = "the pods reach each other again";
    cluster.member(0).wait_for(what, MOVED, |_| {
        Ok(near.ping(&far, 2, Duration::from_secs(1))?.complete())
    })
}

#[test]
fn an_underlay_that_was_away_is_taken_up_again() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let (place, node) = (*cluster.member(0).place(), cluster.member(0).node());
    // With it goes the VXLAN device.
    node.exec("ip", &["link", "del", "eth0"])?;
    let what = "the loss is told";
    cluster.member(0).wait_for(what, MOVED, |_| {
        let daemon = cluster.member(0).daemon();
        Ok(daemon.is_some_and(|daemon| daemon.log_tail(20).contains("underlay")))
    })?;
    let port = format!("node{}", place.number);
    cluster.underlay().middle().ip_batch(&format!(
        "link add {port} type veth peer eth0 netns {}\nlink set {port} master br0\nlink set {port} up\n",
        node.name()
    ))?;
    node.netns().ip_batch(&format!(
        "link set eth0 up\naddr add {} dev eth0\nroute add default via {}\n",
        place.v4, place.v4_gateway
    ))?;
    let what = "the pods reach each other again";
    cluster.member(0).wait_for(what, MOVED, |_| {
        Ok(near.ping(&far, 2, Duration::from_secs(1))?.complete())
    })
}

#[test]
fn an_underlay_with_another_mtu_is_followed() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    member
        .node()
        .exec("ip", &["link", "set", "eth0", "mtu", "1400"])?;
    member.wait_for("flannel.1 has 50 less", REPAIRED, |view| {
        Ok(view.mtu("flannel.1")? == 1350
            && member.subnet_env()?.get("FLANNEL_MTU").map(String::as_str) == Some("1350"))
    })
}
