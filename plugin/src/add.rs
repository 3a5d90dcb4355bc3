//! ADD: reservation → plan → kernel → result. Undone as a whole if any part fails.

use std::fs;

use kernel::{Mac, Netns};

use crate::attachment::Attachment;
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

/// Attaches the container, and returns the document for stdout.
pub(crate) fn add(header: &Header, request: &Sandboxed, dialect: Dialect) -> Result<String, Error> {
    let version = Version::of_config(&header.version)?;
    let args = CniArgs::parse(&request.args)?;
    let network = Network::load(header, version, dialect, &args)?;
    let mut node = Node::open()?;
    let adding = Adding {
        request,
        attachment: Attachment::new(&header.name, &request.container_id, &request.ifname)?,
        netns: node.sandbox(&request.netns, request.netns_override)?,
        dns: dns(&network.bridge)?,
        bridge: &network.bridge,
        version,
    };

    // From here on there is something to undo. The scratch file is left to DEL, which a failed ADD
    // is followed by: it may be an earlier ADD's of the same container.
    network
        .scratch(&request.container_id)
        .write(&network.rendered)?;
    let store = Store::new(&network.bridge.ipam.data_dir, &header.name);
    let (Reservation { ips, fresh }, boot) = reserve(&store, &network.bridge.ipam, request)?;
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
    dns: Dns,
    version: Version,
}

impl Adding<'_> {
    /// Does to the kernel what the plan says; nothing of the pod's stays if it fails.
    fn attach(&self, node: &mut Node, ips: &[IpConfig], seed: &str) -> Result<String, Error> {
        let present = node.bridge(&self.bridge.bridge)?;
        let steps = plan::add(self.bridge, &self.attachment, ips, present.as_ref(), seed)?;
        let made = node.apply(&self.netns, &steps, &self.bridge.bridge)?;
        self.result(made, ips)
            .render(self.version)
            .inspect_err(|_| {
                for undo in steps.iter().rev().filter_map(Step::undo) {
                    let _ = node.undo(&undo);
                }
            })
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

fn reserve(
    store: &Store,
    config: &ipam::Config,
    request: &Sandboxed,
) -> Result<(Reservation, Boot), Error> {
    let owner = Owner {
        container_id: &request.container_id,
        ifname: &request.ifname,
    };
    let boot = Boot::current()
        .map_err(|error| Error::new(Code::State, format!("read the boot ID: {error}")))?;
    let reservation = ipam::reserve(store, config, &owner, &boot, Again::Same)?;
    Ok((reservation, boot))
}

fn dns(network: &BridgeNetwork) -> Result<Dns, Error> {
    match (&network.dns, &network.ipam.resolv_conf) {
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
