//! Plugins that are not built in, run from CNI_PATH by the specification's rules for delegates:
//! real ones of the Go project, and a script where a fault is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use calls::{Answer, go, ok, reserved, run, scratch_files, tool, write_subnet_env};
use serde_json::{Value, json};

const PATH: (&str, &str) = ("CNI_PATH", go::DIR);

fn on_a_node(test: &str, f: impl FnOnce() + Send) {
    if namespaces::available(test) {
        namespaces::in_a_node_of_its_own(&["pod", "pod2"], f);
    }
}

/// A plugin of the node's that is a shell script. It notes its verb and stdin below `/run/said`.
fn script(name: &str, body: &str) {
    let path = format!("{}/{name}", go::DIR);
    fs::create_dir_all(go::DIR).unwrap();
    fs::create_dir_all("/run/said").unwrap();
    let text = format!(
        "#!/bin/sh\ncat > /run/said/$CNI_COMMAND\necho $CNI_COMMAND >> /run/said/verbs\n{body}\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The verbs that a script was run with, in order.
fn verbs() -> String {
    let text = fs::read_to_string("/run/said/verbs").unwrap_or_default();
    let _ = fs::remove_file("/run/said/verbs");
    text.lines().collect::<Vec<_>>().join(" ")
}

fn said(verb: &str) -> Value {
    serde_json::from_slice(&fs::read(format!("/run/said/{verb}")).unwrap()).unwrap()
}

fn bridge(version: &str, ipam: Value) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "bridge", "isGateway": true,
        "isDefaultGateway": true, "ipam": ipam})
}

fn veths() -> usize {
    tool("ip -o link show type veth").lines().count()
}

#[test]
fn the_real_host_local_under_another_name_gives_and_takes_back_addresses() {
    on_a_node("the_real_host_local", || {
        if !go::install(&[("host-local", "theirs")]) {
            return;
        }
        let ranges = json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]]);
        let routes = json!([{"dst": "10.0.0.0/8"}]);
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let ipam = json!({"type": "theirs", "ranges": ranges, "routes": routes});
            let conf = bridge(version, ipam);
            let result = ok("bridge", "ADD", &[PATH], &conf);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["gateway"], "10.1.2.1");
            assert_eq!(result["ips"][1]["interface"], 2);
            assert_eq!(result["routes"][0]["dst"], "10.0.0.0/8");
            assert_eq!(result["routes"][1]["gw"], "10.1.2.1", "isDefaultGateway");
            assert_eq!(reserved("net").len(), 2);
            let address = result["ips"][0]["address"].as_str().unwrap();
            let inside = tool("ip -n pod -4 -o addr show dev eth0");
            assert!(inside.contains(address), "{inside}");
            assert!(tool("ip -4 -o addr show dev cni0").contains("10.1.2.1/24"));
            tool("ip netns exec pod ping -c 1 -W 5 10.1.2.1");
            if version >= "0.4.0" {
                let mut conf = conf.clone();
                conf["prevResult"] = result;
                ok("bridge", "CHECK", &[PATH], &conf);
            }
            ok("bridge", "DEL", &[PATH], &conf);
            ok("bridge", "DEL", &[PATH], &conf);
            assert_eq!((reserved("net"), veths()), (vec![], 0));
        }
        // Results of the first two versions have another form.
        let ipam = json!({"type": "theirs", "subnet": "10.1.2.0/24", "routes": routes});
        let result = ok("bridge", "ADD", &[PATH], &bridge("0.2.0", ipam.clone()));
        assert_eq!(result["ip4"]["gateway"], "10.1.2.1");
        assert_eq!(result["ip4"]["routes"][0], json!({"dst": "10.0.0.0/8"}));
        ok("bridge", "DEL", &[PATH], &bridge("0.2.0", ipam));
        assert_eq!(reserved("net"), Vec::<String>::new());
    });
}

