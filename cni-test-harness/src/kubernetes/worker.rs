//! A node of a whole cluster: a containerd and a kubelet in the node's network namespace.
//!
//! The kubelet runs in the pid and mount namespaces of the node's containerd, so that both see the
//! same mounts, and what either writes to the machine's usual folders lands in the node's own. How
//! the node gets its network is [`super::cluster`]'s.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{ApiServer, Programs};
use crate::containerd::{self, Containerd};
use crate::cri::Setup;
use crate::node::Node;
use crate::process::Daemon;
use crate::tools;
use crate::underlay::{IFNAME, Place};

/// Folders of the machine that each node has of its own: (name in the node's folder, over what).
const FOLDERS: [(&str, &str); 5] = [
    ("run", "/run/flannel"),
    ("state", "/var/lib/twill"),
    ("kubelet", "/var/lib/kubelet"),
    ("var-log", "/var/log"),
    ("kubernetes", "/etc/kubernetes"),
];

/// What a kubelet sets on the machine it runs on. Here it writes into files that lie over these:
/// the machine belongs to others.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A node; removed with everything on it when dropped. The runtime goes before the node.
pub struct Worker {
    name: String,
    kubernetes: Programs,
    runtime: containerd::Programs,
    pub(super) twilld: Option<Daemon>,
    kubelet: Option<Daemon>,
    /// None while the machine is down.
    containerd: Option<Containerd>,
    place: Place,
    node: Node,
}

impl Worker {
    /// Starts a containerd on `node`, which the cluster will know as `name`.
    pub(super) fn start(
        name: &str,
        kubernetes: &Programs,
        containerd: &containerd::Programs,
        (node, place): (Node, Place),
    ) -> Result<Self> {
        let mut worker = Self {
            name: name.to_owned(),
            kubernetes: kubernetes.clone(),
            runtime: containerd.clone(),
            twilld: None,
            kubelet: None,
            containerd: None,
            place,
            node,
        };
        worker.start_runtime()?;
        Ok(worker)
    }

    fn start_runtime(&mut self) -> Result<()> {
        let node = &self.node;
        let bind = |(own, over): (&str, &str)| Ok((node.make_dir(own)?, PathBuf::from(over)));
        let binds = FOLDERS.into_iter().map(bind).collect::<Result<_>>()?;
        let cni_bin_dir = node.make_dir("bin")?;
        // Both generations of containerd set a pod's loopback up by this plugin.
        let loopback = tools::debian_plugin("loopback")?;
        std::fs::copy(loopback, cni_bin_dir.join("loopback"))?;
        let setup = Setup {
            netns: node.name(),
            dir: node.dir(),
            cni_bin_dir: &cni_bin_dir,
            cni_conf_dir: &node.make_dir("net.d")?,
            binds,
        };
        self.containerd = Some(Containerd::start_as(&self.runtime, &setup)?);
        Ok(())
    }

    /// What is left after the machine has been switched off and on: its disk, and nothing of what
    /// ran or was set up. The runtime runs again, with an empty store; the kubelet does not yet.
    pub(super) fn reboot(&mut self) -> Result<()> {
        self.kill_kubelet();
        self.twilld.take().into_iter().for_each(Daemon::kill);
        self.containerd = None;
        let run_dir = self.node.make_dir("run")?;
        std::fs::remove_dir_all(&run_dir)
            .with_context(|| format!("empty {}", run_dir.display()))?;
        for link in self.node.view().link_names()? {
            if link != "lo" && link != IFNAME {
                self.node.exec("ip", &["link", "del", &link])?;
            }
        }
        self.node.exec("nft", &["flush", "ruleset"])?;
        self.start_runtime()
    }

    /// Starts the kubelet, which makes the Node object if there is none.
    pub fn start_kubelet(&mut self, server: &ApiServer, dual_stack: bool) -> Result<()> {
        let mut addresses = self.place.v4.addr().to_string();
        if dual_stack {
            addresses += &format!(",{}", self.place.v6.addr());
        }
        let config_path = self.node.dir().join("kubelet.json");
        std::fs::write(&config_path, self.kubelet_config().to_string())?;
        let mut command = self.containerd().command("sh");
        command.args(["-euc", &tunables_script(self.node.dir())?, "kubelet"]);
        command.arg(self.kubernetes.program("kubelet"));
        command
            .arg("--config")
            .arg(config_path)
            .arg("--kubeconfig")
            .arg(server.kubelet_kubeconfig(&self.name)?)
            .args(["--hostname-override", &self.name])
            .args(["--node-ip", &addresses]);
        let log_path = self.node.make_dir("log")?.join("kubelet.log");
        let kubelet = Daemon::spawn("kubelet", &mut command, &log_path)
            .with_context(|| format!("on {}", self.name))?;
        self.kubelet = Some(kubelet);
        Ok(())
    }

    /// Ends the kubelet; pods go on.
    pub fn kill_kubelet(&mut self) {
        self.kubelet.take().into_iter().for_each(Daemon::kill);
    }

    fn kubelet_config(&self) -> Value {
        let socket = self.containerd().socket_path();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
            // Only the API server reaches it here.
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.containerd().cgroup(),
            // The machine's processors and memory are shared by all nodes and by tests.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            // Lower than 0 needs a capability that a test machine may lack.
            "oomScoreAdj": 0,
            // However full the machine is.
            "evictionHard": {
                "imagefs.available": "0%", "imagefs.inodesFree": "0%", "memory.available": "0%",
                "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
            "resolvConf": "",
            "volumePluginDir": self.node.dir().join("volume-plugins"),
        })
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node below: its network, its folder.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its addresses on the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its container runtime.
    pub fn containerd(&self) -> &Containerd {
        self.containerd.as_ref().expect("it runs but in a reboot")
    }

    /// Its container runtime, to give it an image.
    pub(super) fn containerd_mut(&mut self) -> &mut Containerd {
        self.containerd.as_mut().expect("it runs but in a reboot")
    }

    /// What is known about a failure on it.
    pub fn log_tails(&self) -> String {
        let of = |daemon: &Option<Daemon>| daemon.as_ref().map(|daemon| daemon.log_tail(15));
        format!(
            "{}\n-- kubelet:\n{}\n-- twilld:\n{}\n-- containerd:\n{}",
            self.name,
            of(&self.kubelet).unwrap_or_default(),
            of(&self.twilld).unwrap_or_default(),
            self.containerd
                .as_ref()
                .map(|containerd| containerd.log_tail())
                .unwrap_or_default()
        )
    }

    pub(super) fn keep(&mut self) {
        self.node.keep();
        self.containerd_mut().keep();
        let daemons = [self.kubelet.take(), self.twilld.take()];
        daemons.into_iter().flatten().for_each(Daemon::detach);
    }
}

/// Lays files over [`TUNABLES`], and becomes the program in the arguments.
fn tunables_script(dir: &Path) -> Result<String> {
    let dir = dir.join("tunables");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut script = String::new();
    for (key, value) in TUNABLES {
        let file = dir.join(key.replace('/', "."));
        std::fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
        // Once more after the kubelet was killed: the mounts are the runtime's and stay.
        script += &format!(
            "grep -q ' /proc/sys/{key} ' /proc/self/mountinfo || mount --bind '{}' /proc/sys/{key}\n",
            file.display()
        );
    }
    Ok(script + "exec \"$@\"\n")
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Before the runtime: it would see its containers go and start others.
        self.kill_kubelet();
        self.twilld.take().into_iter().for_each(Daemon::kill);
    }
}
