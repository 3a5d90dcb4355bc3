//! What a pod is attached under: its host ports, its families, what is on the node already.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process;
use crate::suite::{MTU, NETWORK, Site};

/// Reservations of a node that is nearly full.
pub(super) const RESERVATIONS: u32 = 4_000;
/// Rules that somebody else, such as kube-proxy, has on the node.
pub(super) const RULES: u32 = 10_000;

const NETWORK_V6: &str = "fd00:77::/48";
const SUBNET_V6: &str = "fd00:77:0:1::/64";

/// One way of the surroundings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scene {
    /// An IPv4 address, on a node where nothing else is.
    Plain,
    /// And five ports of the node.
    FivePorts,
    /// An address of each family.
    DualStack,
    /// [`RESERVATIONS`] addresses are taken.
    FullNode,
    /// [`RULES`] iptables rules are there, and nothing is asked of them.
    ManyRules,
    /// The same, with five ports of the node.
    ManyRulesAndPorts,
}

impl Scene {
    /// All but the plain one.
    pub(super) const OTHERS: [Scene; 5] = [
        Scene::FivePorts,
        Scene::DualStack,
        Scene::FullNode,
        Scene::ManyRules,
        Scene::ManyRulesAndPorts,
    ];

    /// What it is called in the report.
    pub(super) fn name(self) -> String {
        match self {
            Scene::Plain => "plain".to_owned(),
            Scene::FivePorts => "five host ports".to_owned(),
            Scene::DualStack => "IPv4 and IPv6".to_owned(),
            Scene::FullNode => format!("{RESERVATIONS} reservations on the node"),
            Scene::ManyRules => format!("{RULES} iptables rules on the node"),
            Scene::ManyRulesAndPorts => format!("{RULES} iptables rules, five host ports"),
        }
    }

    pub(super) fn ports(self) -> u16 {
        match self {
            Scene::FivePorts | Scene::ManyRulesAndPorts => 5,
            _ => 0,
        }
    }

    pub(super) fn subnet(self) -> &'static str {
        match self {
            Scene::FullNode => "10.77.0.0/20",
            _ => "10.77.0.0/24",
        }
    }

    /// The net-conf by which a daemon has [`Scene::subnet`], and [`SUBNET_V6`] where it is wanted.
    pub(super) fn net_conf(self) -> Value {
        let len = self
            .subnet()
            .rsplit('/')
            .next()
            .and_then(|len| len.parse().ok());
        let mut conf = json!({
            "Network": NETWORK,
            "SubnetLen": len.unwrap_or(24),
            "SubnetMin": "10.77.0.0",
            "SubnetMax": "10.77.0.0",
            "Backend": {"Type": "vxlan"}
        });
        if self == Scene::DualStack {
            conf["EnableIPv6"] = json!(true);
            conf["IPv6Network"] = json!(NETWORK_V6);
            conf["IPv6SubnetMin"] = json!("fd00:77:0:1::");
            conf["IPv6SubnetMax"] = json!("fd00:77:0:1::");
        }
        conf
    }

    /// Makes the site what the scene says, and the main plugin's config where it has a part in it.
    pub(super) fn set(self, site: &Site, conf: &mut Value) -> Result<()> {
        match self {
            Scene::Plain | Scene::FivePorts => Ok(()),
            Scene::DualStack => dual_stack(site, conf),
            Scene::FullNode => reserve(site),
            Scene::ManyRules | Scene::ManyRulesAndPorts => foreign_rules(site),
        }
    }
}

/// In `subnet.env` for who reads it, and in the ranges of who has them.
fn dual_stack(site: &Site, conf: &mut Value) -> Result<()> {
    let env = format!(
        "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET=10.77.0.1/24\nFLANNEL_IPV6_NETWORK={NETWORK_V6}\n\
         FLANNEL_IPV6_SUBNET=fd00:77:0:1::1/64\nFLANNEL_MTU={MTU}\nFLANNEL_IPMASQ=true\n"
    );
    fs::write(site.subnet_file(), env).context("write subnet.env")?;
    if let Some(ranges) = conf["ipam"]["ranges"].as_array_mut() {
        ranges.push(json!([{"subnet": SUBNET_V6}]));
        conf["ipam"]["routes"] = json!([{"dst": NETWORK}, {"dst": NETWORK_V6}]);
    }
    Ok(())
}

/// The first addresses of the subnet, in host-local's files.
fn reserve(site: &Site) -> Result<()> {
    let dir = site.ipam_dir().join("cbr0");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let first = u32::from(site.subnet().network()) + 2;
    let mut last = String::new();
    for number in first..first + RESERVATIONS {
        last = std::net::Ipv4Addr::from(number).to_string();
        fs::write(dir.join(&last), format!("pod{number}\r\neth0"))?;
    }
    fs::write(dir.join("last_reserved_ip.0"), last)?;
    Ok(())
}

/// As many as kube-proxy has for some thousand services, in a chain that no packet of ours enters.
fn foreign_rules(site: &Site) -> Result<()> {
    let mut text =
        "*nat\n:SERVICES - [0:0]\n-A PREROUTING -d 10.96.0.0/12 -j SERVICES\n".to_owned();
    for number in 0..RULES {
        let address = std::net::Ipv4Addr::from(0x0a60_0000 + number);
        let _ = writeln!(
            text,
            "-A SERVICES -d {address}/32 -p tcp -m tcp --dport 443 -j RETURN"
        );
    }
    text.push_str("COMMIT\n");
    let mut command = site.node().command("iptables-restore")?;
    process::check_with(&mut command, text.as_bytes(), process::DEADLINE).map(drop)
}
