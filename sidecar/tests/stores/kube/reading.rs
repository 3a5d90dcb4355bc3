//! What the Kubernetes store promises about everybody's leases.

use std::time::Duration;

use cni_test_harness::kubernetes::{ApiServer, Change, Programs, Request, node};
use cni_test_harness::skip_unless;
use serde_json::json;
use twilld::family::Family;

use super::{NODES, OURS, PREFIX, peer, store};
use crate::conformance::following::Following;
use crate::conformance::{lease, run, subnets};

fn lines(requests: &[Request]) -> Vec<String> {
    let plain = |request: &Request| {
        let line = request.to_string();
        // Versions, tokens of pages and timeouts differ from run to run.
        let parts = line.split_inclusive(['&', '?', ' ']).map(|part| {
            let value = part.find('=').filter(|_| {
                ["resourceVersion=", "continue=", "timeoutSeconds="]
                    .iter()
                    .any(|key| part.starts_with(key))
            });
            match value {
                Some(at) => format!("{}=<n>{}", &part[..at], &part[part.len() - 1..]),
                None => part.to_owned(),
            }
        });
        parts.collect()
    };
    requests.iter().map(plain).collect()
}

#[test]
fn nodes_are_listed_in_pages_and_then_watched() {
    let programs = skip_unless!(Programs::find());
    let mut server = ApiServer::start(&programs).unwrap();
    let peers = (1..=1201).map(|n| Change::Create(NODES.to_owned(), node::peer(n)));
    server.change(&peers.collect::<Vec<_>>()).unwrap();
    run(async {
        let mut following = Following::start(store(&server, "k1"));
        following
            .until("all peers", |table| table.leases().count() == 1201)
            .await;
        assert_eq!(following.log.len(), 1);
        server
            .change(&[Change::Delete(format!("{NODES}/peer-00007"))])
            .unwrap();
        following
            .until("a deletion", |table| table.leases().count() == 1200)
            .await;
        assert_eq!(following.log.len(), 2);
    });
    let asked = lines(&server.requests(OURS).unwrap());
    assert_eq!(
        asked,
        [
            "list /api/v1/nodes?limit=500 -> 200",
            "list /api/v1/nodes?limit=500&continue=<n> -> 200",
            "list /api/v1/nodes?limit=500&continue=<n> -> 200",
            "watch /api/v1/nodes?allowWatchBookmarks=true&resourceVersion=<n>&timeoutSeconds=<n>&watch=true -> 200",
        ]
    );
}

#[test]
fn after_a_crash_of_the_api_server_every_change_is_there_and_nothing_was_gone() {
    let programs = skip_unless!(Programs::find());
    let mut server = ApiServer::start(&programs).unwrap();
    server
        .create(&[node::peer(1), node::peer(2), node::peer(3)])
        .unwrap();
    run(async {
        let mut following = Following::start(store(&server, "k1"));
        following
            .until("three peers", |table| table.leases().count() == 3)
            .await;
        server.create(&[node::peer(5)]).unwrap();
        following
            .until("a change", |table| table.leases().count() == 4)
            .await;
        server.kill();
        assert_eq!(following.for_a_while(Duration::from_secs(2)).await, 0);
        // Nobody but this thread runs the store: it sees the server again when all of this is over
        // and what it watches from is forgotten.
        server.restart().unwrap();
        server
            .annotate("peer-00002", &[&format!("{PREFIX}public-ip=172.30.9.9")])
            .unwrap();
        server.create(&[node::peer(4)]).unwrap();
        server.kill();
        server.compact().unwrap();
        server.restart().unwrap();
        following
            .until("both changes", |table| {
                let changed = table.get(&subnets("10.0.2.0-24"));
                let ip = changed.and_then(|lease| lease.public_ips.get(Family::V4).copied());
                table.leases().count() == 5 && ip == "172.30.9.9".parse().ok()
            })
            .await;
        assert_eq!(following.removals(), 0);
    });
    let asked = lines(&server.requests(OURS).unwrap());
    // The API server says 410 within a watch that it began with 200.
    let lists = asked
        .iter()
        .filter(|line| line.starts_with("list") && line.ends_with("limit=500 -> 200"));
    assert_eq!(lists.count(), 2, "{asked:#?}");
}

#[test]
fn a_server_that_goes_back_in_time_is_listed_anew() {
    let programs = skip_unless!(Programs::find());
    let mut server = ApiServer::start(&programs).unwrap();
    server.create(&[node::peer(1)]).unwrap();
    server.back_up().unwrap();
    server.restart().unwrap();
    run(async {
        // Whatever is written moves the version on.
        let more = (2..200).map(|n| Change::Create(NODES.to_owned(), node::peer(n)));
        server.change(&more.collect::<Vec<_>>()).unwrap();
        let mut following = Following::start(store(&server, "k1"));
        following
            .until("all peers", |table| table.leases().count() == 199)
            .await;
        server.restore().unwrap();
        server.restart().unwrap();
        following
            .until("the restored state", |table| table.leases().count() == 1)
            .await;
    });
}

