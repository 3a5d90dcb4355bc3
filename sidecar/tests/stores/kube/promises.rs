//! What the Kubernetes store promises about this node's own lease, and to the API server.

use std::time::{Duration, SystemTime};

use cni_test_harness::kubernetes::{ApiServer, Programs, node};
use cni_test_harness::skip_unless;
use serde_json::{Value, json};
use twilld::family::Family;
use twilld::store::file::FileStore;
use twilld::store::kube::{Identity, KubeStore, Source};
use twilld::store::migrate::{self, Mode};
use twilld::store::{Renewal, Store, StoreError};

use super::{MANIFEST, OURS, PREFIX, as_admin, options, peer, store};
use crate::conformance::following::Following;
use crate::conformance::{DAY, claim, holding, lease, run, subnets};

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
            Err(StoreError::Ungiven(reason)) => reason,
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
            Err(StoreError::Ungiven(_))
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
    });
    assert_eq!(server.requests(OURS).unwrap(), []);
}

/// A cluster that leaves Kubernetes as its store takes its subnets with it.
#[test]
fn the_leases_can_be_taken_to_another_store_by_who_is_no_node() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    let mut unmanaged = peer("k4", &["10.5.4.0/24"], 104);
    let managed = format!("{PREFIX}kube-subnet-manager");
    unmanaged["metadata"]["annotations"][managed] = json!("false");
    let mut bad = peer("k5", &["10.5.5.0/24"], 105);
    bad["metadata"]["annotations"][format!("{PREFIX}public-ip")] = json!("nonsense");
    let k3 = peer("k3", &["10.5.3.0/24"], 103);
    server
        .create(&[peer("k1", &["10.5.1.0/24"], 101), k3, unmanaged, bad])
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let net_conf = dir.path().join("net-conf.json");
    std::fs::write(&net_conf, "{\"Network\":\"10.5.0.0/16\"}\n").unwrap();
    let mut options = options(as_admin(&server), "");
    options.net_conf_path = net_conf;
    let target = FileStore::new(dir.path().join("store"), DAY, DAY);
    run(async {
        let from = KubeStore::new(options).unwrap();
        for mode in [Mode::DryRun, Mode::Copy] {
            let report = migrate::run(&from, &target, mode).await.unwrap();
            assert!(report.config && report.copied == 2, "{report}");
            let left_out: Vec<&String> = report.refused.keys().collect();
            assert_eq!(left_out, ["node k5"]);
        }
        let report = migrate::run(&from, &target, Mode::Copy).await.unwrap();
        assert_eq!((report.config, report.copied, report.same), (false, 0, 2));
        // A node that was k3 finds its subnet, which lives as long as any other.
        let held = target.acquire(&claim(103)).await.unwrap();
        assert_eq!(held.subnets, "10.5.3.0-24".parse().unwrap());
        let config = target.config().await.unwrap().unwrap();
        assert_eq!(config, b"{\"Network\":\"10.5.0.0/16\"}\n");
    });
    let file = dir.path().join("store/subnets/10.5.1.0-24");
    let ends = std::fs::metadata(file).unwrap().modified().unwrap();
    let lives = ends.duration_since(SystemTime::now()).unwrap();
    assert!(lives <= DAY && lives > DAY - Duration::from_secs(600));
}
