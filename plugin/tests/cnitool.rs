//! Replays what cnitool, the CNI project's own runtime, was seen to print and to leave on disk with
//! flannel's stock list: the same cnitool, with twill as the list's plugins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;
mod replayed;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use calls::{go, write_subnet_env};
use replayed::{Entry, blot, read_state};
use serde::Deserialize;

const RECORDED: &str = include_str!("golden/cnitool/cnitool-stock.jsonl");
const LISTS: &str = "/run/net.d";

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    verb: String,
    network: String,
    list: String,
    exit: i32,
    stdout: String,
    #[serde(default)]
    stderr: String,
    files: BTreeMap<String, Entry>,
}

/// The files, with the results that libcni keeps in them.
fn comparable(files: &BTreeMap<String, Entry>) -> BTreeMap<&str, Entry> {
    let blotted = |entry: &Entry| Entry {
        content: blot(&entry.content),
        ..entry.clone()
    };
    let files = files.iter();
    files
        .map(|(path, entry)| (path.as_str(), blotted(entry)))
        .collect()
}

#[test]
fn cnitool_prints_and_keeps_what_it_did_with_the_go_chain() {
    if !namespaces::available("cnitool_prints_and_keeps_what_it_did_with_the_go_chain") {
        return;
    }
    namespaces::in_a_node_of_its_own(&["gb-pod"], || {
        if !go::install(&[("cnitool", "cnitool")]) {
            return;
        }
        for name in ["flannel", "portmap"] {
            symlink(env!("CARGO_BIN_EXE_twill"), format!("{}/{name}", go::DIR)).unwrap();
        }
        write_subnet_env();
        fs::create_dir(LISTS).unwrap();
        for line in RECORDED.lines() {
            let step: Step = serde_json::from_str(line).unwrap();
            let list_path = format!("{LISTS}/{}.conflist", step.network);
            fs::write(list_path, &step.list).unwrap();
            let output = Command::new(format!("{}/cnitool", go::DIR))
                .args([&step.verb, &step.network, "/run/netns/gb-pod"])
                .env("CNI_PATH", go::DIR)
                .env("NETCONFPATH", LISTS)
                .output()
                .unwrap();
            let name = &step.step;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(step.exit), "{name}: {stderr}");
            assert_eq!(blot(&stdout), blot(&step.stdout), "{name}");
            // When all is well plugins write there for people only.
            if step.exit != 0 {
                assert_eq!(stderr, step.stderr, "{name}");
            }
            assert_eq!(comparable(&read_state()), comparable(&step.files), "{name}");
        }
    });
}
