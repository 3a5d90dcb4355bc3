//! Replays what flanneld was seen to do (`golden/`): the same input must give the same lease, the
//! same routes, neighbours and forwarding entries, the same device and the same `subnet.env`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod differences;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kernel::Mac;
use kernel::link::Link;
use kernel::route::Route;
use serde_json::Value;
use twilld::backend::Identity;
use twilld::family::{ByFamily, Family};
use twilld::lease::Lease;
use twilld::lease_table::LeaseTable;
use twilld::net_conf::NetConf;
use twilld::peers::{self, Node};
use twilld::store::{LeaseEvent, Record};
use twilld::subnet::{Choice, Claim, Taken, choose};
use twilld::subnet_env::{SubnetEnv, previous_subnets};
use twilld::subnets::Subnets;
use twilld::tables::{Facts, Kind, Remote, Tables};
use twilld::underlay::Underlay;

use self::differences::{DIFFERENCES, Only};

const SUBNETS: &str = "/coreos.com/network/subnets/";

struct Case {
    name: String,
    dir: PathBuf,
}

impl Case {
    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = self.read(file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn net_conf(&self) -> NetConf {
        NetConf::parse(self.read("net-conf.json").unwrap().as_bytes()).unwrap()
    }

    /// Name and value of every lease in the store afterwards.
    fn stored(&self) -> Vec<(String, String)> {
        let lines = self.lines("etcd.txt");
        let leases = lines.iter().filter_map(|line| {
            let mut columns = line.split('\t');
            let name = columns.next()?.strip_prefix(SUBNETS)?;
            Some((name.to_owned(), columns.next()?.to_owned()))
        });
        leases.collect()
    }

    /// The store's leases before.
    fn before(&self) -> Vec<(String, String)> {
        let text = self.read("leases.json").unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let leases = json.as_object().unwrap().iter().map(|(key, value)| {
            let name = key.strip_prefix(SUBNETS).unwrap();
            (name.to_owned(), value.as_str().unwrap().to_owned())
        });
        leases.collect()
    }

    fn public_ip(&self) -> Option<IpAddr> {
        let cmd = self.read("cmd")?;
        let (_, rest) = cmd.split_once("--public-ip=")?;
        rest.split_whitespace().next()?.parse().ok()
    }

    fn underlay(&self, families: impl Iterator<Item = Family>) -> Underlay {
        let address = |family| match family {
            Family::V4 => (family, "192.168.50.1".parse::<IpAddr>().unwrap()),
            Family::V6 => (family, "fd00:50::1".parse().unwrap()),
        };
        let addresses: ByFamily<IpAddr> = families.map(address).collect();
        let mut public_ips = addresses;
        if let Some(ip) = self.public_ip() {
            public_ips.set(Family::of(ip), ip);
        }
        Underlay {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            addresses,
            public_ips,
        }
    }
}

fn cases() -> Vec<Case> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dirs = fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut cases: Vec<Case> = dirs
        .filter(|dir| dir.join("net-conf.json").exists())
        .map(|dir| Case {
            name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
            dir,
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() > 30, "the golden cases are missing");
    cases
}

fn facts() -> Facts {
    let route = |net: &str, via: Option<&str>| Route {
        gateway: via.map(|ip| ip.parse().unwrap()),
        ifindex: Some(2),
        ..Route::to(net.parse::<IpNet>().unwrap())
    };
    Facts {
        links: vec![Link {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            up: true,
            running: true,
            txqlen: 1000,
            ..Link::default()
        }],
        routes: vec![
            route("0.0.0.0/0", Some("192.168.50.254")),
            route("192.168.50.0/24", None),
            route("::/0", Some("fd00:50::fe")),
            route("fd00:50::/64", None),
        ],
        ..Facts::default()
    }
}

/// Everything of one node that others can see, as lines.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    fn of_flanneld(case: &Case, own: &Subnets) -> Self {
        let mut seen = BTreeSet::new();
        for line in case
            .lines("route.txt")
            .iter()
            .chain(&case.lines("route6.txt"))
        {
            // Unicast routes of the main table that the kernel did not make itself.
            let main = line.starts_with("1 ") && line.contains(" table 254 ");
            if main && !line.contains(" proto 2 ") {
                let line = line.trim_start_matches("1 ").replace(" table 254", "");
                let line = line.replace(" scope 0", "").replace(" metric 1024", "");
                seen.insert(line.replace(" pref medium", "").trim().to_owned());
            }
        }
        seen.extend(case.lines("neigh.txt"));
        seen.extend(case.lines("fdb.txt"));
        seen.extend(case.lines("subnet.env"));
        let links = case.read("link.json").unwrap_or_else(|| "[]".to_owned());
        let links: Value = serde_json::from_str(&links).unwrap();
        for link in links.as_array().unwrap() {
            let data = &link["linkinfo"]["info_data"];
            if data["type"] == "tun" {
                let name = link["ifname"].as_str().unwrap();
                seen.insert(format!("link {name} mtu {} tun", link["mtu"]));
                continue;
            }
            let local = data["local"].as_str().or(data["local6"].as_str()).unwrap();
            let gbp = data["gbp"].as_bool().unwrap_or(false);
            seen.insert(format!(
                "link {} mtu {} mac {} id {} local {local} port {} learning {} gbp {gbp}",
                link["ifname"].as_str().unwrap(),
                link["mtu"],
                link["address"].as_str().unwrap(),
                data["id"],
                data["port"],
                data["learning"],
            ));
        }
        let value = case
            .stored()
            .into_iter()
            .find(|(name, _)| *name == own.to_string());
        seen.insert(value.unwrap().1);
        Self(seen)
    }

    /// Routes without their metric: flanneld gives none, ours says why it does (`RouteKey::to`).
    fn of_twilld(tables: &Tables, env: &SubnetEnv, lease: &Lease) -> Self {
        let mut seen = BTreeSet::new();
        for (name, device) in &tables.devices {
            for (ip, mac) in &device.neighbours {
                seen.insert(format!("{ip} dev {name} lladdr {mac} PERMANENT"));
            }
            for (mac, remote) in &device.fdb {
                let Remote::One(ip) = remote else {
                    panic!("{remote:?} is wanted");
                };
                seen.insert(format!("{mac} dev {name} dst {ip} self permanent"));
            }
            let link = &device.link;
            seen.insert(match &link.kind {
                Kind::Vxlan(vxlan) => format!(
                    "link {name} mtu {} mac {} id {} local {} port {} learning {} gbp {}",
                    link.mtu,
                    link.mac.unwrap(),
                    vxlan.vni,
                    vxlan.local.unwrap(),
                    vxlan.port,
                    vxlan.learning,
                    vxlan.gbp
                ),
                Kind::Tun => format!("link {name} mtu {} tun", link.mtu),
                other => panic!("{other:?} has no golden case"),
            });
        }
        for (key, hop) in &tables.routes {
            if hop.via.is_unspecified() {
                let (net, dev) = (key.destination, &hop.device);
                seen.insert(format!("{net} dev {dev} proto 3"));
                continue;
            }
            let (proto, onlink) = match hop.onlink {
                true => (3, " onlink"),
                false => (116, ""),
            };
            let (net, via, dev) = (key.destination, hop.via, &hop.device);
            seen.insert(format!("{net} via {via} dev {dev} proto {proto}{onlink}"));
        }
        seen.extend(env.render().lines().map(str::to_owned));
        seen.insert(lease.render());
        Self(seen)
    }
}

