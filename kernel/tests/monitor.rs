//! What other programs change in a namespace is noticed there, and what we change ourselves is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use kernel::monitor::{Change, Monitor};
use kernel::{Mac, Socket, neighbour, nft};

mod namespace;

use namespace::{in_a_namespace, run};

/// Takes changes until one of them is the one.
async fn until(monitor: &mut Monitor, what: &str, mut is: impl FnMut(&Change) -> bool) {
    let mut seen = false;
    let wait = async {
        while !seen {
            monitor.changed().await.unwrap();
            monitor.drain(|change| seen |= is(&change)).unwrap();
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(5), wait).await;
    assert!(result.is_ok(), "{what}: not noticed");
}

fn with_a_monitor(test: impl AsyncFnOnce(Monitor, Socket) + Send + 'static) {
    in_a_namespace(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let mut routing = Socket::open().unwrap();
            let mut nftables = nft::Socket::open().unwrap();
            let monitor = Monitor::open(&mut routing, &mut nftables).unwrap();
            test(monitor, routing).await;
        });
    });
}

#[test]
fn a_burst_wakes_once_and_what_comes_after_a_drain_wakes_again() {
    with_a_monitor(async |mut monitor, _routing| {
        run("ip link add br0 type bridge");
        monitor.changed().await.unwrap();
        run("ip link add br1 type bridge");
        let quiet = Duration::from_millis(200);
        let again = tokio::time::timeout(quiet, monitor.changed()).await;
        assert!(again.is_err(), "woken though nobody has read yet");
        let mut seen = vec![];
        let mut note = |change| {
            if let Change::Link { name, .. } = change {
                seen.push(name);
            }
        };
        monitor.drain(&mut note).unwrap();
        assert!(seen.contains(&"br0".to_owned()) && seen.contains(&"br1".to_owned()));
        run("ip link del br1");
        until(
            &mut monitor,
            "a link that went",
            |change| matches!(change, Change::Link { name, .. } if name == "br1"),
        )
        .await;
    });
}

#[test]
fn every_kind_of_change_is_noticed() {
    with_a_monitor(async |mut monitor, _routing| {
        let monitor = &mut monitor;
        run("ip link add br0 type bridge");
        until(
            monitor,
            "link",
            |change| matches!(change, Change::Link { name, .. } if name == "br0"),
        )
        .await;
        run("ip link set br0 up");
        run("ip addr add 10.1.1.1/24 dev br0");
        until(monitor, "address", |c| matches!(c, Change::Address(_))).await;
        run("ip route add 10.1.2.0/24 via 10.1.1.2 dev br0 onlink");
        until(monitor, "route", |change| {
            matches!(change, Change::Route { gone: false, route: Some(route) }
                if route.destination.to_string() == "10.1.2.0/24" && route.onlink)
        })
        .await;
        run("ip neigh add 10.1.1.2 lladdr 02:00:00:00:00:02 dev br0 nud permanent");
        until(monitor, "neighbour", |change| {
            matches!(change, Change::Neighbour { gone: false, entry }
                if entry.permanent && entry.mac == Some(Mac([2, 0, 0, 0, 0, 2])))
        })
        .await;
        run("bridge fdb add 02:00:00:00:00:03 dev br0 self permanent");
        run("bridge fdb del 02:00:00:00:00:03 dev br0 self");
        run("ip link add vx type vxlan id 5 dstport 4789");
        run("bridge fdb add 02:00:00:00:00:04 dev vx dst 10.1.1.9 self permanent");
        until(monitor, "FDB entry", |change| {
            matches!(change, Change::Fdb { gone: false, entry }
                if entry.permanent && entry.destination == Some([10, 1, 1, 9].into()))
        })
        .await;
        run("nft add table inet other");
        run("nft add chain inet other c");
        until(
            monitor,
            "nftables",
            |change| matches!(change, Change::Nftables { table, chain: true } if table == "other"),
        )
        .await;
        run("ip route flush dev br0");
        until(monitor, "flush", |change| {
            matches!(change, Change::Route { gone: true, .. })
        })
        .await;
    });
}

#[test]
fn our_own_changes_are_not_reported_to_us() {
    with_a_monitor(async |mut monitor, mut routing| {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let index = kernel::link::by_name(&mut routing, "br0")
            .unwrap()
            .unwrap()
            .ifindex;
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        let ours = neighbour::replace(index, [10, 1, 1, 2].into(), mac);
        routing.apply_all(&[ours]).unwrap();
        run("ip neigh add 10.1.1.3 lladdr 02:00:00:00:00:03 dev br0 nud permanent");
        let mut seen = Vec::new();
        until(&mut monitor, "the other's", |change| {
            if let Change::Neighbour { entry, .. } = change {
                seen.push(entry.ip.to_string());
            }
            seen.last().is_some_and(|ip| ip == "10.1.1.3")
        })
        .await;
        seen.retain(|ip| ip.starts_with("10."));
        assert_eq!(seen, ["10.1.1.3"]);
    });
}

#[test]
fn a_storm_that_overruns_the_subscription_is_reported_as_lost() {
    with_a_monitor(async |mut monitor, _routing| {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let mut other = Socket::open().unwrap();
        let index = kernel::link::by_name(&mut other, "br0")
            .unwrap()
            .unwrap()
            .ifindex;
        let storm = (0..20_000u32).map(|n| {
            let ip = std::net::Ipv4Addr::from(0x0a01_0000 + n).into();
            neighbour::replace(index, ip, Mac([2, 0, 0, 0, 0, 2]))
        });
        other.apply_all(&storm.collect::<Vec<_>>()).unwrap();
        until(&mut monitor, "loss", |change| *change == Change::Lost).await;
    });
}

#[test]
fn a_storm_of_our_own_changes_takes_no_room_in_the_subscription() {
    with_a_monitor(async |mut monitor, mut routing| {
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let link = kernel::link::by_name(&mut routing, "br0").unwrap();
        let index = link.unwrap().ifindex;
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        // Several times as many as overrun it when they are somebody else's.
        let address = |n: u16| [10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]].into();
        let ours: Vec<_> = (0..20_000)
            .map(|n| neighbour::replace(index, address(n), mac))
            .collect();
        routing.apply_all(&ours).unwrap();
        run("ip neigh add 10.2.0.1 lladdr 02:00:00:00:00:03 dev br0 nud permanent");
        let (mut lost, mut ours) = (0, 0);
        until(&mut monitor, "the other's", |change| match change {
            Change::Lost => {
                lost += 1;
                false
            }
            Change::Neighbour { entry, .. } => {
                let other = entry.ip.to_string() == "10.2.0.1";
                ours += usize::from(entry.permanent && !other);
                other
            }
            _ => false,
        })
        .await;
        assert_eq!((lost, ours), (0, 0));
    });
}