#[test]
fn the_real_static_gives_its_addresses_and_name_servers() {
    on_a_node("the_real_static", || {
        if !go::install(&[("static", "static")]) {
            return;
        }
        write_subnet_env();
        let ipam = json!({"type": "static",
            "addresses": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}],
            "dns": {"nameservers": ["10.9.0.53"]}});
        for (name, conf) in [
            ("bridge", bridge("1.0.0", ipam.clone())),
            (
                "flannel",
                json!({"cniVersion": "1.0.0", "name": "net", "type": "flannel", "ipam": ipam}),
            ),
            (
                "twill",
                json!({"cniVersion": "1.0.0", "name": "net", "type": "twill", "ipam": ipam}),
            ),
        ] {
            let result = ok(name, "ADD", &[PATH], &conf);
            assert_eq!(result["ips"][0]["address"], "10.9.0.7/24", "{name}");
            assert_eq!(result["dns"]["nameservers"][0], "10.9.0.53", "{name}");
            let mut check = conf.clone();
            check["prevResult"] = result;
            ok(name, "CHECK", &[PATH], &check);
            ok(name, "DEL", &[PATH], &conf);
            assert_eq!((veths(), scratch_files()), (0, 0), "{name}");
            tool("ip link del cni0");
        }
    });
}

/// Pods are routed to whoever gave their addresses.
#[test]
fn without_a_bridge_other_plugins_addresses_are_routed_to() {
    on_a_node("without_a_bridge_other_plugins_addresses", || {
        if !go::install(&[("host-local", "theirs"), ("static", "static")]) {
            return;
        }
        write_subnet_env();
        let given = json!({"type": "static", "addresses": [
            {"address": "10.9.0.7/24", "gateway": "10.9.0.1"},
            {"address": "fd00:9::7/64", "gateway": "fd00:9::1"}]});
        for (ipam, subnet) in [(json!({"type": "theirs"}), "10.244.1."), (given, "10.9.0.")] {
            let of = |name: &str| json!({"cniVersion": "1.1.0", "name": "net", "type": name, "ipam": ipam});
            let (mut twill, mut flannel) = (of("twill"), of("flannel"));
            twill["mode"] = json!("routed");
            flannel["delegate"] = json!({"mode": "routed"});
            for (name, conf) in [("twill", twill), ("flannel", flannel)] {
                let result = ok(name, "ADD", &[PATH], &conf);
                let v4 = result["ips"][0]["address"].as_str().unwrap();
                let v4 = v4.strip_suffix("/32").expect("alone on its link");
                assert!(v4.starts_with(subnet), "{result}");
                assert_eq!(result["interfaces"].as_array().unwrap().len(), 2);
                tool(&format!("ip netns exec pod ping -c 1 -W 5 {}", {
                    result["ips"][0]["gateway"].as_str().unwrap()
                }));
                for ip in result["ips"].as_array().unwrap() {
                    let address = ip["address"].as_str().unwrap();
                    let address = address.split('/').next().unwrap();
                    tool(&format!("ping -c 1 -W 5 {address}"));
                }
                let mut check = conf.clone();
                check["prevResult"] = result.clone();
                ok(name, "CHECK", &[PATH], &check);
                ok(name, "STATUS", &[PATH], &conf);
                tool(&format!("ip route del {v4}"));
                let (code, msg) = run(name, "CHECK", &[PATH], &check).failure();
                assert!(code == 103 && msg.contains(v4), "{msg}");
                ok(name, "DEL", &[PATH], &conf);
                ok(name, "DEL", &[PATH], &conf);
                assert_eq!((reserved("net"), veths(), scratch_files()), (vec![], 0, 0));
                assert!(!tool("ip route show").contains(v4));
            }
        }
        // Without a gateway there is nobody on the link whom the pod could send to.
        let alone = json!({"type": "static", "addresses": [{"address": "10.9.0.7/24"}]});
        let conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "twill",
            "mode": "routed", "ipam": alone});
        let (code, msg) = run("twill", "ADD", &[PATH], &conf).failure();
        assert!(code == 7 && msg.contains("no gateway"), "{code} {msg}");
        ok("twill", "DEL", &[PATH], &conf);
        assert_eq!((veths(), scratch_files()), (0, 0));
    });
}

#[test]
fn the_interface_is_there_when_ipam_is_asked() {
    on_a_node("the_interface_is_there", || {
        // As DHCP needs it. The runtime's variables and the whole config are the delegate's too.
        script(
            "asks",
            r#"test "$CNI_COMMAND" = ADD || exit 0
            test "$CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" = "abc eth0 IP=10.7.0.5" || exit 3
            ip -n pod link show eth0 >/dev/null || exit 3
            echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.5/24"}]}'"#,
        );
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "x": [1],
            "ipam": {"type": "asks", "ranges": "its own", "routes": 5}});
        let env = [PATH, ("CNI_ARGS", "IP=10.7.0.5")];
        let result = ok("bridge", "ADD", &env, &conf);
        assert_eq!(
            result["ips"],
            json!([{"address": "10.7.0.5/24", "interface": 2}])
        );
        assert_eq!(said("ADD"), conf);
        assert_eq!(verbs(), "ADD");
        ok("bridge", "DEL", &env, &conf);
        assert_eq!((verbs().as_str(), veths()), ("DEL", 0));
    });
}

