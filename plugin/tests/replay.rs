//! Replays what the Go plugins were seen to do, and compares: exit code, the bytes of results,
//! error codes and texts, and the files left on disk.
//!
//! Each case has a network and a mount namespace of its own, so that paths are the recorded ones.
//! Never the same are hardware addresses and the names of veth pairs; those are blotted out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod namespaces;
mod replayed;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use replayed::{Entry, blot, read_state, rules, write_state};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: String,
    exit: i32,
    stdout: String,
    #[serde(default)]
    stderr: Option<String>,
    #[serde(default)]
    files: Option<BTreeMap<String, Entry>>,
    #[serde(default)]
    iptables: Option<String>,
    #[serde(default)]
    nft: Option<String>,
    #[serde(default)]
    emptied: bool,
    #[serde(default)]
    unbridged: bool,
    #[serde(default)]
    before: Option<String>,
}

#[derive(Debug)]
struct Difference {
    case: String,
    step: String,
    what: Vec<String>,
}

impl Difference {
    fn covers(&self, case: &str, step: &str, what: &str) -> bool {
        let matches = |pattern: &str, text: &str| glob(pattern.as_bytes(), text.as_bytes());
        matches(&self.case, case)
            && matches(&self.step, step)
            && self.what.iter().any(|w| w == what)
    }
}

/// `*` is any run of bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        [first, rest @ ..] => text.first() == Some(first) && glob(rest, &text[1..]),
    }
}

fn differences() -> Vec<Difference> {
    let rows = include_str!("golden/differences.md")
        .lines()
        .skip_while(|l| !l.starts_with("|---"));
    rows.skip(1)
        .filter_map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [case, step, what, _reason] = cells.as_slice() else {
                return None;
            };
            Some(Difference {
                case: (*case).to_owned(),
                step: (*step).to_owned(),
                what: what.split(", ").map(str::to_owned).collect(),
            })
        })
        .collect()
}

struct Outcome {
    exit: i32,
    stdout: String,
    stderr: String,
}

