//! Replays what the Go plugins portmap, bandwidth, tuning and loopback were seen to do, and
//! compares: exit code, results, error codes and texts, traffic control, the interface, and the
//! files left on disk. The main plugin's part is made by hand, with the recorded names and
//! addresses.
//!
//! Host ports are made with other rules on purpose: what they do is tested with traffic
//! (`host_ports.rs`), here only what is answered.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::namespaces::{available, in_a_node_of_its_own};
use crate::node::{bridge, inside, run_plugin, tool, try_tool};
use nix::mount::{MsFlags, mount};
use serde::Deserialize;
use serde_json::Value;

const DIFFERENCES: &str = include_str!("../golden/chained/differences.md");
const BACKUPS: &str = "/run/cni/tuning";
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: String,
    exit: i32,
    stdout: String,
    #[serde(default)]
    tc: Option<String>,
    #[serde(default)]
    eth0: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    files: Option<BTreeMap<String, Entry>>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Entry {
    mode: String,
    #[serde(default)]
    dir: bool,
    #[serde(default)]
    content: String,
}

/// A row of the table: case, step, what is not compared. `*` stands for any run of letters.
struct Row {
    case: String,
    step: String,
    what: String,
}

fn rows() -> Vec<Row> {
    let rows = DIFFERENCES
        .lines()
        .skip_while(|line| !line.starts_with("|---"));
    let rows = rows.skip(1).filter(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [case, step, what, reason] = cells.as_slice() else {
            panic!("not four cells: {row}");
        };
        assert!(!reason.is_empty(), "a difference without a reason: {row}");
        Row {
            case: (*case).to_owned(),
            step: (*step).to_owned(),
            what: (*what).to_owned(),
        }
    })
    .collect()
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        [first, rest @ ..] => text.first() == Some(first) && glob(rest, &text[1..]),
    }
}

/// What the main plugin made, by its result.
fn attach(result: &Value) {
    let interface = |at: usize, key: &str| {
        result["interfaces"][at][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let pod = interface(2, "sandbox").replace("/run/netns/", "");
    let (host, ifname) = (interface(1, "name"), interface(2, "name"));
    tool(&format!(
        "ip link add {host} type veth peer name {ifname} netns {pod}"
    ));
    tool(&format!(
        "ip link set {host} master cni0 address {} up",
        interface(1, "mac")
    ));
    inside(&pod, || {
        tool(&format!(
            "ip link set {ifname} address {} up",
            interface(2, "mac")
        ));
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap();
            let nodad = if address.contains(':') { " nodad" } else { "" };
            tool(&format!("ip addr add {address} dev {ifname}{nodad}"));
        }
    });
    let gateway = result["ips"][0]["gateway"].as_str().unwrap();
    tool(&format!("ip addr replace {gateway}/24 dev cni0"));
}

fn detach(env: &BTreeMap<String, String>) {
    let pod = env["CNI_NETNS"].replace("/run/netns/", "");
    if !pod.is_empty() {
        inside(&pod, || {
            try_tool(&format!("ip link del {}", env["CNI_IFNAME"]))
        });
    }
}

/// The document with what is never the same blotted out: the hardware address of an ifb.
fn blotted(stdout: &str) -> Value {
    let mut document: Value = match stdout {
        "" => return Value::Null,
        text => serde_json::from_str(text).unwrap_or(Value::Null),
    };
    let interfaces = document["interfaces"].as_array_mut();
    for interface in interfaces.into_iter().flatten() {
        if interface["name"].as_str().unwrap().starts_with("bwp") {
            interface["mac"] = Value::from("*");
        }
    }
    document
}

/// Lines of `tc` without counters and without the second of the Go library's two identical
/// actions, which is never reached.
fn tc_lines(text: &str) -> Vec<String> {
    let mut lines = vec![];
    let mut second = false;
    for line in text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
    {
        second = line.contains("action order 2") || (second && line.trim().starts_with("index"));
        if second || line.trim().starts_with("index") || line.contains("noqueue") {
            continue;
        }
        let words = line.split(' ').collect::<Vec<_>>();
        let at = words.iter().position(|word| *word == "refcnt");
        let keep = |(n, _): &(usize, &&str)| at.is_none_or(|at| *n != at && *n != at + 1);
        let kept: Vec<&str> = words
            .iter()
            .enumerate()
            .filter(keep)
            .map(|(_, word)| *word)
            .collect();
        lines.push(kept.join(" ").trim().to_owned());
    }
    lines.sort();
    lines
}

fn tc_now() -> Vec<String> {
    let mut text = String::from("# tc qdisc\n");
    let qdiscs = tool("tc qdisc show");
    text += &qdiscs;
    for line in qdiscs.lines().filter(|line| line.contains("ingress")) {
        let device = line
            .split(' ')
            .skip_while(|word| *word != "dev")
            .nth(1)
            .unwrap();
        text += &format!("# tc filter show dev {device} ingress\n");
        text += &tool(&format!("tc filter show dev {device} ingress"));
    }
    tc_lines(&text)
}

fn eth0_now() -> BTreeMap<String, Value> {
    let shown = inside("gb-pod", || tool("ip -d -j link show eth0"));
    let link: Value = serde_json::from_str::<Value>(&shown).unwrap()[0].clone();
    ["mtu", "address", "txqlen", "promiscuity", "allmulti"]
        .map(|key| {
            (
                key.to_owned(),
                match &link[key] {
                    Value::Null => Value::from(0),
                    value => value.clone(),
                },
            )
        })
        .into()
}

fn files_now() -> BTreeMap<String, Entry> {
    let entries = fs::read_dir(BACKUPS).into_iter().flatten();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let content = fs::read_to_string(&path).unwrap();
            let entry = Entry {
                mode: format!("{mode:04o}"),
                dir: false,
                content,
            };
            (path.to_string_lossy().into_owned(), entry)
        })
        .collect()
}

