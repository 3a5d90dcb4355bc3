//! ADD: reservation → plan → kernel → result. Undone as a whole if any part fails. Where another
//! plugin is asked for addresses, that happens between two halves of the plan.

use std::fs;
use std::time::Duration;

use kernel::{Mac, Netns};

use crate::attachment::Attachment;
use crate::builtin::{BuiltIn, Place};
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::{BridgeNetwork, Ipam};
use crate::config::flannel::Dialect;
use crate::delegate::{self, Delegate, Delegates};
use crate::error::{Code, Error};
use crate::invocation::Sandboxed;
use crate::ipam::{self, Again, IpamError, Owner, Reservation, Store, resolv_conf};
use crate::network::{Maker, Network};
use crate::node::{Made, Node, Progress};
use crate::plan::{self, Found};
use crate::result::{AddResult, Dns, Interface, IpConfig};
use crate::version::Version;

/// How long a node may be without its subnet before a pod on it fails.
const PATIENCE: Duration = Duration::from_secs(1);

/// Attaches the container, and returns the document for stdout.
pub(crate) fn add(
    header: &Header,
    request: &Sandboxed,
    dialect: Dialect,
    delegates: Delegates<'_>,
) -> Result<String, Error> {
    let version = Version::of_config(&header.version)?;
    let args = CniArgs::parse(&request.args)?;
    let network = Network::load(header, version, dialect, &args, PATIENCE)?;
    let bridge = match &network.maker {
        Maker::Here(bridge) => bridge,
        Maker::Delegate(kind) => {
            let main = delegates.plugin(kind, &network.rendered);
            return delegate::main::add(&main, &network, request, version);
        }
    };
    let mut node = Node::open()?;
    let mut adding = Adding {
        request,
        attachment: Attachment::new(&header.name, &request.container_id, &request.ifname)?,
        netns: node.sandbox(&request.netns, request.netns_override)?,
        dns: dns(bridge)?,
        bridge: (**bridge).clone(),
        built_in: BuiltIn::parse(&header.config, dialect)?,
        version,
    };

    // From here on there is something to undo. The scratch file is left to DEL, which a failed ADD
    // is followed by: it may be an earlier ADD's of the same container.
    network.keep(&request.container_id)?;
    let ipam = match &bridge.ipam {
        None => return adding.attach(&mut node, &[]),
        Some(Ipam::Other(kind)) => {
            let ipam = delegates.plugin(kind, &network.rendered);
            return adding.attach_and_ask(&mut node, &ipam);
        }
        Some(Ipam::HostLocal(ipam)) => ipam,
    };
    let owner = Owner {
        container_id: &request.container_id,
        ifname: &request.ifname,
    };
    let store = Store::new(&ipam.data_dir, &header.name);
    let Reservation { ips, fresh } = ipam::reserve(&store, ipam, &owner, Again::Same)?;
    adding.attach(&mut node, &ips).inspect_err(|_| {
        // What cannot be given back is still in the owner's name, and DEL finds it.
        let _ = store.give_back(fresh);
    })
}

/// An ADD that is sure to be allowed.
struct Adding<'a> {
    request: &'a Sandboxed,
    attachment: Attachment,
    netns: Netns,
    bridge: BridgeNetwork,
    built_in: BuiltIn,
    dns: Dns,
    version: Version,
}