fn run(step: &Step, stdin: &str) -> Outcome {
    let (mut stdout, mut stderr) = (vec![], vec![]);
    let program = OsString::from(format!("/opt/cni/bin/{}", step.plugin));
    // The node is a thread here, and was a process there.
    let here = |value: &String| value.replace("/proc/self/", "/proc/thread-self/");
    let exit = twill::run(twill::Process {
        program: &program,
        env: &|name| step.env.get(name).map(here).map(OsString::from),
        stdin: &mut stdin.as_bytes(),
        stdout: &mut stdout,
        stderr: &mut stderr,
    });
    Outcome {
        exit,
        stdout: String::from_utf8(stdout)
            .unwrap()
            .replace("/proc/thread-self/", "/proc/self/"),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// The daemon's file as it was before the run; the plugins only read it.
fn seed_subnet_env(files: &BTreeMap<String, Entry>) {
    let _ = fs::remove_file(SUBNET_ENV);
    if let Some(entry) = files.get(SUBNET_ENV) {
        fs::create_dir_all("/run/flannel").unwrap();
        fs::write(SUBNET_ENV, &entry.content).unwrap();
    }
}

/// What an ADD said, recorded and here.
struct Said {
    recorded: Value,
    ours: Value,
}

impl Said {
    /// The name of our pair's end on the node.
    fn host_ifname(&self) -> &str {
        self.ours["interfaces"][1]["name"]
            .as_str()
            .unwrap_or_default()
    }
}

/// Gets names and hardware addresses of our ADD where the recorded ADD's stand.
fn with_our_result(stdin: &str, said: Option<&Said>) -> String {
    let (Ok(mut config), Some(said)) = (serde_json::from_str::<Value>(stdin), said) else {
        return stdin.to_owned();
    };
    let interfaces = config
        .get_mut("prevResult")
        .and_then(|previous| previous.get_mut("interfaces"));
    let Some(interfaces) = interfaces.and_then(Value::as_array_mut) else {
        return stdin.to_owned();
    };
    for (at, interface) in interfaces.iter_mut().enumerate() {
        for key in ["name", "mac"] {
            let recorded = &said.recorded["interfaces"][at][key];
            if interface[key] == *recorded && recorded.is_string() {
                interface[key] = said.ours["interfaces"][at][key].clone();
            }
        }
    }
    config.to_string()
}

/// What the recorder did to the node before the run; `$HOST` is the node's end of the last pair.
fn prepare(commands: &str, host_ifname: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", commands]).env("HOST", host_ifname);
    let out = shell.output().unwrap();
    assert!(out.status.success(), "{commands}: {out:?}");
}

fn compare(step: &Step, got: &Outcome) -> Vec<(&'static str, String)> {
    let mut found = vec![];
    if got.exit != step.exit {
        found.push((
            "exit",
            format!(
                "exit {} {}, recorded {} {}",
                got.exit, got.stdout, step.exit, step.stdout
            ),
        ));
        return found;
    }
    if got.exit == 0 {
        if blot(&got.stdout) != blot(&step.stdout) {
            found.push((
                "stdout",
                format!("{}\nrecorded\n{}", got.stdout, step.stdout),
            ));
        }
    } else {
        let ours: Value = serde_json::from_str(&got.stdout).expect("one document on stdout");
        let theirs: Value = serde_json::from_str(&step.stdout).unwrap_or_default();
        assert!(ours["cniVersion"].is_string(), "{}: {ours}", step.step);
        if ours["code"] != theirs["code"] {
            // 999 is what libcni's plugins answer for every error without a type.
            let what = match theirs["code"].as_u64() {
                Some(999) => "code-999",
                _ => "code",
            };
            found.push((
                what,
                format!(
                    "code {}, recorded {}: {}",
                    ours["code"], theirs["code"], ours["msg"]
                ),
            ));
        }
        let words = |value: &Value| format!("{} {}", value["msg"], value["details"]);
        if blot(&words(&ours)) != blot(&words(&theirs)) {
            found.push((
                "msg",
                format!("{}\nrecorded {}", words(&ours), words(&theirs)),
            ));
        }
    }
    if let Some(stderr) = &step.stderr
        && got.stderr != *stderr
    {
        found.push(("stderr", format!("{:?}, recorded {stderr:?}", got.stderr)));
    }
    found
}

fn replay(case: &str) -> (Vec<String>, Vec<usize>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{case}.jsonl"));
    let text = fs::read_to_string(path).unwrap();
    let steps: Vec<Step> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let differences = differences();
    let (mut failures, mut used) = (vec![], vec![]);
    let mut results: BTreeMap<String, Said> = BTreeMap::new();
    let mut host_ifname = String::new();
    if let Some(files) = steps.iter().find_map(|step| step.files.as_ref()) {
        seed_subnet_env(files);
    }
    for step in &steps {
        if step.emptied {
            write_state(&BTreeMap::new());
        }
        if step.unbridged {
            let delete = ["link", "del", "cni0"];
            let _ = Command::new("ip").args(delete).output().unwrap();
        }
        if let Some(files) = &step.files {
            seed_subnet_env(files);
        }
        if let Some(commands) = &step.before {
            prepare(commands, &host_ifname);
        }
        let id = step.env.get("CNI_CONTAINERID").cloned().unwrap_or_default();
        let got = run(step, &with_our_result(&step.stdin, results.get(&id)));
        let mut found = compare(step, &got);
        if let Some(files) = &step.files {
            let ours = read_state();
            if ours != *files {
                found.push(("files", format!("{ours:#?}\nrecorded\n{files:#?}")));
                write_state(files);
            }
        }
        for (recorded, now) in [
            (&step.iptables, rules::of_iptables as fn() -> String),
            (&step.nft, rules::of_nft),
        ] {
            let Some(recorded) = recorded else { continue };
            let (ours, theirs) = (rules::in_order(&now()), rules::in_order(recorded));
            if ours != theirs {
                found.push(("rules", format!("{ours:#?}\nrecorded\n{theirs:#?}")));
            }
        }
        if got.exit == 0 && step.env.get("CNI_COMMAND").is_some_and(|c| c == "ADD") {
            let said = Said {
                recorded: serde_json::from_str(&step.stdout).unwrap_or_default(),
                ours: serde_json::from_str(&got.stdout).unwrap(),
            };
            said.host_ifname().clone_into(&mut host_ifname);
            results.insert(id, said);
        }
        for (what, words) in found {
            match differences
                .iter()
                .position(|d| d.covers(case, &step.step, what))
            {
                Some(at) => used.push(at),
                None => failures.push(format!("{case} {}: {what}: {words}", step.step)),
            }
        }
    }
    (failures, used)
}

#[test]
fn twill_does_what_the_go_plugins_did() {
    if !namespaces::available("twill_does_what_the_go_plugins_did") {
        return;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            Some(
                entry
                    .unwrap()
                    .file_name()
                    .to_str()?
                    .strip_suffix(".jsonl")?
                    .to_owned(),
            )
        })
        .collect();
    cases.sort();
    let (mut failures, mut used) = (vec![], vec![]);
    for case in &cases {
        let (failed, differing) =
            namespaces::in_a_node_of_its_own(&["gb-pod", "gb-pod2"], || replay(case));
        failures.extend(failed);
        used.extend(differing);
    }
    for (at, difference) in differences().iter().enumerate() {
        if !used.contains(&at) {
            failures.push(format!(
                "listed in differences.md and not seen: {difference:?}"
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} differences\n{}",
        failures.len(),
        failures.join("\n")
    );
}
