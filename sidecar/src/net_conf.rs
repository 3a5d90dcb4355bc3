//! The cluster's configuration, `net-conf.json`: flannel's keys, defaults and rules, for both
//! address families alike.
//!
//! Parsing validates: a [`NetConf`] that exists is one that can be worked with. Every error names
//! the field; whoever read the bytes adds the file. It does not know where they came from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::Value;

use crate::backend::{self, Backend};
use crate::family::{ByFamily, Family, number};

/// The configuration, checked and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// The enabled families: at least one.
    pub ranges: ByFamily<SubnetRange>,
    /// What carries traffic between nodes.
    pub backend: Backend,
}

/// A family's network and the subnets of it that nodes may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange {
    /// The whole cluster's network, without host bits.
    pub network: IpNet,
    /// The prefix length of every node's subnet.
    pub subnet_len: u8,
    /// The base of the first subnet that is given out.
    pub min: IpAddr,
    /// The base of the last one (inclusive).
    pub max: IpAddr,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", at(.field))]
pub struct NetConfError {
    /// The dotted path of the field, empty if the text as a whole is no JSON object.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
    /// Flannel waits for a better config where its store finds the fault, and ends where it is
    /// noticed only later: no stack, an unknown backend, a backend's options.
    pub fatal: bool,
}

fn at(field: &str) -> String {
    match field {
        "" => String::new(),
        field => format!("field {field}: "),
    }
}

impl NetConfError {
    pub(crate) fn wait(field: &str, problem: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            problem: problem.into(),
            fatal: false,
        }
    }

    pub(crate) fn fatal(field: &str, problem: impl Into<String>) -> Self {
        Self {
            fatal: true,
            ..Self::wait(field, problem)
        }
    }

    pub(crate) fn json(prefix: &str, error: &go_json::Error) -> Self {
        let text = error.to_string();
        let said = format!("field {}: ", error.path());
        Self::wait(
            &format!("{prefix}{}", error.path()),
            text.strip_prefix(&said).unwrap_or(&text),
        )
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Keys {
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    // Accepted for what it is: twill's rules are always nftables.
    #[serde(rename = "EnableNFTables")]
    _enable_nftables: bool,
    network: Option<String>,
    #[serde(rename = "IPv6Network")]
    ipv6_network: Option<String>,
    subnet_len: u64,
    #[serde(rename = "IPv6SubnetLen")]
    ipv6_subnet_len: u64,
    subnet_min: Option<Ipv4Addr>,
    subnet_max: Option<Ipv4Addr>,
    #[serde(rename = "IPv6SubnetMin")]
    ipv6_subnet_min: Option<Ipv6Addr>,
    #[serde(rename = "IPv6SubnetMax")]
    ipv6_subnet_max: Option<Ipv6Addr>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            enable_ipv4: true,
            enable_ipv6: false,
            _enable_nftables: false,
            network: None,
            ipv6_network: None,
            subnet_len: 0,
            ipv6_subnet_len: 0,
            subnet_min: None,
            subnet_max: None,
            ipv6_subnet_min: None,
            ipv6_subnet_max: None,
        }
    }
}

/// One family's keys under the names that the file has for them.
struct FamilyKeys {
    family: Family,
    prefix: &'static str,
    network: Option<String>,
    subnet_len: u64,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

impl Keys {
    fn enabled(self) -> Vec<FamilyKeys> {
        let v4 = FamilyKeys {
            family: Family::V4,
            prefix: "",
            network: self.network,
            subnet_len: self.subnet_len,
            min: self.subnet_min.map(IpAddr::V4),
            max: self.subnet_max.map(IpAddr::V4),
        };
        let v6 = FamilyKeys {
            family: Family::V6,
            prefix: "IPv6",
            network: self.ipv6_network,
            subnet_len: self.ipv6_subnet_len,
            min: self.ipv6_subnet_min.map(IpAddr::V6),
            max: self.ipv6_subnet_max.map(IpAddr::V6),
        };
        let wanted = [(self.enable_ipv4, v4), (self.enable_ipv6, v6)];
        wanted
            .into_iter()
            .filter_map(|(enabled, keys)| enabled.then_some(keys))
            .collect()
    }
}

impl NetConf {
    /// Decodes and checks a configuration by the rules of flannel's etcd store, where nodes take
    /// their subnets themselves.
    pub fn parse(text: &[u8]) -> Result<Self, NetConfError> {
        Self::parse_with(text, FamilyKeys::range)
    }

    /// The same where nodes are given their subnets, as Kubernetes gives podCIDRs: a network may
    /// then be as small as a node's subnet, and what is said about subnets is not looked at. Nodes
    /// are made by others as well: F5's BIG-IP makes some that name no VNI.
    pub fn parse_for_given_subnets(text: &[u8]) -> Result<Self, NetConfError> {
        let mut net_conf = Self::parse_with(text, FamilyKeys::whole)?;
        if let Backend::Vxlan(options) = &mut net_conf.backend {
            options.any_without_vni = true;
        }
        Ok(net_conf)
    }

