//! The runtime and the observers, proven against plugins that are not ours: Debian's and v1.9.1.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::Netns;
use cni_test_harness::node::Node;
use cni_test_harness::observe::View;
use cni_test_harness::runtime::{Attachment, PluginFailure, Runtime};
use cni_test_harness::{skip_unless, tools, wait};
use serde_json::{Value, json};

fn bridge_list(node: &Node, version: &str) -> Result<NetworkList> {
    NetworkList::parse(
        json!({"name": "testnet", "cniVersion": version, "plugins": [{
        "type": "bridge", "bridge": "br-test", "isDefaultGateway": true, "hairpinMode": true, "mtu": 1400,
        "ipam": {"type": "host-local", "dataDir": node.dir().join("ipam"),
                 "ranges": [[{"subnet": "10.99.0.0/24"}]]}
    }, {"type": "tuning", "capabilities": {"mac": true}, "sysctl": {"net.ipv4.conf.eth0.forwarding": "1"}}]}),
    )
}

fn attach_look_and_detach(cni_path: &[PathBuf]) -> Result<()> {
    let (node, pod) = (Node::new("node")?, Netns::new("pod")?);
    let runtime = Runtime::new(node.netns(), cni_path)?;
    let list = bridge_list(&node, "1.0.0")?;
    let mut attachment = Attachment::eth0("cid-1", &pod.path());
    attachment
        .capability_args
        .insert("mac".to_owned(), "02:00:00:00:00:42".into());

    let added = runtime.add(&list, &attachment)?;
    assert_eq!(added.ips(), ["10.99.0.2".parse::<std::net::IpAddr>()?]);
    let inside = View::of(&pod);
    assert_eq!(inside.addresses_of("eth0")?, ["10.99.0.2/24"]);
    assert_eq!(inside.mtu("eth0")?, 1400);
    assert_eq!(
        inside.mac("eth0")?,
        "02:00:00:00:00:42",
        "tuning got its capability"
    );
    assert!(
        inside
            .ping("10.99.0.1".parse()?, 2, Duration::from_secs(2))?
            .complete()
    );
    assert_eq!(
        pod.sysctl("ipv4/conf/eth0/forwarding")?,
        "1",
        "the second plugin was called"
    );
    let outside = node.view();
    assert_eq!(outside.addresses_of("br-test")?, ["10.99.0.1/24"]);
    let host_end = added.result["interfaces"][1]["name"]
        .as_str()
        .context("a host end")?;
    let port = outside.link(host_end)?.context("the host end")?;
    assert_eq!(port["master"], "br-test");
    assert_eq!(port["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert!(
        outside
            .fdb(host_end)?
            .iter()
            .any(|entry| entry.state == "permanent")
    );
    assert!(
        outside
            .neighbours("br-test")?
            .iter()
            .any(|entry| entry.ip == "10.99.0.2")
    );
    assert!(
        outside
            .nft()?
            .iter()
            .all(|object: &Value| object.get("rule").is_none())
    );

    runtime.check(&list, &attachment)?;
    pod.ip(&["addr", "flush", "dev", "eth0"])?;
    let error = runtime
        .check(&list, &attachment)
        .err()
        .context("CHECK noticed nothing")?;
    let failure = PluginFailure::of(&error).context("the plugin's own failure")?;
    assert_eq!(
        (failure.exit, failure.code.is_some()),
        (1, true),
        "{failure}"
    );

    runtime.del(&list, &attachment)?;
    assert_eq!(outside.link_names()?, ["br-test"]);
    assert!(inside.link("eth0")?.is_none());
    Ok(())
}

#[test]
fn debians_plugins_attach_and_detach_a_pod() -> Result<()> {
    skip_unless!(tools::debian_plugin("bridge"));
    attach_look_and_detach(&[tools::DEBIAN_PLUGIN_DIR.into()])
}

#[test]
fn todays_plugins_attach_and_detach_a_pod() -> Result<()> {
    let path = skip_unless!(tools::go_plugin_path(&["bridge", "host-local", "tuning"]));
    attach_look_and_detach(&std::env::split_paths(&path).collect::<Vec<_>>())
}

/// A plugin that writes down how it was called.
fn recorder(node: &Node) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let dir = node.make_dir("bin")?;
    let script = format!(
        "#!/bin/sh\nexec >>{0}/calls\necho \"$CNI_COMMAND [$CNI_CONTAINERID] [$CNI_NETNS] [$CNI_ARGS] \
         [$CNI_IFNAME] [$CNI_PATH] $(cat)\"\n[ \"$CNI_COMMAND\" = ADD ] && echo '{{\"ips\":[]}}' >&3\nexit 0\n",
        node.dir().display()
    );
    // A shell that is told to write its result to a copy of stdout.
    let script = script.replacen("exec >>", "exec 3>&1 >>", 1);
    for name in ["one", "two"] {
        let path = dir.join(name);
        std::fs::write(&path, &script)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    }
    Ok(dir)
}

