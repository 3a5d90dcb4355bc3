//! A node changes from the Go chain (bridge, host-local, portmap) to twill under their names, or
//! back, with pods on it: each deletes what the other made, whichever iptables the node has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::fs;

use calls::{Answer, go, reserved, tool, try_tool};
use serde_json::{Value, json};

/// The programs that the name `iptables` stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Iptables {
    /// Rules of nftables, by iptables' words.
    Nft,
    /// The kernel's older tables.
    Legacy,
}

const BOTH: [Iptables; 2] = [Iptables::Nft, Iptables::Legacy];

/// Runs a test on a node for each of the two; skips the one that the kernel lacks.
fn on_nodes(test: &str, f: impl Fn() + Send + Sync) {
    if !namespaces::available(test) {
        return;
    }
    for iptables in BOTH {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
            let (there, _, said) = try_tool("iptables-legacy -t nat -S");
            if iptables == Iptables::Legacy {
                if !there {
                    return calls::skip(&format!("no older tables in this kernel: {said}"));
                }
                // Every name of iptables leads there.
                let [nft, legacy] = ["nft", "legacy"]
                    .map(|kind| tool(&format!("readlink -f /usr/sbin/iptables-{kind}")));
                tool(&format!("mount --bind {} {}", legacy.trim(), nft.trim()));
            }
            let version = tool("iptables -V");
            let legacy = version.contains("legacy");
            assert_eq!(legacy, iptables == Iptables::Legacy, "{version}");
            let plugins = [
                ("bridge", "bridge"),
                ("host-local", "host-local"),
                ("portmap", "portmap"),
            ];
            if go::install(&plugins) {
                f();
            }
        });
    }
}

/// Who runs a plugin.
#[derive(Debug, Clone, Copy)]
enum Program {
    Go,
    Twill,
}

fn run(program: Program, name: &str, verb: &str, env: &[(&str, &str)], conf: &Value) -> Value {
    let answer: Answer = match program {
        Program::Go => go::run(name, verb, env, conf),
        Program::Twill => calls::run(name, verb, env, conf),
    };
    assert_eq!(
        answer.exit, 0,
        "{program:?} {name} {verb}: {}",
        answer.stdout
    );
    answer.json()
}

fn bridge(backend: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true,
        "ipMasq": true, "ipMasqBackend": backend, "hairpinMode": true, "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}})
}

fn portmap(backend: &str, previous: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "backend": backend,
        "prevResult": previous, "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]}})
}

/// Adds a pod with two ports; the last result.
fn add(program: Program, backend: &str, env: &[(&str, &str)]) -> Value {
    let result = run(program, "bridge", "ADD", env, &bridge(backend));
    run(program, "portmap", "ADD", env, &portmap(backend, result))
}

/// Deletes it, as a runtime does: in reverse, with the result.
fn delete(program: Program, backend: &str, env: &[(&str, &str)], result: &Value) {
    run(
        program,
        "portmap",
        "DEL",
        env,
        &portmap(backend, result.clone()),
    );
    let mut conf = bridge(backend);
    conf["prevResult"] = result.clone();
    run(program, "bridge", "DEL", env, &conf);
}

/// All rules of the node that there may be.
fn rules() -> String {
    let lists = ["iptables-save", "ip6tables-save", "nft list ruleset"];
    lists.map(tool).concat()
}

/// What rules there are of a container's.
fn rules_of(id: &str, addresses: &[&str]) -> Vec<String> {
    let words = [
        format!("id: \\\"{id}\\\""),
        format!("id: {id}"),
        format!("\"{id}\""),
    ];
    let is_of = |line: &&str| {
        words.iter().any(|word| line.contains(word))
            || addresses.iter().any(|address| line.contains(address))
    };
    rules().lines().filter(is_of).map(str::to_owned).collect()
}

/// Chains that only one container has.
fn chains() -> usize {
    let rules = rules();
    let names = rules.lines().filter_map(|line| {
        let name = line
            .strip_prefix(":CNI-")
            .or_else(|| line.trim().strip_prefix("chain CNI-"))?;
        name.split(' ').next()
    });
    names.filter(|name| !name.starts_with("HOSTPORT")).count()
}

fn assert_nothing_left(of: &str) {
    assert_eq!(
        rules_of("abc", &["10.1.2.2", "fd00:1:2::2"]),
        Vec::<String>::new(),
        "{of}"
    );
    assert_eq!(chains(), 0, "{of}: {}", rules());
    assert_eq!(reserved("cbr0"), Vec::<String>::new(), "{of}");
    assert!(!tool("ip -o link show").contains("veth"), "{of}");
}

/// The backends of the Go plugins.
const BACKENDS: [&str; 2] = ["iptables", "nftables"];

#[test]
fn twill_deletes_what_the_go_chain_made() {
    on_nodes("twill_deletes_what_the_go_chain_made", || {
        for backend in BACKENDS {
            let _ = fs::remove_dir_all("/var/lib/cni/networks");
            let result = add(Program::Go, backend, &[]);
            assert!(!rules_of("abc", &[]).is_empty(), "{}", rules());
            delete(Program::Twill, backend, &[], &result);
            delete(Program::Twill, backend, &[], &result);
            assert_nothing_left(backend);
        }
    });
}

