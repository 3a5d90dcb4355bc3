//! ADD: reservation → plan → kernel → result. Undone as a whole if any part fails.

use std::fs;
use std::time::Duration;

use kernel::{Mac, Netns};

use crate::attachment::Attachment;
use crate::builtin::{BuiltIn, Place};
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::BridgeNetwork;
use crate::config::flannel::Dialect;
use crate::error::{Code, Error};
use crate::invocation::Sandboxed;
use crate::ipam::{self, Again, Boot, IpamError, Owner, Reservation, Store, resolv_conf};
use crate::network::Network;
use crate::node::{Made, Node};
use crate::plan::{self, Step};
use crate::result::{AddResult, Dns, Interface, IpConfig};
use crate::version::Version;

/// How long a node may be without its subnet before a pod on it fails.
const PATIENCE: Duration = Duration::from_secs(1);

/// Attaches the container, and returns the document for stdout.
pub(crate) fn add(header: &Header, request: &Sandboxed, dialect: Dialect) -> Result<String, Error> {
    let version = Version::of_config(&header.version)?;
    let args = CniArgs::parse(&request.args)?;
    let network = Network::load(header, version, dialect, &args, PATIENCE)?;
    let mut node = Node::open()?;
    let adding = Adding {
        request,
        attachment: Attachment::new(&header.name, &request.container_id, &request.ifname)?,
        netns: node.sandbox(&request.netns, request.netns_override)?,
        dns: dns(&network.bridge)?,
        bridge: &network.bridge,
        built_in: BuiltIn::parse(&header.config, dialect)?,
        version,
    };

    // From here on there is something to undo. The scratch file is left to DEL, which a failed ADD
    // is followed by: it may be an earlier ADD's of the same container.
    network.keep(&request.container_id)?;
    let boot = Boot::current()
        .map_err(|error| Error::new(Code::State, format!("read the boot ID: {error}")))?;
    let Some(ipam) = &network.bridge.ipam else {
        return adding.attach(&mut node, &[], &boot.id);
    };
    let owner = Owner {
        container_id: &request.container_id,
        ifname: &request.ifname,
    };
    let store = Store::new(&ipam.data_dir, &header.name);
    let Reservation { ips, fresh } = ipam::reserve(&store, ipam, &owner, &boot, Again::Same)?;
    adding.attach(&mut node, &ips, &boot.id).inspect_err(|_| {
        // What cannot be given back is still in the owner's name, and DEL finds it.
        let _ = store.give_back(fresh);
    })
}

/// An ADD that is sure to be allowed.
struct Adding<'a> {
    request: &'a Sandboxed,
    attachment: Attachment,
    netns: Netns,
    bridge: &'a BridgeNetwork,
    built_in: BuiltIn,
    dns: Dns,
    version: Version,
}

impl Adding<'_> {
    /// Does to the kernel what the plan says; nothing of the pod's stays if it fails.
    fn attach(&self, node: &mut Node, ips: &[IpConfig], seed: &str) -> Result<String, Error> {
        let present = node.bridge(&self.bridge.bridge)?;
        let steps = plan::add(self.bridge, &self.attachment, ips, present.as_ref(), seed)?;
        let made = node.apply(&self.netns, &steps, &self.bridge.bridge)?;
        self.complete(node, made, ips).inspect_err(|_| {
            for undo in steps.iter().rev().filter_map(Step::undo) {
                let _ = node.undo(&undo);
            }
        })
    }

    /// Adds what is built in, and says what there is now.
    fn complete(&self, node: &mut Node, made: Made, ips: &[IpConfig]) -> Result<String, Error> {
        let place = Place {
            attachment: &self.attachment,
            bridge: &self.bridge.bridge,
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
        AddResult {
            interfaces: vec![
                interface(&self.bridge.bridge, text(made.bridge_mac), ""),
                interface(&made.host_ifname, text(made.host_mac), ""),
                interface(ifname, made.pod_mac.to_string(), netns),
            ],
            routes: plan::routes(self.bridge, ips),
            ips: (ips.iter())
                .map(|ip| IpConfig {
                    interface: Some(2),
                    ..*ip
                })
                .collect(),
            dns: self.dns.clone(),
        }
    }
}

fn dns(network: &BridgeNetwork) -> Result<Dns, Error> {
    let resolv_conf = network
        .ipam
        .as_ref()
        .and_then(|ipam| ipam.resolv_conf.as_ref());
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
