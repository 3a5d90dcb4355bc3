//! DEL: finds what there is of an attachment by its names alone, and takes it away.
//!
//! Nothing that may be missing is needed: no sandbox, no `subnet.env`, no valid delegate or
//! ranges, no earlier result. What fails is reported after everything was tried.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use kernel::netns::NetnsError;
use kernel::{Netns, Socket, address, link};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::builtin;
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::flannel::{Dialect, ipam_data_dir, scratch_dir, subnet_file};
use crate::delegate::{self, Delegates};
use crate::error::{Code, Error};
use crate::hostports;
use crate::invocation::Container;
use crate::ipam::{Owner, Store};
use crate::legacy_masquerade;
use crate::masquerade::mark;
use crate::network::Network;
use crate::node::{Node, delete_masquerade, delete_spoof_check, host_netns};
use crate::scratch::Scratch;
use crate::sweeper::Sweeper;
use crate::version::Version;

/// Detaches the container.
pub(crate) fn del(
    header: &Header,
    request: &Container,
    dialect: Dialect,
    delegates: Delegates<'_>,
    stderr: &mut dyn Write,
) -> Result<(), Error> {
    let version = Version::of_config(&header.version)?;
    // In front of a bridge may be flannel's plugin, whose file that is.
    let scratch = (dialect != Dialect::Bridge)
        .then(|| Scratch::new(&scratch_dir(&header.config), &request.container_id));
    let rendered = scratch.as_ref().and_then(|s| s.read(&header.name));
    let kept = scratch.as_ref().is_none_or(Scratch::exists);
    // What other plugins are given: the config of ADD, or where another network of the container's
    // has its file in that place, what would be rendered today.
    let lost = kept && dialect != Dialect::Bridge && rendered.is_none();
    let again = lost.then(|| rendered_again(header, version, dialect));
    let config = rendered.as_ref().or(again.as_ref());
    let config = config.unwrap_or(&header.config);
    if let Some(kind) = delegate::main::kind_of(config)
        && dialect != Dialect::Bridge
        && kept
    {
        let main = delegates.plugin(kind, config);
        delegate::main::del(&main, request)?;
        return scratch.map_or(Ok(()), |scratch| scratch.remove(&header.name));
    }
    let stores = stores(header, rendered.as_ref());
    let owner = Owner {
        container_id: &request.container_id,
        ifname: &request.ifname,
    };
    let attachment = Attachment {
        network: header.name.clone(),
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    };
    // Runtimes repeat DEL. ADD, ours and that of the Go chain, keeps a scratch file from its
    // beginning to the end of DEL; what stands in nftables or iptables is not even looked at where
    // there is none, no address and no pair. Who opens a socket of netfilter waits at its end for
    // what other pods' DEL just removed.
    let unknown = |store: &Store| store.surely_holds_nothing(&owner);
    if !kept && stores.iter().all(unknown) {
        let mut node = Node::open()?;
        if !node.has_pair(&attachment)? {
            sandbox(&node, request, stderr)?;
            return builtin::lift_limits(&mut node.socket, &attachment);
        }
    }
    let mut errors = vec![];
    // No port may lead to an address that is not this pod's any more.
    let built_in = dialect != Dialect::Bridge;
    let ports = built_in.then(|| builtin::close_ports(&attachment));
    // The link first: an address must not be given to another pod while it is still in use.
    let sweeper = built_in.then(|| Sweeper::beside(&subnet_file(&header.config)));
    let leave = sweeper.flatten().and_then(|sweeper| {
        let held = stores.iter().map(|store| store.surely_held(&owner));
        let addresses = held.collect::<Option<Vec<_>>>()?.concat();
        (!addresses.is_empty()).then_some((sweeper, addresses))
    });
    let link = delete_link(&attachment, request, &owner, &stores, leave, stderr);
    let is_ours = matches!(link, Ok(true));
    errors.extend(link.err());
    errors.extend(ports.and_then(Result::err));
    if built_in {
        let lifted = Socket::open()
            .map_err(|error| Error::new(Code::Kernel, error.to_string()))
            .and_then(|mut socket| builtin::lift_limits(&mut socket, &attachment));
        errors.extend(lifted.err());
    }
    errors.extend(delete_spoof_check(&attachment).err());
    if built_in && !is_ours {
        // The Go chain may have made the pod, with a portmap that is not in the list any more.
        errors.extend(hostports::delete_legacy(&attachment).err());
    }
    if let Some(kind) = delegate::ipam::kind_of(config).filter(|_| kept) {
        let ipam = delegates.plugin(&kind, config);
        errors.extend(ipam.del().err());
    }
    let masquerades = rendered.and_then(|config| go_json::field(&config, "ipMasq")?.as_bool());
    if masquerades != Some(false) {
        errors.extend(delete_masquerade(&mark(&attachment), |_| false).err());
        errors.extend(legacy_masquerade::delete(&attachment).err());
    }
    for store in &stores {
        errors.extend(store.release(&owner).map_err(Error::from).err());
    }
    if let Some(scratch) = scratch.filter(|_| errors.is_empty()) {
        errors.extend(scratch.remove(&header.name).err());
    }
    Error::join(errors)
}