#[test]
fn del_after_the_sandbox_went_and_without_a_result_deletes_what_the_go_chain_made() {
    on_nodes("del_after_the_sandbox_went", || {
        for backend in BACKENDS {
            let _ = fs::remove_dir_all("/var/lib/cni/networks");
            add(Program::Go, backend, &[]);
            tool("ip -n pod link del eth0");
            let none = [("CNI_NETNS", "")];
            let bare = json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "portmap"});
            run(Program::Twill, "portmap", "DEL", &none, &bare);
            run(Program::Twill, "bridge", "DEL", &none, &bare);
            assert_nothing_left(backend);
        }
    });
}

#[test]
fn the_go_chain_deletes_what_twill_made_but_for_elements_of_a_map() {
    on_nodes("the_go_chain_deletes_what_twill_made", || {
        for backend in BACKENDS {
            let _ = fs::remove_dir_all("/var/lib/cni/networks");
            let result = add(Program::Twill, backend, &[]);
            assert!(!rules_of("abc", &[]).is_empty(), "{}", rules());
            delete(Program::Go, backend, &[], &result);
            // Theirs cannot know of the maps (README, "Back to flannel").
            tool("nft delete table inet twill-hostports");
            assert_nothing_left(backend);
        }
    });
}

#[test]
fn a_pod_that_stays_keeps_its_rules_when_another_is_deleted() {
    on_nodes("a_pod_that_stays_keeps_its_rules", || {
        let env = [
            ("CNI_CONTAINERID", "stays"),
            ("CNI_NETNS", "/run/netns/pod2"),
        ];
        for backend in BACKENDS {
            let _ = fs::remove_dir_all("/var/lib/cni/networks");
            let result = add(Program::Go, backend, &[]);
            let other = add(Program::Go, backend, &env);
            let before = rules_of("stays", &["10.1.2.3"]);
            delete(Program::Twill, backend, &[], &result);
            assert_eq!(rules_of("stays", &["10.1.2.3"]), before);
            delete(Program::Go, backend, &env, &other);
            assert_nothing_left(backend);
        }
    });
}

#[test]
fn masquerading_by_iptables_is_the_go_plugins_and_gc_collects_it() {
    on_nodes("masquerading_by_iptables", || {
        let of_chains = || {
            let all = rules();
            let lines = all
                .lines()
                .filter(|line| line.contains("cbr0") && line.starts_with("-A"));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let conf = bridge("iptables");
        run(Program::Go, "bridge", "ADD", &[], &conf);
        let theirs = of_chains();
        run(Program::Go, "bridge", "DEL", &[], &conf);
        let _ = fs::remove_dir_all("/var/lib/cni/networks");
        run(Program::Twill, "bridge", "ADD", &[], &conf);
        assert_eq!(of_chains(), theirs);
        assert_eq!(theirs.len(), 6, "{theirs:#?}");

        let mut gc = bridge("iptables");
        gc["cniVersion"] = json!("1.1.0");
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "abc", "ifname": "eth0"}]);
        run(Program::Twill, "bridge", "GC", &[], &gc);
        assert_eq!(of_chains(), theirs, "it is valid");
        gc["name"] = json!("other");
        gc["cni.dev/valid-attachments"] = json!([]);
        run(Program::Twill, "bridge", "GC", &[], &gc);
        assert_eq!(of_chains(), theirs, "it is another network's");
        gc["name"] = json!("cbr0");
        run(Program::Twill, "bridge", "GC", &[], &gc);
        assert_nothing_left("GC");
    });
}

#[test]
fn rules_against_spoofing_are_checked_and_deleted_by_either_program() {
    if !namespaces::available("rules_against_spoofing") {
        return;
    }
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true,
        "macspoofchk": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}});
    let stays = [
        ("CNI_CONTAINERID", "stays"),
        ("CNI_NETNS", "/run/netns/pod2"),
    ];
    let rules = || tool("nft -s list ruleset");
    for (maker, other) in [(Program::Go, Program::Twill), (Program::Twill, Program::Go)] {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], || {
            if !go::install(&[("bridge", "bridge"), ("host-local", "host-local")]) {
                return;
            }
            let result = run(maker, "bridge", "ADD", &[], &conf);
            run(maker, "bridge", "ADD", &stays, &conf);
            assert!(
                rules().contains("jump cni-br-iface-abc-eth0"),
                "{}",
                rules()
            );
            let mut check = conf.clone();
            check["prevResult"] = result;
            run(other, "bridge", "CHECK", &[], &check);
            run(other, "bridge", "DEL", &[], &check);
            let left = rules();
            assert!(
                !left.contains("abc"),
                "{maker:?} made, {other:?} deleted: {left}"
            );
            assert_eq!(left.matches("macspoofchk-stays-eth0").count(), 4, "{left}");
            // They work on: the pod's own address passes.
            tool("ip netns exec pod2 ping -c 1 -W 5 10.1.2.1");
            run(other, "bridge", "DEL", &stays, &conf);
            let left = rules();
            assert!(
                !left.contains("cni-br-iface") && !left.contains("macspoofchk"),
                "{left}"
            );
        });
    }
}