/// Our own lease in the store: the one with our public IP.
fn own_lease(case: &Case, underlay: &Underlay) -> (Subnets, Lease) {
    let own = case.stored().into_iter().find_map(|(name, value)| {
        let lease = Lease::parse(value.as_bytes()).ok()?;
        let ours = lease.public_ips.iter().next() == underlay.public_ips.iter().next();
        ours.then(|| (name.parse().unwrap(), lease))
    });
    own.unwrap()
}

/// The MAC addresses were random: take flanneld's.
fn published_identity(lease: &Lease) -> Identity {
    let macs = lease.backend_data.iter().filter_map(|(family, data)| {
        let data: Value = serde_json::from_str(data).unwrap();
        let mac: Mac = data["VtepMAC"].as_str()?.parse().unwrap();
        Some((family, mac))
    });
    let said = lease.backend_data.get(Family::V4);
    Identity {
        macs: macs.collect(),
        said: said.and_then(|data| serde_json::from_str(data).ok()),
        key: None,
    }
}

fn record((name, value): (String, String)) -> Record {
    let content = name.parse::<Subnets>().map_err(|e| e.to_string());
    let content = content.and_then(|subnets| {
        let lease = Lease::parse(value.as_bytes()).map_err(|e| e.to_string())?;
        Ok((subnets, lease))
    });
    Record {
        name: name.into(),
        content,
    }
}

fn replay(case: &Case) -> (Seen, Seen) {
    let net_conf = case.net_conf();
    let backend = &net_conf.backend;
    let underlay = case.underlay(net_conf.ranges.families());
    let (subnets, published) = own_lease(case, &underlay);
    let identity = published_identity(&published);
    let lease = backend.lease(&underlay, &identity);
    let node = Node {
        subnets,
        lease: lease.clone(),
        networks: net_conf
            .ranges
            .iter()
            .map(|(f, range)| (f, range.network))
            .collect(),
    };
    let mut table = LeaseTable::default();
    let records = case.stored().into_iter().map(record).collect();
    table.fold(LeaseEvent::Snapshot(records));
    let (peers, _) = peers::accept(&table, &node);
    let (tables, _) = backend.tables(&node, &identity, &underlay, &peers, &facts());
    let env = SubnetEnv {
        networks: node.networks,
        subnets,
        mtu: backend
            .pod_mtu(node.networks.families(), &underlay)
            .unwrap(),
        ip_masq: case.read("cmd").unwrap().contains("--ip-masq"),
    };
    (
        Seen::of_flanneld(case, &subnets),
        Seen::of_twilld(&tables, &env, &lease),
    )
}

