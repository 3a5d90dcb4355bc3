//! What a chain of plugins left on a node, as flat lines that can be compared: the result, `ip -j`,
//! `bridge -j`, `nft`, the settings of every device, the files. What is never the same twice is
//! blotted out.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use cni_test_harness::netns::Netns;
use cni_test_harness::node::Node;
use serde_json::{Map, Value, json};

/// Numbers, clocks and addresses that the kernel picks.
const VOLATILE: [&str; 23] = [
    "ifindex",
    "operstate",
    "link_index",
    "stats64",
    "stats",
    "tentative",
    "bridge_id",
    "root_id",
    "designated_bridge",
    "designated_root",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "topology_change_detected",
    "topology_change",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    "cost",
    "id",
    "expires",
    "state",
];

/// Flags that follow a carrier, some time after it comes or goes.
const CARRIER: [&str; 3] = ["NO-CARRIER", "LOWER_UP", "linkdown"];

/// A line's name and its value.
pub(crate) type Lines = BTreeMap<String, String>;

/// Everything about a node and a pod.
pub(crate) fn take(node: &Node, pod: &Netns, data_dir: &Path) -> Result<Lines> {
    let all = json!({
        "node": network(node.netns())?,
        "pod": network(pod)?,
        "files": files(data_dir, data_dir)?,
    });
    let mut lines = Lines::new();
    let blot = Blot {
        node_dir: node.dir().display().to_string(),
        pod: pod.path().display().to_string(),
    };
    flatten(String::new(), &blot.value(all), &mut lines);
    Ok(lines)
}

/// The same of a single document.
pub(crate) fn of(document: Value, node: &Node, pod: &Netns) -> Lines {
    let mut lines = Lines::new();
    let blot = Blot {
        node_dir: node.dir().display().to_string(),
        pod: pod.path().display().to_string(),
    };
    flatten(String::new(), &blot.value(document), &mut lines);
    lines
}

/// One namespace.
fn network(netns: &Netns) -> Result<Value> {
    let dump = |program: &str, args: &str| -> Result<Value> {
        let args: Vec<&str> = args.split(' ').collect();
        let text = netns.exec(program, &args)?.stdout_text();
        match text.trim() {
            "" => Ok(json!([])),
            text => serde_json::from_str(text).with_context(|| format!("read {program} {args:?}")),
        }
    };
    let mut links = Map::new();
    let mut settings = Map::new();
    for link in dump("ip", "-j -d addr")?.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        links.insert(name.to_owned(), without_link_local(link.clone()));
        if name != "lo" {
            settings.insert(name.to_owned(), device_settings(netns, name)?);
        }
    }
    let mut ports = Map::new();
    for port in dump("bridge", "-j -d link")?
        .as_array()
        .into_iter()
        .flatten()
    {
        let name = port["ifname"].as_str().unwrap_or_default();
        ports.insert(name.to_owned(), port.clone());
    }
    Ok(json!({
        "links": links,
        "ports": ports,
        "routes4": routes(dump("ip", "-j -d -4 route show table all")?),
        "routes6": routes(dump("ip", "-j -d -6 route show table all")?),
        "nft": nft(netns)?,
        "settings": settings,
        "forwarding": [netns.sysctl("ipv4/ip_forward")?, netns.sysctl("ipv6/conf/all/forwarding")?],
    }))
}

/// The link-local addresses come by themselves, some time later.
fn without_link_local(mut link: Value) -> Value {
    if let Some(addresses) = link["addr_info"].as_array_mut() {
        addresses.retain(|a| a["family"] != "inet6" || a["scope"] != "link");
    }
    link
}

