//! The configs that both chains get. `DATA` in them is the folder of the case.

use serde_json::{Value, json};

/// One input.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// The plugins' objects, in the order of ADD.
    pub(crate) plugins: Vec<Value>,
    /// What the runtime offers.
    pub(crate) capabilities: Value,
    /// CNI_ARGS.
    pub(crate) args: Vec<(&'static str, &'static str)>,
}

fn ipam(more: Value) -> Value {
    let mut ipam = json!({"type": "host-local", "dataDir": "DATA",
        "ranges": [[{"subnet": "10.77.0.0/24"}]]});
    merge(&mut ipam, more);
    ipam
}

fn dual() -> Value {
    json!({"ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
        "routes": [{"dst": "10.76.0.0/14"}, {"dst": "fd00:76::/32"}]})
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// A bridge with a gateway, and what a case adds to it and to its ipam.
fn bridge(more: Value, more_ipam: Value) -> Value {
    let mut conf = json!({"type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": ipam(more_ipam)});
    merge(&mut conf, more);
    conf
}

fn case(name: &'static str, plugins: Vec<Value>) -> Case {
    Case {
        name,
        version: "1.0.0",
        plugins,
        capabilities: json!({}),
        args: vec![],
    }
}

fn option(name: &'static str, more: Value) -> Case {
    case(name, vec![bridge(more, json!({}))])
}

fn addresses(name: &'static str, more_ipam: Value) -> Case {
    case(name, vec![bridge(json!({}), more_ipam)])
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let none = || json!({});
    let mut all: Vec<Case> = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
        .into_iter()
        .map(|version| Case {
            version,
            ..case(
                "version",
                vec![bridge(
                    json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450}),
                    json!({"routes": [{"dst": "10.76.0.0/14"}]}),
                )],
            )
        })
        .collect();
    all.extend([
        option("gateway", none()),
        option("no-gateway", json!({"isGateway": false})),
        option("default-gateway", json!({"isDefaultGateway": true})),
        option("mtu", json!({"mtu": 1400})),
        option("hairpin", json!({"hairpinMode": true})),
        option("promisc", json!({"promiscMode": true})),
        option("isolation", json!({"portIsolation": true})),
        option("force-address", json!({"forceAddress": true})),
        option(
            "masquerade-nftables",
            json!({"ipMasq": true, "ipMasqBackend": "nftables"}),
        ),
        option(
            "dns",
            json!({"dns": {"nameservers": ["10.77.0.53"], "domain": "a.example",
            "search": ["b.example"], "options": ["ndots:5"]}}),
        ),
        option(
            "mac",
            json!({"runtimeConfig": {"mac": "02:00:00:33:44:55"}}),
        ),
        addresses("dual", dual()),
        case(
            "dual-default",
            vec![bridge(json!({"isDefaultGateway": true}), dual())],
        ),
        case(
            "v6",
            vec![bridge(
                json!({"isDefaultGateway": true}),
                json!({"ranges": [[{"subnet": "fd00:77::/64"}]]}),
            )],
        ),
        addresses(
            "routes",
            json!({"routes": [{"dst": "0.0.0.0/0"},
            {"dst": "192.0.2.0/24", "gw": "10.77.0.9"}]}),
        ),
        Case {
            version: "1.1.0",
            ..addresses(
                "route-options",
                json!({"routes": [
                {"dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1200},
                {"dst": "192.0.2.0/24", "gw": "10.77.0.9", "priority": 50},
                {"dst": "198.51.100.0/24", "gw": "10.77.0.9", "table": 100}]}),
            )
        },
        addresses(
            "range",
            json!({"ranges": [[{"subnet": "10.77.0.0/24",
            "rangeStart": "10.77.0.50", "rangeEnd": "10.77.0.60", "gateway": "10.77.0.254"}]]}),
        ),
        addresses(
            "two-ranges-of-a-set",
            json!({"ranges": [[
            {"subnet": "10.77.0.0/24", "rangeEnd": "10.77.0.10"}, {"subnet": "10.78.0.0/24"}]]}),
        ),
        Case {
            args: vec![("IP", "10.77.0.99"), ("IgnoreUnknown", "1")],
            ..addresses("requested", none())
        },
        Case {
            capabilities: json!({"ips": ["10.77.0.77"]}),
            ..option(
                "requested-by-capability",
                json!({"capabilities": {"ips": true}}),
            )
        },
        case(
            "layer-2",
            vec![json!({"type": "bridge", "bridge": "cni0", "ipam": {}})],
        ),
        case(
            "interface-down",
            vec![json!({"type": "bridge", "bridge": "cni0", "ipam": {},
            "disableContainerInterface": true})],
        ),
        case(
            "tuning",
            vec![
                bridge(json!({"isDefaultGateway": true}), none()),
                json!({"type": "tuning", "dataDir": "DATA/tuning", "mac": "02:00:00:00:00:07",
                "mtu": 1300, "promisc": true,
                "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}}),
            ],
        ),
        Case {
            capabilities: json!({"portMappings":
                [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}),
            ..case(
                "portmap",
                vec![
                    bridge(json!({"isDefaultGateway": true}), none()),
                    json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true,
                    "backend": "nftables"}),
                ],
            )
        },
        Case {
            capabilities: json!({"portMappings":
                [{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]}),
            ..case(
                "chain",
                vec![
                    bridge(
                        json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450}),
                        dual(),
                    ),
                    json!({"type": "portmap", "capabilities": {"portMappings": true},
                    "backend": "nftables"}),
                    json!({"type": "tuning", "dataDir": "DATA/tuning",
                    "sysctl": {"net.core.somaxconn": "500"}}),
                ],
            )
        },
    ]);
    all
}