#[test]
fn an_error_of_ipam_is_the_runtimes_and_leaves_nothing() {
    on_a_node("an_error_of_ipam", || {
        script(
            "fails",
            r#"test "$CNI_COMMAND" = DEL && exit 0
            echo '{"code": 123, "msg": "no lease", "details": "none at all"}'; exit 1"#,
        );
        let conf = bridge("1.1.0", json!({"type": "fails"}));
        let answer = run("bridge", "ADD", &[PATH], &conf);
        assert_eq!(answer.failure(), (123, "no lease".to_owned()));
        assert_eq!(answer.json()["details"], "none at all");
        assert_eq!((verbs().as_str(), veths()), ("ADD DEL", 0), "undone by DEL");
        let status = run("bridge", "STATUS", &[PATH], &conf);
        assert_eq!(status.failure().0, 123);
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(run("bridge", "GC", &[PATH], &gc).failure().0, 123);
        assert_eq!(said("GC"), gc);

        // What comes after IPAM fails: the address is given back when the interface is gone.
        script(
            "odd",
            r#"test "$CNI_COMMAND" = DEL && ip -n pod link show eth0 && exit 3
            echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.5/24"}],
                "routes":[{"dst":"10.8.0.0/16","gw":"192.0.2.1"}]}'"#,
        );
        verbs();
        let conf = bridge("1.0.0", json!({"type": "odd"}));
        let (code, msg) = run("bridge", "ADD", &[PATH], &conf).failure();
        assert_eq!(code, 100, "{msg}");
        assert_eq!((verbs().as_str(), veths()), ("ADD DEL", 0));
        for (answer, code) in [("{}", 7), ("no JSON", 6), (r#"{"cniVersion":"7.0.0"}"#, 6)] {
            script("odd", &format!("echo '{answer}'"));
            assert_eq!(run("bridge", "ADD", &[PATH], &conf).failure().0, code);
            assert_eq!((verbs().as_str(), veths()), ("ADD DEL", 0), "{answer}");
        }
    });
}

#[test]
fn a_plugin_that_is_not_there_is_named_with_the_path() {
    on_a_node("a_plugin_that_is_not_there", || {
        write_subnet_env();
        let conf = bridge("1.1.0", json!({"type": "nosuch"}));
        let (_, msg) = run("bridge", "ADD", &[], &conf).failure();
        assert_eq!(
            msg,
            "failed to find plugin \"nosuch\" in path [/opt/cni/bin]"
        );
        assert_eq!(veths(), 0);
        assert_eq!(run("bridge", "STATUS", &[], &conf).failure().0, 50);
        for (kind, msg) in [
            (
                "nosuch",
                "failed to delegate add: failed to find plugin \"nosuch\" in path [/opt/cni/bin]",
            ),
            (
                "../x",
                "failed to delegate add: failed to find plugin \"../x\" in path [/opt/cni/bin]: that is no plugin's name",
            ),
        ] {
            let conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
                "delegate": {"type": kind}});
            assert_eq!(run("flannel", "ADD", &[], &conf).error(), msg);
            assert_eq!(scratch_files(), 0, "nothing was done");
            ok("flannel", "DEL", &[], &conf);
        }
    });
}

fn flannel(version: &str, kind: &str) -> Value {
    json!({"cniVersion": version, "name": "cbr0", "type": "flannel",
        "delegate": {"type": kind, "ipMasq": false}})
}

