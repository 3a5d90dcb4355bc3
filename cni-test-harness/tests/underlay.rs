//! Nodes reach each other over both shapes of underlay, and leave nothing behind.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::node::Node;
use cni_test_harness::observe::Family;
use cni_test_harness::underlay::{Shape, Underlay};
use cni_test_harness::wait;

const WAIT: Duration = Duration::from_secs(2);

fn nodes_reach_each_other(shape: Shape) -> Result<()> {
    let mut underlay = Underlay::new(shape)?;
    let nodes = [Node::new("a")?, Node::new("b")?, Node::new("c")?];
    let places = nodes
        .iter()
        .map(|node| underlay.attach(node))
        .collect::<Result<Vec<_>>>()?;
    for node in &nodes {
        for place in &places {
            for dst in [IpAddr::from(place.v4.addr()), IpAddr::from(place.v6.addr())] {
                let ping = node.view().ping(dst, 2, WAIT)?;
                assert!(
                    ping.complete(),
                    "{shape:?}: {} → {dst}: {ping:?}",
                    node.name()
                );
            }
        }
        for family in [Family::V4, Family::V6] {
            let routes = node.view().routes(family)?;
            assert!(
                routes.iter().any(|route| route.dst == "default"),
                "{routes:?}"
            );
        }
    }
    let networks = places.iter().map(|place| place.v4.trunc());
    let distinct = networks.collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(distinct, if shape == Shape::Routed { 3 } else { 1 });
    Ok(())
}

#[test]
fn nodes_on_one_segment_reach_each_other() -> Result<()> {
    nodes_reach_each_other(Shape::Bridge)
}

#[test]
fn nodes_behind_a_router_reach_each_other() -> Result<()> {
    nodes_reach_each_other(Shape::Routed)
}

#[test]
fn a_node_without_its_cable_is_alone_until_it_is_back() -> Result<()> {
    let mut underlay = Underlay::new(Shape::Bridge)?;
    let (a, b) = (Node::new("a")?, Node::new("b")?);
    let (_, place) = (underlay.attach(&a)?, underlay.attach(&b)?);
    let reached = || {
        Ok(a.view()
            .ping(place.v4.addr().into(), 1, Duration::from_secs(1))?
            .complete())
    };
    assert!(reached()?);
    underlay.set_cable(&place, false)?;
    assert!(!reached()?);
    underlay.set_cable(&place, true)?;
    wait::until_true("b to answer again", Duration::from_secs(10), reached)
}

#[test]
fn a_dropped_node_leaves_no_namespace_folder_or_daemon() -> Result<()> {
    let node = Node::new("short")?;
    let (path, dir) = (node.netns().path(), node.dir().to_owned());
    let daemon = node.spawn("sleeper", Path::new("sleep"), &["600".to_owned()])?;
    let process = Path::new("/proc").join(daemon.pid().to_string());
    assert_eq!(node.netns().pids()?.len(), 1);
    assert!(path.exists() && dir.exists() && process.exists());
    drop(daemon);
    drop(node);
    assert!(!path.exists() && !dir.exists() && !process.exists());
    Ok(())
}