#[test]
fn a_node_that_cannot_be_a_peer_is_named_and_the_others_are_not_hurt() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let mut torn = peer("k3", &["10.5.3.0/24"], 3);
    torn["metadata"]["annotations"][format!("{PREFIX}backend-data")] = json!("{not json");
    let mut great = peer("k4", &["10.5.4.0/24"], 4);
    // An object's annotations may have 256 KiB.
    let data = format!(r#"{{"VNI":1,"x":"{}"}}"#, "x".repeat(200_000));
    great["metadata"]["annotations"][format!("{PREFIX}backend-data")] = json!(data);
    let same = peer("k6", &["10.5.2.0/24"], 6);
    server
        .create(&[
            peer("k2", &["10.5.2.0/24"], 2),
            torn,
            great,
            peer("k5", &[], 5),
            same,
        ])
        .unwrap();
    run(async {
        let mut following = Following::start(store(&server, "k1"));
        following.until("the snapshot", |_| true).await;
        let skipped: Vec<(&str, &str)> = following.table.skipped().collect();
        let said = |name: &str, word: &str| {
            skipped
                .iter()
                .any(|(who, why)| *who == name && why.contains(word) && why.len() < 500)
        };
        assert!(said("node k3", "backend-data"), "{skipped:?}");
        assert!(said("node k4", "bytes"), "{skipped:?}");
        assert!(said("node k5", "no podCIDR yet"), "{skipped:?}");
        assert!(said("node k6", "the podCIDRs of node k2"), "{skipped:?}");
        assert_eq!(
            following.table.get(&subnets("10.5.2.0-24")),
            Some(&lease(2))
        );
        assert_eq!(following.table.leases().count(), 1);
        // The one that was second has it when the first is gone; a torn one is mended.
        server.kubectl(&["delete", "node", "k2"], b"").unwrap();
        server
            .annotate("k3", &[&format!("{PREFIX}backend-data=null")])
            .unwrap();
        following
            .until("both", |table| {
                table.get(&subnets("10.5.2.0-24")) == Some(&lease(6)) && table.leases().count() == 2
            })
            .await;
    });
}

#[test]
fn a_change_of_either_family_and_of_the_manager_is_acted_upon() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let mut dual = peer("k2", &["10.5.2.0/24", "fd00:5:0:2::/64"], 2);
    for (suffix, value) in [
        ("public-ipv6", "fd00:50::2"),
        (
            "backend-v6-data",
            r#"{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}"#,
        ),
    ] {
        dual["metadata"]["annotations"][format!("{PREFIX}{suffix}")] = json!(value);
    }
    server.create(&[dual]).unwrap();
    let key = subnets("10.5.2.0-24&fd00:5:0:2::-64");
    run(async {
        let mut following = Following::start(store(&server, "k1"));
        following
            .until("the dual-stack peer", |table| table.get(&key).is_some())
            .await;
        for (suffix, value, family) in [
            (
                "backend-data",
                r#"{"VNI":1,"VtepMAC":"02:00:00:00:0a:02"}"#,
                Family::V4,
            ),
            (
                "backend-v6-data",
                r#"{"VNI":1,"VtepMAC":"02:00:00:00:0a:06"}"#,
                Family::V6,
            ),
        ] {
            server
                .annotate("k2", &[&format!("{PREFIX}{suffix}={value}")])
                .unwrap();
            following
                .until(suffix, |table| {
                    let data = table
                        .get(&key)
                        .and_then(|lease| lease.backend_data.get(family));
                    data.is_some_and(|data| &**data == value)
                })
                .await;
        }
        for (suffix, value, family) in [
            ("public-ip", "192.168.50.77", Family::V4),
            ("public-ipv6", "fd00:50::77", Family::V6),
        ] {
            server
                .annotate("k2", &[&format!("{PREFIX}{suffix}={value}")])
                .unwrap();
            following
                .until(suffix, |table| {
                    let ip = table
                        .get(&key)
                        .and_then(|lease| lease.public_ips.get(family).copied());
                    ip == value.parse().ok()
                })
                .await;
        }
        server
            .annotate("k2", &[&format!("{PREFIX}backend-type=host-gw")])
            .unwrap();
        following
            .until("its backend", |table| {
                table
                    .get(&key)
                    .is_some_and(|lease| &*lease.backend_type == "host-gw")
            })
            .await;
        // flanneld does not notice when a node leaves the network without being deleted.
        server
            .annotate("k2", &[&format!("{PREFIX}kube-subnet-manager-")])
            .unwrap();
        following
            .until("its leaving", |table| table.leases().count() == 0)
            .await;
    });
}
