//! The backends: what carries traffic between nodes. Each one turns accepted leases into wanted
//! kernel tables, says what it publishes in this node's own lease, and reads what peers published.
//!
//! All of it is pure. A new backend is a file here, a variant of [`Backend`], and a line in each
//! `match` of this file; what there is to do beside the kernel's tables is in `prepare` (before the
//! lease is taken) and `carrier` (while it is held).

pub mod extension;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod host_gw;
mod identity;
pub mod ipip;
mod mtu;
mod options;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

use std::time::Duration;

use serde_json::Value;

use crate::family::{ByFamily, Family};
use crate::lease::Lease;
use crate::net_conf::{NetConfError, SubnetRange};
use crate::peers::{Node, Skipped};
use crate::subnets::Subnets;
use crate::tables::{DeviceName, Facts, Tables};
use crate::underlay::Underlay;

use self::wireguard::PrivateKey;

pub use self::identity::Identity;

/// The configured backend with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Kernel VXLAN.
    Vxlan(vxlan::Options),
    /// Plain routes to nodes on the same link.
    HostGw,
    /// Subnets and nothing else: somebody else carries the traffic.
    Alloc,
    /// A tunnel in user space.
    Udp(udp::Options),
    /// IPv4 in IPv4.
    Ipip(ipip::Options),
    /// Encrypted tunnels.
    Wireguard(wireguard::Options),
    /// The operator's own programs.
    Extension(extension::Options),
}

impl Backend {
    /// For how long a peer that nothing is sent to keeps its entries; `None` if all have theirs.
    pub(crate) fn on_demand(&self) -> Option<Duration> {
        match self {
            Self::Vxlan(options) => options.on_demand,
            _ => None,
        }
    }

    /// Its `Backend.Type`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => vxlan::TYPE,
            Self::HostGw => host_gw::TYPE,
            Self::Alloc => "alloc",
            Self::Udp(_) => udp::TYPE,
            Self::Ipip(_) => ipip::TYPE,
            Self::Wireguard(_) => wireguard::TYPE,
            Self::Extension(_) => extension::TYPE,
        }
    }

    /// Whether what is wanted depends on routes that others make.
    pub(crate) fn follows_routes(&self) -> bool {
        match self {
            Self::Vxlan(options) => options.direct_routing,
            Self::HostGw => true,
            Self::Ipip(options) => options.direct_routing,
            Self::Alloc | Self::Udp(_) | Self::Wireguard(_) | Self::Extension(_) => false,
        }
    }
}

/// Names that flannel knows, for an error that can tell "not here" from "never heard of".
const FLANNELS: [&str; 2] = ["ipsec", "tencent-vpc"];
/// Those that there are, for the same error.
const OURS: &str = "vxlan, host-gw, wireguard, ipip, udp, extension, alloc";

/// Chooses the backend by `Backend.Type`, in any case. An absent `Backend` is flannel's `udp`.
pub(crate) fn parse(backend: Option<&Value>) -> Result<Backend, NetConfError> {
    let wrong = |problem: String| {
        let want = format!(r#"write "Backend": {{"Type": "vxlan"}}, or one of {OURS}"#);
        NetConfError::fatal("Backend.Type", format!("{problem}; {want}"))
    };
    let Some(backend) = backend else {
        return Ok(Backend::Udp(udp::Options::default()));
    };
    let kind = match go_json::field(backend, "Type") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(kind)) => kind.to_lowercase(),
        Some(other) => return Err(wrong(format!("{other} is not a string"))),
    };
    match kind.as_str() {
        vxlan::TYPE => vxlan::Options::parse(backend).map(Backend::Vxlan),
        host_gw::TYPE => Ok(Backend::HostGw),
        "alloc" => Ok(Backend::Alloc),
        udp::TYPE => udp::Options::parse(backend).map(Backend::Udp),
        ipip::TYPE => ipip::Options::parse(backend).map(Backend::Ipip),
        wireguard::TYPE => wireguard::Options::parse(backend).map(Backend::Wireguard),
        extension::TYPE => extension::Options::parse(backend).map(Backend::Extension),
        "" => Err(wrong("Backend is given, but without a Type".into())),
        known if FLANNELS.contains(&known) => {
            Err(wrong(format!("flannel's {known} is not built here")))
        }
        unknown => Err(wrong(format!("unknown backend {unknown:?}"))),
    }
}

impl Backend {
    /// The devices that are ours, whether they are there or not.
    pub fn devices(&self, families: impl Iterator<Item = Family>) -> Vec<DeviceName> {
        match self {
            Self::Vxlan(options) => families.map(|family| options.device(family)).collect(),
            Self::Ipip(_) => vec![ipip::DEVICE.into()],
            Self::Wireguard(options) => options.devices(families),
            Self::Udp(_) => vec![crate::udp::DEVICE.into()],
            Self::HostGw | Self::Alloc | Self::Extension(_) => Vec::new(),
        }
    }

