//! Nodes on an underlay, each running twilld on one shared store folder, with twill for its pods.
//!
//! Everything that the programs keep on disk is in the cluster's folder: `store/` is shared, and
//! each node has `run/subnet.env`, `state/` (twilld's), `cni/` (twill's) and `log/`. The machine's
//! own /run/flannel and /var/lib/cni are not touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::netconf::NetworkList;
use crate::netns;
use crate::node::Node;
use crate::observe::{Family, View};
use crate::pod::Pod;
use crate::process::Daemon;
use crate::runtime::Runtime;
use crate::tools;
use crate::underlay::{IFNAME, Place, Shape, Underlay};
use crate::wait::{self, Look};

/// How long a daemon may take to be ready, and a cluster to be in sync.
pub const READY_DEADLINE: Duration = Duration::from_secs(20);

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Spec {
    /// How many nodes.
    pub nodes: u8,
    /// How they are joined.
    pub shape: Shape,
    /// The net-conf, as it is written to the store.
    pub net_conf: Value,
    /// Further arguments for every twilld.
    pub twilld_args: Vec<String>,
}

impl Default for Spec {
    /// Two nodes on a bridge, flannel's usual network, vxlan.
    fn default() -> Self {
        Self {
            nodes: 2,
            shape: Shape::Bridge,
            net_conf: json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}),
            twilld_args: Vec::new(),
        }
    }
}

/// A node of a cluster with its daemon and its runtime.
pub struct Member {
    daemon: Option<Daemon>,
    env: BTreeMap<String, String>,
    twilld_args: Vec<String>,
    runtime: Arc<Runtime>,
    list: Arc<NetworkList>,
    place: Place,
    node: Node,
}

/// Nodes on an underlay; removed whole when dropped.
pub struct Cluster {
    members: Vec<Member>,
    underlay: Underlay,
    dir: PathBuf,
    kept: bool,
}

impl Cluster {
    /// A cluster with unique names whose daemons are ready and know each other.
    pub fn start(spec: &Spec) -> Result<Self> {
        let name = netns::unique_name("cluster");
        let mut cluster = Self::lay_out(spec, &name, &std::env::temp_dir().join(&name))?;
        cluster
            .members
            .iter_mut()
            .try_for_each(Member::start_daemon)?;
        cluster.wait_in_sync(READY_DEADLINE)?;
        Ok(cluster)
    }

    /// Namespaces `<name>-underlay`, `<name>-node1`, …, the folder `dir` and the store with its
    /// net-conf; no daemon runs yet.
    pub fn lay_out(spec: &Spec, name: &str, dir: &Path) -> Result<Self> {
        let underlay = Underlay::create(spec.shape, &format!("{name}-underlay"))?;
        let mut cluster = Self {
            members: Vec::new(),
            underlay,
            dir: dir.to_owned(),
            kept: false,
        };
        let store = cluster.store_dir();
        std::fs::create_dir_all(&store).with_context(|| format!("make {}", store.display()))?;
        std::fs::write(store.join("config"), spec.net_conf.to_string())?;
        for number in 1..=spec.nodes {
            let node_dir = dir.join(format!("node{number}"));
            let node = Node::create(&format!("{name}-node{number}"), &node_dir)?;
            let place = cluster.underlay.attach(&node)?;
            cluster
                .members
                .push(Member::new(node, place, &store, &spec.twilld_args)?);
        }
        Ok(cluster)
    }

    /// The nodes.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One node, counted from 0.
    pub fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    /// One node, counted from 0, to do something to its daemon.
    pub fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// What joins the nodes.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The store folder that all daemons share.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new pod on a node, counted from 0.
    pub fn pod(&self, index: usize) -> Result<Pod> {
        self.members[index].pod()
    }