impl Adding<'_> {
    /// Does to the kernel what the plan says; nothing of the pod's stays if it fails.
    fn attach(&self, node: &mut Node, ips: &[IpConfig]) -> Result<String, Error> {
        let (found, seed) = &self.look(node)?;
        let steps = plan::add(&self.bridge, &self.attachment, ips, found, seed)?;
        let mut progress = Progress::default();
        node.apply(&self.netns, &steps, &mut progress)?;
        self.complete(node, progress, ips)
            .inspect_err(|_| node.undo(&steps))
    }

    /// What the node has of the network, and the seed of what it has not.
    fn look(&self, node: &mut Node) -> Result<(Found, String), Error> {
        let Some(bridge) = self.bridge.device() else {
            return Ok((Found::default(), String::new()));
        };
        let found = Found {
            bridge: node.present(bridge, self.bridge.vlans.is_some())?,
            vlan_gateway: match &self.bridge.vlan_gateway {
                Some(gateway) => node.present(&gateway.name, true)?,
                None => None,
            },
        };
        let all = found.vlan_gateway.is_some() || self.bridge.vlan_gateway.is_none();
        let seed = seed(found.bridge.is_some() && all)?;
        Ok((found, seed))
    }

    /// The same where another plugin gives the addresses. It is asked when the interface is there,
    /// and told that they are not needed after the interface is gone.
    fn attach_and_ask(&mut self, node: &mut Node, ipam: &Delegate<'_>) -> Result<String, Error> {
        let (found, seed) = &self.look(node)?;
        let steps = plan::add_port(&self.bridge, &self.attachment, found, seed)?;
        let mut progress = Progress::default();
        node.apply(&self.netns, &steps, &mut progress)?;
        let answer = delegate::ipam::add(ipam, self.version).inspect_err(|_| node.undo(&steps))?;
        self.bridge.routes = answer.routes;
        if self.bridge.dns.is_none() {
            self.dns = answer.dns;
        }
        self.address(node, progress, &answer.ips).inspect_err(|_| {
            node.undo(&steps);
            let _ = ipam.del();
        })
    }

    /// The second half, with the addresses.
    fn address(
        &self,
        node: &mut Node,
        mut progress: Progress,
        ips: &[IpConfig],
    ) -> Result<String, Error> {
        let (found, seed) = &self.look(node)?;
        let steps = plan::add_addresses(&self.bridge, &self.attachment, ips, found, seed)?;
        node.apply(&self.netns, &steps, &mut progress)?;
        self.complete(node, progress, ips)
            .inspect_err(|_| node.undo(&steps))
    }

    /// Adds what is built in, and says what there is now.
    fn complete(
        &self,
        node: &mut Node,
        progress: Progress,
        ips: &[IpConfig],
    ) -> Result<String, Error> {
        let ips = &plan::shown(&self.bridge, ips);
        let made = node.made(progress, &self.bridge)?;
        let place = Place {
            attachment: &self.attachment,
            gateway: self.bridge.gateway_device().unwrap_or(&made.host_ifname),
            host_ifname: &made.host_ifname,
            ips,
        };
        let more = self.built_in.add(&mut node.socket, &place)?;
        let mut result = self.result(made, ips);
        result.interfaces.extend(more);
        result
            .render(self.version)
            .inspect_err(|_| self.built_in.undo(&mut node.socket, &self.attachment))
    }

    /// The interfaces are in upstream's order; whoever is chained behind counts on it.
    fn result(&self, made: Made, ips: &[IpConfig]) -> AddResult {
        let text = |mac: Option<Mac>| mac.map(|mac| mac.to_string()).unwrap_or_default();
        let interface = |name: &str, mac: String, sandbox: &str| Interface {
            name: name.to_owned(),
            mac,
            sandbox: sandbox.to_owned(),
        };
        let Sandboxed { ifname, netns, .. } = self.request;
        let bridge = self.bridge.device();
        let bridge = bridge.map(|name| interface(name, text(made.bridge_mac), ""));
        let mut interfaces: Vec<Interface> = bridge.into_iter().collect();
        interfaces.push(interface(&made.host_ifname, text(made.host_mac), ""));
        let pod = interfaces.len();
        interfaces.push(interface(ifname, made.pod_mac.to_string(), netns));
        if let (Some(mac), Some(name)) = (made.vlan_gateway_mac, self.bridge.gateway_device()) {
            interfaces.push(interface(name, text(Some(mac)), ""));
        }
        AddResult {
            routes: plan::routes(&self.bridge, ips),
            ips: (ips.iter())
                .map(|ip| IpConfig {
                    interface: Some(pod),
                    ..*ip
                })
                .collect(),
            dns: self.dns.clone(),
            interfaces,
        }
    }
}

/// What makes a new bridge's hardware address another one than those on other nodes; nothing where
/// all is there.
fn seed(all_there: bool) -> Result<String, Error> {
    match all_there {
        true => Ok(String::new()),
        false => kernel::sysctl::read("kernel/random/boot_id")
            .map_err(|error| Error::new(Code::State, format!("read the boot ID: {error}"))),
    }
}

fn dns(network: &BridgeNetwork) -> Result<Dns, Error> {
    let resolv_conf = match &network.ipam {
        Some(Ipam::HostLocal(ipam)) => ipam.resolv_conf.as_ref(),
        _ => None,
    };
    match (&network.dns, resolv_conf) {
        (Some(dns), _) => Ok(dns.clone()),
        (None, None) => Ok(Dns::default()),
        (None, Some(path)) => match fs::read_to_string(path) {
            Ok(text) => Ok(resolv_conf::parse(&text)),
            Err(error) => {
                let msg = format!("open {}: {error}", path.display());
                Err(Error::new(Code::InvalidConfig, msg))
            }
        },
    }
}

impl From<IpamError> for Error {
    fn from(error: IpamError) -> Error {
        let code = match error {
            IpamError::Config(_) | IpamError::Requested(_) => Code::InvalidConfig,
            IpamError::Exhausted { .. } => Code::TryAgain,
            IpamError::Held(_) => Code::Conflict,
            IpamError::Io { .. } => Code::State,
        };
        Error::new(code, error.to_string())
    }
}
