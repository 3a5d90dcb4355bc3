//! What somebody else breaks in twilld's tables is put right, and what is not twilld's is left.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Spec};
use cni_test_harness::observe::Family;

const REPAIRED: Duration = Duration::from_secs(5);

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

fn repairs(command: &[&str]) -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    // Pods make the check end to end.
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let before = tables(&cluster)?;
    let subnet = cluster.member(1).subnet()?.trunc();
    let mac = cluster.member(1).view().mac("flannel.1")?;
    let words: Vec<String> = command
        .iter()
        .map(|word| {
            word.replace("PEER_SUBNET", &subnet.to_string())
                .replace("PEER_IP", &subnet.addr().to_string())
                .replace("PEER_MAC", &mac)
                .replace(
                    "OWN_IP",
                    &cluster
                        .member(0)
                        .subnet()
                        .map_or_else(|_| String::new(), |s| s.trunc().addr().to_string()),
                )
        })
        .collect();
    let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    cluster.member(0).node().exec(&words[0], &args)?;
    let what = format!("{} is repaired", words.join(" "));
    cluster
        .member(0)
        .wait_for(&what, REPAIRED, |_| Ok(tables(&cluster)? == before))?;
    assert!(near.ping(&far, 3, Duration::from_secs(2))?.complete());
    Ok(())
}

#[test]
fn a_deleted_route_comes_back() -> Result<()> {
    repairs(&["ip", "route", "del", "PEER_SUBNET"])
}

#[test]
fn a_changed_route_is_put_right() -> Result<()> {
    repairs(&[
        "ip",
        "route",
        "replace",
        "PEER_SUBNET",
        "via",
        "192.168.50.254",
    ])
}

#[test]
fn flushed_routes_come_back() -> Result<()> {
    repairs(&["ip", "route", "flush", "dev", "flannel.1"])
}

#[test]
fn a_deleted_neighbour_comes_back() -> Result<()> {
    repairs(&["ip", "neigh", "del", "PEER_IP", "dev", "flannel.1"])
}

#[test]
fn a_changed_neighbour_is_put_right() -> Result<()> {
    repairs(&[
        "ip",
        "neigh",
        "replace",
        "PEER_IP",
        "lladdr",
        "02:00:00:00:00:99",
        "dev",
        "flannel.1",
        "nud",
        "permanent",
    ])
}

#[test]
fn a_deleted_fdb_entry_comes_back() -> Result<()> {
    repairs(&[
        "bridge",
        "fdb",
        "del",
        "PEER_MAC",
        "dev",
        "flannel.1",
        "self",
    ])
}

#[test]
fn a_changed_fdb_entry_is_put_right() -> Result<()> {
    repairs(&[
        "bridge",
        "fdb",
        "replace",
        "PEER_MAC",
        "dev",
        "flannel.1",
        "dst",
        "192.168.50.99",
        "self",
        "permanent",
    ])
}

#[test]
fn a_foreign_entry_on_the_device_is_removed() -> Result<()> {
    repairs(&[
        "bridge",
        "fdb",
        "add",
        "02:00:00:00:00:99",
        "dev",
        "flannel.1",
        "dst",
        "192.168.50.99",
        "self",
        "permanent",
    ])
}

#[test]
fn a_deleted_address_comes_back() -> Result<()> {
    repairs(&["ip", "addr", "del", "OWN_IP/32", "dev", "flannel.1"])
}

#[test]
fn a_changed_mtu_is_put_right() -> Result<()> {
    repairs(&["ip", "link", "set", "flannel.1", "mtu", "1300"])
}

#[test]
fn a_device_that_was_taken_down_comes_up_with_its_routes() -> Result<()> {
    repairs(&["ip", "link", "set", "flannel.1", "down"])
}

#[test]
fn a_changed_mac_is_put_right() -> Result<()> {
    repairs(&[
        "ip",
        "link",
        "set",
        "flannel.1",
        "address",
        "02:00:00:00:00:77",
    ])
}

#[test]
fn a_deleted_device_comes_back_with_all_its_peers() -> Result<()> {
    repairs(&["ip", "link", "del", "flannel.1"])
}

#[test]
fn a_device_with_other_attributes_is_made_anew() -> Result<()> {
    repairs(&[
        "sh",
        "-c",
        "ip link del flannel.1; ip link add flannel.1 type vxlan id 77 dev eth0 dstport 9999 && ip link set flannel.1 up || true",
    ])
}

#[test]
fn a_flushed_ruleset_comes_back() -> Result<()> {
    repairs(&["nft", "flush", "ruleset"])
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