/// What would be rendered today. Where `subnet.env` is missing too, other plugins are given what the
/// config itself says: few need more to delete.
fn rendered_again(header: &Header, version: Version, dialect: Dialect) -> Value {
    let args = CniArgs::default();
    let network = Network::load(header, version, dialect, &args, Duration::ZERO);
    network.map_or_else(|_| unrendered(header), |network| network.rendered)
}

fn unrendered(header: &Header) -> Value {
    let mut config = header.config.clone();
    if let Some(object) = config.as_object_mut() {
        let delegate = go_json::field(&header.config, "delegate").and_then(Value::as_object);
        let kind = delegate.and_then(|delegate| delegate.get("type"));
        let kind = kind.cloned().unwrap_or_else(|| "bridge".into());
        object.retain(|key, _| !key.eq_ignore_ascii_case("type"));
        object.insert("type".into(), kind);
    }
    config
}

/// Where the attachment may hold addresses: by today's config, and by the one of its ADD.
fn stores(header: &Header, rendered: Option<&Value>) -> Vec<Store> {
    let configs = std::iter::once(&header.config).chain(rendered);
    let dirs: BTreeSet<_> = configs.map(ipam_data_dir).collect();
    dirs.iter()
        .map(|dir| Store::new(dir, &header.name))
        .collect()
}

/// Whether the pair was one of ours.
fn delete_link(
    attachment: &Attachment,
    request: &Container,
    owner: &Owner<'_>,
    stores: &[Store],
    leave: Option<(Sweeper, Vec<IpAddr>)>,
    stderr: &mut dyn Write,
) -> Result<bool, Error> {
    let mut node = Node::open()?;
    let deleted = match leave {
        Some((sweeper, addresses)) => node.dismiss_pair(attachment, &addresses, &sweeper)?,
        None => node.delete_pair(attachment)?,
    };
    match sandbox(&node, request, stderr)?.filter(|_| !deleted) {
        Some(netns) => delete_other_made(&mut node, &netns, owner, stores).map(|()| false),
        None => Ok(deleted),
    }
}

/// The sandbox, if there is one still. It must not be the node itself.
fn sandbox(
    node: &Node,
    request: &Container,
    stderr: &mut dyn Write,
) -> Result<Option<Netns>, Error> {
    let Some(path) = &request.netns else {
        return Ok(None);
    };
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(error @ (NetnsError::Missing { .. } | NetnsError::NotANamespace { .. })) => {
            let _ = writeln!(stderr, "twill: {error}: nothing to delete in it");
            return Ok(None);
        }
        Err(error) => return Err(Error::new(Code::Kernel, error.to_string())),
    };
    let refused = |error: NetnsError| Error::new(Code::Kernel, error.to_string());
    match !request.netns_override && netns.is(&node.home).map_err(refused)? {
        true => Err(host_netns()),
        false => Ok(Some(netns)),
    }
}

/// Deletes an interface that the Go plugins made: its node's end has a random name and no alias,
/// so it is found from within the sandbox. It stays if it is another attachment's: runtimes call
/// DEL for an ADD that was refused because the interface was there.
fn delete_other_made(
    node: &mut Node,
    netns: &Netns,
    owner: &Owner<'_>,
    stores: &[Store],
) -> Result<(), Error> {
    let refused = |error: &dyn std::fmt::Display| Error::new(Code::Kernel, error.to_string());
    let mut inside = netns
        .enter(&node.home, Socket::open)
        .map_err(|error| refused(&error))?
        .map_err(|error| refused(&error))?;
    let found = link::by_name(&mut inside, owner.ifname).map_err(|error| refused(&error))?;
    let Some(pod) = found.filter(|link| link.kind == "veth") else {
        return Ok(());
    };
    let host = match pod.lower {
        Some(ifindex) => {
            link::by_index(&mut node.socket, ifindex).map_err(|error| refused(&error))?
        }
        None => None,
    };
    let alias = host.and_then(|host| host.alias).unwrap_or_default();
    if Attachment::from_alias(&alias).is_some() {
        return Ok(());
    }
    let addresses =
        address::dump(&mut inside, Some(pod.ifindex)).map_err(|error| refused(&error))?;
    let others = addresses.iter().any(|address| {
        let holder = |store: &Store| store.holder_of(address.net.addr());
        stores
            .iter()
            .filter_map(holder)
            .any(|holder| !holder.is(owner))
    });
    match others {
        true => Ok(()),
        false => inside
            .apply_all(&[link::delete_index(pod.ifindex)])
            .map_err(|error| refused(&error)),
    }
}
