//! The Kubernetes store on the real API server: it keeps what every store promises, and its own.
//!
//! An entry `10.5.9.0-24` is a Node with that podCIDR, and its value is the Node's annotations. The
//! suite's nodes get theirs as a controller manager would give them: the first one that is free.

mod bookmarks;
mod faults;
mod golden;
mod promises;
mod reaching;
mod reading;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cni_test_harness::kubernetes::{ApiServer, Change, Programs, node};
use cni_test_harness::tools::Missing;
use serde_json::{Value, json};
use twilld::lease::Lease;
use twilld::store::kube::{DEFAULT_PREFIX, Identity, KubeStore, Options, Patience, Source};

use crate::conformance::{Fixture, Raw, suite, value};

const NODES: &str = "/api/v1/nodes";
/// How the API server's log knows us.
const OURS: &str = "twilld";
const PREFIX: &str = "flannel.alpha.coreos.com/";

/// The manifest that operators apply.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/kube-twill.yaml");

/// A store for one Node, with everything else as usual.
pub(crate) fn options(source: Source, node: &str) -> Options {
    Options {
        source,
        identity: Identity::Node(node.to_owned()),
        annotation_prefix: DEFAULT_PREFIX.to_owned(),
        net_conf_path: PathBuf::from("/nonexistent/net-conf.json"),
        patience: Patience::default(),
    }
}

/// As the cluster's admin, by token.
fn as_admin(server: &ApiServer) -> Source {
    Source::Kubeconfig {
        path: server.admin_kubeconfig(),
        url: None,
    }
}

/// The admin's store for one Node.
fn store(server: &ApiServer, node: &str) -> KubeStore {
    KubeStore::new(options(as_admin(server), node)).unwrap()
}

struct Cluster {
    server: RefCell<ApiServer>,
    /// The suite's own nodes so far: node N has the podCIDR 10.5.(N + 10).0/24.
    nodes: Cell<u8>,
}

fn own_name(n: u8) -> String {
    format!("self-{n}")
}

fn own_cidr(n: u8) -> String {
    format!("10.5.{}.0/24", n + 240)
}

fn peer_name(entry: &str) -> String {
    format!("peer-{}", entry.replace(['.', '&', ':'], "-"))
}

fn annotations(value: &str) -> Vec<(&'static str, String)> {
    let lease: Value = serde_json::from_str(value).unwrap();
    vec![
        ("kube-subnet-manager", "true".to_owned()),
        (
            "backend-type",
            lease["BackendType"].as_str().unwrap_or_default().to_owned(),
        ),
        ("backend-data", lease["BackendData"].to_string()),
        (
            "public-ip",
            lease["PublicIP"].as_str().unwrap_or_default().to_owned(),
        ),
    ]
}

/// A Node with these podCIDRs that says what the suite's node `n` says.
fn peer(name: &str, cidrs: &[&str], n: u16) -> Value {
    let annotations = annotations(&value(n));
    let pairs: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (*k, &**v)).collect();
    node::node(name, cidrs, &pairs)
}

impl Cluster {
    fn net_conf_path(&self) -> PathBuf {
        self.server.borrow().dir().join("net-conf.json")
    }

    fn change(&self, changes: &[Change]) {
        self.server.borrow_mut().change(changes).unwrap();
    }

    fn present(&self) -> Vec<Value> {
        let mut list = self.server.borrow().get_json(&["nodes"]).unwrap();
        match list["items"].take() {
            Value::Array(items) => items,
            other => panic!("no list of nodes: {other}"),
        }
    }

    fn own_nodes(&self) -> Vec<Change> {
        let nodes = (0..self.nodes.get()).map(|n| node::node(&own_name(n), &[&own_cidr(n)], &[]));
        nodes
            .map(|node| Change::Create(NODES.to_owned(), node))
            .collect()
    }
}

impl Fixture for Cluster {
    type Store = KubeStore;

    fn start() -> Result<Self, Missing> {
        let server = ApiServer::start(&Programs::find()?).unwrap();
        Ok(Self {
            server: RefCell::new(server),
            nodes: Cell::new(0),
        })
    }

    /// A Node appears, and a store on it.
    fn node(&self, _ttl: Duration) -> KubeStore {
        let n = self.nodes.get();
        self.nodes.set(n + 1);
        let node = node::node(&own_name(n), &[&own_cidr(n)], &[]);
        self.change(&[Change::Create(NODES.to_owned(), node)]);
        let mut options = options(as_admin(&self.server.borrow()), &own_name(n));
        options.net_conf_path = self.net_conf_path();
        KubeStore::new(options).unwrap()
    }