#[test]
fn the_real_ptp_makes_the_whole_network() {
    on_a_node("the_real_ptp", || {
        if !go::install(&[("ptp", "ptp"), ("host-local", "host-local")]) {
            return;
        }
        write_subnet_env();
        for version in ["0.3.1", "1.0.0", "1.1.0"] {
            let conf = flannel(version, "ptp");
            let result = ok("flannel", "ADD", &[PATH], &conf);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(
                result["interfaces"].as_array().unwrap().len(),
                2,
                "ptp has no bridge"
            );
            assert_eq!(reserved("cbr0").len(), 1);
            assert_eq!(scratch_files(), 1);
            let gateway = result["ips"][0]["gateway"].as_str().unwrap();
            tool(&format!("ip netns exec pod ping -c 1 -W 5 {gateway}"));
            if version != "0.3.1" {
                let mut check = conf.clone();
                check["prevResult"] = result;
                ok("flannel", "CHECK", &[PATH], &check);
                tool("ip -n pod addr flush dev eth0");
                assert_eq!(
                    run("flannel", "CHECK", &[PATH], &check).exit,
                    1,
                    "it was asked"
                );
            }
            // DEL needs neither the daemon's file nor a delegate in today's config.
            fs::remove_file("/run/flannel/subnet.env").unwrap();
            let today = json!({"cniVersion": version, "name": "cbr0", "type": "flannel"});
            ok("flannel", "DEL", &[PATH], &today);
            ok("flannel", "DEL", &[PATH], &today);
            assert_eq!((reserved("cbr0"), veths(), scratch_files()), (vec![], 0, 0));
            write_subnet_env();
        }
    });
}

#[test]
fn a_delegate_is_told_everything_and_its_errors_are_the_runtimes() {
    on_a_node("a_delegate_is_told_everything", || {
        script(
            "fails",
            r#"test "$CNI_COMMAND" = DEL && exit 0
            echo '{"code": 123, "msg": "no network"}'; exit 1"#,
        );
        write_subnet_env();
        let mut conf = flannel("1.1.0", "fails");
        conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:07"});
        conf["cni.dev/valid-attachments"] = json!([]);
        let fails = |verb: &str| {
            let (code, msg) = run("flannel", verb, &[PATH], &conf).failure();
            assert_eq!((code, msg.as_str()), (123, "no network"), "{verb}");
        };
        fails("ADD");
        assert_eq!(verbs(), "ADD DEL", "undone by DEL");
        let rendered = json!({"cniVersion": "1.1.0", "ipMasq": false, "ipam": {
                "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}],
                "type": "host-local"},
            "mtu": 1450, "name": "cbr0", "runtimeConfig": {"mac": "02:00:00:00:00:07"},
            "type": "fails"});
        assert_eq!(said("ADD"), rendered);
        fails("STATUS");
        fails("GC");
        assert_eq!(said("GC")["cni.dev/valid-attachments"], json!([]));
        verbs();
        // What the runtime calls after a failed ADD.
        ok("flannel", "DEL", &[PATH], &conf);
        assert_eq!((verbs().as_str(), scratch_files()), ("DEL", 0));
        ok("flannel", "DEL", &[PATH], &conf);
        assert_eq!(verbs(), "", "nothing is delegated that was not made");
    });
}

#[test]
fn a_delegate_is_not_asked_for_an_interface_that_is_there_nor_for_the_nodes_own() {
    on_a_node("a_delegate_is_not_asked", || {
        script("counts", "echo '{\"cniVersion\":\"1.0.0\"}'");
        write_subnet_env();
        let conf = flannel("1.0.0", "counts");
        tool("ip -n pod link add eth0 type bridge");
        let refused: Answer = run("flannel", "ADD", &[PATH], &conf);
        assert_eq!(refused.error(), "eth0 of container abc exists already");
        let own = [PATH, ("CNI_NETNS", "/proc/thread-self/ns/net")];
        assert_eq!(run("flannel", "ADD", &own, &conf).failure().0, 8);
        ok("flannel", "DEL", &[PATH], &conf);
        assert_eq!((verbs().as_str(), scratch_files()), ("", 0));
        assert!(
            tool("ip -n pod link show eth0").contains("eth0"),
            "it stays"
        );
    });
}

#[test]
fn a_delegate_whose_scratch_file_another_network_has_is_still_deleted() {
    on_a_node("a_delegate_whose_scratch_file", || {
        script("counts", "echo '{\"cniVersion\":\"1.0.0\"}'");
        write_subnet_env();
        let conf = flannel("1.0.0", "counts");
        ok("flannel", "ADD", &[PATH], &conf);
        let other = r#"{"name":"other","type":"bridge"}"#;
        fs::write("/var/lib/cni/flannel/abc", other).unwrap();
        fs::remove_file("/run/flannel/subnet.env").unwrap();
        verbs();
        ok("flannel", "DEL", &[PATH], &conf);
        assert_eq!(verbs(), "DEL");
        assert_eq!(said("DEL")["name"], "cbr0");
        assert_eq!(scratch_files(), 1, "the other network's");
    });
}
