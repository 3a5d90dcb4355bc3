//! A whole Kubernetes cluster on this machine: everything real, nodes in network namespaces.
//!
//! ```text
//!  underlay's namespace        etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!    │ eth0       │ eth0
//!  node1        node2          containerd, kubelet, twilld: by the manifest of conf/, or by hand
//!    └ pods       └ pods
//! ```
//!
//! There is no kube-proxy: the address of the service `kubernetes` is one of the API server's own
//! namespace, which is every node's default gateway. What runs in it is [`super::workload`]'s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::worker::Worker;
use super::{ApiServer, Programs, Setup, setup};
use crate::containerd;
use crate::cri::image;
use crate::netns;
use crate::node::Node;
use crate::process::Daemon;
use crate::tools::{self, Missing};
use crate::underlay::{IFNAME, Shape, Underlay};
use crate::wait::{self, Look};

/// Until a step of Kubernetes' is done: a node to be ready, a rollout to end. On a machine that
/// does other things too they take a minute and more.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The manifest that operators apply.
const MANIFEST: &str = include_str!("../../../conf/kube-twill.yaml");
/// kube-flannel's own conflist.
const FLANNEL_CONFLIST: &str = include_str!("../../../conf/10-flannel.conflist");
/// The pods' network, as it stands in the manifest's net-conf.json.
const NETWORK: &str = r#""Network": "10.244.0.0/16""#;
/// What an operator of a dual-stack cluster writes there.
const DUAL_NETWORK: &str = r#""Network": "10.244.0.0/16",
      "EnableIPv6": true,
      "IPv6Network": "fd00:10:244::/56""#;
/// As the controller manager is told of them.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];

/// How nodes get their network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// `kubectl apply -f conf/kube-twill.yaml`, with the image that it names.
    Manifest,
    /// In flannel's place: twilld as a service of the node, the plugin under flannel's name with
    /// flannel's stock conflist, portmap behind it.
    FlannelName,
}

/// What kind of cluster.
#[derive(Debug)]
pub struct Spec {
    /// How many nodes, at most nine.
    pub nodes: u8,
    /// Their container runtime.
    pub containerd: containerd::Programs,
    /// Nodes and pods have IPv6 addresses, too.
    pub dual_stack: bool,
}

/// Everything that a whole cluster needs on this machine.
pub fn available() -> Result<Programs, Missing> {
    containerd::available()?;
    tools::debian_plugin("loopback")?;
    Programs::find()
}

/// A cluster; removed whole when dropped.
pub struct Cluster {
    workers: Vec<Worker>,
    controllers: Vec<Daemon>,
    server: ApiServer,
    underlay: Underlay,
    dir: PathBuf,
    network: Option<Network>,
    dual_stack: bool,
    kept: bool,
}

impl Cluster {
    /// A cluster with unique names whose nodes have no network yet.
    pub fn start(spec: &Spec) -> Result<Self> {
        let name = netns::unique_name("k8s");
        Self::lay_out(spec, &name, &std::env::temp_dir().join(&name))
    }

    /// The same with namespaces `<name>-underlay`, `<name>-node1`, … and everything in `dir`.
    pub fn lay_out(spec: &Spec, name: &str, dir: &Path) -> Result<Self> {
        let programs = available()?;
        let mut underlay = Underlay::create(Shape::Bridge, &format!("{name}-underlay"))?;
        let mut nodes = Vec::new();
        for number in 1..=spec.nodes {
            let node = Node::create(
                &format!("{name}-node{number}"),
                &dir.join(format!("node{number}")),
            )?;
            let place = underlay.attach(&node)?;
            nodes.push((node, place));
        }
        let gateway = nodes.first().context("a cluster has a node")?.1.v4_gateway;
        let server = Setup::default()
            .inside(underlay.middle(), gateway)
            .dir(dir.join("server"))
            .whole()
            .start(&programs)?;
        let mut cluster = Self {
            workers: Vec::new(),
            controllers: Vec::new(),
            server,
            underlay,
            dir: dir.to_owned(),
            network: None,
            dual_stack: spec.dual_stack,
            kept: false,
        };
        cluster.start_controllers()?;
        for (number, place) in (1..).zip(nodes) {
            let name = format!("node{number}");
            let mut worker = Worker::start(&name, &programs, &spec.containerd, place)?;
            worker.start_kubelet(&cluster.server, spec.dual_stack)?;
            cluster.workers.push(worker);
        }
        for worker in &cluster.workers {
            cluster.wait_for_node(worker)?;
        }
        Ok(cluster)
    }