fn calls(node: &Node, version: &str) -> Result<String> {
    let bin = recorder(node)?;
    let runtime = Runtime::new(node.netns(), std::slice::from_ref(&bin))?;
    let list = NetworkList::parse(json!({"name": "net", "cniVersion": version, "plugins": [
        {"type": "one", "capabilities": {"mac": true}}, {"type": "two", "z": 1, "a": 2}]}))?;
    let mut attachment = Attachment::eth0("cid", std::path::Path::new("/ns"));
    attachment.args = vec![("K".into(), "V".into()), ("L".into(), "W".into())];
    attachment
        .capability_args
        .insert("mac".into(), "02::1".into());
    runtime.add(&list, &attachment)?;
    let _ = runtime.check(&list, &attachment);
    runtime.status(&list)?;
    runtime.gc(&list, Some(&[("cid".into(), "eth0".into())]))?;
    runtime.del(&list, &attachment)?;
    runtime.gc(&list, None)?;
    let calls = std::fs::read_to_string(node.dir().join("calls"))?;
    Ok(calls.replace(&bin.display().to_string(), "PATH"))
}

#[test]
fn plugins_are_called_as_libcni_calls_them() -> Result<()> {
    let head = r#"[cid] [/ns] [K=V;L=W] [eth0] [PATH] {"#;
    let none = "[] [] [] [] [PATH] {";
    let prev = r#""prevResult":{"ips":[],"cniVersion":"1.1.0"}"#;
    let one = r#""capabilities":{"mac":true},"cniVersion":"1.1.0","name":"net""#;
    let config = r#""runtimeConfig":{"mac":"02::1"}"#;
    let two = r#""a":2,"#;
    let two_tail = r#""type":"two","z":1}"#;
    let gc = |key: &str, value: &str| format!(r#""cni.dev/{key}":{value}"#);
    let valid = r#"[{"containerID":"cid","ifname":"eth0"}]"#;
    let gc_of = |value: &str| {
        let keys = format!(
            "{},{}",
            gc("attachments", value),
            gc("valid-attachments", value)
        );
        [
            format!(
                r#"GC {none}"capabilities":{{"mac":true}},{keys},"cniVersion":"1.1.0","name":"net","type":"one"}}"#
            ),
            format!(r#"GC {none}{two}{keys},"cniVersion":"1.1.0","name":"net",{two_tail}"#),
        ]
    };
    let two_plain = format!(r#"{two}"cniVersion":"1.1.0","name":"net""#);
    let mut expected = vec![
        format!(r#"ADD {head}{one},{config},"type":"one"}}"#),
        format!("ADD {head}{two_plain},{prev},{two_tail}"),
        format!(r#"CHECK {head}{one},{prev},{config},"type":"one"}}"#),
        format!("CHECK {head}{two_plain},{prev},{two_tail}"),
        format!(r#"STATUS {none}{one},"type":"one"}}"#),
        format!("STATUS {none}{two_plain},{two_tail}"),
    ];
    expected.extend(gc_of(valid));
    expected.push(format!("DEL {head}{two_plain},{prev},{two_tail}"));
    expected.push(format!(r#"DEL {head}{one},{prev},{config},"type":"one"}}"#));
    expected.extend(gc_of("null"));
    let node = Node::new("node")?;
    assert_eq!(calls(&node, "1.1.0")?.lines().collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn before_0_4_0_there_is_no_check_status_gc_nor_prev_result_on_del() -> Result<()> {
    let node = Node::new("node")?;
    let calls = calls(&node, "0.3.1")?;
    let verbs: Vec<&str> = calls
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(verbs, ["ADD", "ADD", "DEL", "DEL"]);
    assert!(
        !calls
            .lines()
            .skip(2)
            .any(|line| line.contains("prevResult")),
        "{calls}"
    );
    Ok(())
}

#[test]
fn a_plugin_that_hangs_is_killed_at_the_deadline() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new("node")?;
    let path = node.make_dir("bin")?.join("hang");
    std::fs::write(&path, "#!/bin/sh\nsleep 600\n")?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    let runtime = Runtime::new(node.netns(), &[node.dir().join("bin")])?
        .with_deadline(Duration::from_millis(300));
    let list = NetworkList::parse(json!({"name": "net", "cniVersion": "1.0.0", "type": "hang"}))?;
    let attachment = Attachment::eth0("cid", std::path::Path::new("/ns"));
    let error = format!("{:#}", runtime.add(&list, &attachment).unwrap_err());
    assert!(error.contains("did not end within 300ms"), "{error}");
    // Killed with it; the kernel takes its time.
    wait::until_true(
        "what the plugin started to be gone",
        Duration::from_secs(10),
        || Ok(node.netns().pids()?.is_empty()),
    )
}