#[test]
fn the_same_input_gives_what_flanneld_made_of_it() {
    let mut used = BTreeSet::new();
    let mut unexplained = Vec::new();
    let mut replayed = 0;
    for case in cases().iter().filter(|case| {
        case.dir.join("link.json").exists()
            || !case.name.contains("lease") && case.dir.join("subnet.env").exists()
    }) {
        // What is left after the end is for the real daemon to show: `tests/flanneld_live.rs`.
        if case.read("exit.txt").is_some_and(|exit| exit.trim() == "0") {
            continue;
        }
        replayed += 1;
        let (theirs, ours) = replay(case);
        let missing = theirs
            .0
            .difference(&ours.0)
            .map(|line| (Only::Flanneld, line));
        let extra = ours
            .0
            .difference(&theirs.0)
            .map(|line| (Only::Twilld, line));
        for (side, line) in missing.chain(extra) {
            let at = DIFFERENCES.iter().position(|(name, only, part, _)| {
                *name == case.name && *only == side && line.contains(part)
            });
            match at {
                Some(at) => drop(used.insert(at)),
                None => unexplained.push(format!("{}: only {side:?}: {line}", case.name)),
            }
        }
    }
    assert!(replayed >= 20, "{replayed}");
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    let unused: Vec<_> = (0..DIFFERENCES.len())
        .filter(|at| !used.contains(at))
        .collect();
    let unused: Vec<_> = unused.iter().map(|at| DIFFERENCES[*at]).collect();
    assert!(unused.is_empty(), "no longer different: {unused:?}");
}

#[test]
fn a_public_address_behind_nat_ends_host_gw_as_with_flanneld() {
    let all = cases();
    let case = all.iter().find(|case| case.name == "host-gw-nat").unwrap();
    assert_eq!(case.read("exit.txt").unwrap().trim(), "1");
    let net_conf = case.net_conf();
    let underlay = case.underlay(net_conf.ranges.families());
    let checked = net_conf.backend.check(&net_conf.ranges, &underlay);
    assert!(checked.unwrap_err().contains("203.0.113.9"));
}

#[test]
fn leases_are_acquired_as_flanneld_did() {
    for (name, want) in [
        ("own-lease-reused", Some("10.5.44.0-24")),
        ("own-lease-incompatible", Some("10.5.20.0-24")),
        ("subnet-env-reused", Some("10.5.77.0-24")),
        ("subnet-env-taken", Some("10.5.20.0-24")),
        ("subnet-env-incompatible", Some("10.5.20.0-24")),
        ("bad-no-space", None),
    ] {
        let all = cases();
        let case = all.iter().find(|case| case.name == name).unwrap();
        let net_conf = case.net_conf();
        let underlay = case.underlay(net_conf.ranges.families());
        let before = case.read("subnet.env.before").unwrap_or_default();
        let claim = Claim {
            ranges: net_conf.ranges,
            lease: net_conf.backend.lease(&underlay, &Identity::default()),
            previous: previous_subnets(&before),
        };
        let taken = case.before().into_iter().map(|(name, value)| Taken {
            subnets: name.parse().unwrap(),
            lease: Lease::parse(value.as_bytes()).ok(),
        });
        let taken: Vec<Taken> = taken.collect();
        let got = choose(&claim, &taken, |_| 0).ok().map(|decision| {
            let stored: Vec<String> = case.stored().into_iter().map(|(name, _)| name).collect();
            for released in &decision.release {
                assert!(!stored.contains(&released.to_string()), "{name}");
            }
            match decision.choice {
                Choice::Reuse(s) | Choice::Previous(s) | Choice::Fresh(s) => s.to_string(),
            }
        });
        assert_eq!(got.as_deref(), want, "{name}");
    }
}

#[test]
fn a_bad_config_is_waited_out_or_fatal_as_with_flanneld() {
    let mut replayed = 0;
    for case in cases() {
        let bad = case.name.starts_with("bad-config-") && case.name != "bad-config-host-bits";
        if !bad {
            continue;
        }
        replayed += 1;
        let text = case.read("net-conf.json").unwrap();
        let error = NetConf::parse(text.as_bytes()).unwrap_err();
        let ends = case.read("exit.txt").unwrap().trim() == "1";
        assert_eq!(error.fatal, ends, "{}: {error}", case.name);
        let named = !error.field.is_empty() || case.name == "bad-config-undecodable";
        assert!(named, "{}: {error}", case.name);
    }
    assert!(replayed >= 15, "{replayed}");
}

#[test]
fn subnet_env_has_the_bytes_that_the_plugin_is_tested_with() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/subnet.env");
    let env = SubnetEnv {
        networks: [(Family::V4, "10.244.0.0/16".parse().unwrap())]
            .into_iter()
            .collect(),
        subnets: "10.244.1.0-24".parse().unwrap(),
        mtu: 1450,
        ip_masq: true,
    };
    assert_eq!(env.render(), fs::read_to_string(path).unwrap());
}

#[test]
fn the_net_conf_that_is_shipped_is_a_good_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/net-conf.json");
    NetConf::parse(&fs::read(path).unwrap()).unwrap();
}
