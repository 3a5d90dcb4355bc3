//! Each field of each config.

use serde_json::{Value, json};

use super::scene::{self, State, call, refused, shortened, with_a_pod};
use super::values::Kind::{self, *};

/// A field by its path, what it is, and the words for it in errors where that is not its name: the
/// Go plugins' texts are kept where they say as much.
type Field = (&'static str, Kind, &'static str);

/// Of every config.
const HEADER: &[Field] = &[("name", Name, "name"), ("cniVersion", Word, "version")];

/// Of the bridge, at the top of its own config or in `delegate`.
const BRIDGE: &[Field] = &[
    ("bridge", Ifname, ""),
    ("isGateway", Flag, ""),
    ("isDefaultGateway", Flag, ""),
    ("forceAddress", Flag, ""),
    ("ipMasq", Flag, ""),
    ("mtu", Number, ""),
    ("hairpinMode", Flag, ""),
    ("promiscMode", Flag, ""),
    ("portIsolation", Flag, ""),
    ("vlan", Count, "vlan"),
    ("vlanTrunk", List, ""),
    ("vlanTrunk.0", Object, "vlanTrunk"),
    ("vlanTrunk.0.id", Count, "id"),
    ("vlanTrunk.0.minID", Count, "minID"),
    ("vlanTrunk.0.maxID", Count, "maxID"),
    ("preserveDefaultVlan", Flag, ""),
    ("macspoofchk", Flag, ""),
    ("enabledad", Flag, ""),
    ("disableContainerInterface", Flag, ""),
    ("dns", Object, ""),
    ("dns.nameservers", List, ""),
    ("dns.nameservers.0", Line, "nameservers"),
    ("dns.domain", Line, ""),
    ("dns.search", List, ""),
    ("dns.search.0", Line, "search"),
    ("dns.options", List, ""),
    ("dns.options.0", Line, "options"),
];

/// What a runtime asks for one pod, and the operator's `args`.
const PER_POD: &[Field] = &[
    ("runtimeConfig", Object, ""),
    ("runtimeConfig.mac", Mac, ""),
    ("runtimeConfig.ips", List, ""),
    ("runtimeConfig.ips.0", Ip, "ips"),
    ("runtimeConfig.ipRanges", List, ""),
    ("runtimeConfig.ipRanges.0", List, "ipRanges"),
    ("runtimeConfig.ipRanges.0.0", Object, "ipRanges"),
    ("runtimeConfig.ipRanges.0.0.subnet", Cidr, ""),
];

const ARGS: &[Field] = &[
    ("args", Object, ""),
    ("args.cni", Object, ""),
    ("args.cni.mac", Mac, ""),
    ("args.cni.ips", List, ""),
    ("args.cni.ips.0", Ip, "ips"),
];

/// host-local's own.
const IPAM: &[Field] = &[
    ("ipam.ranges", List, ""),
    ("ipam.ranges.0", List, "ranges"),
    ("ipam.ranges.0.0", Object, "ranges"),
    ("ipam.ranges.0.0.subnet", Cidr, ""),
    ("ipam.ranges.0.0.rangeStart", Ip, ""),
    ("ipam.ranges.0.0.rangeEnd", Ip, ""),
    ("ipam.ranges.0.0.gateway", Ip, ""),
    ("ipam.subnet", Cidr, ""),
    ("ipam.rangeStart", Ip, ""),
    ("ipam.rangeEnd", Ip, ""),
    ("ipam.gateway", Ip, ""),
];

/// Those that flannel's config may have too.
const IPAM_BESIDE: &[Field] = &[
    ("ipam", Object, ""),
    ("ipam.routes", List, ""),
    ("ipam.routes.0", Object, "routes"),
    ("ipam.routes.0.dst", Cidr, ""),
    ("ipam.routes.0.gw", Ip, ""),
    ("ipam.routes.0.mtu", Count, ""),
    ("ipam.routes.0.advmss", Count, ""),
    ("ipam.routes.0.priority", Count, ""),
    ("ipam.routes.0.table", Count, ""),
    ("ipam.routes.0.scope", Count, ""),
    ("ipam.dataDir", Path, ""),
    ("ipam.resolvConf", Path, ""),
];

const FLANNEL: &[Field] = &[
    ("subnetFile", Path, ""),
    ("dataDir", Path, ""),
    ("delegate", Object, ""),
    ("delegate.type", Plugin, "type|plugin"),
];

