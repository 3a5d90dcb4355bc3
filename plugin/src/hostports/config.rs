//! The keys that host ports are asked for with, checked as a whole. Pure.
//!
//! Keys and texts are those of the Go plugin `portmap`. Its two backends are one here: a config
//! that asks for either is served by nftables, and what only one of them could do is refused.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::conditions::{self, Syntax, Ways};
use crate::address::parse_ip;
use crate::error::{Code, Error};

/// The bit of the packet mark that says "masquerade", as the Go plugin has it.
const MARK_BIT: u32 = 13;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    backend: Option<String>,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
    runtime_config: RawRuntime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRuntime {
    port_mappings: Vec<RawMapping>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A port of the node that leads to one of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(super) protocol: Protocol,
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    host_ip: Option<IpAddr>,
}

impl Mapping {
    /// Whether it is for this family: both, unless an address says which.
    pub(super) fn is_for(&self, v6: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv6() == v6)
    }

    /// The only address that it is for; None for any.
    pub(super) fn host_address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        match self.host_address() {
            Some(ip) => write!(f, "{protocol} {ip} port {}", self.host_port),
            None => write!(f, "{protocol} port {}", self.host_port),
        }
    }
}

/// Host ports that can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPorts {
    /// At least one.
    pub(super) mappings: Vec<Mapping>,
    /// Masquerade what the pod could not answer otherwise.
    pub(super) snat: bool,
    /// … or everything.
    pub(super) masquerade_all: bool,
    /// The packet mark's bit for it.
    pub(super) mark: u32,
    /// For IPv4 and for IPv6, the ways in which the conditions can hold; none: there are none.
    pub(super) conditions: [Ways; 2],
}

impl HostPorts {
    /// Reads a config; None if it asks for no ports, whatever else it says about them.
    pub(crate) fn parse(config: &Value) -> Result<Option<HostPorts>, Error> {
        let raw: Raw = go_json::from_value(config)
            .map_err(|error| Error::new(Code::Decode, error.to_string()))?;
        let mappings = raw.runtime_config.port_mappings.iter().enumerate();
        let mappings = mappings
            .map(|(at, mapping)| mapping.check(at))
            .collect::<Result<Vec<Mapping>, Error>>()?;
        if mappings.is_empty() {
            return Ok(None);
        }
        let syntax = syntax(&raw)?;
        let mark = mark(&raw)?;
        let ways = |list: &Option<Vec<String>>, v6| {
            conditions::parse(list.as_deref().unwrap_or_default(), syntax, v6)
        };
        Ok(Some(HostPorts {
            mappings,
            snat: raw.snat.unwrap_or(true),
            masquerade_all: raw.masq_all,
            mark: 1 << mark,
            conditions: [
                ways(&raw.conditions_v4, false)?,
                ways(&raw.conditions_v6, true)?,
            ],
        }))
    }

    /// No conditions, and the usual mark.
    pub(super) fn has_default_rules(&self) -> bool {
        self.mark == 1 << MARK_BIT && self.conditions.iter().all(Vec::is_empty)
    }
}

impl RawMapping {
    fn check(&self, at: usize) -> Result<Mapping, Error> {
        let port = |what: &str, number: i64| match u16::try_from(number) {
            Ok(port @ 1..) => Ok(port),
            _ => Err(invalid(format!("Invalid {what} port number: {number}"))),
        };
        let host_port = port("host", self.host_port)?;
        let container_port = port("container", self.container_port)?;
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                let field = format!("portMappings[{at}].protocol {other:?}");
                return Err(invalid(format!("{field} is none of tcp, udp, sctp")));
            }
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(parse_ip(text).ok_or_else(|| {
                invalid(format!(
                    "portMappings[{at}].hostIP {text:?} is no IP address"
                ))
            })?),
        };
        Ok(Mapping {
            protocol,
            host_port,
            container_port,
            host_ip,
        })
    }
}

