//! The node's end of a pair as the pod's router: thin over [`kernel`].

use kernel::{address, device, route, sysctl};

use super::{Node, refused};
use crate::error::{Code, Error};
use crate::plan::HostEnd;

/// What must be so before the pod's end is up, and the node's end with it. The kernel asks for a
/// pod's hardware address from the link-local one, which without this were tentative for a second.
pub(super) fn before_carrier(name: &str) {
    for key in ["accept_dad", "accept_ra"] {
        // Without IPv6 there is nothing to say.
        let _ = sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), "0");
    }
}

impl Node {
    /// `ip addr add GATEWAY/32 dev HOST; ip route replace IP/32 dev HOST`, and the same of IPv6.
    pub(super) fn fill_host_end(&mut self, end: &HostEnd, name: &str) -> Result<(), Error> {
        // What comes from the pod has its address: by its route the node knows which one that is.
        setting(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        if end.gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
            setting(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        let ifindex = device::index(&self.socket, name).map_err(refused)?;
        let ifindex =
            ifindex.ok_or_else(|| refused(format!("{name} is gone as soon as it was made")))?;
        let addresses = end.gateways.iter();
        let mut requests: Vec<_> = addresses
            .map(|gateway| address::add(ifindex, *gateway))
            .collect();
        requests.extend(end.pod.iter().map(|pod| {
            route::replace(&route::Route {
                ifindex: Some(ifindex),
                ..route::Route::to(*pod)
            })
        }));
        requests.extend(end.subnets.iter().map(|net| route::unreachable(*net)));
        self.socket
            .apply_all(&requests)
            .map_err(|error| refused(error).context(&format!("on the node's end {name}")))
    }
}

fn setting(key: &str, value: &str) -> Result<(), Error> {
    sysctl::ensure(key, value)
        .map_err(|error| Error::new(Code::Kernel, format!("write {key} {value}: {error}")))
}