const PORTS: &[Field] = &[
    ("runtimeConfig.portMappings", List, ""),
    ("runtimeConfig.portMappings.0", Object, "portMappings"),
    ("runtimeConfig.portMappings.0.hostPort", Count, "host"),
    (
        "runtimeConfig.portMappings.0.containerPort",
        Count,
        "container",
    ),
    ("runtimeConfig.portMappings.0.protocol", Word, ""),
    ("runtimeConfig.portMappings.0.hostIP", Ip, ""),
    ("snat", Flag, ""),
    ("masqAll", Flag, ""),
    ("markMasqBit", Count, "mark"),
    ("backend", Word, ""),
    ("conditionsV4", List, ""),
    ("conditionsV4.0", Word, "conditionsV4"),
    ("conditionsV6", List, ""),
    ("conditionsV6.0", Word, "conditionsV6"),
    ("externalSetMarkChain", Word, ""),
];

const LIMITS: &[Field] = &[
    ("runtimeConfig.bandwidth", Object, ""),
    ("runtimeConfig.bandwidth.ingressRate", Count, "rate"),
    ("runtimeConfig.bandwidth.ingressBurst", Count, "burst"),
    ("runtimeConfig.bandwidth.egressRate", Count, "rate"),
    ("runtimeConfig.bandwidth.egressBurst", Count, "burst"),
];

const OWN_LIMITS: &[Field] = &[
    ("ingressRate", Count, "rate"),
    ("ingressBurst", Count, "burst"),
    ("egressRate", Count, "rate"),
    ("egressBurst", Count, "burst"),
];

const TUNING: &[Field] = &[
    ("dataDir", Path, ""),
    ("sysctl", Object, ""),
    ("sysctl.net/core/somaxconn", Line, "somaxconn"),
    ("mac", Mac, ""),
    ("promisc", Flag, ""),
    ("mtu", Count, ""),
    ("allmulti", Flag, ""),
    ("txQLen", Count, ""),
    ("args", Object, ""),
    ("args.cni", Object, ""),
    ("args.cni.sysctl", Object, ""),
    ("args.cni.sysctl.net/core/somaxconn", Line, "somaxconn"),
    ("args.cni.mac", Mac, ""),
    ("args.cni.promisc", Flag, ""),
    ("args.cni.mtu", Count, ""),
    ("args.cni.allmulti", Flag, ""),
    ("args.cni.txQLen", Count, ""),
    ("runtimeConfig.mac", Mac, ""),
];

const PREVIOUS: &[Field] = &[
    ("prevResult", Object, ""),
    ("prevResult.cniVersion", Word, "version"),
    ("prevResult.interfaces", List, ""),
    ("prevResult.interfaces.0", Object, "interfaces"),
    ("prevResult.interfaces.0.name", Text, ""),
    ("prevResult.interfaces.0.mac", Text, ""),
    ("prevResult.interfaces.0.sandbox", Text, ""),
    ("prevResult.ips", List, ""),
    ("prevResult.ips.0", Object, "ips"),
    ("prevResult.ips.0.address", Cidr, ""),
    ("prevResult.ips.0.gateway", Ip, ""),
    ("prevResult.ips.0.interface", Place, ""),
    ("prevResult.routes", List, ""),
    ("prevResult.routes.0.dst", Cidr, ""),
    ("prevResult.dns", Object, ""),
];

/// The value at a path of keys and places, made where it is missing.
fn at<'a>(config: &'a mut Value, path: &str) -> &'a mut Value {
    // A setting's name has slashes where a path has dots.
    let mut here = config;
    for key in path.split('.') {
        here = match key.parse::<usize>() {
            Ok(place) => {
                if !here.is_array() {
                    *here = json!([]);
                }
                let list = here.as_array_mut().unwrap();
                while list.len() <= place {
                    list.push(json!({}));
                }
                &mut list[place]
            }
            Err(_) => &mut here[key],
        };
    }
    here
}

