//! `subnet.env`: the file by which the CNI plugin, and anything else that knows flannel, learns
//! this node's network. Rendered byte for byte as flannel writes it, and read for the subnet that
//! the node had before.

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::family::{ByFamily, Family, number};
use crate::subnets::Subnets;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's network per enabled family.
    pub networks: ByFamily<IpNet>,
    /// This node's subnets, of the same families.
    pub subnets: Subnets,
    /// The MTU of pods: what fits into the tunnel, in bytes.
    pub mtu: u32,
    /// Whether this daemon masquerades, so that the plugin need not.
    pub ip_masq: bool,
}

const fn infix(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "IPV6_",
    }
}

impl SubnetEnv {
    /// The file's text. `SUBNET` carries the gateway's address, the first one of the subnet.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (family, network) in self.networks.iter() {
            let Some(subnet) = self.subnets.get(family) else {
                continue;
            };
            let infix = infix(family);
            let gateway = family.address(number(subnet.network()) + 1);
            let len = subnet.prefix_len();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "FLANNEL_{infix}NETWORK={network}");
            let _ = writeln!(text, "FLANNEL_{infix}SUBNET={gateway}/{len}");
        }
        let _ = writeln!(text, "FLANNEL_MTU={}", self.mtu);
        let _ = writeln!(text, "FLANNEL_IPMASQ={}", self.ip_masq);
        text
    }
}

/// The subnets that an earlier run wrote, with the gateway's bit masked off. A torn or foreign
/// file gives what can be read of it: it is a hint, and is checked like one.
pub fn previous_subnets(text: &str) -> Option<Subnets> {
    let of_family = |family: Family| {
        let key = format!("FLANNEL_{}SUBNET=", infix(family));
        let value = text.lines().find_map(|line| line.strip_prefix(&key))?;
        // Several values were several clusters' networks once; none of them is "the" subnet.
        let mut valid = value.split(',').filter_map(|net| {
            let net: IpNet = net.trim().parse().ok()?;
            (Family::of(net.addr()) == family).then(|| net.trunc())
        });
        valid.next().filter(|_| valid.next().is_none())
    };
    Subnets::new(Family::ALL.into_iter().filter_map(of_family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(networks: &[&str], subnets: &str, ip_masq: bool) -> SubnetEnv {
        let networks = networks.iter().map(|text| {
            let net: IpNet = text.parse().unwrap();
            (Family::of(net.addr()), net)
        });
        SubnetEnv {
            networks: networks.collect(),
            subnets: subnets.parse().unwrap(),
            mtu: 1450,
            ip_masq,
        }
    }

    #[test]
    fn one_family_or_both_in_flannels_order() {
        assert_eq!(
            env(&["10.244.0.0/16"], "10.244.1.0-24", true).render(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(
            env(
                &["10.5.0.0/16", "fd00:5::/48"],
                "10.5.20.0-24&fd00:5:0:20::-64",
                false
            )
            .render(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.20.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:20::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
        assert_eq!(
            env(&["fd00:5::/48"], "0.0.0.0-0&fd00:5:0:20::-64", false).render(),
            "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:20::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
    }

    #[test]
    fn what_was_written_is_remembered() {
        for subnets in ["10.5.77.0-24", "10.5.20.0-24&fd00:5:0:20::-64"] {
            let text = env(&["10.5.0.0/16", "fd00:5::/48"], subnets, true).render();
            assert_eq!(previous_subnets(&text), subnets.parse().ok());
        }
    }

    #[test]
    fn a_file_that_names_no_one_subnet_is_no_hint() {
        for text in [
            "",
            "FLANNEL_SUB",
            "FLANNEL_SUBNET=",
            "FLANNEL_SUBNET=10.5.1.1",
            "FLANNEL_SUBNET=fd00::1/64",
            "FLANNEL_SUBNET=10.5.1.1/24,10.6.1.1/24",
        ] {
            assert_eq!(previous_subnets(text), None, "{text:?}");
        }
        let one = "FLANNEL_SUBNET=nonsense,10.6.1.1/24\r\n";
        assert_eq!(previous_subnets(one), "10.6.1.0-24".parse().ok());
    }
}
