//! Host ports and bandwidth as parts of the network itself: elsewhere plugins of their own, chained
//! behind it, here done by the ADD that makes the interface.
//!
//! What they are is in [`hostports`] and [`bandwidth`]. Here is when: only where the config of this
//! very plugin asks. A list that has `portmap` or `bandwidth` chained behind tells them what to do,
//! and this plugin nothing, so that nothing is done twice. Taking away asks no config at all.

use kernel::Socket;
use kernel::link::{self, Link};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::bandwidth::{self, Limits};
use crate::config::flannel::Dialect;
use crate::error::{Code, Error};
use crate::hostports::{self, HostPorts, Lingering};
use crate::result::{Interface, IpConfig};

/// What a config asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuiltIn {
    ports: Option<HostPorts>,
    limits: Option<Limits>,
}

/// Where an attachment is found on the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Whose it is.
    pub(crate) attachment: &'a Attachment,
    /// The device behind which the node finds the pod.
    pub(crate) gateway: &'a str,
    /// The node's end of the pair.
    pub(crate) host_ifname: &'a str,
    /// The pod's addresses.
    pub(crate) ips: &'a [IpConfig],
}

impl BuiltIn {
    /// Reads a config. Only type `twill` has limits of its own, beside what the runtime asks for;
    /// `bridge` is left to what is chained behind it.
    pub(crate) fn parse(config: &Value, dialect: Dialect) -> Result<BuiltIn, Error> {
        let runtime = go_json::field(config, "runtimeConfig");
        let asked = |key| {
            let value = runtime.and_then(|runtime| go_json::field(runtime, key));
            dialect != Dialect::Bridge && value.is_some_and(|value| !value.is_null())
        };
        let ports = match asked("portMappings") {
            true => HostPorts::parse(config)?,
            false => None,
        };
        let limits = match dialect == Dialect::Twill || asked("bandwidth") {
            true => Limits::parse(config)?,
            false => None,
        };
        Ok(BuiltIn { ports, limits })
    }

    /// Does it for an interface that is up. Returns an interface for the result, if one was made.
    /// Undone as a whole if any part fails.
    pub(crate) fn add(
        &self,
        socket: &mut Socket,
        place: &Place<'_>,
    ) -> Result<Option<Interface>, Error> {
        let ifb = match &self.limits {
            Some(limits) => {
                let host = host_end(socket, place)?;
                bandwidth::add(socket, limits, place.attachment, &host)?
            }
            None => None,
        };
        if let Some(ports) = &self.ports {
            hostports::add(ports, place.attachment, &targets(place), place.gateway)
                .inspect_err(|_| self.undo(socket, place.attachment))?;
        }
        Ok(ifb)
    }

    /// Takes back an [`add`](BuiltIn::add) that succeeded. What fails here is met by DEL again.
    pub(crate) fn undo(&self, socket: &mut Socket, attachment: &Attachment) {
        if self.ports.is_some() {
            let _ = hostports::del(attachment);
        }
        if self.limits.is_some() {
            let _ = bandwidth::del(socket, attachment);
        }
    }

    /// Says what is lost.
    pub(crate) fn check(&self, socket: &mut Socket, place: &Place<'_>) -> Result<(), Error> {
        if let Some(limits) = &self.limits {
            let host = host_end(socket, place)?;
            bandwidth::check(socket, limits, place.attachment, &host)?;
        }
        match &self.ports {
            Some(ports) => {
                hostports::check(ports, place.attachment, &targets(place), place.gateway)
            }
            None => Ok(()),
        }
    }
}

fn targets(place: &Place<'_>) -> Vec<std::net::IpAddr> {
    let addresses = place.ips.iter().filter_map(|ip| ip.address);
    hostports::targets(addresses.map(|address| address.0.addr()))
}

fn host_end(socket: &mut Socket, place: &Place<'_>) -> Result<Link, Error> {
    let name = place.host_ifname;
    let found = link::by_name(socket, name).map_err(refused)?;
    found.ok_or_else(|| {
        let msg = format!("bandwidth: the node's end {name} is not there");
        Error::new(Code::Kernel, msg)
    })
}

/// Takes away the attachment's host ports; what is returned is to be dropped after the pair is
/// deleted, for both take their time in the kernel.
pub(crate) fn close_ports(attachment: &Attachment) -> Result<Lingering, Error> {
    hostports::del(attachment)
}

/// Takes away what limited the attachment and does not go with its pair.
pub(crate) fn lift_limits(socket: &mut Socket, attachment: &Attachment) -> Result<(), Error> {
    bandwidth::del(socket, attachment)
}

/// Takes away what belongs to a network's attachments that are not to be kept.
pub(crate) fn gc(network: &str, keep: &dyn Fn(&str, &str) -> bool) -> Result<(), Error> {
    let mut errors = vec![];
    errors.extend(hostports::gc(network, keep).err());
    let limits = Socket::open()
        .map_err(refused)
        .and_then(|mut socket| bandwidth::gc(&mut socket, network, keep));
    errors.extend(limits.err());
    Error::join(errors)
}

fn refused(error: kernel::Error) -> Error {
    Error::new(Code::Kernel, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asks(config: Value, dialect: Dialect) -> (bool, bool) {
        let it = BuiltIn::parse(&config, dialect).unwrap();
        (it.ports.is_some(), it.limits.is_some())
    }

    #[test]
    fn what_the_runtime_asks_this_plugin_for_is_done_but_by_a_bridge() {
        let config = json!({"runtimeConfig": {
            "portMappings": [{"HostPort": 80, "ContainerPort": 80, "Protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000}}});
        assert_eq!(asks(config.clone(), Dialect::Twill), (true, true));
        assert_eq!(asks(config.clone(), Dialect::Flannel), (true, true));
        assert_eq!(asks(config, Dialect::Bridge), (false, false));
    }

    #[test]
    fn what_is_asked_of_nobody_is_not_done() {
        let quiet = json!({"snat": 5, "runtimeConfig": {"portMappings": null, "bandwidth": null}});
        for dialect in [Dialect::Twill, Dialect::Flannel, Dialect::Bridge] {
            assert_eq!(asks(json!({}), dialect), (false, false));
            assert_eq!(asks(quiet.clone(), dialect), (false, false));
        }
        let own = json!({"ingressRate": 8000, "ingressBurst": 8000});
        assert_eq!(asks(own.clone(), Dialect::Twill), (false, true));
        assert_eq!(asks(own, Dialect::Flannel), (false, false));
    }

    #[test]
    fn a_port_that_cannot_be_is_refused() {
        let config = json!({"runtimeConfig": {"portMappings":
            [{"hostPort": 70000, "containerPort": 80, "protocol": "tcp"}]}});
        assert!(BuiltIn::parse(&config, Dialect::Twill).is_err());
    }
}