/// Puts every bad value into every field, and lists what was not answered as it should be.
fn faults(kind: &str, base: &Value, prefix: &str, fields: &[Field]) -> Vec<String> {
    let before = State::now();
    let mut faults = vec![];
    for (path, field, word) in fields {
        let last = path.rsplit('.').next().unwrap();
        let word = if word.is_empty() { last } else { word }.to_lowercase();
        for bad in field.bad() {
            let mut config = base.clone();
            *at(&mut config, &format!("{prefix}{path}")) = bad.value.clone();
            let shown = shortened(&bad.value.to_string());
            let what = format!("{kind} {prefix}{path} = {shown}");
            match refused(&what, &call(kind, "ADD", &config)) {
                Err(fault) => faults.push(fault),
                Ok((code, text)) => {
                    let codes: &[u64] = if bad.is_mistyped { &[6] } else { &[1, 2, 6, 7] };
                    if !codes.contains(&code) {
                        faults.push(format!("{what}: code {code}: {}", shortened(&text)));
                    }
                    if !word
                        .split('|')
                        .any(|word| text.to_lowercase().contains(word))
                    {
                        faults.push(format!("{what}: {word} is not named: {}", shortened(&text)));
                    }
                    if text.len() > 10_000 {
                        faults.push(format!("{what}: {} bytes of words", text.len()));
                    }
                }
            }
            // DEL takes what it can from any config; the others answer in one document as well.
            for verb in ["CHECK", "STATUS", "DEL"] {
                let answer = call(kind, verb, &config);
                if answer.exit == 1 {
                    faults.extend(refused(&format!("{verb} {what}"), &answer).err());
                } else if !answer.stdout.is_empty() {
                    faults.push(format!("{verb} {what}: it said something"));
                }
            }
            before.assert_same(&State::now(), &what);
        }
    }
    faults
}

/// All fields of a plugin: each list below a prefix.
fn every_field(kind: &str, lists: &[(&str, &[Field])], more: &Value) {
    with_a_pod(kind, |previous| {
        let mut base = scene::config(kind, previous);
        base.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        // Without a bad value it is taken, so a refusal below is that value's.
        let added = call(kind, "ADD", &base);
        assert_eq!(added.exit, 0, "{kind}: {}", added.stdout);
        call(kind, "DEL", &base).ok();
        let before = State::whole();
        let faults: Vec<String> = (lists.iter())
            .flat_map(|(prefix, fields)| faults(kind, &base, prefix, fields))
            .collect();
        assert!(
            faults.is_empty(),
            "{} faults:\n{}",
            faults.len(),
            faults.join("\n")
        );
        before.assert_same(&State::whole(), "in the end");
    });
}

fn ports_and_limits() -> Value {
    json!({"runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
            "egressRate": 8_000_000, "egressBurst": 800_000}}})
}

#[test]
fn every_field_of_bridge() {
    let lists = [
        ("", HEADER),
        ("", BRIDGE),
        ("", PER_POD),
        ("", ARGS),
        ("", IPAM),
        ("", IPAM_BESIDE),
        (
            "",
            &[
                ("ipam.type", Plugin, "type|plugin"),
                ("ipMasqBackend", Word, "backend"),
            ],
        ),
    ];
    every_field("bridge", &lists, &json!({"ipMasq": true}));
}

#[test]
fn every_field_of_flannel() {
    let lists = [
        ("", HEADER),
        ("", FLANNEL),
        ("delegate.", BRIDGE),
        ("", PER_POD),
        ("", IPAM_BESIDE),
        ("", PORTS),
        ("", LIMITS),
    ];
    every_field("flannel", &lists, &ports_and_limits());
}

#[test]
fn every_field_of_twill() {
    let lists = [
        ("", HEADER),
        ("", FLANNEL),
        ("", BRIDGE),
        ("", PER_POD),
        ("", ARGS),
        ("", IPAM_BESIDE),
        ("", PORTS),
        ("", LIMITS),
        ("", OWN_LIMITS),
        ("", &[("mode", Word, "")]),
    ];
    every_field("twill", &lists, &ports_and_limits());
}

#[test]
fn every_field_of_host_local() {
    let per_pod = [
        ("runtimeConfig", Object, ""),
        ("runtimeConfig.ips", List, ""),
        ("runtimeConfig.ips.0", Ip, "ips"),
        ("args.cni", Object, ""),
        ("args.cni.ips.0", Ip, "ips"),
    ];
    let lists = [("", HEADER), ("", IPAM), ("", IPAM_BESIDE), ("", &per_pod)];
    every_field("host-local", &lists, &json!({}));
}

#[test]
fn every_field_of_portmap() {
    let lists = [("", HEADER), ("", PORTS), ("", PREVIOUS)];
    every_field("portmap", &lists, &ports_and_limits());
}

#[test]
fn every_field_of_bandwidth() {
    let mut base = ports_and_limits();
    every_field(
        "bandwidth",
        &[("", HEADER), ("", LIMITS), ("", PREVIOUS)],
        &base,
    );
    for key in ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] {
        base[key] = json!(8_000_000);
    }
    every_field("bandwidth", &[("", OWN_LIMITS)], &base);
}

#[test]
fn every_field_of_tuning() {
    every_field(
        "tuning",
        &[("", HEADER), ("", TUNING), ("", PREVIOUS)],
        &json!({}),
    );
}

#[test]
fn every_field_of_loopback() {
    every_field("loopback", &[("", HEADER), ("", PREVIOUS)], &json!({}));
}