/// Each route under its destination and device: their order is nobody's promise.
fn routes(dump: Value) -> Value {
    let mut all = Map::new();
    for route in dump.as_array().into_iter().flatten() {
        let text = |key: &str| route[key].as_str().unwrap_or_default();
        let dst = text("dst");
        // The kernel makes those of an IPv6 address when it is not tentative any more.
        let of_an_address = text("table") == "local" && dst.contains(':');
        if of_an_address || dst.starts_with("fe80:") || dst.starts_with("ff00:") {
            continue;
        }
        if text("type") == "multicast" {
            continue;
        }
        let key = format!("{} {dst} dev {}", text("table"), text("dev"));
        let same = all.keys().filter(|k| k.starts_with(&key)).count();
        all.insert(format!("{key} #{same}"), route.clone());
    }
    Value::Object(all)
}

/// The rules, one per line, without the numbers of those that counted packets.
fn nft(netns: &Netns) -> Result<Value> {
    let text = netns.exec("nft", &["-s", "list", "ruleset"])?.stdout_text();
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect())
}

fn device_settings(netns: &Netns, ifname: &str) -> Result<Value> {
    let read = || {
        let mut all = Map::new();
        for family in ["ipv4", "ipv6"] {
            let dir = Path::new("/proc/sys/net")
                .join(family)
                .join("conf")
                .join(ifname);
            for entry in std::fs::read_dir(&dir).into_iter().flatten() {
                let path = entry?.path();
                let key = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                // Some may not be read before they are set.
                if let Ok(value) = std::fs::read_to_string(&path) {
                    all.insert(format!("{family}/{key}"), json!(value.trim()));
                }
            }
        }
        Ok(Value::Object(all))
    };
    netns.run(read)
}

fn files(dir: &Path, base: &Path) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.strip_prefix(base)?.to_string_lossy().into_owned();
        if path.is_symlink() {
            all.insert(name, json!(std::fs::read_link(&path)?));
        } else if path.is_dir() {
            all.extend(files(&path, base)?);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            all.insert(name, json!(text));
        }
    }
    Ok(all)
}

struct Blot {
    node_dir: String,
    pod: String,
}

impl Blot {
    fn value(&self, value: Value) -> Value {
        match value {
            Value::Object(map) => {
                let kept = map
                    .into_iter()
                    .filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
                let blotted = kept.map(|(key, value)| (self.text(&key), self.value(value)));
                Value::Object(blotted.collect())
            }
            Value::Array(items) => items
                .into_iter()
                .filter(|item| !item.as_str().is_some_and(|text| CARRIER.contains(&text)))
                .map(|item| self.value(item))
                .collect(),
            Value::String(text) => json!(self.text(&text)),
            other => other,
        }
    }

    fn text(&self, text: &str) -> String {
        let text = text
            .replace(&self.node_dir, "DIR")
            .replace(&self.pod, "SANDBOX");
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(next) = rest.chars().next() {
            let (word, length) = match rest {
                _ if is_mac(rest) => ("MAC", 17),
                _ if is_veth(rest) => ("VETH", 12),
                _ => (&rest[..next.len_utf8()], next.len_utf8()),
            };
            out.push_str(word);
            rest = &rest[length..];
        }
        out
    }
}

/// Those that a case asks for begin with 02:00:00.
fn is_mac(text: &str) -> bool {
    let digits = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    let mut parts = text.as_bytes().get(..17).unwrap_or_default().chunks(3);
    let pairs = parts.clone().count() == 6
        && parts.all(|part| digits(&part[..2]) && matches!(part[2..], [] | [b':']));
    pairs && !text.starts_with("02:00:00:")
}

fn is_veth(text: &str) -> bool {
    let digits = text
        .strip_prefix("veth")
        .and_then(|rest| rest.as_bytes().get(..8));
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

fn flatten(path: String, value: &Value, into: &mut Lines) {
    let below = |key: &str| match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}/{key}"),
    };
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(below(key), value, into)),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            into.insert(path, value.to_string());
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(at, value)| flatten(below(&at.to_string()), value, into)),
        value => {
            into.insert(path, value.to_string());
        }
    }
}