    fn put(&self, entries: &[(String, String)]) {
        let present = self.present();
        let is_there = |name: &str| present.iter().any(|node| node["metadata"]["name"] == name);
        let change = |(entry, value): &(String, String)| {
            let name = peer_name(entry);
            let annotations = annotations(value);
            let pairs: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (*k, &**v)).collect();
            let object = node::node(&name, &[&entry.replace('-', "/")], &pairs);
            match is_there(&name) {
                true => Change::Merge(
                    format!("{NODES}/{name}"),
                    json!({"metadata": {"annotations": object["metadata"]["annotations"]}}),
                ),
                false => Change::Create(NODES.to_owned(), object),
            }
        };
        self.change(&entries.iter().map(change).collect::<Vec<_>>());
    }

    /// A Node's lease never expires: all are reservations.
    fn reserve(&self, name: &str, value: &str) {
        self.put(&[(name.to_owned(), value.to_owned())]);
    }

    /// Peers' Nodes are deleted; of our own Nodes, the annotations.
    fn delete(&self, names: &[String]) {
        let change = |name: &String| {
            let own = (0..self.nodes.get()).find(|n| own_cidr(*n) == name.replace('-', "/"));
            match own {
                Some(n) => Change::Merge(
                    format!("{NODES}/{}", own_name(n)),
                    json!({"metadata": {"annotations": null}}),
                ),
                None => Change::Delete(format!("{NODES}/{}", peer_name(name))),
            }
        };
        self.change(&names.iter().map(change).collect::<Vec<_>>());
    }

    fn entries(&self) -> BTreeMap<String, Raw> {
        let entry = |node: Value| {
            let annotation = |suffix: &str| {
                let text = &node["metadata"]["annotations"][format!("{PREFIX}{suffix}")];
                text.as_str().map(str::to_owned)
            };
            annotation("kube-subnet-manager")?;
            let value = json!({
                "PublicIP": annotation("public-ip"),
                "BackendType": annotation("backend-type"),
                "BackendData": serde_json::from_str::<Value>(&annotation("backend-data")?).unwrap(),
            });
            let lease = Lease::parse(value.to_string().as_bytes()).unwrap();
            let name = node["spec"]["podCIDR"].as_str()?.replace('/', "-");
            let value = lease.render();
            let reserved = false;
            Some((name, Raw { value, reserved }))
        };
        self.present().into_iter().filter_map(entry).collect()
    }

    /// As a kubelet does with a ConfigMap: renamed into place.
    fn write_config(&self, text: &str) {
        let path = self.net_conf_path();
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn take_away(&mut self) {
        self.server.get_mut().kill_all();
    }

    fn bring_back(&mut self) {
        self.server.get_mut().restart().unwrap();
    }

    /// The kubelets bring their Nodes back, without annotations.
    fn wipe(&mut self) {
        let server = self.server.get_mut();
        server.wipe().unwrap();
        server.restart().unwrap();
        self.change(&self.own_nodes());
    }

    fn set_clocks(&self, _seconds: i64) {
        unreachable!("the promise about it does not apply");
    }

    fn exempt(promise: &str) -> Option<&'static str> {
        const GIVEN: &str = "the cluster gives podCIDRs to Nodes; nothing is allocated here";
        const NO_END: &str = "a lease on a Node does not expire, and no clock is looked at";
        const OWN: &str = "each node writes on its own Node only, which nobody else can hold";
        Some(match promise {
            "what_does_not_fit_the_configuration_is_released"
            | "the_subnet_held_before_is_taken_when_it_is_free"
            | "of_fifty_nodes_forty_get_the_forty_subnets_and_ten_are_told_why"
            | "no_two_dual_stack_nodes_share_a_subnet_of_either_family"
            | "a_reservation_of_another_is_respected" => GIVEN,
            "a_free_subnet_is_taken_and_published_in_flannels_form" => {
                "the cluster gives the subnet; what is published is compared in golden.rs"
            }
            "the_same_node_gets_the_same_subnet_again" => {
                "a node is known by its Node's name, not by its address; see golden.rs"
            }
            "a_renewal_extends_and_publishes_what_has_changed"
            | "a_lease_ends_when_it_is_not_renewed"
            | "a_reservation_of_ours_stays_one"
            | "clocks_that_jump_end_no_lease" => NO_END,
            "a_lease_that_somebody_took_is_lost_and_left_alone"
            | "a_lease_that_is_gone_and_overlapped_is_lost" => OWN,
            "a_configuration_is_read_as_written_and_made_only_where_none_is" => {
                "the configuration is a file that the cluster's operator writes; see promises.rs"
            }
            "a_poisoned_lease_is_named_and_the_others_are_not_hurt" => {
                "it is named by its Node; see reading.rs"
            }
            _ => return None,
        })
    }
}

suite!(Cluster);