    fn parse_with(
        text: &[u8],
        range: fn(&FamilyKeys) -> Result<SubnetRange, NetConfError>,
    ) -> Result<Self, NetConfError> {
        let document: Value =
            serde_json::from_slice(text).map_err(|e| NetConfError::wait("", e.to_string()))?;
        let keys: Keys = go_json::from_value(&document).map_err(|e| NetConfError::json("", &e))?;
        let families = keys.enabled();
        let ranges = families
            .into_iter()
            .map(|keys| Ok((keys.family, range(&keys)?)))
            .collect::<Result<ByFamily<_>, NetConfError>>()?;
        if ranges.is_empty() {
            return Err(NetConfError::fatal(
                "EnableIPv4",
                "both EnableIPv4 and EnableIPv6 are false: enable at least one",
            ));
        }
        let backend = backend::parse(go_json::field(&document, "Backend"))?;
        backend.check_families(ranges.families())?;
        Ok(Self { ranges, backend })
    }
}

impl FamilyKeys {
    fn wrong(&self, field: &str, problem: impl Into<String>) -> NetConfError {
        NetConfError::wait(&format!("{}{field}", self.prefix), problem)
    }

    /// The network as one subnet: where somebody else gives subnets out, only that it contains
    /// them counts.
    fn whole(&self) -> Result<SubnetRange, NetConfError> {
        let network = self.network()?;
        Ok(SubnetRange {
            network,
            subnet_len: network.prefix_len(),
            min: network.network(),
            max: network.network(),
        })
    }

    fn range(&self) -> Result<SubnetRange, NetConfError> {
        let network = self.network()?;
        let subnet_len = self.subnet_len(network)?;
        let size = 1u128 << (self.family.bits() - subnet_len);
        let first = number(network.network());
        let last = number(network.broadcast()) - (size - 1);
        // Flannel leaves the first subnet of the network out; the last one is given out.
        let range = SubnetRange {
            network,
            subnet_len,
            min: self.bound("SubnetMin", self.min, network, subnet_len, first + size)?,
            max: self.bound("SubnetMax", self.max, network, subnet_len, last)?,
        };
        if number(range.min) > number(range.max) {
            let problem = format!("{} is beyond SubnetMax, {}", range.min, range.max);
            return Err(self.wrong("SubnetMin", problem));
        }
        Ok(range)
    }

    fn network(&self) -> Result<IpNet, NetConfError> {
        let example = match self.family {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:10:244::/48",
        };
        let wrong = |problem: String| {
            let want = format!("an {} network such as {example} is wanted", self.family);
            self.wrong("Network", format!("{problem}: {want}"))
        };
        let text = self
            .network
            .as_deref()
            .ok_or_else(|| wrong("missing".into()))?;
        let parsed = match self.family {
            Family::V4 => text.parse().map(|net: Ipv4Net| IpNet::V4(net)),
            Family::V6 => text.parse().map(|net: Ipv6Net| IpNet::V6(net)),
        };
        let net = parsed.map_err(|_| wrong(format!("{text:?} is not one")))?;
        Ok(net.trunc())
    }

    fn subnet_len(&self, network: IpNet) -> Result<u8, NetConfError> {
        let bits = self.family.bits();
        let shortest = network.prefix_len() + 2;
        if shortest > bits - 2 {
            let problem = format!(
                "{network} is too small: /{} is the longest prefix of any use",
                bits - 4
            );
            return Err(self.wrong("Network", problem));
        }
        match self.subnet_len {
            0 => Ok(self.usual_subnet_len(network)),
            given => match u8::try_from(given) {
                Ok(len) if (shortest..=bits - 2).contains(&len) => Ok(len),
                _ => Err(self.wrong(
                    "SubnetLen",
                    format!(
                        "{given} does not fit: {network} must hold at least four subnets of at least four addresses, {shortest} to {}",
                        bits - 2
                    ),
                )),
            },
        }
    }

    fn usual_subnet_len(&self, network: IpNet) -> u8 {
        let usual = match self.family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        usual.max(network.prefix_len() + 2)
    }

    fn bound(
        &self,
        field: &str,
        given: Option<IpAddr>,
        network: IpNet,
        subnet_len: u8,
        default: u128,
    ) -> Result<IpAddr, NetConfError> {
        let Some(given) = given.filter(|address| !address.is_unspecified()) else {
            return Ok(self.family.address(default));
        };
        if !network.contains(&given) {
            let problem = format!("{given} is outside the network {network}");
            return Err(self.wrong(field, problem));
        }
        let base = IpNet::new_assert(given, subnet_len).network();
        if base != given {
            let problem = format!("{given} is not the base of a /{subnet_len}, {base} is");
            return Err(self.wrong(field, problem));
        }
        Ok(given)
    }
}

#[cfg(test)]
mod tests;
