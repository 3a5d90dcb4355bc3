//! Nodes without kubelets and without daemons, and a real API server that they reach.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::kubernetes::{ApiServer, Programs, Setup, node};
use cni_test_harness::netns;
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::underlay::Shape;
use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const REPLY: Duration = Duration::from_secs(2);
const MANIFEST: &str = include_str!("../../conf/kube-twill.yaml");

/// Nodes without daemons, and an API server where their default gateway is.
pub(crate) struct Kube {
    pub(crate) cluster: Cluster,
    pub(crate) server: ApiServer,
    /// The flags that say so, to flanneld and twilld alike.
    args: Vec<String>,
}

impl Kube {
    pub(crate) fn start(programs: &Programs) -> Result<Self> {
        let name = netns::unique_name("kube");
        let dir = std::env::temp_dir().join(&name);
        let spec = Spec {
            shape: Shape::Bridge,
            ..Spec::default()
        };
        let mut cluster = Cluster::lay_out(&spec, &name, &dir)?;
        let server = Setup::default()
            .inside(
                cluster.underlay().middle(),
                cluster.member(0).place().v4_gateway,
            )
            .start(programs)?;
        server.kubectl(&["apply", "-f", "-"], MANIFEST.as_bytes())?;
        let net_conf = dir.join("net-conf.json");
        std::fs::write(&net_conf, spec.net_conf.to_string())?;
        let kubeconfig = server.service_account_kubeconfig("kube-twill", "twill")?;
        let args = vec![
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", kubeconfig.display()),
            format!("--net-config-path={}", net_conf.display()),
        ];
        for index in [0, 1] {
            let member = cluster.member_mut(index);
            member.add_twilld_args(&args);
            member.set_env("NODE_NAME", &node_name(index));
        }
        Ok(Self {
            cluster,
            server,
            args,
        })
    }

    /// Two Nodes that reach each other: 10.244.1.0/24 and 10.244.2.0/24.
    pub(crate) fn with_two_nodes(programs: &Programs) -> Result<Self> {
        let mut kube = Self::start(programs)?;
        kube.make_node(0, &["10.244.1.0/24"])?;
        kube.make_node(1, &["10.244.2.0/24"])?;
        kube.start_twilld(0)?;
        kube.start_twilld(1)?;
        kube.cluster.wait_in_sync(READY_DEADLINE)?;
        Ok(kube)
    }

    /// Makes a Node as a kubelet and a cloud do: its network is said to be missing.
    pub(crate) fn make_node(&self, index: usize, pod_cidrs: &[&str]) -> Result<()> {
        let mut object = node::node(&node_name(index), pod_cidrs, &[]);
        object["status"]["conditions"] = json!([
            {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
        ]);
        self.server.create(&[object])
    }

    pub(crate) fn start_twilld(&mut self, index: usize) -> Result<()> {
        let member = self.cluster.member_mut(index);
        member.start_daemon()?;
        member.wait_ready(READY_DEADLINE)
    }

    pub(crate) fn start_flanneld(&mut self, index: usize, flanneld: &Path) -> Result<()> {
        let args = self.args.clone();
        let member = self.cluster.member_mut(index);
        member.start_instead("flanneld", flanneld, &args)?;
        member.wait_ready(READY_DEADLINE)
    }

    pub(crate) fn object(&self, index: usize) -> Result<Value> {
        self.server.get_json(&["node", &node_name(index)])
    }

    pub(crate) fn log(&self, index: usize) -> String {
        let daemon = self.cluster.member(index).daemon().expect("it runs");
        log_tail(daemon.log_path(), 1000)
    }

    pub(crate) fn wait_for_log(&self, index: usize, text: &str) -> Result<()> {
        self.cluster
            .member(index)
            .wait_for(text, SOON, |_| Ok(self.log(index).contains(text)))
    }

    /// What a node's subnet.env says; nothing while it is not there.
    pub(crate) fn env(&self, index: usize) -> Result<String> {
        let path = self.cluster.member(index).subnet_file()?;
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            text => text.with_context(|| format!("read {}", path.display())),
        }
    }

    /// Waits until it says this.
    pub(crate) fn wait_for_env(&self, index: usize, text: &str) -> Result<()> {
        let what = format!("subnet.env to be {text:?}");
        let member = self.cluster.member(index);
        member.wait_for(&what, SOON, |_| Ok(self.env(index)? == text))
    }

    /// Waits until a node has a route to `subnet`, or has none.
    pub(crate) fn wait_for_route(&self, index: usize, subnet: &str, wanted: bool) -> Result<()> {
        let what = format!("route to {subnet}: {wanted}");
        self.cluster.member(index).wait_for(&what, SOON, |view| {
            let routes = view.routes(Family::V4)?;
            Ok(routes.iter().any(|route| route.dst == subnet) == wanted)
        })
    }

    /// Waits until the nodes follow the store: a peer that comes is seen, and one that goes.
    pub(crate) fn seen_to_follow(&self) -> Result<()> {
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}"#;
        let annotations = [
            ("backend-data", data),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.50.77"),
        ];
        let extra = node::node("extra", &["10.244.250.0/24"], &annotations);
        self.server.create(&[extra])?;
        [0, 1]
            .iter()
            .try_for_each(|index| self.wait_for_route(*index, "10.244.250.0/24", true))?;
        self.server.kubectl(&["delete", "node", "extra"], b"")?;
        [0, 1]
            .iter()
            .try_for_each(|index| self.wait_for_route(*index, "10.244.250.0/24", false))
    }
}

pub(crate) fn node_name(index: usize) -> String {
    format!("k{}", index + 1)
}

pub(crate) fn condition(object: &Value) -> (&str, &str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "NetworkUnavailable");
    let text = |key| found.and_then(|found| found[key].as_str()).unwrap_or("-");
    (text("status"), text("reason"))
}
