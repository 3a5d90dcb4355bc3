//! Checksum offload of the VXLAN device: left on where packets arrive, turned off where the network
//! card does not keep its promise.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::card::FaultyCard;
use cni_test_harness::cluster::{Cluster, Member, READY_DEADLINE, Spec};
use cni_test_harness::netns;
use cni_test_harness::pod::Pod;
use cni_test_harness::wait;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const ARRIVAL: Duration = Duration::from_millis(500);
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];
const LOST: &str = "packets are lost whose checksums are left to the network card";

/// Two nodes of both families that run no daemon yet.
fn lay_out() -> Result<Cluster> {
    let spec = Spec {
        net_conf: json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
            "Backend": {"Type": "vxlan"}
        }),
        twilld_args: vec!["-v=2".to_owned()],
        ..Spec::default()
    };
    let name = netns::unique_name("offload");
    Cluster::lay_out(&spec, &name, &std::env::temp_dir().join(&name))
}

fn start(cluster: &mut Cluster) -> Result<()> {
    (0..2).try_for_each(|index| cluster.member_mut(index).start_daemon())?;
    cluster.wait_in_sync(READY_DEADLINE)
}

fn is_on(member: &Member, device: &str) -> Result<bool> {
    let said = member.node().exec("ethtool", &["-k", device])?;
    let said = said.stdout_text();
    let line = said
        .lines()
        .find(|line| line.contains("tx-checksum-ip-generic:"));
    Ok(line.context("no tx-checksum-ip-generic")?.contains(": on"))
}

fn log(member: &Member) -> String {
    let daemon = member.daemon().expect("it runs");
    daemon.log_tail(1000)
}

/// Whether a datagram of one pod reaches another.
fn arrives(from: &Pod, to: &Pod) -> Result<bool> {
    let address = SocketAddr::new(to.ip()?, 5353);
    let bind = |address: SocketAddr| move || Ok(UdpSocket::bind(address)?);
    let there = to.netns().run(bind(address))?;
    let here = from.netns().run(bind(SocketAddr::new(from.ip()?, 0)))?;
    there.set_read_timeout(Some(ARRIVAL))?;
    here.send_to(b"hello", address)?;
    Ok(there.recv(&mut [0; 8]).is_ok())
}

#[test]
fn offload_stays_on_where_checksums_are_filled_in() -> Result<()> {
    let mut cluster = lay_out()?;
    start(&mut cluster)?;
    for member in cluster.members() {
        for device in DEVICES {
            wait::until_true(&format!("the answer for {device}"), SOON, || {
                let said = format!("checksum offload works through the tunnel device={device} ");
                Ok(log(member).contains(&said))
            })?;
            assert!(is_on(member, device)?, "{device}");
        }
        assert!(!log(member).contains(LOST));
    }
    Ok(())
}

#[test]
fn offload_is_turned_off_where_the_card_does_not_fill_checksums_in() -> Result<()> {
    let mut cluster = lay_out()?;
    let _card = FaultyCard::plug(cluster.underlay(), cluster.member(0).place())?;
    start(&mut cluster)?;
    let all_off = |cluster: &Cluster| {
        let member = cluster.member(0);
        DEVICES.iter().try_for_each(|device| {
            wait::until_true(&format!("{device} to have it off"), SOON, || {
                Ok(!is_on(member, device)?)
            })
        })
    };
    all_off(&cluster)?;
    let said = log(cluster.member(0));
    let lines = said.lines().filter(|line| line.contains(LOST));
    let told: Vec<_> = lines.collect();
    assert_eq!(told.len(), 2, "{said}");
    assert!(
        told.iter().all(|line| line.contains("ethtool -K")),
        "{told:?}"
    );
    // The other node's card is in order.
    for device in DEVICES {
        assert!(is_on(cluster.member(1), device)?, "{device}");
    }
    let (here, there) = (cluster.pod(0)?, cluster.pod(1)?);
    let reached = || arrives(&here, &there);
    wait::until_true("a datagram", SOON, reached)?;

    // The card is really like that: with the offload on again nothing arrives, until a daemon looks.
    cluster.member_mut(0).stop_daemon(SOON)?;
    for device in DEVICES {
        let on = ["-K", device, "tx", "on"];
        cluster.member(0).node().exec("ethtool", &on)?;
    }
    assert!(!arrives(&here, &there)?);
    assert!(here.ping(&there, 1, SOON)?.complete());
    cluster.member_mut(0).start_daemon()?;
    all_off(&cluster)?;
    assert!(arrives(&here, &there)?);
    // A device that is made anew is tried anew.
    let netns = cluster.member(0).node().netns();
    netns.ip(&["link", "del", "flannel.1"])?;
    wait::until_true("the device", SOON, || {
        Ok(cluster.member(0).view().link("flannel.1")?.is_some())
    })?;
    all_off(&cluster)
}