    /// The MTU of pods, in bytes: what goes to another node in one piece, in every family. An
    /// error says what to change.
    pub fn pod_mtu(
        &self,
        families: impl Iterator<Item = Family>,
        underlay: &Underlay,
    ) -> Result<u32, String> {
        match self {
            Self::Vxlan(options) => options.pod_mtu(families, underlay),
            Self::Ipip(_) => mtu::least(families, underlay, None, |_| ipip::OVERHEAD),
            Self::Wireguard(options) => mtu::least(families, underlay, Some(options.mtu), |_| {
                wireguard::OVERHEAD
            }),
            Self::Udp(_) => mtu::least(families, underlay, None, |_| crate::udp::OVERHEAD),
            Self::HostGw | Self::Alloc | Self::Extension(_) => {
                mtu::least(families, underlay, None, |_| 0)
            }
        }
    }

    /// A family that is enabled and that this backend cannot carry.
    pub(crate) fn check_families(
        &self,
        mut families: impl Iterator<Item = Family>,
    ) -> Result<(), NetConfError> {
        let kind = match self {
            Self::Udp(_) => udp::TYPE,
            Self::Ipip(_) => ipip::TYPE,
            Self::Vxlan(_)
            | Self::HostGw
            | Self::Wireguard(_)
            | Self::Alloc
            | Self::Extension(_) => return Ok(()),
        };
        if !families.any(|family| family == Family::V6) {
            return Ok(());
        }
        let problem = format!(
            "the backend {kind} carries IPv4 only: leave it away, or choose another Backend.Type for both families"
        );
        Err(NetConfError::fatal("EnableIPv6", problem))
    }

    /// What of the configuration cannot work on this node, found before anything is made.
    pub fn check(&self, ranges: &ByFamily<SubnetRange>, underlay: &Underlay) -> Result<(), String> {
        self.pod_mtu(ranges.families(), underlay)?;
        match self {
            Self::HostGw => host_gw::check(underlay),
            Self::Wireguard(options) => options.check(ranges),
            Self::Ipip(_) => Ok(()),
            Self::Vxlan(_) | Self::Alloc | Self::Udp(_) | Self::Extension(_) => Ok(()),
        }
    }

    /// What this node publishes.
    pub fn lease(&self, underlay: &Underlay, identity: &Identity) -> Lease {
        let plain = |backend_type: &str| Lease {
            public_ips: underlay.public_ips,
            backend_type: backend_type.into(),
            backend_data: ByFamily::default(),
        };
        match self {
            Self::Vxlan(options) => options.lease(underlay, &identity.macs),
            Self::HostGw => plain(host_gw::TYPE),
            // As flannel, which names no type where nobody reads it.
            Self::Alloc | Self::Udp(_) => plain(""),
            Self::Ipip(_) => plain(ipip::TYPE),
            Self::Wireguard(options) => match &identity.key {
                Some(key) => options.lease(underlay.public_ips.families(), underlay, key),
                None => plain(wireguard::TYPE),
            },
            Self::Extension(options) => options.lease(underlay, identity.said.as_deref()),
        }
    }

    /// The kernel tables that these peers need, and the peers that cannot be had, with the reason.
    pub fn tables(
        &self,
        node: &Node,
        identity: &Identity,
        underlay: &Underlay,
        peers: &[(&Subnets, &Lease)],
        facts: &Facts,
    ) -> (Tables, Skipped) {
        match self {
            Self::Vxlan(options) => {
                vxlan::tables(options, node, &identity.macs, underlay, peers, facts)
            }
            Self::HostGw => host_gw::tables(node, peers, facts),
            Self::Alloc | Self::Extension(_) => Default::default(),
            Self::Udp(_) => (udp::tables(node, underlay), Skipped::new()),
            Self::Ipip(options) => {
                let tables = ipip::tables(options, node, underlay, peers, facts);
                (tables, Skipped::new())
            }
            Self::Wireguard(options) => {
                let tables = wireguard::tables(options, node, underlay);
                let own = identity.key.as_ref().map(PrivateKey::public);
                let (_, skipped) =
                    wireguard::wanted(options, node, &own.unwrap_or_default(), peers);
                (tables, skipped)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_type_is_found_in_any_case() {
        let backend = json!({"type": "VXLAN", "vni": 3, "VNI": 5});
        let Ok(Backend::Vxlan(options)) = parse(Some(&backend)) else {
            panic!("{backend} is vxlan");
        };
        assert_eq!(options.vni, 5);
        let backend = json!({"Type": "Host-GW", "VNI": "anything"});
        assert_eq!(parse(Some(&backend)), Ok(Backend::HostGw));
        assert_eq!(parse(None), Ok(Backend::Udp(udp::Options::default())));
    }

    #[test]
    fn what_is_not_built_is_told_apart_from_what_is_unknown() {
        for (backend, words) in [
            (Some(json!(null)), "without a Type"),
            (Some(json!({"VNI": 1})), "without a Type"),
            (Some(json!({"Type": "ipsec"})), "not built"),
            (Some(json!({"Type": "aws-vpc"})), "unknown backend"),
            (Some(json!({"Type": 1})), "not a string"),
            (Some(json!([])), "without a Type"),
        ] {
            let error = parse(backend.as_ref()).unwrap_err();
            assert!(error.fatal);
            assert_eq!(error.field, "Backend.Type");
            assert!(error.problem.contains(words), "{error}");
        }
    }
}
