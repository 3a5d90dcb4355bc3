//! The bridge plugin's keys, checked as a whole: what is left is a bridge that can be made. Pure.

use ipnet::IpNet;
use kernel::Mac;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cni_args::CniArgs;
use crate::config::mode::Mode;
use crate::config::vlan::{RawTrunk, Vlans};
use crate::delegate;
use crate::error::{Code, Error};
use crate::invocation;
use crate::ipam::{self, IpamError, RawIpam, RawWishes};
use crate::result::{Dns, Route};
use crate::version::Version;

/// The keys as they stand in a config.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    // Read elsewhere, if at all; here their types are checked.
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "prevResult")]
    _prev_result: Map<String, Value>,
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<RawTrunk>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    ipam: RawIpam,
    dns: Dns,
    args: RawArgs,
    runtime_config: RawPerPod,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawPerPod,
}

/// What a runtime asks for one pod. `RawWishes` are the same object's other keys.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPerPod {
    mac: String,
    ips: Vec<crate::address::IpOf>,
    ip_ranges: Vec<Vec<ipam::RawRange>>,
}

/// What the bridge is to its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gateway {
    /// A switch and no more.
    None,
    /// It has the gateway's addresses, and the node forwards.
    OfSubnet,
    /// And every pod's default route goes through it.
    Default,
}

/// A bridge network that ADD can attach a pod to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeNetwork {
    /// Whether there is a bridge at all: type `bridge` knows no other mode.
    pub(crate) mode: Mode,
    /// The bridge's name.
    pub(crate) bridge: String,
    /// Whether pods leave the network through it.
    pub(crate) gateway: Gateway,
    /// What has the gateway's addresses in the bridge's place, where pods have a VLAN.
    pub(crate) vlan_gateway: Option<VlanGateway>,
    /// Where the node has no other subnet than this network's: the overlay's ranges.
    pub(crate) overlay: Vec<IpNet>,
    /// Replace an address of the bridge that is in the way.
    pub(crate) force_address: bool,
    /// Masquerade what pods send out of their subnet.
    pub(crate) masquerade: Option<Masquerading>,
    /// Of the pair, and of the bridge when it is made; `None`: the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// A pod may reach itself through the bridge.
    pub(crate) hairpin: bool,
    /// Pods cannot reach each other through the bridge.
    pub(crate) isolated: bool,
    /// The bridge receives everything.
    pub(crate) promiscuous: bool,
    /// The VLANs of the pod's port; without them the bridge need not filter any.
    pub(crate) vlans: Option<Vlans>,
    /// The pod can send by its own hardware address only.
    pub(crate) check_spoofing: bool,
    /// The MAC address asked for.
    pub(crate) mac: Option<Mac>,
    /// Replaces what IPAM says about name servers.
    pub(crate) dns: Option<Dns>,
    /// Wait until no other host has the pod's IPv6 addresses.
    pub(crate) detect_duplicates: bool,
    /// The pod's end is brought up.
    pub(crate) raise: bool,
    /// Where addresses come from; without it pods have none.
    pub(crate) ipam: Option<Ipam>,
    /// IPAM's routes. Another plugin's are known once it was asked.
    pub(crate) routes: Vec<Route>,
}

/// Whose rules masquerade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Masquerading {
    /// Of nftables where the kernel has that, else of iptables.
    Either,
    /// Of iptables, because the config says so.
    Iptables,
    /// Of nftables, because the config says so.
    Nftables,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ipam {
    /// Files of host-local's, which is built in.
    HostLocal(ipam::Config),
    /// Another plugin, by its type.
    Other(String),
}

/// The gateway of a VLAN: a device of the node that is joined to a port of the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VlanGateway {
    /// The device, named after the bridge and the VLAN.
    pub(crate) name: String,
    /// Its VLAN.
    pub(crate) vid: u16,
}

impl VlanGateway {
    fn of(bridge: &str, vid: u16) -> Result<VlanGateway, String> {
        let name = format!("{bridge}.{vid}");
        match invocation::ifname_fault(&name) {
            None => Ok(VlanGateway { name, vid }),
            Some(fault) => Err(format!(
                "bridge: the gateway of VLAN {vid} would be {name:?}: {fault}"
            )),
        }
    }
}

impl BridgeNetwork {
    /// The bridge's name, where there is to be one.
    pub(crate) fn device(&self) -> Option<&str> {
        (self.mode == Mode::Bridge).then_some(self.bridge.as_str())
    }

