//! What other programs change in a namespace is noticed there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use kernel::monitor::{Changes, Monitor};

mod namespace;

use namespace::{in_a_namespace, run};

/// Changes are gathered until `seen` is content.
async fn until(monitor: &mut Monitor, what: &str, seen: impl Fn(&Changes) -> bool) {
    let wait = async { while !seen(&monitor.changes().await.expect("the subscription lasts")) {} };
    let result = tokio::time::timeout(Duration::from_secs(5), wait).await;
    assert!(result.is_ok(), "{what}: not noticed");
}

#[test]
fn every_kind_of_change_is_noticed() {
    in_a_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let mut monitor = Monitor::open().unwrap();
            run("ip link add br0 type bridge");
            until(&mut monitor, "link", |c| !c.links.is_empty()).await;
            run("ip link set br0 up");
            run("ip addr add 10.1.1.1/24 dev br0");
            until(&mut monitor, "address", |c| !c.addresses.is_empty()).await;
            run("ip route add 10.1.2.0/24 via 10.1.1.2 dev br0 onlink");
            until(&mut monitor, "route", |c| !c.routes.is_empty()).await;
            run("ip neigh add 10.1.1.2 lladdr 02:00:00:00:00:02 dev br0 nud permanent");
            until(&mut monitor, "neighbour", |c| !c.neighbours.is_empty()).await;
            run("bridge fdb add 02:00:00:00:00:03 dev br0 self permanent");
            until(&mut monitor, "FDB entry", |c| !c.neighbours.is_empty()).await;
            run("nft add table inet other");
            until(&mut monitor, "nftables", |c| c.nftables).await;
            run("ip route flush dev br0");
            until(&mut monitor, "flush", |c| !c.routes.is_empty()).await;
        });
    });
}
