//! `subnet.env`: what the daemon tells the plugin about this node. Pure; the caller reads the file.
//!
//! The format is flanneld's: lines of `KEY=value`, six known keys, no quotes, anything else is
//! passed over. The daemon writes it by rename, so a torn file is another program's.

use ipnet::IpNet;

use crate::address;

/// The node's part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetEnv {
    /// The whole network's ranges, IPv4 first, each once.
    pub(crate) networks: Vec<IpNet>,
    /// The node's subnets, at most one per family, IPv4 first; without host bits.
    pub(crate) subnets: Vec<IpNet>,
    /// The MTU inside the overlay, in bytes.
    pub(crate) mtu: u32,
    /// Whether the daemon masquerades what leaves the network, so that the bridge must not.
    pub(crate) ip_masq: bool,
}

/// Why a `subnet.env` cannot be used: words to stand behind the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubnetEnvError {
    /// Not in the file at all.
    #[error(" is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A value that cannot be read.
    #[error(" line {line}: {key}={value:?}: {reason}")]
    Invalid {
        /// Counted from 1.
        line: usize,
        /// Which key.
        key: &'static str,
        /// What stands behind the `=`.
        value: String,
        /// What it should have been.
        reason: &'static str,
    },
}

const NETWORKS: [&str; 2] = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"];
const SUBNETS: [&str; 2] = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];
const MTU: &str = "FLANNEL_MTU";
/// What the kernel takes for a device of Ethernet (`ETH_MIN_MTU`, `ETH_MAX_MTU`).
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;
const IPMASQ: &str = "FLANNEL_IPMASQ";

impl SubnetEnv {
    /// Reads the file's text. The last of several equal keys counts.
    pub(crate) fn parse(text: &str) -> Result<SubnetEnv, SubnetEnvError> {
        let mut networks: [Vec<IpNet>; 2] = [vec![], vec![]];
        let mut subnets: [Option<IpNet>; 2] = [None, None];
        let (mut mtu, mut ip_masq) = (None, None);
        for (at, line) in text.lines().enumerate() {
            let (key, value) = match line.split_once('=') {
                Some(pair) => pair,
                None => (line, ""),
            };
            let invalid = |key, reason| SubnetEnvError::Invalid {
                line: at + 1,
                key,
                value: value.to_owned(),
                reason,
            };
            let range = |key: &'static str, text: &str, v6: bool| {
                address::parse_cidr(text)
                    .filter(|net| net.addr().is_ipv6() == v6)
                    .map(|net| net.trunc())
                    .ok_or_else(|| match v6 {
                        false => invalid(key, "an IPv4 range like 10.244.0.0/16 is expected"),
                        true => invalid(key, "an IPv6 range like fd00:244::/56 is expected"),
                    })
            };
            for v6 in [false, true] {
                let family = usize::from(v6);
                if key == NETWORKS[family] {
                    networks[family].clear();
                    for text in value.split(',') {
                        let network = range(NETWORKS[family], text, v6)?;
                        if !networks[family].contains(&network) {
                            networks[family].push(network);
                        }
                    }
                }
                if key == SUBNETS[family] {
                    subnets[family] = Some(range(SUBNETS[family], value, v6)?);
                }
            }
            if key == MTU {
                let digits = value.bytes().all(|b| b.is_ascii_digit());
                let number = value
                    .parse()
                    .ok()
                    .filter(|mtu| digits && MTUS.contains(mtu));
                let reason = "a number of bytes from 68 to 65535 is expected";
                mtu = Some(number.ok_or_else(|| invalid(MTU, reason))?);
            }
            if key == IPMASQ {
                ip_masq = Some(value == "true");
            }
        }
        let networks = networks.concat();
        let subnets: Vec<IpNet> = subnets.into_iter().flatten().collect();
        let mut missing = vec![];
        if networks.is_empty() {
            missing.extend(NETWORKS);
        }
        if subnets.is_empty() {
            missing.extend(SUBNETS);
        }
        let (Some(mtu), Some(ip_masq), []) = (mtu, ip_masq, missing.as_slice()) else {
            missing.extend(mtu.is_none().then_some(MTU));
            missing.extend(ip_masq.is_none().then_some(IPMASQ));
            return Err(SubnetEnvError::Missing(missing));
        };
        Ok(SubnetEnv {
            networks,
            subnets,
            mtu,
            ip_masq,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_conf_is_understood() {
        let env = SubnetEnv::parse(include_str!("../../conf/subnet.env")).unwrap();
        assert_eq!(
            env,
            SubnetEnv {
                networks: vec!["10.244.0.0/16".parse().unwrap()],
                subnets: vec!["10.244.1.0/24".parse().unwrap()],
                mtu: 1450,
                ip_masq: true,
            }
        );
    }

    #[test]
    fn two_families_two_networks_and_noise_are_understood() {
        let text = "# c\r\n\r\nFOO=bar\r\nFLANNEL_NETWORK=10.244.0.0/16,10.250.0.0/16,10.244.0.0/16\r\n\
            FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/56\n\
            FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=True";
        let env = SubnetEnv::parse(text).unwrap();
        let texts = |nets: &[IpNet]| {
            nets.iter()
                .map(|n| n.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            texts(&env.networks),
            "10.244.0.0/16 10.250.0.0/16 fd00:244::/56"
        );
        assert_eq!(texts(&env.subnets), "10.244.1.0/24 fd00:244:0:1::/64");
        assert!(!env.ip_masq, "only the word `true` is true");
    }

    #[test]
    fn what_is_missing_is_named_all_at_once() {
        let missing = |text| match SubnetEnv::parse(text).unwrap_err() {
            SubnetEnvError::Missing(keys) => keys.join(" "),
            other => panic!("{other}"),
        };
        assert_eq!(
            missing("foo=bar\n"),
            "FLANNEL_NETWORK FLANNEL_IPV6_NETWORK FLANNEL_SUBNET FLANNEL_IPV6_SUBNET FLANNEL_MTU FLANNEL_IPMASQ"
        );
        assert_eq!(
            missing(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPMASQ=true\n"
            ),
            "FLANNEL_MTU"
        );
    }

    #[test]
    fn a_bad_value_is_named_with_its_line() {
        for (line, key) in [
            ("FLANNEL_NETWORK=10.24", "FLANNEL_NETWORK"),
            ("FLANNEL_SUBNET", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=10.244.1.1", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=fd00::1/64", "FLANNEL_SUBNET"),
            ("FLANNEL_MTU=-1", "FLANNEL_MTU"),
            ("FLANNEL_MTU=+1", "FLANNEL_MTU"),
            ("FLANNEL_MTU=1450 ", "FLANNEL_MTU"),
            ("FLANNEL_MTU=99999999999", "FLANNEL_MTU"),
        ] {
            let error = SubnetEnv::parse(&format!("#\n{line}\n")).unwrap_err();
            let SubnetEnvError::Invalid {
                line: at, key: got, ..
            } = error
            else {
                panic!("{line}: {error}")
            };
            assert_eq!((at, got), (2, key), "{line}");
        }
    }
}
