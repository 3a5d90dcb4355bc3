//! A node with a pod on it, whose state is compared before and after.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::calls::{Answer, inside, ok, run, tool, write_subnet_env};
use crate::namespaces;

/// The variables of the pod that there is not yet.
pub(crate) const NEW: [(&str, &str); 2] =
    [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];

/// Runs `f` on a node with one pod (`abc`, of the network `cbr0`) and room for another; `f` gets
/// what ADD answered for it.
pub(crate) fn with_a_pod(test: &str, f: impl FnOnce(&Value) + Send) {
    if !namespaces::available(test) {
        return;
    }
    namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
        write_subnet_env();
        std::fs::create_dir_all("/run/conf").unwrap();
        std::fs::write("/run/conf/resolv.conf", "nameserver 10.96.0.10\n").unwrap();
        f(&ok("twill", "ADD", &[], &main_config("twill")));
    });
}

/// The least config of a main plugin.
pub(crate) fn main_config(kind: &str) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": kind});
    if matches!(kind, "bridge" | "host-local") {
        config["name"] = json!("other");
        config["bridge"] = json!("br1");
        config["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]});
    }
    config
}

/// The least config of any plugin, with the pod's result where it stands behind others.
pub(crate) fn config(kind: &str, previous: &Value) -> Value {
    let mut config = main_config(kind);
    if is_chained(kind) {
        config["prevResult"] = previous.clone();
    }
    config
}

fn is_chained(kind: &str) -> bool {
    matches!(kind, "portmap" | "bandwidth" | "tuning" | "loopback")
}

/// Runs a verb: of a chained plugin for the pod that there is, of a main one for the other.
pub(crate) fn call(kind: &str, verb: &str, config: &Value) -> Answer {
    match is_chained(kind) {
        true => run(kind, verb, &[], config),
        false => run(kind, verb, &NEW, config),
    }
}

/// Everything that is written somewhere. But for the locks and what is kept about the files
/// themselves, which say nothing of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    files: BTreeMap<String, Vec<u8>>,
    devices: [Vec<String>; 3],
    /// In the words of others' tools; costs more.
    shown: Vec<String>,
}

impl State {
    /// What is quick to be had.
    pub(crate) fn now() -> State {
        let mut files = BTreeMap::new();
        for dir in ["/run", "/var/lib"] {
            collect(Path::new(dir), &mut files);
        }
        State {
            files,
            devices: ["", "pod", "pod2"].map(|place| inside(place, devices)),
            shown: vec![],
        }
    }

    /// As much of it as [`State::now`] looks at.
    pub(crate) fn quick(&self) -> State {
        State {
            files: self.files.clone(),
            devices: self.devices.clone(),
            shown: vec![],
        }
    }

    /// What is not as it was, in words.
    #[track_caller]
    pub(crate) fn assert_same(&self, now: &State, what: &str) {
        let mut changed = vec![];
        for (name, bytes) in &self.files {
            if now.files.get(name) != Some(bytes) {
                changed.push(format!("{name} is changed or gone"));
            }
        }
        let new = |name: &&String| !self.files.contains_key(*name);
        changed.extend(
            now.files
                .keys()
                .filter(new)
                .map(|name| format!("{name} is new")),
        );
        if now.devices != self.devices {
            changed.push(format!(
                "devices: {:?}, before {:?}",
                now.devices, self.devices
            ));
        }
        if now.shown != self.shown {
            changed.push(format!("{:#?}, before {:#?}", now.shown, self.shown));
        }
        assert!(changed.is_empty(), "{what}: {changed:#?}");
    }

    /// Everything.
    pub(crate) fn whole() -> State {
        let look = || {
            let commands = [
                "ip -4 -o addr",
                "ip -6 -o addr show scope global",
                "ip -4 route show table all",
                "nft list ruleset",
                "tc qdisc",
                "sysctl net.ipv4.conf net.core.somaxconn net.ipv4.ip_forward",
            ];
            // What the kernel makes of its own, link-local addresses, comes when it comes.
            commands.map(tool).concat()
        };
        State {
            shown: ["", "pod", "pod2"]
                .map(|place| inside(place, look))
                .to_vec(),
            ..State::now()
        }
    }
}

fn devices() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0));
    names.map(|name| name.trim().to_owned()).collect()
}

fn collect(dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Where the next search starts is moved on by one that fails too, as by host-local's.
        let is_upkeep = ["netns", "lock", "boot_id"].contains(&name.as_ref())
            || name.starts_with("last_reserved_ip.");
        if path.is_symlink() || is_upkeep {
            continue;
        }
        match path.is_dir() {
            true => collect(&path, files),
            false => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                files.insert(path.to_string_lossy().into_owned(), bytes);
            }
        }
    }
}

/// The answer must be an error: one document, with code and words; returns both.
pub(crate) fn refused(what: &str, answer: &Answer) -> Result<(u64, String), String> {
    let fail = |fault: &str| Err(format!("{what}: {fault}: {}", shortened(&answer.stdout)));
    if answer.exit != 1 {
        return fail("it was not refused");
    }
    let Ok(document) = serde_json::from_str::<Value>(&answer.stdout) else {
        return fail("not one document");
    };
    let (Some(code), Some(msg)) = (document["code"].as_u64(), document["msg"].as_str()) else {
        return fail("no code or no words");
    };
    let details = document["details"].as_str().unwrap_or_default();
    Ok((code, format!("{msg} {details}")))
}

pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}