/// What differs in one step, by the table's words.
fn compare(step: &Step) -> Vec<(&'static str, String)> {
    let env: Vec<(&str, &str)> = step
        .env
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let answer = run_plugin(&step.plugin, &env, &step.stdin);
    let mut differences = vec![];
    let mut differ = |what, theirs: String, ours: String| {
        if theirs != ours {
            differences.push((what, format!("theirs {theirs}\n    ours   {ours}")));
        }
    };
    differ("exit", step.exit.to_string(), answer.exit.to_string());
    let (theirs, ours) = (blotted(&step.stdout), blotted(&answer.stdout));
    if step.exit == 0 && answer.exit == 0 {
        differ("stdout", theirs.to_string(), ours.to_string());
        // Key order and indentation as well, where nothing is blotted out.
        if !step.stdout.contains("bwp") && theirs == ours {
            differ("stdout", step.stdout.clone(), answer.stdout.clone());
        }
    } else if step.exit == 1 && answer.exit == 1 {
        if theirs["code"] != 999 {
            differ("code", theirs["code"].to_string(), ours["code"].to_string());
        }
        differ("msg", theirs["msg"].to_string(), ours["msg"].to_string());
        differ(
            "msg",
            theirs["details"].to_string(),
            ours["details"].to_string(),
        );
    }
    if let Some(tc) = &step.tc {
        differ(
            "tc",
            format!("{:#?}", tc_lines(tc)),
            format!("{:#?}", tc_now()),
        );
    }
    if let Some(eth0) = &step.eth0 {
        differ("eth0", format!("{eth0:?}"), format!("{:?}", eth0_now()));
    }
    if let Some(files) = &step.files {
        let files: BTreeMap<_, _> = files.iter().filter(|(_, entry)| !entry.dir).collect();
        let now = files_now();
        let now: BTreeMap<_, _> = now.iter().collect();
        differ("files", format!("{files:?}"), format!("{now:?}"));
    }
    differences
}

fn replay(case: &str, recorded: &str) {
    if !available(case) {
        return;
    }
    let steps: Vec<Step> = recorded
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let found: Vec<(String, &'static str, String)> =
        in_a_node_of_its_own(&["gb-pod", "gb-pod2"], || {
            let none = None::<&str>;
            mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::create_dir_all("/etc/cni/tuning").unwrap();
            bridge();
            let mut found = vec![];
            for step in &steps {
                match (
                    step.plugin.as_str(),
                    step.env.get("CNI_COMMAND").map(String::as_str),
                ) {
                    ("bridge" | "flannel", Some("ADD")) => {
                        attach(&serde_json::from_str(&step.stdout).unwrap());
                    }
                    ("bridge" | "flannel", Some("DEL")) => detach(&step.env),
                    ("bridge" | "flannel" | "host-local", _) => {}
                    _ => {
                        match step.step.contains("allowlist") {
                            true => fs::write(ALLOW_LIST, "^net\\.core\\..*$\n").unwrap(),
                            false => drop(fs::remove_file(ALLOW_LIST)),
                        }
                        let differences = compare(step).into_iter();
                        found.extend(differences.map(|(what, how)| (step.step.clone(), what, how)));
                    }
                }
            }
            found
        });
    let rows = rows();
    let covers = |row: &Row, step: &str, what: &str| {
        glob(row.case.as_bytes(), case.as_bytes())
            && glob(row.step.as_bytes(), step.as_bytes())
            && row.what.split(", ").any(|listed| listed == what)
    };
    let unlisted: Vec<String> = found
        .iter()
        .filter(|(step, what, _)| !rows.iter().any(|row| covers(row, step, what)))
        .map(|(step, what, how)| format!("{case} {step} {what}:\n    {how}"))
        .collect();
    let gone: Vec<String> = rows
        .iter()
        .filter(|row| row.case == case)
        .flat_map(|row| row.what.split(", ").map(move |what| (row, what)))
        .filter(|(row, what)| {
            !found
                .iter()
                .any(|(step, w, _)| covers(row, step, what) && w == what)
        })
        .map(|(row, what)| format!("{case} {} {what} is listed and does not differ", row.step))
        .collect();
    assert!(
        unlisted.is_empty() && gone.is_empty(),
        "{}\n{}",
        unlisted.join("\n"),
        gone.join("\n")
    );
}

macro_rules! cases {
    ($($name:ident $case:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            replay($case, include_str!(concat!("../golden/chained/", $case, ".jsonl")));
        }
    )*};
}

cases! {
    bandwidth_is_limited_as_the_go_plugin_does "bandwidth",
    tuning_is_done_as_the_go_plugin_does "tuning",
    loopback_is_brought_up_as_the_go_plugin_does "loopback",
    portmap_answers_as_the_go_plugins_nftables_backend "portmap-nftables",
    portmap_answers_as_the_go_plugins_iptables_backend "portmap-iptables",
    portmap_without_snat_answers_as_the_go_plugin "portmap-snat-false",
    portmap_without_backend_answers_as_the_go_plugin "portmap-default-backend",
    portmap_answers_as_the_go_plugin_where_flows_are_remembered "portmap-conntrack",
    portmap_behind_flannel_answers_as_the_go_plugin "flannel-hostport",
    the_whole_chain_answers_as_the_go_plugins "full-chain",
}
