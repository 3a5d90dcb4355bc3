//! What a pod's ports are in the table: one entry of a map for each port and family, and for those
//! that are masqueraded entries of sets. Pure.

use std::fmt;
use std::net::IpAddr;

use kernel::conntrack::UdpTo;
use kernel::nft::{Element, Value};

use super::config::{HostPorts, Mapping, Protocol};
use super::layout::{self, Names};

/// An entry of a map, or an element of a set, without its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) set: &'static str,
    pub(super) key: Value,
    pub(super) data: Value,
    mapping: Mapping,
}

impl Entry {
    pub(super) fn element(&self, owner: &str) -> Element {
        Element {
            key: self.key.clone(),
            data: self.data.clone(),
            comment: owner.to_owned(),
        }
    }

    /// The flows that the entry must not find going on, if it is for UDP.
    pub(super) fn udp(&self) -> Option<UdpTo> {
        udp_of(self.set, &self.key)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.mapping, self.set)
    }
}

/// The flows of a map's key that is for UDP.
pub(super) fn udp_of(set: &str, key: &Value) -> Option<UdpTo> {
    let names = layout::NAMES
        .iter()
        .find(|n| [n.any, n.addressed].contains(&set))?;
    let (ip, key) = match set == names.addressed {
        true => {
            let (ip, rest) = key.split_ip(names.v6)?;
            (Some(ip), rest)
        }
        false => (None, key.clone()),
    };
    let (protocol, key) = key.split_protocol()?;
    let (port, _) = key.split_port()?;
    (protocol == Protocol::Udp.number()).then_some(UdpTo {
        v6: names.v6,
        ip,
        port,
    })
}

/// The entries of a pod. Where two mappings have the same key, the first one counts.
pub(super) fn of(ports: &HostPorts, targets: &[IpAddr], device: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    for target in targets {
        let names = layout::names(target.is_ipv6());
        for mapping in &ports.mappings {
            if !mapping.is_for(target.is_ipv6()) {
                continue;
            }
            for entry in of_mapping(ports, mapping, *target, device, names) {
                let known = entries
                    .iter()
                    .any(|e| e.set == entry.set && e.key == entry.key);
                if !known {
                    entries.push(entry);
                }
            }
        }
    }
    // Neighbours of one set are written in one message.
    entries.sort_by_key(|entry| entry.set);
    entries
}

fn of_mapping(
    ports: &HostPorts,
    mapping: &Mapping,
    target: IpAddr,
    device: &str,
    names: &Names,
) -> Vec<Entry> {
    let port = |front: Value| {
        front
            .protocol(mapping.protocol.number())
            .port(mapping.host_port)
    };
    let host = |front: Value| match mapping.host_address() {
        Some(ip) => front.ip(ip),
        None => front,
    };
    let entry = |set, key, data| Entry {
        set,
        key,
        data,
        mapping: *mapping,
    };
    let addressed = mapping.host_address().is_some();
    let pick = |any, with_address| if addressed { with_address } else { any };
    let to = Value::new().ip(target).port(mapping.container_port);
    let mut entries = vec![entry(
        pick(names.any, names.addressed),
        port(host(Value::new())),
        to,
    )];
    if !ports.snat {
        return entries;
    }
    match ports.masquerade_all {
        true => entries.push(entry(
            pick(names.from_anywhere, names.from_anywhere_addressed),
            port(host(Value::new())),
            Value::new(),
        )),
        false => {
            entries.push(entry(
                pick(names.from_device, names.from_device_addressed),
                port(host(Value::new().ifname(device))),
                Value::new(),
            ));
            if !names.v6 {
                entries.push(entry(
                    pick(names.from_localhost, names.from_localhost_addressed),
                    port(host(Value::new())),
                    Value::new(),
                ));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entries(config: serde_json::Value, targets: &[&str]) -> Vec<Entry> {
        let ports = HostPorts::parse(&config).unwrap().unwrap();
        let targets: Vec<IpAddr> = targets.iter().map(|ip| ip.parse().unwrap()).collect();
        of(&ports, &targets, "cni0")
    }

    fn sets(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.set).collect()
    }

    fn mappings(list: serde_json::Value) -> serde_json::Value {
        json!({"runtimeConfig": {"portMappings": list}})
    }

    #[test]
    fn a_port_is_one_entry_per_family_and_what_is_masqueraded() {
        let config = mappings(json!([{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]));
        let got = entries(config.clone(), &["10.1.2.2", "fd00::2"]);
        assert_eq!(
            sets(&got),
            [
                "from-device4",
                "from-device6",
                "from-localhost4",
                "ports4",
                "ports6"
            ]
        );
        let v4 = got.iter().find(|entry| entry.set == "ports4").unwrap();
        assert_eq!(v4.key, Value::new().protocol(6).port(8080));
        assert_eq!(
            v4.data,
            Value::new().ip("10.1.2.2".parse().unwrap()).port(80)
        );
        let mut without = config.clone();
        without["snat"] = json!(false);
        assert_eq!(sets(&entries(without, &["10.1.2.2"])), ["ports4"]);
        let mut all = config;
        all["masqAll"] = json!(true);
        assert_eq!(
            sets(&entries(all, &["10.1.2.2"])),
            ["from-anywhere4", "ports4"]
        );
    }

    #[test]
    fn a_host_address_is_of_its_family_and_unspecified_is_none() {
        let of = |ip: &str| {
            let list = json!([{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":ip}]);
            let mut config = mappings(list);
            config["snat"] = json!(false);
            entries(config, &["10.1.2.2", "fd00::2"])
        };
        assert_eq!(sets(&of("192.0.2.5")), ["addressed4"]);
        assert_eq!(sets(&of("2001:db8::5")), ["addressed6"]);
        assert_eq!(sets(&of("0.0.0.0")), ["ports4"]);
        assert_eq!(sets(&of("::")), ["ports6"]);
        assert_eq!(sets(&of("")), ["ports4", "ports6"]);
        let flow = of("192.0.2.5")[0].udp().unwrap();
        assert_eq!(
            (flow.v6, flow.ip, flow.port),
            (false, Some("192.0.2.5".parse().unwrap()), 53)
        );
        let flow = of("::")[0].udp().unwrap();
        assert_eq!((flow.v6, flow.ip, flow.port), (true, None, 53));
    }

    #[test]
    fn the_first_of_two_mappings_of_one_port_counts() {
        let got = entries(
            mappings(
                json!([{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
                {"hostPort":8080,"containerPort":81,"protocol":"tcp"}]),
            ),
            &["10.1.2.2"],
        );
        let ports: Vec<_> = got.iter().filter(|entry| entry.set == "ports4").collect();
        assert_eq!(ports.len(), 1);
        assert_eq!(
            ports[0].data,
            Value::new().ip("10.1.2.2".parse().unwrap()).port(80)
        );
        assert!(ports[0].udp().is_none());
    }
}