    /// The device that has the gateway's addresses, and behind which the node finds the pods; None
    /// where each pod is behind its own.
    pub(crate) fn gateway_device(&self) -> Option<&str> {
        match &self.vlan_gateway {
            Some(gateway) => Some(&gateway.name),
            None => self.device(),
        }
    }

    /// Checks every key, and refuses what cannot be honoured.
    pub(crate) fn parse(
        config: &Value,
        version: Version,
        cni_args: &CniArgs,
    ) -> Result<BridgeNetwork, Error> {
        let other_ipam = delegate::ipam::kind_of(config);
        let decoded = match &other_ipam {
            None => go_json::from_value(config),
            Some(_) => {
                // Its keys are its own, even where they have the names of host-local's.
                let mut config = config.clone();
                if let Some(object) = config.as_object_mut() {
                    object.retain(|key, _| !key.eq_ignore_ascii_case("ipam"));
                }
                go_json::from_value(&config)
            }
        };
        let raw: Raw = decoded.map_err(|error| {
            Error::new(Code::Decode, format!("failed to load netconf: {error}"))
        })?;
        let invalid = |msg: String| Error::new(Code::InvalidConfig, msg);
        let vlans = Vlans::parse(
            raw.vlan,
            raw.vlan_trunk.as_deref(),
            raw.preserve_default_vlan,
        )
        .map_err(invalid)?;
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(invalid(
                "cannot set hairpin mode and promiscuous mode at the same time".into(),
            ));
        }
        let bridge = match raw.bridge.as_str() {
            "" => "cni0".to_owned(),
            name => match invocation::ifname_fault(name) {
                None => name.to_owned(),
                Some(fault) => return Err(invalid(format!("bridge: {fault}: {name:?}"))),
            },
        };
        let mtu = match raw.mtu {
            // As for the bridge plugin, which takes what is negative as "not given".
            ..=0 => None,
            68..=65535 => Some(raw.mtu as u32),
            mtu => return Err(invalid(format!("mtu {mtu} is not between 68 and 65535"))),
        };
        // The conventions' order: the runtime's capability, the operator's args, the variable.
        let macs = [&raw.runtime_config.mac, &raw.args.cni.mac];
        let mac = macs
            .into_iter()
            .chain(&cni_args.mac)
            .find(|mac| !mac.is_empty());
        let mac = mac.map(|text| text.parse::<Mac>()).transpose();
        let mac = mac.map_err(|error| invalid(error.to_string()))?;
        let wishes = |per_pod: RawPerPod| RawWishes {
            ips: per_pod.ips,
            ip_ranges: per_pod.ip_ranges,
        };
        let validate = || {
            let args = RawWishes {
                ip_ranges: vec![],
                ..wishes(raw.args.cni)
            };
            let runtime = wishes(raw.runtime_config);
            ipam::Config::validate(&raw.ipam, cni_args, &args, &runtime, version)
                .map_err(|error: IpamError| invalid(error.to_string()))
        };
        let masquerade = match raw.ip_masq_backend.as_deref() {
            _ if !raw.ip_masq => None,
            None | Some("") => Some(Masquerading::Either),
            Some("iptables") => Some(Masquerading::Iptables),
            Some("nftables") => Some(Masquerading::Nftables),
            Some(other) => return Err(invalid(format!("unknown ipmasq backend {other:?}"))),
        };
        if let Some(key) = raw.dns.unprintable() {
            return Err(invalid(format!("dns.{key} has a control character in it")));
        }
        let ipam = match (other_ipam, raw.ipam.kind.as_str()) {
            (None, "") => None,
            _ if raw.disable_container_interface => {
                return Err(invalid(
                    "cannot use IPAM when DisableContainerInterface flag is set".into(),
                ));
            }
            (Some(kind), _) => Some(Ipam::Other(kind)),
            (None, _) => Some(Ipam::HostLocal(validate()?)),
        };
        let gateway = match (raw.is_gateway, raw.is_default_gateway) {
            (_, true) => Gateway::Default,
            (true, _) => Gateway::OfSubnet,
            _ => Gateway::None,
        };
        let own_vlan = vlans.as_ref().and_then(|vlans| vlans.own);
        let vlan_gateway = match (gateway, own_vlan) {
            (Gateway::None, _) | (_, None) => None,
            (_, Some(vid)) => Some(VlanGateway::of(&bridge, vid).map_err(invalid)?),
        };
        let routes = match &ipam {
            Some(Ipam::HostLocal(ipam)) => ipam.routes.clone(),
            _ => vec![],
        };
        if routes.iter().any(|route| route.dst.is_none()) {
            return Err(invalid("ipam.routes: a route without dst".into()));
        }
        Ok(BridgeNetwork {
            mode: Mode::Bridge,
            bridge,
            gateway,
            vlan_gateway,
            overlay: vec![],
            force_address: raw.force_address,
            masquerade,
            mtu,
            hairpin: raw.hairpin_mode,
            isolated: raw.port_isolation,
            promiscuous: raw.promisc_mode,
            vlans,
            check_spoofing: raw.macspoofchk,
            mac,
            detect_duplicates: raw.enabledad,
            raise: !raw.disable_container_interface,
            dns: Some(raw.dns).filter(|dns| !dns.is_empty()),
            ipam,
            routes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(mut config: Value, cni_args: &str) -> Result<BridgeNetwork, Error> {
        if go_json::field(&config, "ipam").is_none() {
            config["ipam"] = json!({"type":"host-local","ranges":[[{"subnet":"10.1.2.0/24"}]]});
        }
        let cni_args = CniArgs::parse(cni_args).unwrap();
        BridgeNetwork::parse(&config, Version::V1_0_0, &cni_args)
    }

    #[test]
    fn what_is_not_given_is_upstreams_default() {
        let network = parse(json!({}), "").unwrap();
        assert_eq!(network.bridge, "cni0");
        assert_eq!(network.gateway, Gateway::None);
        assert_eq!(
            (network.mtu, network.hairpin, network.masquerade),
            (None, false, None)
        );
        assert_eq!(parse(json!({"mtu":-5}), "").unwrap().mtu, None);
        assert_eq!(
            parse(json!({"IsDefaultGateway":true}), "").unwrap().gateway,
            Gateway::Default
        );
    }

    #[test]
    fn the_runtimes_mac_comes_before_args_and_args_before_the_variable() {
        let mac = |config, args| parse(config, args).unwrap().mac.map(|m| m.to_string());
        let args = "MAC=02:00:00:00:00:01";
        assert_eq!(mac(json!({}), args).as_deref(), Some("02:00:00:00:00:01"));
        let config = json!({"args":{"cni":{"mac":"02:00:00:00:00:02"}}});
        assert_eq!(
            mac(config.clone(), args).as_deref(),
            Some("02:00:00:00:00:02")
        );
        let mut config = config;
        config["RuntimeConfig"] = json!({"mac":"02:00:00:00:00:03"});
        assert_eq!(mac(config, args).as_deref(), Some("02:00:00:00:00:03"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_code_and_key() {
        for (config, code, word) in [
            (json!({"mtu":"1500"}), Code::Decode, "mtu"),
            (json!({"mtu":1500.5}), Code::Decode, "mtu"),
            (json!({"mtu":99999999}), Code::InvalidConfig, "mtu"),
            (json!({"ipMasq":"true"}), Code::Decode, "ipMasq"),
            (json!({"ipam":"host-local"}), Code::Decode, "ipam"),
            (
                json!({"ipam":{"type":"host-local"}}),
                Code::InvalidConfig,
                "no IP ranges",
            ),
            (json!({"bridge":"../../etc"}), Code::InvalidConfig, "bridge"),
            (
                json!({"bridge":"a23456789012345x"}),
                Code::InvalidConfig,
                "bridge",
            ),
            (
                json!({"hairpinMode":true,"promiscMode":true}),
                Code::InvalidConfig,
                "hairpin",
            ),
            (json!({"vlan":4095}), Code::InvalidConfig, "invalid VLAN ID"),
            (
                json!({"ipMasq":true,"ipMasqBackend":"foo"}),
                Code::InvalidConfig,
                "unknown ipmasq backend \"foo\"",
            ),
            (
                json!({"vlanTrunk":[{"id":0}]}),
                Code::InvalidConfig,
                "trunk id",
            ),
            (json!({"vlanTrunk":{}}), Code::Decode, "vlanTrunk"),
            (
                json!({"vlan":4000,"isGateway":true,"bridge":"a23456789012"}),
                Code::InvalidConfig,
                "a23456789012.4000",
            ),
            (json!({"macspoofchk":1}), Code::Decode, "macspoofchk"),
            (
                json!({"runtimeConfig":{"mac":"x"}}),
                Code::InvalidConfig,
                "MAC",
            ),
            (
                json!({"runtimeConfig":{"ips":["x"]}}),
                Code::Decode,
                "runtimeConfig.ips[0]",
            ),
        ] {
            let error = parse(config.clone(), "").unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.msg.contains(word), "{config}: {error}");
        }
    }
}
