//! Plugins as a list that a runtime goes through: which they are by a candidate's name, where they
//! are found, what each gets on stdin. twill's node has a twilld, as every node with twill has.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::candidate::{CHAIN, DEBIAN, FLANNEL, TWILL, UPSTREAM};
use super::measure::Start;
use super::scene::Scene;
use crate::netconf::NetworkList;
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{DEADLINE, Daemon};
use crate::runtime::Attachment;
use crate::suite::{self, Plugins, Site};
use crate::tools;
use crate::wait::Look;

/// The version of the configs: the newest that all of them know.
const VERSION: &str = "1.0.0";

/// A list of plugins on a node.
pub(super) struct Chain {
    /// Ends before its node does.
    _twilld: Option<Daemon>,
    site: Site,
    list: Arc<NetworkList>,
    /// What the runtime offers to those that declare it.
    port_mappings: Value,
}

impl Chain {
    /// The plugins of a candidate in a scene, which is set; an error says what is missing.
    pub(super) fn new(name: &str, scene: Scene) -> Result<Self> {
        let (mut plugins, behind) = found(name)?;
        if scene.ports() > 0 && name == TWILL {
            plugins.conf = twill_with_ports;
        }
        let site = Site::with(&plugins, VERSION, scene.subnet())?;
        let mut main = (plugins.conf)(&site);
        scene.set(&site, &mut main)?;
        let twilld = match name {
            TWILL => Some(twilld(&site, scene)?),
            _ => None,
        };
        let mut objects = vec![main];
        objects.extend(behind);
        let list = json!({"name": "cbr0", "cniVersion": VERSION, "plugins": objects});
        let ports = (0..scene.ports())
            .map(|port| json!({"hostPort": 20_000 + port, "containerPort": 80, "protocol": "tcp"}));
        Ok(Self {
            _twilld: twilld,
            site,
            list: Arc::new(NetworkList::parse(list)?),
            port_mappings: ports.collect(),
        })
    }

    pub(super) fn node(&self) -> &Node {
        self.site.node()
    }

    pub(super) fn len(&self) -> usize {
        self.list.plugins.len()
    }

    /// What the runtime starts for a verb as plugin number `step`.
    pub(super) fn call(
        &self,
        verb: &str,
        step: usize,
        pod: &Netns,
        previous: Option<&[u8]>,
    ) -> Result<Start> {
        let attachment = Attachment::eth0(pod.name(), &pod.path());
        let mut more: Vec<(&str, Value)> = Vec::new();
        if let Some(previous) = previous {
            let result = serde_json::from_slice(previous).context("read ADD's result")?;
            more.push(("prevResult", result));
        }
        let plugin = &self.list.plugins[step];
        let declares = |key: &str| {
            plugin
                .get("capabilities")
                .is_some_and(|all| all[key] == true)
        };
        if declares("portMappings") && self.port_mappings != json!([]) {
            let offered = json!({"portMappings": self.port_mappings});
            more.push(("runtimeConfig", offered));
        }
        let runtime = self.site.runtime();
        let call = runtime.compose(verb, &self.list, step, &attachment, &more)?;
        Ok(Start {
            program: call.program,
            args: Vec::new(),
            env: call.env,
            stdin: call.stdin,
        })
    }
}

/// A twilld that gives the node the site's subnet: DEL leaves the deletion of pairs to it.
fn twilld(site: &Site, scene: Scene) -> Result<Daemon> {
    let node = site.node();
    node.netns().ip_batch(
        "link add eth0 type veth peer name underlay0\nlink set eth0 up\nlink set underlay0 up\n\
         addr add 192.168.50.1/24 dev eth0\naddr add fd00:50::1/64 dev eth0 nodad\n",
    )?;
    let store = node.make_dir("store")?;
    std::fs::write(store.join("config"), scene.net_conf().to_string())?;
    let file = site.subnet_file();
    std::fs::remove_file(&file).context("remove the site's own subnet.env")?;
    let args = [
        format!("--store-dir={}", store.display()),
        format!("--state-dir={}", node.make_dir("state")?.display()),
        format!("--subnet-file={}", file.display()),
        "--iface=eth0".to_owned(),
        "--ip-masq".to_owned(),
    ];
    let mut daemon = node.spawn("twilld", &tools::built("twilld")?, &args)?;
    let socket = file.with_file_name("twilld.sock");
    daemon.wait_until("subnet.env", DEADLINE, || {
        Ok(match file.exists() && socket.exists() {
            true => Look::Done(()),
            false => Look::NotYet(format!("{} is not there", file.display())),
        })
    })?;
    Ok(daemon)
}

/// The main plugin of a candidate, and the configs of those behind it.
fn found(name: &str) -> Result<(Plugins, Vec<Value>)> {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let with_portmap = || -> Result<Plugins> {
        let path = tools::go_plugin_path(&["bridge", "host-local", "portmap"])?;
        Ok(Plugins {
            cni_path: std::env::split_paths(&path).collect(),
            ..Plugins::upstream()?
        })
    };
    Ok(match name {
        TWILL => (Plugins::twill()?, Vec::new()),
        DEBIAN => (Plugins::debian()?, Vec::new()),
        UPSTREAM => (Plugins::upstream()?, Vec::new()),
        CHAIN => (with_portmap()?, vec![portmap]),
        FLANNEL => {
            let mut plugins = with_portmap()?;
            plugins.cni_path.insert(0, flannel_dir()?);
            plugins.conf = flannel_conf;
            (plugins, vec![portmap])
        }
        other => bail!("nobody is called {other}"),
    })
}

/// The folder of the plugin at `FLANNEL_CNI`: no registry has it.
fn flannel_dir() -> Result<PathBuf> {
    let path = std::env::var_os("FLANNEL_CNI")
        .map(PathBuf::from)
        .context("set FLANNEL_CNI to the path of flannel's CNI plugin")?;
    ensure!(path.is_file(), "FLANNEL_CNI={} is no file", path.display());
    let is_named = path.file_name().is_some_and(|name| name == "flannel");
    ensure!(
        is_named,
        "FLANNEL_CNI={}: its name must be flannel",
        path.display()
    );
    Ok(path.parent().map(PathBuf::from).unwrap_or_default())
}

/// kube-flannel's own, with its paths below the node's folder.
fn flannel_conf(site: &Site) -> Value {
    json!({
        "type": "flannel",
        "subnetFile": site.subnet_file(),
        "dataDir": site.node().dir().join("scratch"),
        "delegate": {"bridge": suite::BRIDGE, "isDefaultGateway": true, "hairpinMode": true},
        "ipam": {"dataDir": site.ipam_dir()}
    })
}

fn twill_with_ports(site: &Site) -> Value {
    let mut conf = flannel_conf(site);
    conf["type"] = json!("twill");
    conf["capabilities"] = json!({"portMappings": true});
    conf
}
