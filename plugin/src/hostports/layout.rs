//! The table: its maps and sets, and the rules that look things up in them. Pure.
//!
//! ```text
//!  prerouting, output      [conditions] to an address of this host ──▶ ports
//!  ports                   from the pod's own device, or 127.0.0.0/8, or anywhere: mark
//!                          address . protocol . port ──▶ pod . port      (addressed4, addressed6)
//!                          protocol . port ──▶ pod . port                (ports4, ports6)
//!  postrouting             marked, and its destination was changed: masquerade
//!  guard                   to 127.0.0.0/8, but not from this host: drop
//! ```
//!
//! A config with conditions or a mark of its own has a table of its own, so that two networks do
//! not rewrite each other's rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel::nft::{Chain, Family, Field, Hook, HookPoint, HookType, Rule, RuleBuilder, Set, Table};

use super::conditions::Test;
use super::config::HostPorts;
use crate::attachment;

/// The name of the table of configs without conditions, and the beginning of all others.
pub(super) const TABLE: &str = "twill-hostports";
/// Everything on 127.0.0.0/8 belongs to the host that it is on (RFC 1122 §3.2.1.3).
const LOCALHOST: &str = "127.0.0.0/8";
/// After destinations were changed by nobody yet, before connections are tracked.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// The names of one family's maps and sets.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) v6: bool,
    /// The map of ports on any address.
    pub(super) any: &'static str,
    /// The map of ports on one address.
    pub(super) addressed: &'static str,
    pub(super) from_device: &'static str,
    pub(super) from_device_addressed: &'static str,
    pub(super) from_localhost: &'static str,
    pub(super) from_localhost_addressed: &'static str,
    pub(super) from_anywhere: &'static str,
    pub(super) from_anywhere_addressed: &'static str,
}

pub(super) static NAMES: [Names; 2] = [
    Names {
        v6: false,
        any: "ports4",
        addressed: "addressed4",
        from_device: "from-device4",
        from_device_addressed: "from-device-addressed4",
        from_localhost: "from-localhost4",
        from_localhost_addressed: "from-localhost-addressed4",
        from_anywhere: "from-anywhere4",
        from_anywhere_addressed: "from-anywhere-addressed4",
    },
    Names {
        v6: true,
        any: "ports6",
        addressed: "addressed6",
        from_device: "from-device6",
        from_device_addressed: "from-device-addressed6",
        // There is no way out of the host for ::1 that an answer could come back by.
        from_localhost: "",
        from_localhost_addressed: "",
        from_anywhere: "from-anywhere6",
        from_anywhere_addressed: "from-anywhere-addressed6",
    },
];

/// Every map and set.
pub(super) const SETS: [&str; 14] = [
    "ports4",
    "addressed4",
    "from-device4",
    "from-device-addressed4",
    "from-localhost4",
    "from-localhost-addressed4",
    "from-anywhere4",
    "from-anywhere-addressed4",
    "ports6",
    "addressed6",
    "from-device6",
    "from-device-addressed6",
    "from-anywhere6",
    "from-anywhere-addressed6",
];

pub(super) fn names(v6: bool) -> &'static Names {
    &NAMES[usize::from(v6)]
}

/// A table with its rules, and its maps and sets without their elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) table: Table,
    pub(super) sets: Vec<Set>,
}

impl Layout {
    /// The layout for a config.
    pub(super) fn of(ports: &HostPorts) -> Layout {
        let mut chains = vec![Chain {
            name: "ports".to_owned(),
            hook: None,
            rules: ports_rules(ports.mark),
        }];
        for (name, point) in [
            ("prerouting", HookPoint::Prerouting),
            ("output", HookPoint::Output),
        ] {
            chains.push(Chain {
                name: name.to_owned(),
                hook: Some(hook(HookType::Nat, point, DSTNAT)),
                rules: entry_rules(ports),
            });
        }
        let masquerade = Rule::because("host ports that are answered to this host")
            .mark_has(ports.mark)
            .destination_was_changed()
            .masquerade(false);
        chains.push(Chain {
            name: "postrouting".to_owned(),
            hook: Some(hook(HookType::Nat, HookPoint::Postrouting, SRCNAT)),
            rules: vec![masquerade],
        });
        let guard = Rule::because("route_localnet opens the loopback to neighbours")
            .comes_in_by(false, "lo")
            .destination(true, LOCALHOST.parse().expect("a network"))
            .drop();
        chains.push(Chain {
            name: "guard".to_owned(),
            hook: Some(hook(HookType::Filter, HookPoint::Prerouting, RAW)),
            rules: vec![guard],
        });
        Layout {
            table: Table {
                family: Family::Inet,
                name: table_name(ports),
                chains,
            },
            sets: NAMES.iter().flat_map(sets).collect(),
        }
    }
}

fn table_name(ports: &HostPorts) -> String {
    if ports.has_default_rules() {
        return TABLE.to_owned();
    }
    let rules = format!("{:?} {:x}", ports.conditions, ports.mark);
    format!(
        "{TABLE}-{:08x}",
        attachment::hash(&[rules.as_bytes()]) as u32
    )
}

fn hook(kind: HookType, point: HookPoint, priority: i32) -> Hook {
    Hook {
        kind,
        point,
        priority,
    }
}

