//! What the Kubernetes store alone promises.

use std::time::Duration;

use cni_test_harness::kubernetes::{ApiServer, Change, Programs, Request, node};
use cni_test_harness::skip_unless;
use serde_json::{Value, json};
use twilld::family::Family;
use twilld::store::kube::{Identity, KubeStore, Source};
use twilld::store::{Renewal, Store, StoreError};

use super::{MANIFEST, NODES, PREFIX, as_admin, options, store};
use crate::conformance::following::Following;
use crate::conformance::{DAY, claim, holding, lease, run, subnets, value};

const OURS: &str = "twilld";

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

fn lease_annotations(n: u16) -> Vec<(&'static str, String)> {
    super::annotations(&value(n))
}

fn peer(name: &str, cidrs: &[&str], n: u16) -> Value {
    let annotations = lease_annotations(n);
    let pairs: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (*k, &**v)).collect();
    node::node(name, cidrs, &pairs)
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
fn the_manifests_service_account_can_do_all_that_is_needed_and_nothing_else() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    server.kubectl(&["apply", "-f", MANIFEST], b"").unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-twill-ds-x", "namespace": "kube-twill"},
        "spec": {"nodeName": "k1", "containers": [{"name": "c", "image": "i"}]},
    });
    server
        .create(&[node::node("k1", &["10.5.1.0/24"], &[]), node::peer(2), pod])
        .unwrap();
    let account = |name: &str| Source::InCluster {
        url: server.url(),
        dir: server.service_account_dir("kube-twill", name).unwrap(),
    };
    let mut ours = options(account("twill"), "");
    ours.identity = Identity::Pod {
        namespace: "kube-twill".to_owned(),
        name: "kube-twill-ds-x".to_owned(),
    };
    server
        .kubectl(
            &["-n", "kube-twill", "create", "serviceaccount", "nobody"],
            b"",
        )
        .unwrap();
    let nobody = KubeStore::new(options(account("nobody"), "k1")).unwrap();
    run(async {
        let store = KubeStore::new(ours).unwrap();
        store.facts().await.unwrap();
        store.acquire(&claim(100)).await.unwrap();
        store.announce().await;
        let mut following = Following::start(store);
        following
            .until("both nodes", |table| table.leases().count() == 2)
            .await;
        // Without the role: refused, with advice; and what is not known is not sent.
        let error = nobody.acquire(&claim(100)).await.unwrap_err().to_string();
        assert!(
            error.contains("403") && error.contains("ClusterRole"),
            "{error}"
        );
        let (to_us, mut events) = tokio::sync::mpsc::channel(1);
        let refused = tokio::time::timeout(Duration::from_secs(2), nobody.watch(to_us));
        assert!(refused.await.is_err() && events.try_recv().is_err());
    });
    let k1 = server.get_json(&["node", "k1"]).unwrap();
    assert_eq!(k1["status"]["conditions"][0]["status"], "False", "{k1}");
    for (verb, resource, allowed) in [
        ("get", "pods", "yes"),
        ("list", "pods", "no"),
        ("list", "nodes", "yes"),
        ("watch", "nodes", "yes"),
        ("patch", "nodes/status", "yes"),
        ("update", "nodes/status", "no"),
        ("patch", "nodes", "no"),
        ("delete", "nodes", "no"),
        ("get", "secrets", "no"),
        ("get", "configmaps", "no"),
    ] {
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:kube-twill:twill",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {"verb": verb, "resource": resource, "subresource": part},
            },
        });
        let told = server
            .kubectl(
                &["create", "-o", "json", "-f", "-"],
                review.to_string().as_bytes(),
            )
            .unwrap();
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(
            told["status"]["allowed"],
            allowed == "yes",
            "{verb} {resource}/{part}"
        );
    }
}

#[test]
fn the_manifest_holds_the_files_of_conf() {
    let documents = std::fs::read_to_string(MANIFEST).unwrap();
    for name in ["10-twill.conflist", "net-conf.json"] {
        let path = std::path::Path::new(MANIFEST).with_file_name(name);
        let file = std::fs::read_to_string(&path).unwrap();
        let indented: String = file.lines().map(|line| format!("    {line}\n")).collect();
        assert!(documents.contains(&indented), "{name} is not in {MANIFEST}");
    }
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
        // flanneld does not notice when a node leaves the network without being deleted.
        server
            .annotate("k2", &[&format!("{PREFIX}kube-subnet-manager-")])
            .unwrap();
        following
            .until("its leaving", |table| table.leases().count() == 0)
            .await;
    });
}