    /// Waits until every running daemon is ready and every node has a route to the subnet of every
    /// other.
    pub fn wait_in_sync(&mut self, deadline: Duration) -> Result<()> {
        for member in self
            .members
            .iter_mut()
            .filter(|member| member.daemon.is_some())
        {
            member.wait_ready(deadline)?;
        }
        let subnets = self
            .members
            .iter()
            .map(|member| Ok(member.subnet()?.trunc().to_string()));
        let subnets = subnets.collect::<Result<Vec<_>>>()?;
        for (index, member) in self.members.iter_mut().enumerate() {
            let Member {
                daemon: Some(daemon),
                node,
                ..
            } = member
            else {
                continue;
            };
            let view = View::of(node.netns());
            daemon.wait_until("a route to every other node's subnet", deadline, || {
                let routes = view.routes(Family::V4)?;
                let others = subnets
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != index);
                let known = |subnet: &str| routes.iter().any(|route| route.dst == subnet);
                let missing: Vec<_> = others
                    .map(|(_, subnet)| subnet)
                    .filter(|subnet| !known(subnet))
                    .collect();
                Ok(match missing.is_empty() {
                    true => Look::Done(()),
                    false => Look::NotYet(format!("none to {missing:?}")),
                })
            })?;
        }
        Ok(())
    }

    /// Leaves everything standing, daemons included, when this is dropped.
    pub fn keep(mut self) {
        self.kept = true;
        self.underlay.keep();
        for member in &mut self.members {
            member.node.keep();
            member.daemon.take().into_iter().for_each(Daemon::detach);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept {
            self.members.clear();
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Member {
    fn new(node: Node, place: Place, store: &Path, more: &[String]) -> Result<Self> {
        let twill = tools::built("twill")?;
        let bin_dir = twill.parent().context("the folder of twill")?.to_owned();
        let conf = conflist(&node)?;
        let conf_path = node.make_dir("net.d")?.join("10-twill.conflist");
        std::fs::write(&conf_path, format!("{conf:#}\n"))?;
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut twilld_args = vec![
            format!("--store-dir={}", store.display()),
            format!("--subnet-file={}", path(subnet_file(&node)?)),
            format!("--state-dir={}", path(node.make_dir("state")?)),
            format!("--iface={IFNAME}"),
            "--ip-masq".to_owned(),
        ];
        twilld_args.extend_from_slice(more);
        Ok(Self {
            daemon: None,
            env: BTreeMap::new(),
            twilld_args,
            runtime: Arc::new(Runtime::new(node.netns(), &[bin_dir])?),
            list: Arc::new(NetworkList::load(&conf_path)?),
            place,
            node,
        })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its addresses on the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The runtime on this node.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// The network that pods on this node are attached to.
    pub fn list(&self) -> &Arc<NetworkList> {
        &self.list
    }

    /// A look at the node's network.
    pub fn view(&self) -> View<'_> {
        self.node.view()
    }

    /// Where twilld writes subnet.env.
    pub fn subnet_file(&self) -> Result<PathBuf> {
        subnet_file(&self.node)
    }

    /// The assignments in subnet.env.
    pub fn subnet_env(&self) -> Result<BTreeMap<String, String>> {
        let path = self.subnet_file()?;
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    /// FLANNEL_SUBNET: the gateway address with the subnet's prefix length.
    pub fn subnet(&self) -> Result<IpNet> {
        let env = self.subnet_env()?;
        let subnet = env
            .get("FLANNEL_SUBNET")
            .context("no FLANNEL_SUBNET in subnet.env")?;
        subnet
            .parse()
            .with_context(|| format!("FLANNEL_SUBNET={subnet}"))
    }

    /// A new pod on this node.
    pub fn pod(&self) -> Result<Pod> {
        Pod::new(&self.runtime, &self.list).with_context(|| self.failure_context())
    }

    /// A new pod on this node whose namespace is `name`.
    pub fn named_pod(&self, name: &str) -> Result<Pod> {
        Pod::create(name, &self.runtime, &self.list).with_context(|| self.failure_context())
    }

    fn failure_context(&self) -> String {
        let tail = self
            .daemon
            .as_ref()
            .map(|daemon| daemon.log_tail(20))
            .unwrap_or_default();
        format!(
            "on node {}; the end of its daemon's log:\n{tail}",
            self.node.name()
        )
    }

    /// Further arguments for twilld, from its next start on.
    pub fn add_twilld_args(&mut self, more: &[String]) {
        self.twilld_args.extend_from_slice(more);
    }

    /// Sets a variable for its daemon, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Starts twilld; does not wait for it.
    pub fn start_daemon(&mut self) -> Result<()> {
        let args = self.twilld_args.clone();
        self.spawn_daemon("twilld", &tools::built("twilld")?, &args)
    }

    /// Starts another daemon of the same kind (flanneld) where twilld would run, with the flags
    /// that both have; does not wait for it.
    pub fn start_instead(&mut self, name: &str, program: &Path, more: &[String]) -> Result<()> {
        let mut args = vec![
            format!("--subnet-file={}", self.subnet_file()?.display()),
            format!("--iface={IFNAME}"),
            "--ip-masq".to_owned(),
        ];
        args.extend_from_slice(more);
        self.spawn_daemon(name, program, &args)
    }

    fn spawn_daemon(&mut self, name: &str, program: &Path, args: &[String]) -> Result<()> {
        if self.daemon.is_some() {
            bail!("a daemon already runs on {}", self.node.name());
        }
        let log_path = self.node.make_dir("log")?.join(format!("{name}.log"));
        let mut command = self.node.command(program)?;
        command.args(args).envs(self.env.clone());
        self.daemon = Some(Daemon::spawn(name, &mut command, &log_path)?);
        Ok(())
    }

    /// Waits until subnet.env is there, which says that the node can carry traffic. (It outlives
    /// the daemon: after a restart this says nothing new.)
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let path = self.subnet_file()?;
        let daemon = self.daemon.as_mut().context("no daemon is running")?;
        daemon.wait_until("subnet.env", deadline, || {
            Ok(match path.exists() {
                true => Look::Done(()),
                false => Look::NotYet(format!("{} is not there", path.display())),
            })
        })
    }

    /// The running daemon.
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// How the daemon that was started ended by itself, when it has. Its log can still be read.
    pub fn daemon_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.daemon
            .as_mut()
            .context("no daemon was started")?
            .ended()
    }

    /// Ends the daemon with SIGTERM and says how long that took; an exit code other than 0 is an
    /// error.
    pub fn stop_daemon(&mut self, deadline: Duration) -> Result<Duration> {
        let daemon = self.daemon.take().context("no daemon is running")?;
        let (status, took) = daemon.terminate(deadline)?;
        match status.success() {
            true => Ok(took),
            false => bail!(
                "the daemon on {} ended with {status} on SIGTERM",
                self.node.name()
            ),
        }
    }

    /// Ends the daemon as a crash would.
    pub fn kill_daemon(&mut self) {
        self.daemon.take().into_iter().for_each(Daemon::kill);
    }

    /// Waits until `holds` of the node's network.
    pub fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        mut holds: impl FnMut(View<'_>) -> Result<bool>,
    ) -> Result<()> {
        wait::until_true(what, deadline, || holds(self.view()))
            .with_context(|| self.failure_context())
    }
}

fn subnet_file(node: &Node) -> Result<PathBuf> {
    Ok(node.make_dir("run")?.join("subnet.env"))
}

/// The conflist of a node, in flannel's shape, with every path below the node's folder.
fn conflist(node: &Node) -> Result<Value> {
    Ok(json!({
        "name": "cbr0",
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "plugins": [{
            "type": "twill",
            "subnetFile": subnet_file(node)?,
            "dataDir": node.make_dir("cni/scratch")?,
            "delegate": {"bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true},
            "ipam": {"dataDir": node.make_dir("cni/networks")?}
        }]
    }))
}