/// Into `ports`, for each family and each way in which its conditions can hold.
fn entry_rules(ports: &HostPorts) -> Vec<Rule> {
    let jump = |rule: RuleBuilder| rule.to_this_host().jump("ports");
    if ports.conditions.iter().all(Vec::is_empty) {
        return vec![jump(Rule::because("to this host"))];
    }
    let mut rules = vec![];
    for (names, ways) in NAMES.iter().zip(&ports.conditions) {
        let begin =
            || Rule::because("to this host, by the config's conditions").family_of(any_of(names));
        match ways.as_slice() {
            [] => rules.push(jump(begin())),
            ways => {
                let test =
                    |way: &Vec<Test>| way.iter().fold(begin(), |rule, test| test.add_to(rule));
                rules.extend(ways.iter().map(|way| jump(test(way))));
            }
        }
    }
    rules
}

fn ports_rules(mark: u32) -> Vec<Rule> {
    let mut rules = vec![];
    for names in &NAMES {
        let begin = |why: &str| Rule::because(why).family_of(any_of(names));
        for (key, set) in [
            (device_key(names, false), names.from_device),
            (device_key(names, true), names.from_device_addressed),
            (port_key(names, false), names.from_anywhere),
            (port_key(names, true), names.from_anywhere_addressed),
        ] {
            rules.push(begin("masquerade").in_set(&key, set).set_mark(mark));
        }
        if !names.v6 {
            for (key, set) in [
                (port_key(names, false), names.from_localhost),
                (port_key(names, true), names.from_localhost_addressed),
            ] {
                let rule = begin("masquerade what this host sends itself");
                let rule = rule.source(true, LOCALHOST.parse().expect("a network"));
                rules.push(rule.in_set(&key, set).set_mark(mark));
            }
        }
    }
    for names in &NAMES {
        for (key, map) in [
            (port_key(names, true), names.addressed),
            (port_key(names, false), names.any),
        ] {
            let rule = Rule::because("to the pod").family_of(any_of(names));
            rules.push(rule.destination_from(names.v6, &key, map));
        }
    }
    rules
}

fn port_key(names: &Names, addressed: bool) -> Vec<Field> {
    let mut key = vec![];
    if addressed {
        key.push(address(names));
    }
    key.extend([Field::Protocol, Field::Port]);
    key
}

fn device_key(names: &Names, addressed: bool) -> Vec<Field> {
    let mut key = vec![Field::Ifname];
    key.extend(port_key(names, addressed));
    key
}

/// Some address of the family.
fn any_of(names: &Names) -> IpAddr {
    match names.v6 {
        false => Ipv4Addr::UNSPECIFIED.into(),
        true => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn address(names: &Names) -> Field {
    match names.v6 {
        false => Field::Ipv4,
        true => Field::Ipv6,
    }
}

fn sets(names: &Names) -> Vec<Set> {
    let to = vec![address(names), Field::Port];
    let set = |name: &str, key: Vec<Field>, data: &[Field]| Set {
        name: name.to_owned(),
        key,
        data: data.to_vec(),
    };
    let mut sets = vec![
        set(names.any, port_key(names, false), &to),
        set(names.addressed, port_key(names, true), &to),
        set(names.from_device, device_key(names, false), &[]),
        set(names.from_device_addressed, device_key(names, true), &[]),
        set(names.from_anywhere, port_key(names, false), &[]),
        set(names.from_anywhere_addressed, port_key(names, true), &[]),
    ];
    if !names.v6 {
        sets.push(set(names.from_localhost, port_key(names, false), &[]));
        sets.push(set(
            names.from_localhost_addressed,
            port_key(names, true),
            &[],
        ));
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn layout(config: serde_json::Value) -> Layout {
        let mut config = config;
        config["runtimeConfig"] =
            json!({"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp"}]});
        Layout::of(&HostPorts::parse(&config).unwrap().unwrap())
    }

    #[test]
    fn every_set_is_known_by_name() {
        let mut names: Vec<_> = layout(json!({}))
            .sets
            .into_iter()
            .map(|set| set.name)
            .collect();
        names.sort();
        let mut known = SETS.map(str::to_owned);
        known.sort();
        assert_eq!(names, known);
    }

    #[test]
    fn a_config_with_rules_of_its_own_has_a_table_of_its_own() {
        let name = |config| layout(config).table.name;
        assert_eq!(name(json!({})), TABLE);
        assert_eq!(
            name(json!({"masqAll":true,"snat":true,"markMasqBit":13})),
            TABLE
        );
        let one = name(json!({"conditionsV4":["ip","daddr","!=","192.0.2.0/24"]}));
        let two = name(json!({"markMasqBit":14}));
        assert!(one.starts_with(TABLE) && two.starts_with(TABLE));
        assert!(one != two && one != TABLE && two != TABLE);
    }

    #[test]
    fn conditions_of_one_family_leave_the_other_open() {
        let layout = layout(json!({"conditionsV4":["ip","daddr","!=","192.0.2.0/24"]}));
        let chain = |name: &str| {
            let found = layout.table.chains.iter().find(|chain| chain.name == name);
            found.map(|chain| chain.rules.len())
        };
        assert_eq!((chain("prerouting"), chain("output")), (Some(2), Some(2)));
    }
}