#[test]
fn a_node_waits_with_a_reason_for_what_the_cluster_must_give() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let patch = |merge: Value| {
        server
            .kubectl(&["patch", "node", "k1", "-p", &merge.to_string()], b"")
            .unwrap()
    };
    run(async {
        let store = store(&server, "k1");
        let reason = async || match store.acquire(&claim(100)).await {
            Err(StoreError::Waiting(reason)) => reason,
            other => panic!("not waiting: {other:?}"),
        };
        assert!(reason().await.contains("no node k1"));
        server.create(&[node::node("k1", &[], &[])]).unwrap();
        assert!(reason().await.contains("no podCIDR yet"));
        assert_eq!(
            server.get_json(&["node", "k1"]).unwrap()["metadata"]["annotations"]
                .as_object()
                .unwrap()
                .len(),
            1
        );
        patch(json!({"spec": {"podCIDR": "10.5.1.0/24", "podCIDRs": ["10.5.1.0/24"]}}));
        let held = store.acquire(&claim(100)).await.unwrap();
        assert_eq!((held.subnets, held.expires), (subnets("10.5.1.0-24"), None));
        // The Node comes back with another podCIDR: ours is lost, and that is said.
        server.kubectl(&["delete", "node", "k1"], b"").unwrap();
        let holding = holding(claim(100), held.subnets);
        assert!(matches!(
            store.renew(&holding).await,
            Err(StoreError::Waiting(_))
        ));
        server
            .create(&[node::node("k1", &["10.5.7.0/24"], &[])])
            .unwrap();
        let Renewal::Lost { holder } = store.renew(&holding).await.unwrap() else {
            panic!("not lost");
        };
        assert!(holder.contains("10.5.7.0-24"), "{holder}");
        assert_eq!(
            store.acquire(&holding).await.unwrap().subnets,
            subnets("10.5.7.0-24")
        );
    });
}

#[test]
fn a_node_made_anew_is_told_again_that_its_network_is_there() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let made = || {
        server
            .create(&[node::node("k1", &["10.5.1.0/24"], &[])])
            .unwrap()
    };
    let condition = || server.get_json(&["node", "k1"]).unwrap()["status"]["conditions"].clone();
    made();
    run(async {
        let store = store(&server, "k1");
        let held = store.acquire(&claim(100)).await.unwrap();
        store.announce().await;
        assert_eq!(condition()[0]["reason"], "FlannelIsUp");
        server.kubectl(&["delete", "node", "k1"], b"").unwrap();
        made();
        assert!(condition().is_null());
        let renewal = store
            .renew(&holding(claim(100), held.subnets))
            .await
            .unwrap();
        assert!(matches!(renewal, Renewal::TakenBack(_)));
        assert_eq!(condition()[0]["status"], "False");
    });
}

#[test]
fn the_word_that_the_network_is_there_is_repeated_until_it_holds() {
    let programs = skip_unless!(Programs::find());
    let mut server = ApiServer::start(&programs).unwrap();
    server
        .create(&[node::node("k1", &["10.5.1.0/24"], &[])])
        .unwrap();
    server.kill();
    run(async {
        let store = store(&server, "k1");
        let announced = tokio::task::spawn_local(async move { store.announce().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!announced.is_finished());
        server.restart().unwrap();
        tokio::time::timeout(Duration::from_secs(60), announced)
            .await
            .unwrap()
            .unwrap();
        let k1 = server.get_json(&["node", "k1"]).unwrap();
        assert_eq!(k1["status"]["conditions"][0]["status"], "False");
    });
}

#[test]
fn what_the_node_remembers_and_what_its_operator_wrote_is_found() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let mut k1 = peer("k1", &["10.5.1.0/24"], 100);
    k1["metadata"]["annotations"][format!("{PREFIX}node-public-ip")] = json!("192.168.77.7");
    server.create(&[k1, node::node("k2", &[], &[])]).unwrap();
    run(async {
        let certificate = Source::Kubeconfig {
            path: server.certificate_kubeconfig().unwrap(),
            url: Some(server.url()),
        };
        let facts = KubeStore::new(options(certificate, "k1"))
            .unwrap()
            .facts()
            .await
            .unwrap();
        assert_eq!(facts.published, Some(lease(100)));
        assert_eq!(
            facts.public_ips.get(Family::V4).copied(),
            "192.168.77.7".parse().ok()
        );
        let facts = store(&server, "k2").facts().await.unwrap();
        assert_eq!(facts.published, None);
    });
}

#[test]
fn the_configuration_is_a_file_that_is_read_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut here = options(Source::Url("http://127.0.0.1:1".to_owned()), "k1");
    here.net_conf_path = dir.path().join("net-conf.json");
    let path = here.net_conf_path.clone();
    run(async {
        let store = KubeStore::new(here).unwrap();
        assert_eq!(store.config().await.unwrap(), None);
        assert!(store.config_advice().contains("net-conf.json"));
        assert!(!store.init_config(b"{}").await.unwrap());
        assert!(!path.exists());
        for text in ["{\"Network\":\"10.5.0.0/16\"}", "{}"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(store.config().await.unwrap().unwrap(), text.as_bytes());
        }
    });
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_not_talked_to() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let other = ApiServer::start(&programs).unwrap();
    let wrong = Source::Kubeconfig {
        path: other.admin_kubeconfig(),
        url: Some(server.url()),
    };
    run(async {
        let store = KubeStore::new(options(wrong, "k1")).unwrap();
        let error = store.acquire(&claim(100)).await.unwrap_err().to_string();
        assert!(
            error.contains("TLS handshake") && error.contains("certificate"),
            "{error}"
        );
        assert!(!store.describe().is_empty() && !format!("{store:?}").contains("token"));
        let _ = (as_admin(&other), DAY);
    });
    assert_eq!(server.requests(OURS).unwrap(), []);
}
