//! What twill refuses and the Go plugins take. Each such input stands with its reason in
//! `golden/differences.md`, and is given to both here.

use std::collections::BTreeSet;
use std::iter;

use serde_json::{Value, json};

use crate::calls::{go, run, skip};
use crate::namespaces;
use crate::scene::{State, main_config, refused};

struct Case {
    /// As the table names it.
    input: &'static str,
    plugin: &'static str,
    env: &'static [(&'static str, &'static str)],
    /// What is put into the least config.
    change: fn(&mut Value),
}

const CASES: &[Case] = &[
    Case {
        input: "`ipam.dataDir` that is relative",
        plugin: "host-local",
        env: &[],
        change: |config| config["ipam"]["dataDir"] = json!("here/networks"),
    },
    Case {
        input: "`ipam.dataDir` with `..`",
        plugin: "host-local",
        env: &[],
        change: |config| config["ipam"]["dataDir"] = json!("/var/lib/cni/../elsewhere"),
    },
    Case {
        input: "`ipam.dataDir` with control characters",
        plugin: "host-local",
        env: &[],
        change: |config| config["ipam"]["dataDir"] = json!("/var/lib/cni/a\nb"),
    },
    Case {
        input: "`ipam.resolvConf` with `..`",
        plugin: "host-local",
        env: &[],
        change: |config| config["ipam"]["resolvConf"] = json!("/run/../run/resolv.conf"),
    },
    Case {
        input: "`ipam.resolvConf` with control characters",
        plugin: "host-local",
        env: &[],
        change: |config| config["ipam"]["resolvConf"] = json!("/run/resolv\n.conf"),
    },
    Case {
        input: "`name` of more than 255 bytes",
        plugin: "bridge",
        env: &[],
        change: |config| {
            config["name"] = json!("n".repeat(256));
            // With addresses theirs fails, too, when it makes the folder of this name.
            config["ipam"] = json!({});
        },
    },
    Case {
        input: "`bridge` with control characters",
        plugin: "bridge",
        env: &[],
        change: |config| config["bridge"] = json!("b\u{1b}[2J"),
    },
    Case {
        input: "`CNI_IFNAME` with control characters",
        plugin: "bridge",
        env: &[("CNI_IFNAME", "e\u{1b}[2J")],
        change: |_| {},
    },
    Case {
        input: "`dns` with line breaks",
        plugin: "bridge",
        env: &[],
        change: |config| {
            config["ipam"] = json!({});
            config["dns"] = json!({"search": ["a\nnameserver 192.0.2.1"]});
        },
    },
];

/// The inputs that the table lists.
fn listed() -> BTreeSet<&'static str> {
    let text = include_str!("../golden/differences.md");
    let (_, section) = text
        .split_once("## Refused here, taken there")
        .expect("the section");
    let rows = section.lines().skip_while(|line| !line.starts_with("|---"));
    rows.skip(1)
        .filter_map(|row| row.strip_prefix("| ")?.split(" | ").next())
        .collect()
}

#[test]
fn what_is_refused_here_and_taken_there_is_listed_with_its_reason() {
    let cases: BTreeSet<_> = CASES.iter().map(|case| case.input).collect();
    assert_eq!(cases, listed());
    if !namespaces::available("what_is_refused_here_and_taken_there_is_listed_with_its_reason") {
        return;
    }
    let pods: Vec<String> = (2..=CASES.len()).map(|n| format!("pod{n}")).collect();
    let pods: Vec<&str> = iter::once("pod")
        .chain(pods.iter().map(String::as_str))
        .collect();
    namespaces::in_a_node_of_its_own(&pods, || {
        let installed = [("bridge", "bridge"), ("host-local", "host-local")];
        if !go::install(&installed) {
            return skip("what the Go plugins take cannot be seen");
        }
        // The thread's own: where a relative path leads.
        std::env::set_current_dir("/run").unwrap();
        for name in ["resolv.conf", "resolv\n.conf"] {
            std::fs::write(format!("/run/{name}"), "nameserver 10.96.0.10\n").unwrap();
        }
        for (case, pod) in CASES.iter().zip(&pods) {
            let netns = format!("/run/netns/{pod}");
            let mut env = vec![("CNI_NETNS", netns.as_str()), ("CNI_CONTAINERID", *pod)];
            env.extend(case.env);
            let mut config = main_config(case.plugin);
            (case.change)(&mut config);
            let before = State::now();
            let ours = run(case.plugin, "ADD", &env, &config);
            before.assert_same(&State::now(), case.input);
            let (code, _) = refused(case.input, &ours).unwrap();
            assert!([4, 7].contains(&code), "{}: {ours:?}", case.input);
            go::run(case.plugin, "ADD", &env, &config).ok();
            // What was made there before twill came must not hold up its DEL. Names that are none
            // are refused with every verb, by theirs too.
            let of_a_name = ["`name`", "`CNI_IFNAME`"];
            if !of_a_name.iter().any(|name| case.input.starts_with(name)) {
                run(case.plugin, "DEL", &env, &config).ok();
            }
            go::run(case.plugin, "DEL", &env, &config).ok();
        }
    });
}
