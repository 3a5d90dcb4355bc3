//! The program under the name `bandwidth`: the ifb it makes is added to the result.

use kernel::Socket;
use kernel::link::{self, Link};

use super::previous::Previous;
use super::{Call, Gone, refused};
use crate::bandwidth::{self, Limits};
use crate::error::{Code, Error};

const NOT_CHAINED: &str = "must be called as a chained plugin";

pub(super) fn add(call: &Call<'_>) -> Result<String, Error> {
    let limits = Limits::parse(&call.header.config)?;
    let mut previous = Previous::required(call.header, call.version, NOT_CHAINED)?;
    if let Some(limits) = limits {
        let attachment = call.attachment()?;
        let mut socket = Socket::open().map_err(refused)?;
        let host = host_end(call, &mut socket, &previous)?;
        let ifb = bandwidth::add(&mut socket, &limits, &attachment, &host)?;
        if let Some(ifb) = ifb {
            previous.push(ifb);
        }
    }
    previous.render()
}

pub(super) fn check(call: &Call<'_>) -> Result<(), Error> {
    let limits = Limits::parse(&call.header.config)?;
    let previous = Previous::required(call.header, call.version, NOT_CHAINED)?;
    let Some(limits) = limits else {
        return Ok(());
    };
    let mut socket = Socket::open().map_err(refused)?;
    let host = host_end(call, &mut socket, &previous)?;
    bandwidth::check(&mut socket, &limits, &call.attachment()?, &host)
}

pub(super) fn del(gone: &Gone<'_>) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(refused)?;
    let mut errors = vec![];
    errors.extend(bandwidth::del(&mut socket, &gone.attachment()).err());
    errors.extend(release(gone, &mut socket).err());
    Error::join(errors)
}

/// Where the pair is still there, its limits are taken off, for it may stay: a detour without its
/// device would swallow what the pod sends. Whose it is only the sandbox says.
fn release(gone: &Gone<'_>, socket: &mut Socket) -> Result<(), Error> {
    let Some((sandbox, home)) = gone.sandbox()? else {
        return Ok(());
    };
    let inside = sandbox.enter(&home, Socket::open);
    let mut inside = inside.map_err(refused)?.map_err(refused)?;
    let pod = link::by_name(&mut inside, &gone.request.ifname).map_err(refused)?;
    let Some(ifindex) = pod
        .filter(|pod| pod.kind == "veth")
        .and_then(|pod| pod.lower)
    else {
        return Ok(());
    };
    let host = link::by_index(socket, ifindex).map_err(refused)?;
    // An interface that was not limited is not touched: the previous result has no ifb then, and
    // neither has the config limits.
    let asked = Limits::parse(&gone.header.config)
        .unwrap_or_default()
        .is_some();
    match host.filter(|host| asked && host.kind == "veth") {
        Some(host) => bandwidth::release(socket, &host),
        None => Ok(()),
    }
}

/// The node's end of the container's pair, which the previous result must list.
fn host_end(call: &Call<'_>, socket: &mut Socket, previous: &Previous) -> Result<Link, Error> {
    let ifname = &call.request.ifname;
    let kernel = |msg: String| Error::new(Code::Kernel, format!("bandwidth: {msg}"));
    let mut inside = call.socket_inside()?;
    let pod = link::by_name(&mut inside, ifname).map_err(refused)?;
    let pod = pod.ok_or_else(|| kernel(format!("the sandbox has no interface {ifname}")))?;
    let peer = match pod.lower.filter(|_| pod.kind == "veth") {
        Some(ifindex) => link::by_index(socket, ifindex).map_err(refused)?,
        None => None,
    };
    let host =
        peer.ok_or_else(|| kernel(format!("{ifname} is no end of a veth pair of this node")))?;
    let listed = (previous.result().interfaces.iter())
        .any(|interface| interface.name == host.name && interface.sandbox.is_empty());
    match listed {
        true => Ok(host),
        false => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "bandwidth: prevResult does not list {}, the node's end of {ifname}",
                host.name
            ),
        )),
    }
}