/// In which syntax the conditions are written: either, but one, and the backend's if one is named.
fn syntax(raw: &Raw) -> Result<Option<Syntax>, Error> {
    let lists = [
        ("conditionsV4", &raw.conditions_v4),
        ("conditionsV6", &raw.conditions_v6),
    ];
    let mut written: Vec<(&str, Syntax)> = vec![];
    for (key, list) in lists {
        let first = list.as_ref().and_then(|list| list.first());
        written.extend(first.map(|token| (key, Syntax::of(token))));
    }
    let of = |syntax| written.iter().filter(move |(_, s)| *s == syntax);
    let named = |syntax: Syntax| {
        of(syntax)
            .map(|(key, _)| *key)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let wrong = |backend: &str, other: &str, keys: String| {
        Err(invalid(format!(
            "{backend} backend was requested but configuration contains {other}-specific options [{keys}]"
        )))
    };
    match raw.backend.as_deref().unwrap_or_default() {
        "nftables" if of(Syntax::Iptables).next().is_some() => {
            wrong("nftables", "iptables", named(Syntax::Iptables))
        }
        "iptables" if of(Syntax::Nftables).next().is_some() => {
            wrong("iptables", "nftables", named(Syntax::Nftables))
        }
        "" | "nftables" | "iptables" => match written.as_slice() {
            [(_, one), (_, other)] if one != other => Err(invalid(
                "conditionsV4 and conditionsV6 are written in different syntaxes, iptables' and nftables'",
            )),
            written => Ok(written.first().map(|(_, syntax)| *syntax)),
        },
        other => Err(invalid(format!("unrecognized backend {other:?}"))),
    }
}

fn mark(raw: &Raw) -> Result<u32, Error> {
    match (&raw.external_set_mark_chain, raw.mark_masq_bit) {
        (Some(_), Some(_)) => Err(invalid(
            "Cannot specify externalSetMarkChain and markMasqBit",
        )),
        (Some(chain), None) => Err(Error::new(
            Code::UnsupportedField,
            format!(
                "externalSetMarkChain {chain:?} is not supported: it names a chain of iptables, and host ports are made with nftables"
            ),
        )),
        (None, None) => Ok(MARK_BIT),
        (None, Some(bit)) => match u32::try_from(bit) {
            Ok(bit @ 0..=31) => Ok(bit),
            _ => Err(invalid(format!(
                "MasqMarkBit must be between 0 and 31, not {bit}"
            ))),
        },
    }
}

pub(super) fn invalid(msg: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(mapping: Value, mut config: Value) -> Result<Option<HostPorts>, Error> {
        config["runtimeConfig"] = json!({"portMappings": mapping});
        HostPorts::parse(&config)
    }

    fn tcp() -> Value {
        json!([{"hostPort":8080,"containerPort":80,"protocol":"tcp"}])
    }

    #[test]
    fn keys_of_every_runtime_are_understood() {
        let containerd = json!({"RuntimeConfig":{"PortMappings":
            [{"HostPort":8080,"ContainerPort":80,"Protocol":"TCP","HostIP":""}]}});
        let got = HostPorts::parse(&containerd).unwrap().unwrap();
        assert_eq!(got, parse(tcp(), json!({})).unwrap().unwrap());
        assert!(got.snat && !got.masquerade_all && got.has_default_rules());
        for none in [json!({}), json!({"runtimeConfig":{"portMappings":null}})] {
            assert_eq!(HostPorts::parse(&none).unwrap(), None);
        }
    }

    #[test]
    fn what_cannot_be_a_port_is_refused_with_its_code_and_key() {
        let with = |key: &str, value: Value| {
            let mut list = tcp();
            list[0][key] = value;
            list
        };
        for (list, code, word) in [
            (
                with("hostPort", json!(0)),
                Code::InvalidConfig,
                "Invalid host port number: 0",
            ),
            (with("hostPort", json!(70000)), Code::InvalidConfig, "70000"),
            (
                with("containerPort", json!(-1)),
                Code::InvalidConfig,
                "Invalid container port number: -1",
            ),
            (
                with("protocol", json!("icmp")),
                Code::InvalidConfig,
                "protocol",
            ),
            (with("protocol", json!("")), Code::InvalidConfig, "protocol"),
            (with("hostIP", json!("x")), Code::InvalidConfig, "hostIP"),
            (
                with("hostPort", json!("80")),
                Code::Decode,
                "runtimeConfig.portMappings[0].hostPort",
            ),
            (json!({}), Code::Decode, "portMappings"),
        ] {
            let error = parse(list.clone(), json!({})).unwrap_err();
            assert_eq!(error.code, code, "{list}: {error}");
            assert!(error.msg.contains(word), "{list}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (config, code, word) in [
            (
                json!({"backend":"foo"}),
                Code::InvalidConfig,
                "unrecognized backend \"foo\"",
            ),
            (
                json!({"backend":"nftables","conditionsV4":["!","-d","192.0.2.0/24"]}),
                Code::InvalidConfig,
                "nftables backend was requested but configuration contains iptables-specific options [conditionsV4]",
            ),
            (
                json!({"backend":"iptables","conditionsV6":["ip6","daddr","::1"]}),
                Code::InvalidConfig,
                "nftables-specific options [conditionsV6]",
            ),
            (
                json!({"conditionsV4":["-d","1.2.3.4"],"conditionsV6":["ip6","daddr","::1"]}),
                Code::InvalidConfig,
                "syntaxes",
            ),
            (
                json!({"externalSetMarkChain":"KUBE-MARK-MASQ"}),
                Code::UnsupportedField,
                "externalSetMarkChain",
            ),
            (
                json!({"externalSetMarkChain":"X","markMasqBit":1}),
                Code::InvalidConfig,
                "markMasqBit",
            ),
            (json!({"markMasqBit":32}), Code::InvalidConfig, "32"),
            (json!({"snat":"no"}), Code::Decode, "snat"),
        ] {
            let error = parse(tcp(), config.clone()).unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.msg.contains(word), "{config}: {error}");
        }
        assert!(
            parse(tcp(), json!({"backend":"iptables"}))
                .unwrap()
                .is_some()
        );
    }
}
