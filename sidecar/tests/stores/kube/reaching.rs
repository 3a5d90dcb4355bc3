//! How the API server is reached, and what it lets us do there.

use std::fs;
use std::time::Duration;

use cni_test_harness::kubernetes::{ApiServer, Programs, node};
use cni_test_harness::skip_unless;
use serde_json::{Value, json};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use twilld::store::Store;
use twilld::store::kube::{DEFAULT_PREFIX, KubeStore, Source};

use super::{MANIFEST, OURS, options};
use crate::conformance::following::Following;
use crate::conformance::{claim, lease, run};

/// For what happens by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// With the manifest applied and a Node `k1`.
fn start(programs: &Programs) -> ApiServer {
    let server = ApiServer::start(programs).unwrap();
    server.kubectl(&["apply", "-f", MANIFEST], b"").unwrap();
    server
        .create(&[node::node("k1", &["10.5.1.0/24"], &[])])
        .unwrap();
    server
}

/// Reads, writes and watches.
async fn is_of_use(source: Source) {
    let store = KubeStore::new(options(source.clone(), "k1")).unwrap();
    let acquired = store.acquire(&claim(100)).await;
    acquired.unwrap_or_else(|error| panic!("{source}: {error}"));
    let mut following = Following::start(store);
    following
        .until("our own lease", |table| table.leases().count() == 1)
        .await;
}

#[test]
fn the_api_server_is_reached_in_every_way_that_flannel_knows() {
    let programs = skip_unless!(Programs::find());
    let mut server = start(&programs);
    let certified = server.certificate_kubeconfig().unwrap();
    // What a kubeconfig names may stand in it.
    let certified = certified.display().to_string();
    let flat = [
        "config",
        "view",
        "--raw",
        "--flatten",
        "--kubeconfig",
        &certified,
    ];
    let flat = server.kubectl(&flat, b"").unwrap().stdout_text();
    assert!(flat.contains("client-key-data") && flat.contains("certificate-authority-data"));
    let path = server.dir().join("flat.kubeconfig");
    fs::write(&path, flat).unwrap();
    let kubeconfig = |path: &std::path::Path, url: Option<String>| Source::Kubeconfig {
        path: path.to_owned(),
        url,
    };
    let plain = server.plain_url().unwrap();
    run(async {
        is_of_use(kubeconfig(&path, None)).await;
        // --kube-api-url beside it, and alone.
        is_of_use(kubeconfig(&path, Some(server.url()))).await;
        is_of_use(Source::Url(plain)).await;
    });
}

#[test]
fn a_token_that_is_replaced_is_used_from_then_on() {
    let programs = skip_unless!(Programs::find());
    let server = start(&programs);
    let dir = server.service_account_dir("kube-twill", "twill").unwrap();
    let token = dir.join("token");
    let good = fs::read(&token).unwrap();
    let in_cluster = Source::InCluster {
        url: server.url(),
        dir,
    };
    let by_file = server.dir().join("by-file.kubeconfig");
    let text = fs::read_to_string(server.admin_kubeconfig()).unwrap();
    let (before, _) = text.split_once("token: ").unwrap();
    fs::write(
        &by_file,
        format!("{before}tokenFile: {}\n", token.display()),
    )
    .unwrap();
    let by_file = Source::Kubeconfig {
        path: by_file,
        url: None,
    };
    run(async {
        for source in [in_cluster, by_file] {
            let store = KubeStore::new(options(source, "k1")).unwrap();
            store.acquire(&claim(100)).await.unwrap();
            fs::write(&token, "withdrawn").unwrap();
            let error = store.acquire(&claim(100)).await.unwrap_err().to_string();
            assert!(
                error.contains("401") && !error.contains("withdrawn"),
                "{error}"
            );
            fs::write(&token, &good).unwrap();
            store.acquire(&claim(100)).await.unwrap();
        }
    });
}

#[test]
fn what_the_role_lacks_is_refused_to_its_token() {
    let programs = skip_unless!(Programs::find());
    let server = start(&programs);
    let ours = server
        .service_account_kubeconfig("kube-twill", "twill")
        .unwrap()
        .display()
        .to_string();
    let tried = |args: &[&str]| server.kubectl(&[&["--kubeconfig", &ours], args].concat(), b"");
    tried(&["get", "nodes"]).unwrap();
    let taint = r#"{"spec":{"unschedulable":true}}"#;
    for args in [
        &["delete", "node", "k1"][..],
        &["annotate", "node", "k1", "a=b"],
        &["patch", "node", "k1", "-p", taint],
        &["get", "pods", "--all-namespaces"],
        &["get", "secrets", "--all-namespaces"],
        &["-n", "kube-twill", "get", "configmap", "kube-twill-cfg"],
        &["-n", "kube-twill", "create", "token", "twill"],
        &["get", "clusterroles"],
    ] {
        let refused = tried(args).map(|output| output.stdout_text()).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(
            refused.to_lowercase().contains("forbidden"),
            "{args:?}: {refused}"
        );
    }
}