    fn start_controllers(&mut self) -> Result<()> {
        let families = if self.dual_stack { 2 } else { 1 };
        let key = &self.server.credentials.server.key_path;
        let manager = [
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={}", CLUSTER_CIDRS[..families].join(",")),
            format!("--service-cluster-ip-range={}", setup::SERVICES),
            format!("--service-account-private-key-file={}", key.display()),
            format!("--root-ca-file={}", self.server.credentials.ca.display()),
        ];
        for (name, args) in [
            ("kube-controller-manager", &manager[..]),
            ("kube-scheduler", &[]),
        ] {
            let mut command = self.server.command(name)?;
            command
                .arg("--kubeconfig")
                .arg(self.server.admin_kubeconfig())
                .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
                .args(args);
            let log_path = self.dir.join("server").join(format!("{name}.log"));
            self.controllers
                .push(Daemon::spawn(name, &mut command, &log_path)?);
        }
        Ok(())
    }

    /// Waits until the kubelet has made its Node and the controller manager has given it a subnet.
    fn wait_for_node(&self, worker: &Worker) -> Result<()> {
        self.wait(&format!("a subnet for {}", worker.name()), || {
            Ok(match self.pod_cidrs(worker.name()) {
                Ok(_) => Look::Done(()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
    }

    /// Gives every node its network.
    pub fn install_network(&mut self, network: Network) -> Result<()> {
        self.network = Some(network);
        match network {
            Network::Manifest => {
                image::write_twill(&self.twill_archive())?;
                (0..self.workers.len()).try_for_each(|index| self.install_on(index))?;
                self.apply(&self.manifest())
            }
            Network::FlannelName => {
                self.apply(&without_daemon_set(&self.manifest()))?;
                (0..self.workers.len()).try_for_each(|index| self.install_on(index))
            }
        }
    }

    /// The manifest, fitted to this cluster as its head says.
    fn manifest(&self) -> String {
        match self.dual_stack {
            true => MANIFEST.replacen(NETWORK, DUAL_NETWORK, 1),
            false => MANIFEST.to_owned(),
        }
    }

    fn net_conf(&self) -> String {
        let network = if self.dual_stack {
            DUAL_NETWORK
        } else {
            NETWORK
        };
        format!(r#"{{{network}, "Backend": {{"Type": "vxlan"}}}}"#)
    }

    fn twill_archive(&self) -> PathBuf {
        self.dir.join("twill.tar")
    }

    /// What must be on a node itself.
    fn install_on(&mut self, index: usize) -> Result<()> {
        let archive = self.twill_archive();
        let worker = &mut self.workers[index];
        match self.network {
            None => Ok(()),
            Some(Network::Manifest) => worker.containerd_mut().import(&archive, image::TWILL),
            Some(Network::FlannelName) => {
                let bin_dir = worker.node().make_dir("bin")?;
                std::fs::copy(tools::built("twill")?, bin_dir.join("flannel"))?;
                std::fs::copy(tools::go_tool("portmap")?, bin_dir.join("portmap"))?;
                let conf_dir = worker.node().make_dir("net.d")?;
                self.start_twilld(index)?;
                std::fs::write(conf_dir.join("10-flannel.conflist"), FLANNEL_CONFLIST)?;
                Ok(())
            }
        }
    }

    /// Starts twilld as a service of the node, with what the manifest's service account may do.
    fn start_twilld(&mut self, index: usize) -> Result<()> {
        let (server, text) = (&self.server, self.net_conf());
        let kubeconfig = server.service_account_kubeconfig("kube-twill", "twill")?;
        let worker = &mut self.workers[index];
        let net_conf = worker.node().dir().join("net-conf.json");
        std::fs::write(&net_conf, text)?;
        let mut command = worker.containerd().command("env");
        command
            .arg(format!("NODE_NAME={}", worker.name()))
            .arg(tools::built("twilld")?)
            .args(["--kube-subnet-mgr", "--ip-masq"])
            .arg(format!("--iface={IFNAME}"))
            .arg(format!("--kubeconfig-file={}", kubeconfig.display()))
            .arg(format!("--net-config-path={}", net_conf.display()));
        let log_path = worker.node().make_dir("log")?.join("twilld.log");
        worker.twilld = Some(Daemon::spawn("twilld", &mut command, &log_path)?);
        Ok(())
    }

    /// The nodes.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// One node, counted from 0.
    pub fn worker(&self, index: usize) -> &Worker {
        &self.workers[index]
    }

    /// The API server.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `kubectl ARGS`; what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.server.kubectl(args, b"");
        Ok(output.with_context(|| self.log_tails())?.stdout_text())
    }

    /// `kubectl apply -f -`
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let args = ["apply", "-f", "-"];
        self.server.kubectl(&args, manifest.as_bytes()).map(drop)
    }

    /// Waits until every node is ready and says that its network is there.
    pub fn wait_ready(&self) -> Result<()> {
        for worker in &self.workers {
            self.wait(&format!("{} to be ready", worker.name()), || {
                let ready = self.condition(worker.name(), "Ready")?;
                let network = self.condition(worker.name(), "NetworkUnavailable")?;
                Ok(match (&*ready, &*network) {
                    ("True", "False") => Look::Done(()),
                    _ => Look::NotYet(format!("Ready {ready}, NetworkUnavailable {network}")),
                })
            })?;
        }
        Ok(())
    }

    /// The status of a Node's condition: `True`, `False`, `Unknown`, or nothing.
    pub fn condition(&self, node: &str, kind: &str) -> Result<String> {
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"{kind}\")].status}}");
        self.kubectl(&["get", "node", node, "-o", &path])
    }

    /// The subnets that the controller manager has given to a node, IPv4 first.
    pub fn pod_cidrs(&self, node: &str) -> Result<Vec<IpNet>> {
        let args = ["get", "node", node, "-o", "jsonpath={.spec.podCIDRs[*]}"];
        let cidrs = self.server.kubectl(&args, b"")?.stdout_text();
        let parsed: Result<Vec<IpNet>, _> = cidrs.split_whitespace().map(str::parse).collect();
        let wanted = if self.dual_stack { 2 } else { 1 };
        let given = parsed.ok().filter(|given| given.len() == wanted);
        given.with_context(|| format!("{wanted} podCIDRs of {node}: {cidrs:?}"))
    }

    /// Drains a node and deletes it with the pods that cannot be drained; its machine goes on
    /// without a kubelet.
    pub fn remove_node(&mut self, index: usize) -> Result<()> {
        let name = self.workers[index].name().to_owned();
        let drain = ["--ignore-daemonsets", "--force", "--delete-emptydir-data"];
        self.kubectl(&[&["drain", &name][..], &drain, &["--timeout=200s"]].concat())?;
        self.workers[index].kill_kubelet();
        self.kubectl(&["delete", "node", &name])?;
        // What the controller manager does after a minute.
        let on_it = format!("--field-selector=spec.nodeName={name}");
        let all = ["delete", "pods", "--all-namespaces", "--force", &on_it];
        self.kubectl(&all).map(drop)
    }

    /// Brings a node back that was deleted, after a reboot: its kubelet makes a new Node.
    pub fn bring_back(&mut self, index: usize) -> Result<()> {
        self.workers[index].reboot()?;
        self.install_on(index)?;
        self.workers[index].start_kubelet(&self.server, self.dual_stack)?;
        self.wait_for_node(&self.workers[index])
    }

    /// Waits until `look` is done; a failure comes with the ends of all logs.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
        wait::until(what, DEADLINE, look).with_context(|| self.log_tails())
    }

    fn log_tails(&self) -> String {
        let controllers = self.controllers.iter().map(|daemon| daemon.log_tail(5));
        let workers = self.workers.iter().map(Worker::log_tails);
        let all: Vec<String> = controllers.chain(workers).collect();
        format!(
            "the ends of the logs in {}:\n{}",
            self.dir.display(),
            all.join("\n")
        )
    }

    /// Leaves everything standing when this is dropped.
    pub fn keep(mut self) {
        self.kept = true;
        self.underlay.keep();
        self.server.keep();
        self.workers.iter_mut().for_each(Worker::keep);
        self.controllers.drain(..).for_each(Daemon::detach);
    }
}

/// The manifest's documents but for the DaemonSet.
fn without_daemon_set(manifest: &str) -> String {
    let documents = manifest.split("\n---\n");
    let others = documents.filter(|document| !document.contains("kind: DaemonSet"));
    others.collect::<Vec<_>>().join("\n---\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        self.workers.clear();
        self.controllers.clear();
        self.server.kill_all();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