/// The ClusterRole without one verb.
fn role_without(server: &ApiServer, resource: &str, verb: &str) -> Value {
    let mut role = server.get_json(&["clusterrole", "twill"]).unwrap();
    let rules = role["rules"].as_array_mut().unwrap();
    for rule in rules
        .iter_mut()
        .filter(|rule| rule["resources"] == json!([resource]))
    {
        let verbs = rule["verbs"].as_array_mut().unwrap();
        verbs.retain(|had| had != verb);
        if verbs.is_empty() {
            verbs.push(json!("deletecollection"));
        }
    }
    role
}

#[test]
fn whatever_the_role_should_have_and_has_not_is_said_and_waited_for() {
    let programs = skip_unless!(Programs::find());
    let server = start(&programs);
    let ours = Source::InCluster {
        url: server.url(),
        dir: server.service_account_dir("kube-twill", "twill").unwrap(),
    };
    let apply = |role: Value| {
        server
            .kubectl(&["replace", "-f", "-"], role.to_string().as_bytes())
            .unwrap()
    };
    let whole = server.get_json(&["clusterrole", "twill"]).unwrap();
    let refused = |verb: &str| {
        let asked = server.requests(OURS).unwrap();
        let of_verb = asked.iter().filter(|request| request.verb == verb);
        of_verb.filter(|request| request.code == 403).count()
    };
    let is_refused = async |verb: &str, least: usize| {
        let wait = async {
            while refused(verb) < least {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(SOON, wait).await.expect(verb);
    };
    let complete = || {
        let mut role = whole.clone();
        role["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("resourceVersion");
        apply(role);
    };
    run(async {
        let store = KubeStore::new(options(ours, "k1")).unwrap();
        for verb in ["list", "watch"] {
            apply(role_without(&server, "nodes", verb));
            let mut following = Following::start(store.clone());
            // The server believes in a role a moment longer.
            is_refused(verb, 2).await;
            complete();
            following.until("a list", |table| table.is_complete()).await;
            server.create(&[node::peer(7)]).unwrap();
            following
                .until("a peer", |table| table.leases().count() == 1)
                .await;
            server
                .kubectl(&["delete", "node", "peer-00007"], b"")
                .unwrap();
        }
        apply(role_without(&server, "nodes/status", "patch"));
        let announcing = spawn_local({
            let store = store.clone();
            async move { store.announce().await }
        });
        is_refused("patch", 2).await;
        assert!(!announcing.is_finished());
        let error = store.acquire(&claim(100)).await.unwrap_err().to_string();
        assert!(
            error.contains("patch the status of node k1") && error.contains("ClusterRole"),
            "{error}"
        );
        complete();
        timeout(SOON, announcing).await.unwrap().unwrap();
        let k1 = server.get_json(&["node", "k1"]).unwrap();
        assert_eq!(k1["status"]["conditions"][0]["status"], "False", "{k1}");
    });
}

/// flanneld never finds its MAC address under a prefix with a word behind the slash.
#[test]
fn what_a_node_published_is_found_under_every_prefix() {
    let programs = skip_unless!(Programs::find());
    let server = start(&programs);
    run(async {
        for (prefix, name) in [
            (DEFAULT_PREFIX, "flannel.alpha.coreos.com/backend-data"),
            ("example.org/net", "example.org/net-backend-data"),
            ("example.com", "example.com/backend-data"),
        ] {
            let mut options = options(super::as_admin(&server), "k1");
            options.annotation_prefix = prefix.to_owned();
            let store = KubeStore::new(options).unwrap();
            assert_eq!(store.facts().await.unwrap().published, None, "{prefix}");
            store.acquire(&claim(100)).await.unwrap();
            assert_eq!(store.facts().await.unwrap().published, Some(lease(100)));
            let k1 = server.get_json(&["node", "k1"]).unwrap();
            let data = k1["metadata"]["annotations"][name].as_str().unwrap();
            assert_eq!(
                Some(data),
                lease(100)
                    .backend_data
                    .get(twilld::family::Family::V4)
                    .map(|data| &**data)
            );
        }
    });
}
